//! A daemon that an engine needs.

use crate::wait::until;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

/// A daemon that runs. Dropping it kills it.
pub struct Daemon {
    command: Vec<&'static str>,
    process: Child,
}

impl Daemon {
    /// Starts it and waits until `is_ready` returns true. The error has its log.
    pub fn start(command: &[&'static str], is_ready: impl Fn() -> bool) -> Result<Self> {
        let name = command[0].rsplit('/').next().unwrap_or_default();
        let log = format!("/var/log/{name}.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut daemon = Command::new(command[0]);
        daemon.args(&command[1..]).stdin(Stdio::null());
        daemon.stdout(output.try_clone()?).stderr(output);
        let process = daemon.spawn().with_context(|| format!("cannot run {name}"))?;
        let mut daemon = Self { command: command.to_vec(), process };
        let answers = until(&format!("{name} answers"), || {
            if let Some(status) = daemon.process.try_wait()? {
                bail!("{name} ended: {status}");
            }
            Ok(is_ready().then_some(()))
        });
        let read = || fs::read_to_string(&log).unwrap_or_default();
        answers.with_context(|| format!("{log} is\n{}", read()))?;
        Ok(daemon)
    }

    /// Stops it, but nothing that it runs, and starts it again.
    pub fn restart(&mut self, is_ready: impl Fn() -> bool) -> Result<()> {
        self.stop()?;
        *self = Self::start(&self.command, is_ready)?;
        Ok(())
    }

    /// Sends it SIGTERM, and waits until it has ended.
    pub fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM)?;
        let has_ended = || Ok(self.process.try_wait()?);
        until(&format!("{} has stopped", self.command[0]), has_ended).map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has mostly ended by then.
        let _ = self.process.kill();
    }
}
