//! Waiting for states and for commands. Every deadline here is generous: it is there to turn a hang
//! into a failure, and no measure of anything.

use anyhow::{Context, Result, ensure};
use std::process::Output;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(60);

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
    timeout(DEADLINE, looking).await.with_context(|| format!("waited in vain until {state}"))?
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
///
/// When it cannot be run, or does not end.
pub async fn end(command: &mut Command) -> Result<Output> {
    let run = command.kill_on_drop(true).stdin(std::process::Stdio::null()).output();
    let shown = || format!("cannot run {:?}", command.as_std());
    timeout(DEADLINE, run).await.with_context(shown)?.with_context(shown)
}

/// Runs a command that has to succeed and returns what it prints, without the last line break.
///
/// # Errors
///
/// When it cannot be run, does not end, or fails; with all that it said.
pub async fn success(command: &mut Command) -> Result<String> {
    let output = end(command).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}\n{said}", command.as_std(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
