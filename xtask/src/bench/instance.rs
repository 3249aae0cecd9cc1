//! One instance of a peer: PID 1 of a PID namespace of its own, and nothing else new about it.

use super::peer::Peer;
use anyhow::{Context, Result, bail};
use harness::proc::{TIMEOUT, children};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

/// A running instance. Dropping it kills it, and all that it started.
pub struct Instance {
    /// PID 1, as seen from here.
    pub pid: Pid,
    name: String,
}

impl Instance {
    /// Starts `peer`; it has become its program when this returns.
    ///
    /// # Errors
    ///
    /// When there can be no new PID namespace, or the program cannot be run.
    pub fn start(peer: &Peer) -> Result<Self> {
        Self::start_as(peer, false)
    }

    /// Starts `peer` as a tracee of this thread: it is stopped before its first instruction.
    ///
    /// # Errors
    ///
    /// As [`Instance::start`].
    pub fn start_traced(peer: &Peer) -> Result<Self> {
        Self::start_as(peer, true)
    }

    fn start_as(peer: &Peer, traced: bool) -> Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut argv: Vec<_> = peer.words.iter().map(|word| word.as_ptr()).collect();
        argv.push(std::ptr::null());
        let environment = [c"PATH=/usr/bin:/bin".as_ptr(), std::ptr::null()];
        // The cheapest way to a process, so that little but the peer is measured: the child borrows
        // this memory, and this thread waits, until it has become the program.
        let mut flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_NEWPID;
        if !geteuid().is_root() {
            flags |= CloneFlags::CLONE_NEWUSER;
        }
        let mut failure = Errno::UnknownErrno;
        let become_peer = || {
            // SAFETY: system calls alone, on pointers that outlive the waiting parent's clone.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for stream in 0..3 {
                    libc::dup2(null.as_raw_fd(), stream);
                }
                if traced {
                    libc::ptrace(libc::PTRACE_TRACEME);
                }
                libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
            }
            failure = Errno::last();
            127
        };
        let mut stack = [0; 64 * 1024];
        // SAFETY: the child does nothing but system calls, and writes nothing but `failure`.
        let pid = unsafe { clone(Box::new(become_peer), &mut stack, flags, Some(libc::SIGCHLD)) }
            .context(
            "cannot make a PID namespace; become root, or allow it to ordinary users: \
                     sysctl user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1 \
                     kernel.apparmor_restrict_unprivileged_userns=0 (those that there are)",
        )?;
        if failure != Errno::UnknownErrno {
            waitpid(pid, None)?;
            bail!("cannot run {}, {}: {failure}", peer.name, peer.program().display());
        }
        Ok(Self { pid, name: peer.name.clone() })
    }

    /// Its processes: PID 1 and the children of that.
    pub fn processes(&self) -> Vec<Pid> {
        let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid));
        let children = match list {
            Ok(list) => {
                let numbers = list.split_whitespace().filter_map(|number| number.parse().ok());
                numbers.map(Pid::from_raw).collect()
            }
            // The kernel may be built without that file.
            Err(_) => children(self.pid),
        };
        [self.pid].into_iter().chain(children).collect()
    }

    /// Waits, without a pause, until all its processes sleep.
    ///
    /// # Errors
    ///
    /// When they do not, or it has ended.
    pub fn wait_until_asleep(&self) -> Result<()> {
        let start = Instant::now();
        let stat = File::open(format!("/proc/{}/stat", self.pid))?;
        loop {
            match state(&stat) {
                Some('S') if self.processes()[1..].iter().all(|&pid| sleeps(pid)) => return Ok(()),
                Some('Z') | None => {
                    let status = waitpid(self.pid, None)?;
                    bail!("{} ended instead of sleeping: {}", self.name, said(status));
                }
                _ if start.elapsed() > TIMEOUT => {
                    bail!("{} does not come to rest in {} s", self.name, TIMEOUT.as_secs())
                }
                _ => thread::yield_now(),
            }
        }
    }

    /// Ends it by SIGTERM and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn leave(self) -> Result<()> {
        kill(self.pid, Signal::SIGTERM)?;
        waitpid(self.pid, None)?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        // Tracees have more to tell than their end.
        while !matches!(
            waitpid(self.pid, None),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_)
        ) {}
    }
}

/// Whether a process sleeps.
pub fn sleeps(pid: Pid) -> bool {
    File::open(format!("/proc/{pid}/stat")).is_ok_and(|stat| state(&stat) == Some('S'))
}

/// The state in an open /proc/PID/stat: the letter behind the name, which may itself hold anything.
fn state(stat: &File) -> Option<char> {
    let mut buffer = [0; 128];
    let length = stat.read_at(&mut buffer, 0).ok()?;
    let end = buffer[..length].iter().rposition(|&byte| byte == b')')?;
    buffer.get(end + 2).map(|&byte| byte.into())
}

/// How a process ended, for people.
fn said(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        status => format!("{status:?}"),
    }
}
