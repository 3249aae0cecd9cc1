//! How long a peer takes from birth to sleep, and to its end.

use super::figures::{Figure, Section};
use super::instance::Instance;
use super::peer::Peer;
use super::{Plan, Progress};
use anyhow::Result;
use std::time::Instant;

/// Measures whole lives, the peers in turn.
///
/// # Errors
///
/// When an instance cannot be started or does not sleep.
pub fn measure(peers: &[Peer], plan: &Plan, progress: &Progress) -> Result<Section> {
    let figure = |name| Figure::new(name, "µs", 0, peers.len());
    let [mut life, mut waking] = ["clone to gone", "exec to asleep"].map(figure);
    for round in 0..plan.warm_up + plan.lives {
        progress.say(&format!("lives, round {}", round + 1));
        for (index, peer) in peers.iter().enumerate() {
            progress.add(1);
            let cloned = Instant::now();
            let instance = Instance::start(peer)?;
            let born = Instant::now();
            instance.wait_until_asleep()?;
            let asleep = born.elapsed();
            let gone = if peer.leaves {
                instance.leave()?;
                Some(cloned.elapsed())
            } else {
                None
            };
            if round < plan.warm_up {
                continue;
            }
            waking.samples[index].push(asleep.as_secs_f64() * 1e6);
            life.samples[index].extend(gone.map(|time| time.as_secs_f64() * 1e6));
        }
    }
    Ok(Section {
        title: "Life",
        note: format!(
            "{} lives of each, in turn. From clone(2) with a new PID namespace until wait(2) \
             returns, SIGTERM being sent as soon as all its processes are seen asleep; and the part of \
             it from the start of the program until then.",
            super::figures::number(plan.lives as f64, 0)
        ),
        figures: vec![life, waking],
        chart: Some(("life", "From clone to gone on SIGTERM")),
    })
}
