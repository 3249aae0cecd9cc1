//! Waits for states and for commands. The limits turn a hang into a failure; they measure nothing.

use anyhow::{Context, Result, bail, ensure};
use std::fmt::Debug;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// How many times slower than usual this machine is: an emulated one.
pub static SLOWNESS: AtomicU32 = AtomicU32::new(1);

/// A limit of so many seconds, for this machine.
pub fn limit(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * SLOWNESS.load(Ordering::Relaxed)
}

/// Seconds after which [`until`] fails. Kubernetes was seen to take one minute to replace a sandbox that was
/// killed.
const LIMIT: u64 = 180;

/// Looks again and again until `look` finds something, and returns that.
pub async fn until<T>(state: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let limit = limit(LIMIT);
    let found = timeout(limit, looking).await;
    found.unwrap_or_else(|_| bail!("timed out after {} s waiting until {state}", limit.as_secs()))
}

/// Looks again and again until what is seen is what is expected.
pub async fn becomes<T: PartialEq + Debug>(
    what: &str,
    look: impl AsyncFn() -> Result<T>,
    expected: &T,
) -> Result<()> {
    let mut last = None;
    let state = format!("{what} is as expected");
    let reached = until(&state, async || {
        let seen = last.insert(look().await?);
        Ok((seen == expected).then_some(()))
    });
    reached.await.with_context(|| format!("{what}: {last:?}, where {expected:?} was expected"))
}

/// Runs a command to its end, whatever its exit code.
pub async fn end(command: &mut Command) -> Result<Output> {
    let run = command.kill_on_drop(true).stdin(Stdio::null()).output();
    let run = timeout(limit(300), run).await;
    let command = command.as_std();
    run.with_context(|| format!("{command:?} hangs"))?
        .with_context(|| format!("cannot run {command:?}"))
}

/// Runs a command that has to succeed and returns what it prints, without the last line break. The
/// error has all of its output.
pub async fn success(command: &mut Command) -> Result<String> {
    let output = end(command).await?;
    let stdout = String::from_utf8(output.stdout)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let (command, status) = (command.as_std(), output.status);
    ensure!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    Ok(stdout.trim_end().to_owned())
}

/// Runs a script of the shell that has to succeed, with `arguments` as $1 and so on.
pub async fn script(script: &str, arguments: &[&str]) -> Result<String> {
    success(Command::new("sh").args(["-euc", script, "sh"]).args(arguments)).await
}
