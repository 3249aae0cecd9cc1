//! What a peer does until it sleeps: every system call and every instruction, counted by ptrace(2).

use super::figures::{Figure, Section};
use super::instance::{Instance, sleeps};
use super::peer::Peer;
use super::{Plan, Progress};
use anyhow::{Context, Result, bail, ensure};
use harness::proc::TIMEOUT;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::thread;
use std::time::Instant;

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
            "PID 1 alone, from its first instruction to the first call that it sleeps in, that one \
             included: counted one by one by ptrace.{}",
            missing.unwrap_or_default()
        ),
        figures: vec![calls, instructions],
        chart: None,
    })
}

/// Counts the steps of a peer until it sleeps.
fn count(peer: &Peer, step: Step) -> Result<usize> {
    let instance = Instance::start_traced(peer)?;
    let first = waitpid(instance.pid, None)?;
    ensure!(matches!(first, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{first:?} after exec");
    ptrace::setoptions(instance.pid, Options::PTRACE_O_TRACESYSGOOD)?;

    let mut count = 0;
    let mut signal = None;
    loop {
        match step {
            Step::Call => ptrace::syscall(instance.pid, signal),
            Step::Instruction => ptrace::step(instance.pid, signal),
        }
        .context("this machine does not trace like that")?;
        let Some(status) = next(&instance, &peer.name)? else { return Ok(count) };
        signal = None;
        match status {
            WaitStatus::PtraceSyscall(pid) => {
                let op = ptrace::syscall_info(pid)?.op;
                count += usize::from(op == libc::PTRACE_SYSCALL_INFO_ENTRY);
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                count += usize::from(matches!(step, Step::Instruction));
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            ended => bail!("{} ended instead of sleeping: {ended:?}", peer.name),
        }
    }
}

/// The next stop of a tracee, or nothing once it sleeps.
fn next(instance: &Instance, name: &str) -> Result<Option<WaitStatus>> {
    let start = Instant::now();
    loop {
        match waitpid(instance.pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive if sleeps(instance.pid) => return Ok(None),
            WaitStatus::StillAlive => {
                ensure!(start.elapsed() < TIMEOUT, "{name} neither stops nor sleeps");
                thread::yield_now();
            }
            status => return Ok(Some(status)),
        }
    }
}
