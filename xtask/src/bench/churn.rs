//! What PID 1 costs while containers leave orphans at a steady pace.

use super::Plan;
use super::peer::{Peer, UPSTREAM};
use super::reaping::{Cost, start};
use anyhow::{Result, ensure};
use harness::helper;
use harness::orphans::{abandon, number};
use harness::proc::{children, wait_until};
use indicatif::ProgressBar;
use std::ffi::OsString;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Orphans per second.
const RATE: u32 = 200;

helper!(CHURN = churn);

/// Measures ours and upstream's at the same time. Returns a message for each that failed.
pub fn measure(peers: &mut [Peer], plan: &Plan, progress: &ProgressBar) -> Result<Vec<String>> {
    progress.set_message("churn");
    let mut runs = Vec::new();
    for peer in &mut peers[..=UPSTREAM] {
        let sandbox = start(peer)?;
        let before = Cost::of(sandbox.pid)?;
        let orphans = (RATE * plan.churn_seconds).to_string();
        let helper = sandbox.command(&CHURN).arg(orphans).spawn()?;
        runs.push((peer, sandbox, before, helper));
    }
    let mut failures = Vec::new();
    for (peer, sandbox, before, mut helper) in runs {
        ensure!(helper.wait()?.success(), "the orphans of {} failed", peer.name);
        let reaped = wait_until("all orphans are reaped", || children(sandbox.pid).is_empty());
        if let Err(error) = reaped {
            failures.push(format!("churn of {}: {error:#}", peer.name));
            continue;
        }
        let cost = Cost::of(sandbox.pid)?.since(before);
        peer.results.churn_wake_ups.push(cost.wake_ups);
        peer.results.churn_interruptions.push(cost.interruptions);
        peer.results.churn_cpu.push(cost.cpu);
    }
    Ok(failures)
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
