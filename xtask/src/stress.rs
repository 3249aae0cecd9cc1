//! `cargo xtask stress`: stress-tests PID 1 with orphans and signals.

use anyhow::{Context, Result, ensure};
use harness::build::Flavor;
use harness::helper;
use harness::helper::Helper;
use harness::orphans::{ORPHANS, SIMULTANEOUS_ORPHANS, THREADED_ORPHANS, ZOMBIES};
use harness::proc::{children, context_switches, is_asleep, resident, wait_until};
use harness::sandbox::{STOPPED, Setup, ensure_inside};
use indicatif::{HumanCount, HumanDuration, ProgressBar};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// The command line of `cargo xtask stress`.
#[derive(clap::Args)]
pub struct Args {
    /// Stop at the end of the round in which this many orphans have exited
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    orphans: u64,
}

/// Helpers that run at the same time, and the orphans that each leaves per round.
const HELPERS: [&Helper; 4] = [&ORPHANS, &SIMULTANEOUS_ORPHANS, &ZOMBIES, &THREADED_ORPHANS];
const ORPHANS_OF_EACH: u64 = 2_500;

/// Signals that are sent from inside, and as many from outside, per round.
const SIGNALS: usize = 100_000;

helper!(
    /// Sends signals to PID 1 from inside of its PID namespace. Its argument, a number of orphans, is ignored.
    FLOOD = |_| {
        ensure_inside()?;
        flood(Pid::from_raw(1))
    }
);

/// Runs the workloads in rounds and checks PID 1 after each: no zombie is left, it was not woken, and
/// its memory has not grown. At the end, SIGTERM has to stop it.
pub fn run(args: &Args) -> Result<()> {
    let pod = Setup::of(Flavor::Freestanding)?.asleep()?;
    let (switches_before, kib) = (context_switches(pod.pid)?, resident(pod.pid)?);
    let bar = ProgressBar::new(args.orphans);
    while bar.position() < args.orphans {
        let mut running = Vec::new();
        for helper in HELPERS.into_iter().chain([&FLOOD]) {
            let process = pod.command(helper).arg(ORPHANS_OF_EACH.to_string()).spawn();
            running.push((helper.name, process.context(helper.name)?));
        }
        flood(pod.pid)?;
        for (name, mut process) in running {
            let status = process.wait()?;
            ensure!(status.success(), "{name} inside: {status}");
        }
        bar.inc(HELPERS.len() as u64 * ORPHANS_OF_EACH);

        wait_until("no orphan or zombie is left", || children(pod.pid).is_empty())?;
        ensure!(is_asleep(pod.pid), "PID 1 does not sleep");
        ensure!(context_switches(pod.pid)? == switches_before, "PID 1 was woken");
        let kib_now = resident(pod.pid)?;
        ensure!(kib_now == kib, "the memory of PID 1 was {kib} KiB and is {kib_now} KiB");
    }
    let orphans = HumanCount(bar.position());
    bar.finish_and_clear();

    pod.stops(Signal::SIGTERM, STOPPED)?;
    println!(
        "passed: {orphans} orphans in {}: no zombie, no wake-up, no growth ({kib} KiB), exit code 0 on \
         SIGTERM",
        HumanDuration(bar.elapsed()),
    );
    Ok(())
}

/// Sends signals to a process that is PID 1, in turn all that neither end nor stop it.
fn flood(pid: Pid) -> Result<()> {
    let fatal = [libc::SIGTERM, libc::SIGINT, libc::SIGKILL, libc::SIGSTOP];
    for signal in (1..=64).filter(|signal| !fatal.contains(signal)).cycle().take(SIGNALS) {
        // SAFETY: numbers only; nix has no realtime signals.
        Errno::result(unsafe { libc::kill(pid.as_raw(), signal) })?;
    }
    Ok(())
}
