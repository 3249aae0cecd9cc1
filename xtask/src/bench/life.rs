//! How long a peer takes from its start to its sleep, and to its end.

use super::Plan;
use super::instance::Instance;
use super::peer::Peer;
use anyhow::Result;
use indicatif::ProgressBar;
use std::time::Instant;

/// Rounds that warm up caches and are not counted.
const WARM_UP: usize = 20;

/// Starts and stops one instance of each peer, again and again, in random order.
pub fn measure(peers: &mut [Peer], plan: &Plan, progress: &ProgressBar) -> Result<()> {
    let mut order: Vec<_> = (0..peers.len()).collect();
    for round in 0..WARM_UP + plan.lives {
        progress.set_message(format!("start and stop, round {round}"));
        // The kernel cleans up after an instance in its own time: not always at the cost of the same
        // peer.
        fastrand::shuffle(&mut order);
        for &index in &order {
            let peer = &mut peers[index];
            let cloned = Instant::now();
            let instance = Instance::start(peer)?;
            let started = Instant::now();
            instance.wait_until_asleep()?;
            let asleep = started.elapsed();
            let results = &mut peer.results;
            if peer.is_init {
                instance.stop()?;
                let gone = cloned.elapsed();
                if round >= WARM_UP {
                    results.clone_to_gone.push(gone.as_secs_f64() * 1e6);
                }
            }
            if round >= WARM_UP {
                results.exec_to_asleep.push(asleep.as_secs_f64() * 1e6);
            }
        }
    }
    Ok(())
}
