//! What a peer does until it sleeps: every system call and every instruction, counted by ptrace(2).

use super::figures::{Figure, Section};
use super::instance::{Instance, sleeps};
use super::peer::Peer;
use super::{Plan, Progress};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;
use support::proc::PATIENCE;

/// How a tracee goes on, and what is counted by that.
#[derive(Clone, Copy)]
enum Step {
    Call,
    Instruction,
}

/// Counts the system calls and the instructions of each peer.
///
/// # Errors
///
/// When a peer cannot be traced.
pub fn measure(peers: &[Peer], plan: &Plan, progress: &Progress) -> Result<Section> {
    let mut calls = Figure::new("system calls", "", 0, peers.len());
    let mut instructions = Figure::new("instructions in user space", "", 0, peers.len());
    let mut missing = None;
    for _ in 0..plan.traces {
        for (index, peer) in peers.iter().enumerate() {
            if peer.runs_command() {
                progress.add(1);
                continue;
            }
            progress.say(&format!("first steps of {}", peer.name));
            calls.samples[index].push(count(peer, Step::Call)? as f64);
            match count(peer, Step::Instruction) {
                Ok(count) => instructions.samples[index].push(count as f64),
                Err(error) => missing = Some(format!(" No instructions are counted: {error:#}.")),
            }
            progress.add(1);
        }
    }
    Ok(Section {
        title: "Until it sleeps",
        note: format!(
            "From the first instruction, the call that it sleeps in included, counted one by one by \
             ptrace. Peers that run a command are left out.{}",
            missing.unwrap_or_default()
        ),
        figures: vec![calls, instructions],
        chart: None,
    })
}

/// Counts the steps of a peer and of what it starts, until all sleep.
fn count(peer: &Peer, step: Step) -> Result<usize> {
    let resume = |pid, signal| match step {
        Step::Call => ptrace::syscall(pid, signal),
        Step::Instruction => ptrace::step(pid, signal),
    };
    let instance = Instance::start_traced(peer)?;
    let first = waitpid(instance.pid, None)?;
    ensure!(matches!(first, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{first:?} after exec");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE;
    ptrace::setoptions(instance.pid, options)?;
    resume(instance.pid, None).context("this machine does not trace like that")?;

    let mut tracees = Tracees(BTreeSet::from([instance.pid]));
    let mut count = 0;
    let mut progressed = Instant::now();
    loop {
        let status = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL))?;
        let (pid, signal) = match status {
            WaitStatus::StillAlive => {
                if tracees.0.iter().all(|&pid| sleeps(pid)) {
                    return Ok(count);
                }
                ensure!(progressed.elapsed() < PATIENCE, "{} does not come to rest", peer.name);
                thread::yield_now();
                continue;
            }
            WaitStatus::PtraceSyscall(pid) => {
                let op = ptrace::syscall_info(pid)?.op;
                count += usize::from(op == libc::PTRACE_SYSCALL_INFO_ENTRY);
                (pid, None)
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                count += usize::from(matches!(step, Step::Instruction));
                (pid, None)
            }
            // This is how a new tracee begins.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) if tracees.0.insert(pid) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid != instance.pid => {
                tracees.0.remove(&pid);
                continue;
            }
            ended => bail!("{} ended instead of sleeping: {ended:?}", peer.name),
        };
        progressed = Instant::now();
        match resume(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is being traced. Dropping it kills it: PID 1 could not end before this process, being their
/// tracer, has collected the others.
struct Tracees(BTreeSet<Pid>);

impl Drop for Tracees {
    fn drop(&mut self) {
        for &pid in self.0.iter().rev() {
            let _ = kill(pid, Signal::SIGKILL);
            while !matches!(
                waitpid(pid, Some(WaitPidFlag::__WALL)),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_)
            ) {}
        }
    }
}
