//! Lives of `/pause` in great number: an actor in a sandbox starts them, beside the sandbox's own
//! PID 1. They share its root, and where asked each is PID 1 of a PID namespace of its own.

use crate::proc::{is_asleep, wait_until};
use crate::sandbox::become_user;
use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, execv};
use std::convert::Infallible;
use std::ffi::CStr;
use std::io::{self, PipeReader, Read, Write};

/// How a life begins.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// Whether it is to be PID 1.
    pub is_init: bool,
    /// The argument of `/pause`, if it gets one.
    pub argument: Option<&'a CStr>,
    /// What the process does as the user of the image, right before exec.
    pub prepare: &'a dyn Fn() -> Result<()>,
}

impl Start<'_> {
    /// Begins a life.
    ///
    /// # Errors
    ///
    /// When clone(2) fails. What fails after that is for [`Life::end`] to tell.
    pub fn begin(self) -> Result<Life> {
        let (stderr, writer) = io::pipe()?;
        let child = || {
            let Err(error) = dup2_stderr(&writer).map_err(Into::into).and_then(|()| self.live());
            eprintln!("{error:#}");
            1
        };
        let flags = if self.is_init { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let (mut stack, signal) = (vec![0; 256 * 1024], Signal::SIGCHLD as i32);
        // SAFETY: an actor has one thread, and the child, which shares no memory with it, has more
        // stack than it needs.
        let pid = unsafe { clone(Box::new(child), &mut stack, flags, Some(signal)) };
        Ok(Life { pid: pid.context("cannot clone")?, stderr, status: None })
    }

    /// Becomes `/pause`.
    fn live(self) -> Result<Infallible> {
        become_user()?;
        let words: Vec<_> = [c"/pause"].into_iter().chain(self.argument).collect();
        (self.prepare)()?;
        execv(words[0], &words).context("cannot start /pause")
    }

    /// Begins a life that ptrace(2) has stopped before its first instruction; or that ended before
    /// it came to that.
    ///
    /// # Errors
    ///
    /// As [`Start::begin`], and when it cannot be traced.
    pub fn begin_traced(self) -> Result<Life> {
        let (gate, mut key) = io::pipe()?;
        let prepare = || {
            (&gate).read_exact(&mut [0])?;
            (self.prepare)()
        };
        let mut life = Start { prepare: &prepare, ..self }.begin()?;
        let options = Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(life.pid, options).context("cannot trace")?;
        key.write_all(&[0])?;
        loop {
            match life.wait()? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => return Ok(life),
                // With a tracer PID 1 would survive what exec kills it with.
                WaitStatus::Stopped(_, signal) => ptrace::detach(life.pid, signal)?,
                _ if life.is_over() => return Ok(life),
                status => bail!("unexpected {status:?}"),
            }
        }
    }
}

/// A process that becomes `/pause`. Dropping it kills it.
pub struct Life {
    /// Its number, as the actor sees it.
    pub pid: Pid,
    stderr: PipeReader,
    status: Option<WaitStatus>,
}

impl Life {
    /// What waitpid(2) told last; nothing once it was found running or asleep.
    pub fn status(&self) -> Option<WaitStatus> {
        self.status
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.status, Some(WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
    }

    /// Sends a signal to it, if it is not known to be over.
    ///
    /// # Errors
    ///
    /// When this process may not.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Otherwise its number may be another's by now.
        if self.is_over() { Ok(()) } else { Ok(kill(self.pid, signal)?) }
    }

    /// Waits until it sleeps, or is over.
    ///
    /// # Errors
    ///
    /// When it does neither.
    pub fn settle(&mut self) -> Result<()> {
        wait_until("it sleeps or is over", || self.has_changed() || is_asleep(self.pid))
    }

    /// Carries out one instruction of a life that is stopped for its tracer; false if it sleeps now.
    ///
    /// # Errors
    ///
    /// When it does something else.
    pub fn step(&mut self) -> Result<bool> {
        ptrace::step(self.pid, None)?;
        self.settle()?;
        match self.status {
            None => Ok(false),
            Some(WaitStatus::Stopped(_, Signal::SIGTRAP)) => Ok(true),
            status => bail!("unexpected {status:?}"),
        }
    }

    /// Waits until it is over, or has been stopped for its tracer.
    ///
    /// # Errors
    ///
    /// When it does neither.
    pub fn wait(&mut self) -> Result<WaitStatus> {
        wait_until("it is over or stopped", || self.has_changed())?;
        self.status.context("no status")
    }

    /// Waits until it is over and returns its exit code, or what killed it, and what it said.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn end(mut self) -> Result<(Result<i32, Signal>, String)> {
        let end = match self.wait()? {
            WaitStatus::Exited(_, code) => Ok(code),
            WaitStatus::Signaled(_, signal, _) => Err(signal),
            status => bail!("unexpected {status:?}"),
        };
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        Ok((end, said))
    }

    /// Whether there is something new from waitpid(2), or will never be.
    fn has_changed(&mut self) -> bool {
        if !self.is_over() {
            let status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
            self.status = status.ok().filter(|status| *status != WaitStatus::StillAlive);
        }
        self.status.is_some()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if !self.is_over() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}
