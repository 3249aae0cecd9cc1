//! `cargo xtask soak`: storms over PID 1, for as long as one likes.

use anyhow::{Context, Result, ensure};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::ptrace::{self, Options};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::time::{Duration, Instant};
use support::actor::{Part, spawn};
use support::artifact::{self, Flavor};
use support::orphans::{abandon, number};
use support::proc::{activity, children, is_asleep, resident, state, wait_until};
use support::sandbox::{Sandbox, Setup, become_user};

/// The command line of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Args {
    /// Go on until this many orphans have died, or a few more
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    orphans: u64,
    /// Go on for at least this long; a fraction will do
    #[arg(long, value_name = "MINUTES", default_value_t = 0.0)]
    minutes: f64,
}

/// The storms that a round is made of, and the number that each is told: of orphans, of processes
/// at most in the fork storm, of signals in the flood.
const STORMS: &[(&str, u64)] = &[
    ("orphans", 10_000),
    ("crowd", 2_000),
    ("late", 500),
    ("threaded", 100),
    ("fork-storm", 2_000),
    ("massacre", 2_000),
    ("flood", 100_000),
    ("traced", 200),
    ("vforked", 200),
    ("cloned", 200),
    ("stopped", 200),
];

/// The parts of the storms that are not among [`support::orphans`].
pub const PARTS: &[Part] = &[
    ("fork-storm", play_fork_storm),
    ("massacre", play_massacre),
    ("flood", play_flood),
    ("traced", play_traced),
    ("vforked", play_vforked),
    ("cloned", play_cloned),
    ("stopped", play_stopped),
];

/// Lets storms rage, round after round, and looks at PID 1 after each: no zombie, no wake-up, no
/// growth, and in the end it stops as always.
///
/// # Errors
///
/// Names the storm that PID 1 was the worse for.
pub fn run(args: &Args) -> Result<()> {
    let time = Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?;
    let pod = Setup::new(&artifact::build(Flavor::Freestanding)?).start()?;
    pod.wait_until_asleep()?;
    let before = (activity(pod.pid)?, resident(pod.pid)?);

    let style = "{msg:12} {wide_bar} {human_pos}/{human_len} orphans, {elapsed}";
    let bar = ProgressBar::new(args.orphans).with_style(ProgressStyle::with_template(style)?);
    let start = Instant::now();
    let mut orphans = 0;
    let mut rounds = 0;
    while orphans < args.orphans || start.elapsed() < time {
        for (storm, number) in STORMS {
            bar.set_message(*storm);
            pod.act(storm, &[&number.to_string()])?;
            match *storm {
                "flood" => flood(pod.pid, *number)?,
                // As many as there may be.
                "fork-storm" => {}
                _ => orphans += number,
            }
            bar.set_position(orphans);
            check(&pod, before).with_context(|| format!("after {storm}, in round {rounds}"))?;
        }
        rounds += 1;
    }
    bar.finish_and_clear();

    pod.signal(Signal::SIGTERM)?;
    let (status, stderr) = pod.wait()?;
    ensure!(status.code() == Some(0) && stderr == "pause: SIGTERM\n", "{status}, {stderr:?}");
    println!(
        "passed: {} orphans in {}, {} storms: no zombie, no wake-up, no growth \
         ({} KiB), SIGTERM ended it with 0",
        HumanCount(orphans),
        HumanDuration(start.elapsed()),
        HumanCount(rounds * STORMS.len() as u64),
        before.1,
    );
    Ok(())
}

/// Looks at PID 1 when a storm is over.
fn check(pod: &Sandbox, before: (support::proc::Activity, u64)) -> Result<()> {
    wait_until("no orphan or zombie is left", || children(pod.pid).is_empty())?;
    ensure!(is_asleep(pod.pid), "it does not sleep: {:?}", state(pod.pid));
    let after = (activity(pod.pid)?, resident(pod.pid)?);
    ensure!(after == before, "it was woken, or has grown: {before:?}, then {after:?}");
    Ok(())
}

/// Sends signals to PID 1: all but those that end it, or from outside stop it.
fn flood(pid: Pid, number: u64) -> Result<()> {
    let harmless = |signal: &i32| {
        ![libc::SIGTERM, libc::SIGINT, libc::SIGKILL, libc::SIGSTOP].contains(signal)
    };
    for signal in (1..=64).filter(harmless).cycle().take(usize::try_from(number)?) {
        // SAFETY: numbers only; nix has no realtime signals.
        let sent = unsafe { libc::kill(pid.as_raw(), signal) };
        ensure!(sent == 0, "cannot send signal {signal}: {}", io::Error::last_os_error());
    }
    Ok(())
}

/// The same from inside.
fn play_flood(arguments: &[OsString]) -> Result<()> {
    flood(Pid::from_raw(1), number(arguments)? as u64)
}

/// Sleeps until a signal ends it.
fn sleep_on() -> Result<()> {
    loop {
        nix::unistd::pause();
    }
}

/// Kills all in the PID namespace but PID 1 and this process.
fn kill_all() -> Result<()> {
    Ok(kill(Pid::from_raw(-1), Signal::SIGKILL)?)
}

/// Orphans that are all killed in one instant.
fn play_massacre(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        abandon(sleep_on)?;
    }
    kill_all()
}

/// Processes that fork as fast as they can, up to the limit, while their parents die.
fn play_fork_storm(arguments: &[OsString]) -> Result<()> {
    let limit = number(arguments)? as u64;
    let storm = spawn(|| {
        // The limit is that of an ordinary user.
        become_user()?;
        setrlimit(Resource::RLIMIT_NPROC, limit, limit)?;
        loop {
            match spawn(|| spawn(sleep_on).map(drop)) {
                Ok(_) => {}
                Err(error) if error.downcast_ref() == Some(&Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    })?;
    succeeds(storm)?;
    kill_all()
}

/// Orphans that are traced as they die: of three one is killed, one dies let go, and one is left over
/// by a tracer that dies first.
fn play_traced(arguments: &[OsString]) -> Result<()> {
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

/// Orphans that share the memory of a parent that was killed while it waited for them.
fn play_vforked(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        let parent = spawn(|| clone_asleep(flags, Some(libc::SIGCHLD)))?;
        wait_until("there is a child", || !children(parent).is_empty())?;
        kill(parent, Signal::SIGKILL)?;
        waitpid(parent, None)?;
    }
    kill_all()
}

/// Orphans that were to send another signal than SIGCHLD, or none.
fn play_cloned(arguments: &[OsString]) -> Result<()> {
    for index in 0..number(arguments)? {
        let signal = [Some(libc::SIGUSR1), None][index % 2];
        succeeds(spawn(|| clone_asleep(CloneFlags::empty(), signal))?)?;
    }
    kill_all()
}

/// Starts a child that sleeps, by clone(2).
fn clone_asleep(flags: CloneFlags, signal: Option<i32>) -> Result<()> {
    let mut stack = vec![0; 64 * 1024];
    let child = Box::new(|| sleep_on().map_or(1, |()| 0));
    // SAFETY: this process has one thread and exits next; the child has more stack than it needs,
    // and does nothing but sleep.
    unsafe { clone(child, &mut stack, flags, signal) }.context("cannot clone")?;
    Ok(())
}

/// Waits for a child, which has to exit with 0.
fn succeeds(child: Pid) -> Result<()> {
    let status = waitpid(child, None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    Ok(())
}

/// Orphans that are stopped and continued.
fn play_stopped(arguments: &[OsString]) -> Result<()> {
    for _ in 0..number(arguments)? {
        let parent = spawn(|| {
            let child = spawn(|| Ok(raise(Signal::SIGSTOP)?))?;
            waitid(Id::Pid(child), WaitPidFlag::WSTOPPED)?;
            Ok(())
        })?;
        succeeds(parent)?;
    }
    Ok(kill(Pid::from_raw(-1), Signal::SIGCONT)?)
}
