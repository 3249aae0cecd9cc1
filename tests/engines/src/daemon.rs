//! A daemon that an engine needs.

use crate::wait::until;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A daemon that runs. Dropping it ends it.
pub struct Daemon {
    command: Vec<&'static str>,
    process: Child,
}

impl Daemon {
    /// Starts it and waits until `ready` finds it ready. The error has the end of its log.
    pub async fn start(command: &[&'static str], ready: impl AsyncFnMut() -> bool) -> Result<Self> {
        let mut daemon = Self { command: command.to_vec(), process: launch(command)? };
        daemon.wait(ready).await?;
        Ok(daemon)
    }

    /// Stops it, but nothing that it runs, and starts it again.
    pub async fn restart(&mut self, ready: impl AsyncFnMut() -> bool) -> Result<()> {
        self.stop().await?;
        self.process = launch(&self.command)?;
        self.wait(ready).await
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(&mut self) -> Result<()> {
        let pid = self.process.id().context("it has ended")?;
        kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
        let ended = async || Ok(self.process.try_wait()?);
        until(&format!("{} has stopped", self.command[0]), ended).await.map(drop)
    }

    async fn wait(&mut self, mut ready: impl AsyncFnMut() -> bool) -> Result<()> {
        let name = self.command[0];
        let state = format!("{name} answers");
        let answers = until(&state, async || {
            if let Some(status) = self.process.try_wait()? {
                bail!("{name} ended: {status}");
            }
            Ok(ready().await.then_some(()))
        });
        answers.await.with_context(|| {
            let log = fs::read_to_string(log(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            format!("the log of {name} ends with\n{end}")
        })
    }
}

fn launch(command: &[&str]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log(command[0]))?;
    let mut daemon = Command::new(command[0]);
    daemon.args(&command[1..]).kill_on_drop(true);
    daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    daemon.spawn().with_context(|| format!("cannot run {}", command[0]))
}

fn log(name: &str) -> PathBuf {
    format!("/var/log/{name}.log").into()
}
