//! Many processes of `/pause`, started by a helper in a sandbox beside the sandbox's own PID 1. They
//! share its root, and each can be PID 1 of a new PID namespace.

use crate::helper::spawn_with;
use crate::proc::{is_asleep, wait_until};
use crate::sandbox::{USER, become_user};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, execve};
use std::convert::Infallible;
use std::ffi::CStr;
use std::io::{self, PipeReader, Read, Write};
use std::ops::Range;

/// How to start a process.
#[derive(Clone, Copy)]
pub struct Spawn<'a> {
    /// Whether the process is PID 1 of a new PID namespace.
    pub is_init: bool,
    /// Argument of `/pause`, if there is one.
    pub argument: Option<&'a CStr>,
    /// Runs in the process, as the user of the image, right before exec.
    pub prepare: &'a dyn Fn() -> Result<()>,
}

impl Spawn<'_> {
    /// Starts the process. [`PauseProcess::wait_with_stderr`] returns errors that follow.
    pub fn spawn(self) -> Result<PauseProcess> {
        let (stderr, writer) = io::pipe()?;
        let flags = if self.is_init { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let pid = spawn_with(flags, Some(libc::SIGCHLD), || {
            dup2_stderr(&writer)?;
            match self.exec()? {}
        })?;
        Ok(PauseProcess { pid, stderr, status: None })
    }

    /// Becomes `/pause`.
    fn exec(self) -> Result<Infallible> {
        become_user(USER)?;
        let words: Vec<_> = [c"/pause"].into_iter().chain(self.argument).collect();
        (self.prepare)()?;
        // The environment is empty, because its size matters where there is little stack.
        let environment: [&CStr; 0] = [];
        execve(words[0], &words, &environment).context("cannot start /pause")
    }

    /// Starts a process that ptrace(2) has stopped before its first instruction, or that ended
    /// before.
    pub fn spawn_traced(self) -> Result<PauseProcess> {
        let (barrier_reader, mut barrier_writer) = io::pipe()?;
        let prepare = || {
            (&barrier_reader).read_exact(&mut [0])?;
            (self.prepare)()
        };
        let mut process = Spawn { prepare: &prepare, ..self }.spawn()?;
        let options = Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(process.pid, options).context("cannot trace")?;
        barrier_writer.write_all(&[0])?;
        loop {
            match process.wait()? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => return Ok(process),
                // With a tracer PID 1 would survive what exec kills it with.
                WaitStatus::Stopped(_, signal) => ptrace::detach(process.pid, signal)?,
                _ if process.has_ended() => return Ok(process),
                status => bail!("unexpected {status:?}"),
            }
        }
    }
}

/// The numbers of all limits of setrlimit(2).
pub const LIMITS: Range<u32> = 0..16;

/// Sets a limit of a process, the soft and the hard one, and returns what the hard one was.
pub fn set_limit(pid: Pid, resource: u32, value: u64) -> io::Result<u64> {
    let new = libc::rlimit { rlim_cur: value, rlim_max: value };
    let mut old = new;
    // SAFETY: the call reads a limit and writes one.
    Errno::result(unsafe { libc::prlimit(pid.as_raw(), resource, &new, &mut old) })?;
    Ok(old.rlim_max)
}

/// A process that becomes `/pause`. Dropping it kills it.
pub struct PauseProcess {
    /// PID in the namespace of the helper.
    pub pid: Pid,
    /// Last status from waitpid(2), or nothing if the process is running or asleep.
    pub status: Option<WaitStatus>,
    stderr: PipeReader,
}

impl PauseProcess {
    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.status, Some(WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
    }

    /// Sends a signal to the process, unless it is known to have ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Its PID may belong to another process by now.
        if self.has_ended() { Ok(()) } else { Ok(kill(self.pid, signal)?) }
    }

    /// Waits until the process sleeps or has ended.
    pub fn wait_settled(&mut self) -> Result<()> {
        wait_until("the process sleeps or has ended", || self.has_changed() || is_asleep(self.pid))
    }

    /// Executes one instruction of a process that is stopped for its tracer; returns false if it
    /// sleeps now.
    pub fn step(&mut self) -> Result<bool> {
        ptrace::step(self.pid, None)?;
        self.wait_settled()?;
        match self.status {
            None => Ok(false),
            Some(WaitStatus::Stopped(_, Signal::SIGTRAP)) => Ok(true),
            status => bail!("unexpected {status:?}"),
        }
    }

    /// Waits until the process has ended or is stopped for its tracer.
    pub fn wait(&mut self) -> Result<WaitStatus> {
        wait_until("the process has ended or is stopped", || self.has_changed())?;
        self.status.context("no status")
    }

    /// Ends the process by SIGTERM: it has to exit with 0, with nothing on stderr but `stderr`.
    pub fn stops(self, stderr: &str) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let end = self.wait_with_stderr()?;
        ensure!(end == (Ok(0), stderr.to_owned()), "{end:?}");
        Ok(())
    }

    /// Waits until the process has ended and returns its exit code, or the signal that killed it, and
    /// its stderr.
    pub fn wait_with_stderr(mut self) -> Result<(Result<i32, Signal>, String)> {
        let end = match self.wait()? {
            WaitStatus::Exited(_, code) => Ok(code),
            WaitStatus::Signaled(_, signal, _) => Err(signal),
            status => bail!("unexpected {status:?}"),
        };
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr)?;
        Ok((end, stderr))
    }

    /// Whether waitpid(2) has a new status, or will never have one.
    fn has_changed(&mut self) -> bool {
        if !self.has_ended() {
            let status = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
            self.status = status.ok().filter(|status| *status != WaitStatus::StillAlive);
        }
        self.status.is_some()
    }
}

impl Drop for PauseProcess {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}
