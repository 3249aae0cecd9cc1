//! What orphans cost PID 1.

use super::figures::{Figure, Section};
use super::peer::Peer;
use super::{Plan, Progress};
use anyhow::Result;
use harness::orphans::{ORPHANS, SIMULTANEOUS_ORPHANS};
use harness::proc::{activity, children, state, wait_until};
use harness::sandbox::{Sandbox, Setup};
use procfs::process::Process;
use std::time::Instant;

/// Orphans that exit all at once.
const CROWD: usize = 500;

/// Lets orphans die below each peer that reaps them.
///
/// # Errors
///
/// When orphans cannot be made, or stay.
pub fn measure(peers: &[Peer], plan: &Plan, progress: &Progress) -> Result<Section> {
    let figure = |name, unit, digits| Figure::new(name, unit, digits, peers.len());
    let mut cpu = figure("CPU time of PID 1", "ms", 1);
    let mut woken = figure("wake-ups of PID 1", "", 0);
    let mut interrupted = figure("interruptions of PID 1", "", 0);
    let mut throughput = figure("orphans", "/s", 0);
    let mut zombies = figure("most zombies", "", 0);
    let crowd = CROWD.min(plan.orphans);

    for round in 0..plan.reaping_rounds {
        for (index, peer) in peers.iter().enumerate() {
            if peer.reaps != Ok(true) {
                progress.add(plan.orphans);
                continue;
            }
            progress.say(&format!("orphans of {}, round {}", peer.name, round + 1));
            let sandbox = start(peer)?;
            let family = children(sandbox.pid);
            let (before, cpu_before) = (activity(sandbox.pid)?, cpu_time(&sandbox)?);
            let start = Instant::now();
            let mut left = plan.orphans;
            while left > 0 {
                let some = left.min(plan.orphans.div_ceil(10));
                sandbox.run(&ORPHANS, &[&some.to_string()])?;
                left -= some;
                progress.add(some);
            }
            let took = start.elapsed().as_secs_f64();
            wait_until("all orphans are gone", || children(sandbox.pid) == family)?;
            let after = activity(sandbox.pid)?;
            cpu.samples[index].push((cpu_time(&sandbox)? - cpu_before) / 1e6);
            let switches = after.voluntary_switches - before.voluntary_switches;
            woken.samples[index].push(switches as f64);
            let switches = after.involuntary_switches - before.involuntary_switches;
            interrupted.samples[index].push(switches as f64);
            throughput.samples[index].push(plan.orphans as f64 / took);

            let mut actor =
                sandbox.command(&SIMULTANEOUS_ORPHANS).arg(crowd.to_string()).spawn()?;
            let mut most = 0;
            while actor.try_wait()?.is_none() || children(sandbox.pid) != family {
                most = most.max(zombies_below(&sandbox));
            }
            zombies.samples[index].push(most as f64);
        }
    }
    Ok(Section {
        title: "Reaping",
        note: format!(
            "{} orphans, one after the other, adopted by PID 1 and dead at once. How many there \
             are in a second is up to whoever makes them as much as to who reaps them. After that \
             {crowd} that exit together, and how many zombies were seen at once.",
            super::figures::number(plan.orphans as f64, 0)
        ),
        figures: vec![cpu, woken, interrupted, throughput, zombies],
        chart: Some(("reaping", "CPU time of PID 1 for the orphans")),
    })
}

/// A sandbox in which the peer sleeps.
pub fn start(peer: &Peer) -> Result<Sandbox> {
    let mut setup = Setup::new(&peer.program()).with_libraries(true);
    for word in &peer.words[1..] {
        let word = word.to_str().expect("arguments of peers are UTF-8");
        // There are no /bin and no PATH inside.
        let found = which::which(word).ok().filter(|_| !word.contains('/'));
        setup = setup.argument(match found.and_then(|path| path.canonicalize().ok()) {
            Some(path) => path.into_os_string(),
            None => word.into(),
        });
    }
    let sandbox = setup.stderr(std::process::Stdio::null()).start()?;
    let name = &peer.name;
    wait_until(&format!("{name} sleeps in a sandbox"), || {
        let family = children(sandbox.pid);
        family.iter().chain([&sandbox.pid]).all(|&pid| state(pid) == Some('S'))
    })?;
    Ok(sandbox)
}

/// Whether an orphan is reaped in any time at all.
///
/// # Errors
///
/// When that cannot be tried.
pub fn is_reaped(peer: &Peer) -> Result<bool> {
    let sandbox = start(peer)?;
    let family = children(sandbox.pid);
    sandbox.run(&ORPHANS, &["1"])?;
    let start = Instant::now();
    while children(sandbox.pid) != family {
        if start.elapsed() > super::ENOUGH {
            return Ok(false);
        }
    }
    Ok(true)
}

fn zombies_below(sandbox: &Sandbox) -> usize {
    children(sandbox.pid).into_iter().filter(|&pid| state(pid) == Some('Z')).count()
}

/// Time that PID 1 has had on a CPU, in nanoseconds.
fn cpu_time(sandbox: &Sandbox) -> Result<f64> {
    Ok(Process::new(sandbox.pid.as_raw())?.schedstat()?.sum_exec_runtime as f64)
}
