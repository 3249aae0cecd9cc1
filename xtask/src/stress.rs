//! `cargo xtask stress`: stress-tests PID 1 with orphans, fork bombs and signals.

use anyhow::{Result, ensure};
use harness::build::Flavor;
use harness::helper;
use harness::helper::{Helper, spawn, spawn_with};
use harness::orphans::{ORPHANS, SIMULTANEOUS_ORPHANS, THREADED_ORPHANS, ZOMBIES, abandon, number};
use harness::proc::{activity, children, is_asleep, resident, wait_until};
use harness::sandbox::{self, Setup, USER, become_user, ensure_inside};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::ptrace::{self, Options};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::time::Instant;

/// The command line of `cargo xtask stress`.
#[derive(clap::Args)]
pub struct Args {
    /// Run until this many orphans have exited, and finish the round
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    orphans: u64,
}

/// The workloads of a round. The number is that of orphans, of signals, or for the fork bomb the limit
/// of processes.
const WORKLOADS: &[(&str, &Helper, u64)] = &[
    ("orphans", &ORPHANS, 10_000),
    ("simultaneous", &SIMULTANEOUS_ORPHANS, 2_000),
    ("zombies", &ZOMBIES, 500),
    ("threaded", &THREADED_ORPHANS, 100),
    ("fork-bomb", &FORK_BOMB, 2_000),
    ("signals", &SIGNALS, 100_000),
    ("traced", &TRACED, 200),
    ("cloned", &CLONED, 300),
    ("stopped", &STOPPED, 200),
];

helper!(FORK_BOMB = fork_bomb);
helper!(SIGNALS = signals);
helper!(TRACED = traced);
helper!(CLONED = cloned);
helper!(STOPPED = stopped);

/// Runs the workloads in rounds and checks PID 1 after each: there is no zombie, it was not woken, and
/// its memory has not grown. At the end SIGTERM has to stop it.
pub fn run(args: &Args) -> Result<()> {
    let pod = Setup::of(Flavor::Freestanding)?.asleep()?;
    let before = (activity(pod.pid)?, resident(pod.pid)?);

    let style = "{msg:12} {wide_bar} {human_pos}/{human_len} orphans, {elapsed}";
    let bar = ProgressBar::new(args.orphans).with_style(ProgressStyle::with_template(style)?);
    let start = Instant::now();
    let mut orphans = 0;
    while orphans < args.orphans {
        for (workload, helper, number) in WORKLOADS {
            bar.set_message(*workload);
            pod.run(helper, &[&number.to_string()])?;
            match *workload {
                "signals" => flood(*number, pod.pid)?,
                // Their number depends on how fast they are.
                "fork-bomb" => {}
                _ => orphans += number,
            }
            bar.set_position(orphans);
            wait_until(&format!("no orphan or zombie is left of {workload}"), || {
                children(pod.pid).is_empty()
            })?;
            ensure!(is_asleep(pod.pid), "PID 1 does not sleep after {workload}");
            let after = (activity(pod.pid)?, resident(pod.pid)?);
            ensure!(
                after == before,
                "after {workload}, PID 1 was woken or has grown: from {before:?} to {after:?}"
            );
        }
    }
    bar.finish_and_clear();

    pod.stops(Signal::SIGTERM, sandbox::STOPPED)?;
    println!(
        "passed: {} orphans in {}: no zombie, no wake-up, no growth ({} KiB), exit code 0 on SIGTERM",
        HumanCount(orphans),
        HumanDuration(start.elapsed()),
        before.1,
    );
    Ok(())
}

/// Sends signals to a process that is PID 1, in turn all that neither end nor stop it.
fn flood(number: u64, pid: Pid) -> Result<()> {
    let harmless = |signal: &i32| {
        ![libc::SIGTERM, libc::SIGINT, libc::SIGKILL, libc::SIGSTOP].contains(signal)
    };
    for signal in (1..=64).filter(harmless).cycle().take(usize::try_from(number)?) {
        // SAFETY: numbers only; nix has no realtime signals.
        Errno::result(unsafe { libc::kill(pid.as_raw(), signal) })?;
    }
    Ok(())
}

/// Sends the signals from inside of the PID namespace.
fn signals(arguments: &[OsString]) -> Result<()> {
    ensure_inside()?;
    flood(number(arguments)? as u64, Pid::from_raw(1))
}

/// Sleeps until a signal ends it.
fn sleep_on() -> Result<()> {
    loop {
        nix::unistd::pause();
    }
}

/// Sends a signal to every process of the PID namespace but PID 1 and this one.
fn signal_all(signal: Signal) -> Result<()> {
    ensure_inside()?;
    Ok(kill(Pid::from_raw(-1), signal)?)
}

/// Processes that fork as fast as they can, up to the limit, while their parents exit.
fn fork_bomb(arguments: &[OsString]) -> Result<()> {
    ensure_inside()?;
    let limit = number(arguments)? as u64;
    let bomb = spawn(|| {
        // The limit is that of an ordinary user.
        become_user(USER)?;
        setrlimit(Resource::RLIMIT_NPROC, limit, limit)?;
        loop {
            match spawn(|| spawn(sleep_on).map(drop)) {
                Ok(_) => {}
                Err(error) if error.downcast_ref() == Some(&Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    })?;
    succeeds(bomb)?;
    signal_all(Signal::SIGKILL)
}

/// Orphans that are traced when they exit: of three one is killed, one is detached first, and one is
/// left by a tracer that exits before it.
fn traced(arguments: &[OsString]) -> Result<()> {
    ensure_inside()?;
    for _ in 0..number(arguments)? {
        abandon(sleep_on)?;
    }
    let tracer = spawn(|| {
        for (index, orphan) in children(Pid::from_raw(1)).into_iter().enumerate() {
            ptrace::seize(orphan, Options::empty())?;
            if index % 3 == 0 {
                kill(orphan, Signal::SIGKILL)?;
            } else {
                kill(orphan, Signal::SIGTERM)?;
                waitpid(orphan, None)?;
            }
            if index % 3 == 1 {
                ptrace::detach(orphan, Signal::SIGTERM)?;
            }
        }
        Ok(())
    })?;
    succeeds(tracer)?;
    signal_all(Signal::SIGKILL)
}

/// Orphans that were created with another exit signal than SIGCHLD, with none, or by vfork: those share
/// the memory of a parent that was killed while it waited for them.
fn cloned(arguments: &[OsString]) -> Result<()> {
    let vfork = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let nothing = CloneFlags::empty();
    let ways = [(nothing, Some(libc::SIGUSR1)), (nothing, None), (vfork, Some(libc::SIGCHLD))];
    for index in 0..number(arguments)? {
        let (flags, signal) = ways[index % ways.len()];
        let parent = spawn(|| {
            spawn_with(flags, signal, sleep_on)?;
            sleep_on()
        })?;
        wait_until("there is a child", || !children(parent).is_empty())?;
        kill(parent, Signal::SIGKILL)?;
        waitpid(parent, None)?;
    }
    signal_all(Signal::SIGKILL)
}

/// Waits for a child, which has to exit with 0.
fn succeeds(child: Pid) -> Result<()> {
    let status = waitpid(child, None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    Ok(())
}

/// Orphans that are stopped and continued.
fn stopped(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let parent = spawn(|| {
            let child = spawn(|| Ok(raise(Signal::SIGSTOP)?))?;
            waitid(Id::Pid(child), WaitPidFlag::WSTOPPED)?;
            Ok(())
        })?;
        succeeds(parent)?;
    }
    signal_all(Signal::SIGCONT)
}
