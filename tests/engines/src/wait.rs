//! Waiting for states and for commands. Every deadline here is generous: it is there to turn a hang
//! into a failure, and no measure of anything.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// How long a state may take to come about.
const STATE: Duration = Duration::from_secs(60);

/// How long a command may take: some of them build.
const COMMAND: Duration = Duration::from_secs(300);

/// Looks again and again until `look` finds something, and returns that.
///
/// # Errors
///
/// The first error of `look`, or that `state` did not come about.
pub async fn until<T>(state: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(STATE, looking).await.unwrap_or_else(|_| bail!("waited in vain until {state}"))
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
///
/// When it cannot be run, or does not end.
pub async fn end(command: &mut Command) -> Result<Output> {
    let run = command.kill_on_drop(true).stdin(Stdio::null()).output();
    let output =
        timeout(COMMAND, run).await.with_context(|| format!("{} hangs", shown(command)))?;
    output.with_context(|| format!("cannot run {}", shown(command)))
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs a command that has to succeed and returns what it prints, without the last line break.
///
/// # Errors
///
/// When it cannot be run, does not end, or fails; with all that it said.
pub async fn success(command: &mut Command) -> Result<String> {
    let output = end(command).await?;
    let answer = String::from_utf8(output.stdout)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}\n{answer}{said}", shown(command), output.status);
    Ok(answer.trim_end().to_owned())
}
