//! What orphans cost PID 1.

use super::Plan;
use super::peer::Peer;
use anyhow::{Context, Result};
use harness::orphans::ORPHANS;
use harness::proc::{activity, children, state, wait_until};
use harness::sandbox::{Sandbox, Setup};
use indicatif::ProgressBar;
use nix::unistd::Pid;
use procfs::process::Process;

/// Makes orphans below each peer. Returns a message for each peer that failed.
pub fn measure(peers: &mut [Peer], plan: &Plan, progress: &ProgressBar) -> Vec<String> {
    let mut failures = Vec::new();
    for round in 1..=plan.reaping_rounds {
        for peer in peers.iter_mut().filter(|peer| peer.is_init) {
            progress.set_message(format!("orphans of {}, round {round}", peer.name));
            if let Err(error) = measure_round(peer, plan) {
                failures.push(format!("orphans of {}: {error:#}", peer.name));
            }
        }
    }
    failures
}

fn measure_round(peer: &mut Peer, plan: &Plan) -> Result<()> {
    let sandbox = start(peer)?;
    let family = children(sandbox.pid);
    let before = Cost::of(sandbox.pid)?;
    sandbox.run(&ORPHANS, &[&plan.orphans.to_string()])?;
    wait_until("all orphans are reaped", || children(sandbox.pid) == family)?;
    let cost = Cost::of(sandbox.pid)?.since(before);

    let per_thousand = 1000.0 / plan.orphans as f64;
    let results = &mut peer.results;
    results.wake_ups.push(cost.wake_ups * per_thousand);
    results.interruptions.push(cost.interruptions * per_thousand);
    results.cpu.push(cost.cpu * per_thousand);
    Ok(())
}

/// Starts a sandbox in which the peer sleeps as PID 1.
pub fn start(peer: &Peer) -> Result<Sandbox> {
    let arguments = peer.arguments.iter().map(Into::into).collect();
    let setup = Setup { libraries: true, arguments, ..Setup::new(&peer.program) };
    let sandbox = setup.start()?;
    wait_until(&format!("{} sleeps in a sandbox", peer.name), || {
        let mut family = children(sandbox.pid);
        family.push(sandbox.pid);
        family.iter().all(|&pid| state(pid) == Some('S'))
    })?;
    Ok(sandbox)
}

/// What a process has cost the scheduler.
#[derive(Clone, Copy)]
pub struct Cost {
    /// Times it was woken up.
    pub wake_ups: f64,
    /// Times it had to leave the CPU to others.
    pub interruptions: f64,
    /// Time on a CPU, in milliseconds.
    pub cpu: f64,
}

impl Cost {
    /// What it has cost so far.
    pub fn of(pid: Pid) -> Result<Self> {
        let activity = activity(pid)?;
        let schedstat =
            Process::new(pid.as_raw())?.schedstat().context("no /proc/PID/schedstat")?;
        Ok(Self {
            wake_ups: activity.voluntary_switches as f64,
            interruptions: activity.involuntary_switches as f64,
            cpu: schedstat.sum_exec_runtime as f64 / 1e6,
        })
    }

    /// What it has cost since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            wake_ups: self.wake_ups - before.wake_ups,
            interruptions: self.interruptions - before.interruptions,
            cpu: self.cpu - before.cpu,
        }
    }
}
