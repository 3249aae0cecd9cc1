//! Instances of a peer, each PID 1 of a PID namespace of its own, with nothing else new about it: their
//! memory while they sleep, and how long they take from start to end.

use super::figures::{ANONYMOUS, CLONE_TO_GONE, EXEC_TO_ASLEEP, OWN_MEMORY, PAGE_TABLES, RESIDENT};
use super::peer::Peer;
use anyhow::{Context, Result, bail, ensure};
use harness::proc::{TIMEOUT, anonymous, resident, state};
use nix::libc::SIGCHLD;
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve};
use procfs::process::Process;
use std::ffi::CString;
use std::fs::{self, File};
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

/// A running instance, by the PID of its PID 1 in this PID namespace. Dropping it kills it, and all
/// that it started.
struct Instance(Pid);

impl Instance {
    /// Starts `peer`; it has become its program when this returns.
    fn start(peer: &Peer) -> Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut words = vec![CString::new(peer.program.as_os_str().as_bytes())?];
        for argument in peer.arguments() {
            words.push(CString::new(argument)?);
        }
        let mut failure = None;
        let become_peer = || {
            let Err(error) = set_pdeathsig(Signal::SIGKILL)
                .and_then(|()| dup2_stdin(&null))
                .and_then(|()| dup2_stdout(&null))
                .and_then(|()| dup2_stderr(&null))
                .and_then(|()| execve(&words[0], &words, &[c"PATH=/usr/bin:/bin"]));
            failure = Some(error);
            127
        };
        // The cheapest way to a process, so that little but the peer is measured: the child borrows
        // this memory, and this thread waits, until it has become the program.
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_NEWPID;
        let mut stack = [0; 64 * 1024];
        // SAFETY: this is the only thread, and it waits; the child has more stack than it needs.
        let pid = unsafe { clone(Box::new(become_peer), &mut stack, flags, Some(SIGCHLD)) };
        let instance = Self(pid.context("cannot make a PID namespace")?);
        match failure {
            None => Ok(instance),
            Some(error) => bail!("cannot run {}: {error}", peer.program.display()),
        }
    }

    /// PIDs of PID 1 and its children.
    fn processes(&self) -> Result<Vec<Pid>> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0))?;
        let children = children.split_whitespace().map(|pid| Ok(Pid::from_raw(pid.parse()?)));
        [Ok(self.0)].into_iter().chain(children).collect()
    }

    /// Waits until all its processes sleep. The time that this takes is measured, so it is not given
    /// away: the state is read again and again, from an open file.
    fn wait_until_asleep(&self) -> Result<()> {
        let start = Instant::now();
        let stat = File::open(format!("/proc/{}/stat", self.0))?;
        let mut buffer = [0; 128];
        loop {
            let length = stat.read_at(&mut buffer, 0)?;
            // The state comes after the name, which is in parentheses.
            let has = |state| buffer[..length].windows(4).any(|it| it == state);
            ensure!(!has(b") Z "), "it ended instead of sleeping");
            if has(b") S ") && self.processes()?[1..].iter().all(|&it| state(it) == Some('S')) {
                return Ok(());
            }
            ensure!(start.elapsed() < TIMEOUT, "it does not come to rest");
            thread::yield_now();
        }
    }

    /// Ends it by SIGTERM, and waits until it is gone. A crash is an error.
    fn stop(self) -> Result<()> {
        kill(self.0, Signal::SIGTERM)?;
        let status = waitpid(self.0, None)?;
        // Its PID may belong to another process by now.
        mem::forget(self);
        // Those that run a command pass on how that ended: by the signal.
        let by_signal = 128 + Signal::SIGTERM as i32;
        match status {
            WaitStatus::Exited(_, code) if code == 0 || code == by_signal => Ok(()),
            status => bail!("it did not stop on SIGTERM but crashed: {status:?}"),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Starts many instances of a peer, and measures their memory while they sleep: the mean of the
/// kernel's accounts of the processes.
pub fn measure_memory(peer: &mut Peer, number: u32) -> Result<()> {
    let instances = (0..number).map(|_| Instance::start(peer));
    let instances = instances.collect::<Result<Vec<_>>>()?;
    instances.iter().try_for_each(Instance::wait_until_asleep)?;
    // VmPTE leaves out the topmost page table.
    let topmost = procfs::page_size() / 1024;
    let [mut own, mut page_tables, mut all] = [0; 3];
    for pid in instances.iter().map(Instance::processes).collect::<Result<Vec<_>>>()?.concat() {
        page_tables += Process::new(pid.as_raw())?.status()?.vmpte.context("no VmPTE")? + topmost;
        own += anonymous(pid)?;
        all += resident(pid)?;
    }
    let mut add = |figure, sum: u64| peer.results.add(figure, sum as f64 / f64::from(number));
    add(OWN_MEMORY, own + page_tables);
    add(ANONYMOUS, own);
    add(PAGE_TABLES, page_tables);
    add(RESIDENT, all);
    Ok(())
}

/// Starts and stops an instance of a peer.
pub fn measure_life(peer: &mut Peer) -> Result<()> {
    let cloned = Instant::now();
    let instance = Instance::start(peer)?;
    let started = Instant::now();
    instance.wait_until_asleep()?;
    peer.results.add(EXEC_TO_ASLEEP, started.elapsed().as_secs_f64() * 1e6);
    if peer.is_init() {
        instance.stop()?;
        peer.results.add(CLONE_TO_GONE, cloned.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}
