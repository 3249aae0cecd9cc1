//! `cargo xtask stress`: stress-tests PID 1 with orphans, fork bombs and signals.

use anyhow::{Context, Result, ensure};
use harness::build::Flavor;
use harness::helper;
use harness::helper::{Helper, spawn, spawn_with};
use harness::orphans::{ORPHANS, SIMULTANEOUS_ORPHANS, THREADED_ORPHANS, ZOMBIES, abandon, number};
use harness::proc::{activity, children, is_asleep, resident, state, wait_until};
use harness::sandbox::{self, Sandbox, Setup, USER, become_user, ensure_inside};
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
use std::time::{Duration, Instant};

/// The command line of `cargo xtask stress`.
#[derive(clap::Args)]
pub struct Args {
    /// Run until this many orphans have exited, and finish the round
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    orphans: u64,
    /// Run for at least this long; fractions are allowed
    #[arg(long, value_name = "MINUTES", default_value_t = 0.0)]
    minutes: f64,
}

/// The workloads of a round. The number is that of orphans, of signals, or for the fork bomb the limit
/// of processes.
const WORKLOADS: &[(&str, &Helper, u64)] = &[
    ("orphans", &ORPHANS, 10_000),
    ("simultaneous", &SIMULTANEOUS_ORPHANS, 2_000),
    ("zombies", &ZOMBIES, 500),
    ("threaded", &THREADED_ORPHANS, 100),
    ("fork-bomb", &FORK_BOMB, 2_000),
    ("killed", &KILLED, 2_000),
    ("signals", &SIGNALS, 100_000),
    ("traced", &TRACED, 200),
    ("vforked", &VFORKED, 200),
    ("cloned", &CLONED, 200),
    ("stopped", &STOPPED, 200),
];

helper!(FORK_BOMB = fork_bomb);
helper!(KILLED = killed);
helper!(SIGNALS = signals);
helper!(TRACED = traced);
helper!(VFORKED = vforked);
helper!(CLONED = cloned);
helper!(STOPPED = stopped);

/// Runs the workloads in rounds and checks PID 1 after each: there is no zombie, it was not woken, and
/// its memory has not grown. At the end SIGTERM has to stop it.
pub fn run(args: &Args) -> Result<()> {
    let time = Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?;
    let pod = Setup::of(Flavor::Freestanding)?.asleep()?;
    let before = (activity(pod.pid)?, resident(pod.pid)?);

    let style = "{msg:12} {wide_bar} {human_pos}/{human_len} orphans, {elapsed}";
    let bar = ProgressBar::new(args.orphans).with_style(ProgressStyle::with_template(style)?);
    let start = Instant::now();
    let mut orphans = 0;
    let mut rounds = 0;
    while orphans < args.orphans || start.elapsed() < time {
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
            check(&pod, before).with_context(|| format!("after {workload}, in round {rounds}"))?;
        }
        rounds += 1;
    }
    bar.finish_and_clear();

    pod.stops(Signal::SIGTERM, sandbox::STOPPED)?;
    println!(
        "passed: {} orphans in {}, {} workloads: no zombie, no wake-up, no growth \
         ({} KiB), exit code 0 on SIGTERM",
        HumanCount(orphans),
        HumanDuration(start.elapsed()),
        HumanCount(rounds * WORKLOADS.len() as u64),
        before.1,
    );
    Ok(())
}

/// Checks PID 1 when a workload has ended.
fn check(pod: &Sandbox, before: (harness::proc::Activity, u64)) -> Result<()> {
    wait_until("no orphan or zombie is left", || children(pod.pid).is_empty())?;
    ensure!(is_asleep(pod.pid), "PID 1 does not sleep but is in state {:?}", state(pod.pid));
    let after = (activity(pod.pid)?, resident(pod.pid)?);
    ensure!(after == before, "PID 1 was woken or has grown: from {before:?} to {after:?}");
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

/// Kills every process of the PID namespace but PID 1 and this one.
fn kill_all() -> Result<()> {
    ensure_inside()?;
    Ok(kill(Pid::from_raw(-1), Signal::SIGKILL)?)
}

/// Orphans that are killed all at once.
fn killed(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        abandon(sleep_on)?;
    }
    kill_all()
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
    kill_all()
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
    kill_all()
}

/// Orphans of vfork: they share the memory of a parent that was killed while it waited for them.
fn vforked(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        let parent = spawn(|| spawn_with(flags, Some(libc::SIGCHLD), sleep_on).map(drop))?;
        wait_until("there is a child", || !children(parent).is_empty())?;
        kill(parent, Signal::SIGKILL)?;
        waitpid(parent, None)?;
    }
    kill_all()
}

/// Orphans that were created with another exit signal than SIGCHLD, or with none.
fn cloned(arguments: &[OsString]) -> Result<()> {
    for index in 0..number(arguments)? {
        let signal = [Some(libc::SIGUSR1), None][index % 2];
        succeeds(spawn(|| spawn_with(CloneFlags::empty(), signal, sleep_on).map(drop))?)?;
    }
    kill_all()
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
    ensure_inside()?;
    Ok(kill(Pid::from_raw(-1), Signal::SIGCONT)?)
}
