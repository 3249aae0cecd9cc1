//! A daemon that an engine needs.

use crate::wait::until;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A daemon that runs. Dropping it ends it.
pub struct Daemon {
    command: Vec<&'static str>,
    process: Child,
}

impl Daemon {
    /// Starts it and waits until `ready` finds it ready. The error has its log.
    pub async fn start(
        command: &[&'static str],
        mut ready: impl AsyncFnMut() -> bool,
    ) -> Result<Self> {
        let name = command[0].rsplit('/').next().unwrap_or_default();
        let log = format!("/var/log/{name}.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut daemon = Command::new(command[0]);
        daemon.args(&command[1..]).kill_on_drop(true).stdin(Stdio::null());
        daemon.stdout(output.try_clone()?).stderr(output);
        let mut process = daemon.spawn().with_context(|| format!("cannot run {name}"))?;
        let state = format!("{name} answers");
        let answers = until(&state, async || {
            if let Some(status) = process.try_wait()? {
                bail!("{name} ended: {status}");
            }
            Ok(ready().await.then_some(()))
        });
        answers.await.with_context(|| {
            format!("{log} is\n{}", fs::read_to_string(&log).unwrap_or_default())
        })?;
        Ok(Self { command: command.to_vec(), process })
    }

    /// Stops it, but nothing that it runs, and starts it again.
    pub async fn restart(&mut self, ready: impl AsyncFnMut() -> bool) -> Result<()> {
        self.stop().await?;
        *self = Self::start(&self.command, ready).await?;
        Ok(())
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(&mut self) -> Result<()> {
        let pid = self.process.id().context("it has ended")?;
        kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
        let ended = async || Ok(self.process.try_wait()?);
        until(&format!("{} has stopped", self.command[0]), ended).await.map(drop)
    }
}
