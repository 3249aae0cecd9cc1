//! What orphans cost PID 1.

use super::figures::{
    CHURN_CPU, CHURN_INTERRUPTIONS, CHURN_WAKE_UPS, CPU, INTERRUPTIONS, WAKE_UPS,
};
use super::peer::Peer;
use anyhow::{Context, Result};
use harness::helper;
use harness::helper::Helper;
use harness::orphans::{ORPHANS, abandon, number};
use harness::proc::{activity, children, state, wait_until};
use harness::sandbox::Setup;
use nix::unistd::Pid;
use procfs::process::Process;
use std::ffi::OsString;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Orphans per second of churn.
const RATE: u32 = 200;

helper!(CHURN = churn);

/// Makes orphans, as fast as it goes.
pub fn measure_reaping(peer: &mut Peer, orphans: u32) -> Result<()> {
    let per_thousand = 1000.0 / f64::from(orphans);
    measure(peer, &ORPHANS, orphans, [WAKE_UPS, CPU, INTERRUPTIONS], per_thousand)
}

/// Makes orphans at the pace of [`RATE`].
pub fn measure_churn(peer: &mut Peer, seconds: u32) -> Result<()> {
    let figures = [CHURN_WAKE_UPS, CHURN_CPU, CHURN_INTERRUPTIONS];
    measure(peer, &CHURN, RATE * seconds, figures, 1.0)
}

fn measure(
    peer: &mut Peer,
    helper: &Helper,
    orphans: u32,
    figures: [&str; 3],
    scale: f64,
) -> Result<()> {
    let arguments = peer.arguments().map(Into::into).collect();
    let setup = Setup { libraries: true, arguments, ..Setup::new(&peer.program) };
    let sandbox = setup.start()?;
    wait_until(&format!("{} sleeps in a sandbox", peer.name), || {
        let family = [children(sandbox.pid), vec![sandbox.pid]].concat();
        family.into_iter().all(|pid| state(pid) == Some('S'))
    })?;
    let family = children(sandbox.pid);
    let before = cost(sandbox.pid)?;
    sandbox.run(helper, &[&orphans.to_string()])?;
    wait_until(&format!("{} reaps all orphans", peer.name), || children(sandbox.pid) == family)?;
    for (index, cost) in cost(sandbox.pid)?.into_iter().enumerate() {
        peer.results.add(figures[index], (cost - before[index]) * scale);
    }
    Ok(())
}

/// What a process has cost the scheduler so far: times that it was woken up, its time on a CPU in
/// milliseconds, and times that it had to leave the CPU to others.
fn cost(pid: Pid) -> Result<[f64; 3]> {
    let activity = activity(pid)?;
    let schedstat = Process::new(pid.as_raw())?.schedstat().context("no /proc/PID/schedstat")?;
    Ok([
        activity.voluntary_switches as f64,
        schedstat.sum_exec_runtime as f64 / 1e6,
        activity.involuntary_switches as f64,
    ])
}

/// Leaves orphans that exit at once, at the pace of [`RATE`].
fn churn(arguments: &[OsString]) -> Result<()> {
    let start = Instant::now();
    for index in 0..number(arguments)? as u32 {
        let due = start + Duration::from_secs(1) * index / RATE;
        sleep(due.saturating_duration_since(Instant::now()));
        abandon(|| Ok(()))?;
    }
    Ok(())
}
