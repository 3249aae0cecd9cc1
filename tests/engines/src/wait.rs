//! Waits for states and for commands. The limits turn a hang into a failure; they measure nothing.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Debug;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

/// Factor for all limits, above 1 on an emulated machine.
pub static SLOWNESS: AtomicU32 = AtomicU32::new(1);

/// A limit of so many seconds, for this machine.
pub fn limit(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * SLOWNESS.load(Ordering::Relaxed)
}

/// Looks again and again until `look` finds something, and returns that.
pub fn until<T>(state: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    // Kubernetes was seen to take one minute to replace a sandbox that was killed.
    let (start, limit) = (Instant::now(), limit(180));
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(start.elapsed() < limit, "timed out after {limit:?} waiting until {state}");
        sleep(Duration::from_millis(10));
    }
}

/// Looks again and again until what is seen equals what is expected.
pub fn until_equal<T: PartialEq + Debug>(
    what: &str,
    look: impl Fn() -> Result<T>,
    expected: T,
) -> Result<()> {
    let mut last = None;
    let state = format!("{what} is as expected");
    let reached = until(&state, || {
        let seen = last.insert(look()?);
        Ok((*seen == expected).then_some(()))
    });
    reached.with_context(|| format!("{what}: {last:?}, where {expected:?} was expected"))
}

/// Fails, with both of them, unless what was seen equals what was expected.
pub fn ensure_eq<T: PartialEq + Debug>(what: &str, seen: T, expected: T) -> Result<()> {
    ensure!(seen == expected, "{what}: {seen:?}, where {expected:?} was expected");
    Ok(())
}

/// Runs a command to its end, whatever its exit code, and kills it after so many seconds.
pub fn output_within(seconds: u64, command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let pid = Pid::from_raw(child.id() as i32);
    let (sender, receiver) = mpsc::channel();
    spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(limit(seconds)) else {
        kill(pid, Signal::SIGKILL)?;
        bail!("{command:?} hangs")
    };
    Ok(output?)
}

/// Runs a command that has to succeed, and returns what it prints on stdout and on stderr. The error has
/// all of its output.
pub fn streams(command: &mut Command) -> Result<[String; 2]> {
    let Output { status, stdout, stderr } = output_within(300, command)?;
    let streams = [String::from_utf8(stdout)?, String::from_utf8_lossy(&stderr).into_owned()];
    ensure!(status.success(), "{command:?}: {status}\n{}{}", streams[0], streams[1]);
    Ok(streams)
}

/// Runs a command that has to succeed and returns what it prints, without the last line break.
pub fn success(command: &mut Command) -> Result<String> {
    let [stdout, _] = streams(command)?;
    Ok(stdout.trim_end().to_owned())
}

/// Runs a script of the shell that has to succeed, with `arguments` as $1 and so on.
pub fn script(script: &str, arguments: &[&str]) -> Result<String> {
    success(Command::new("sh").args(["-euc", script, "sh"]).args(arguments))
}
