//! `cargo xtask stress`: stress-tests PID 1 with orphans and signals.

use anyhow::{Context, Result, ensure};
use harness::build::Flavor;
use harness::helper;
use harness::helper::Helper;
use harness::orphans::{ORPHANS, SIMULTANEOUS_ORPHANS, THREADED_ORPHANS, ZOMBIES, number};
use harness::proc::{activity, children, is_asleep, resident, wait_until};
use harness::sandbox::{STOPPED, Setup, ensure_inside};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::Instant;

/// The command line of `cargo xtask stress`.
#[derive(clap::Args)]
pub struct Args {
    /// Stop at the end of the round in which this many orphans have exited
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000_000)]
    orphans: u64,
}

/// Orphans that exit one after the other, per round.
const IN_A_ROW: u64 = 10_000;

/// Signals that are sent from inside, and as many from outside, per round.
const FLOOD: u64 = 100_000;

/// A helper that leaves a number of orphans.
struct Workload {
    helper: &'static Helper,
    orphans: u64,
}

/// The workloads that run at the same time, together with the signals.
const MIXED: [Workload; 4] = [
    Workload { helper: &ORPHANS, orphans: 2_000 },
    Workload { helper: &SIMULTANEOUS_ORPHANS, orphans: 2_000 },
    Workload { helper: &ZOMBIES, orphans: 1_000 },
    Workload { helper: &THREADED_ORPHANS, orphans: 200 },
];

helper!(
    /// Sends signals to PID 1 from inside of its PID namespace.
    SIGNALS = |arguments| {
        ensure_inside()?;
        flood(number(arguments)? as u64, Pid::from_raw(1))
    }
);

/// Runs the workloads in rounds and checks PID 1 after each: no zombie is left, it was not woken, and
/// its memory has not grown. At the end, SIGTERM has to stop it.
pub fn run(args: &Args) -> Result<()> {
    let pod = Setup::of(Flavor::Freestanding)?.asleep()?;
    let before = (activity(pod.pid)?, resident(pod.pid)?);
    let check = |workload| -> Result<()> {
        let is_gone = || children(pod.pid).is_empty();
        wait_until(&format!("no orphan or zombie is left of {workload}"), is_gone)?;
        ensure!(is_asleep(pod.pid), "PID 1 does not sleep after {workload}");
        let after = (activity(pod.pid)?, resident(pod.pid)?);
        ensure!(
            after == before,
            "after {workload}, PID 1 was woken or has grown: from {before:?} to {after:?}"
        );
        Ok(())
    };

    let style = "{wide_bar} {human_pos}/{human_len} orphans, {elapsed}";
    let bar = ProgressBar::new(args.orphans).with_style(ProgressStyle::with_template(style)?);
    let start = Instant::now();
    while bar.position() < args.orphans {
        pod.run(&ORPHANS, &[&IN_A_ROW.to_string()])?;
        check("orphans in a row")?;
        bar.inc(IN_A_ROW);

        let orphans = MIXED.iter().map(|workload| (workload.helper, workload.orphans));
        let mut helpers = Vec::new();
        for (helper, number) in orphans.chain([(&SIGNALS, FLOOD)]) {
            let mut command = pod.command(helper);
            command.arg(number.to_string()).stdin(Stdio::null());
            helpers.push((helper.name, command.spawn().context(helper.name)?));
        }
        flood(FLOOD, pod.pid)?;
        for (name, mut helper) in helpers {
            let status = helper.wait()?;
            ensure!(status.success(), "{name} inside: {status}");
        }
        check("the mixed load")?;
        bar.inc(MIXED.iter().map(|workload| workload.orphans).sum());
    }
    let orphans = HumanCount(bar.position());
    bar.finish_and_clear();

    pod.stops(Signal::SIGTERM, STOPPED)?;
    println!(
        "passed: {orphans} orphans in {}: no zombie, no wake-up, no growth ({} KiB), exit code 0 on \
         SIGTERM",
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
