//! One instance of a peer: PID 1 of a PID namespace of its own, with nothing else new about it.

use super::peer::Peer;
use anyhow::{Context, Result, bail, ensure};
use harness::proc::{TIMEOUT, state};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

/// A running instance. Dropping it kills it, and all that it started.
pub struct Instance {
    /// PID of its PID 1 in this PID namespace.
    pub pid: Pid,
    name: &'static str,
}

impl Instance {
    /// Starts `peer`; it has become its program when this returns.
    pub fn start(peer: &Peer) -> Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut words = vec![CString::new(peer.program.as_os_str().as_bytes())?];
        for argument in peer.arguments {
            words.push(CString::new(*argument)?);
        }
        let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        argv.push(std::ptr::null());
        let environment = [c"PATH=/usr/bin:/bin".as_ptr(), std::ptr::null()];
        // The cheapest way to a process, so that little but the peer is measured: the child borrows
        // this memory, and this thread waits, until it has become the program.
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_NEWPID;
        let mut failure = None;
        let become_peer = || {
            // SAFETY: only system calls, on pointers that outlive the waiting parent's clone.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for stream in 0..3 {
                    libc::dup2(null.as_raw_fd(), stream);
                }
                libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
            }
            failure = Some(Errno::last());
            127
        };
        let mut stack = [0; 64 * 1024];
        // SAFETY: the child makes only system calls, and writes to nothing but `failure`.
        let pid = unsafe { clone(Box::new(become_peer), &mut stack, flags, Some(libc::SIGCHLD)) };
        let pid = pid.context("cannot make a PID namespace")?;
        if let Some(failure) = failure {
            waitpid(pid, None)?;
            bail!("cannot run {}, {}: {failure}", peer.name, peer.program.display());
        }
        Ok(Self { pid, name: peer.name })
    }

    /// PIDs of PID 1 and its children.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid))?;
        let children =
            children.split_whitespace().map(str::parse).collect::<Result<Vec<_>, _>>()?;
        Ok([self.pid].into_iter().chain(children.into_iter().map(Pid::from_raw)).collect())
    }

    /// Waits until all its processes sleep. The time that this takes is measured, so it is not given
    /// away: the state is read again and again, from an open file.
    pub fn wait_until_asleep(&self) -> Result<()> {
        let start = Instant::now();
        let stat = File::open(format!("/proc/{}/stat", self.pid))?;
        loop {
            match state_in(&stat) {
                Some('S') if self.processes()?[1..].iter().all(|&it| state(it) == Some('S')) => {
                    return Ok(());
                }
                Some('Z') => {
                    let status = waitpid(self.pid, None)?;
                    bail!("{} ended instead of sleeping: {status:?}", self.name);
                }
                _ => ensure!(start.elapsed() < TIMEOUT, "{} does not come to rest", self.name),
            }
            thread::yield_now();
        }
    }

    /// Ends it by SIGTERM, and waits until it is gone. A crash is an error.
    pub fn stop(self) -> Result<()> {
        kill(self.pid, Signal::SIGTERM)?;
        let status = waitpid(self.pid, None)?;
        let name = self.name;
        std::mem::forget(self);
        // Those that run a command pass on how that ended: by the signal.
        let by_signal = 128 + Signal::SIGTERM as i32;
        match status {
            WaitStatus::Exited(_, code) if code == 0 || code == by_signal => Ok(()),
            status => bail!("{name} did not stop on SIGTERM but crashed: {status:?}"),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// The state in an open /proc/PID/stat: the letter behind the name, which may itself hold anything.
fn state_in(stat: &File) -> Option<char> {
    let mut buffer = [0; 128];
    let length = stat.read_at(&mut buffer, 0).ok()?;
    let end = buffer[..length].iter().rposition(|&byte| byte == b')')?;
    buffer.get(end + 2).map(|&byte| byte.into())
}
