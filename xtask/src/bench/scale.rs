//! What the measured figures come to on a node and in a cluster.

use super::figures::{CPU, OWN_MEMORY, PULLED, WAKE_UPS};
use super::peer::{Peer, UPSTREAM};
use harness::markdown;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use std::time::Duration;

/// Orphans of a pod per day, if a probe leaves one each time: every 10 seconds by default.
const ORPHANS_PER_DAY: f64 = 24.0 * 3600.0 / 10.0;

/// Nodes, and pods on each of them. 110 is the limit that the kubelet has by default.
const SIZES: [(&str, f64, f64); 3] = [
    ("node, 110 pods", 1.0, 110.0),
    ("node, 500 pods", 1.0, 500.0),
    ("5,000 nodes, 110 pods each", 5000.0, 110.0),
];

/// Ours and upstream's in each size.
pub fn table(peers: &[Peer]) -> String {
    let mut rows = Vec::new();
    for (size, nodes, pods) in SIZES {
        for peer in &peers[..=UPSTREAM] {
            let median = |figure| peer.results.of(figure).median();
            let thousands = nodes * pods * ORPHANS_PER_DAY / 1000.0;
            let cpu = Duration::from_secs_f64(median(CPU) * thousands / 1000.0);
            rows.push([
                size.to_owned(),
                peer.name.to_owned(),
                HumanBytes((median(OWN_MEMORY) * 1024.0 * nodes * pods) as u64).to_string(),
                HumanBytes((median(PULLED) * nodes) as u64).to_string(),
                HumanCount((median(WAKE_UPS) * thousands) as u64).to_string(),
                HumanDuration(cpu).to_string(),
            ]);
        }
    }
    let figures = ["anonymous memory + page tables", "pulled", "wake-ups per day", "CPU per day"];
    markdown::table([&["", "program"], &figures[..]].concat(), rows)
}
