//! What the measured figures come to on a node and in a cluster.

use super::peer::{OURS, Peer, Results, UPSTREAM};
use super::samples::Samples;
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

/// A figure for all pods, or for all nodes.
struct Figure {
    title: &'static str,
    samples: fn(&Results) -> &Samples,
    /// How many times it counts, for so many nodes with so many pods each.
    times: fn(f64, f64) -> f64,
    format: fn(f64) -> String,
}

const FIGURES: [Figure; 4] = [
    Figure {
        title: "anonymous memory + page tables",
        samples: |it| &it.own_memory,
        times: |nodes, pods| nodes * pods * 1024.0,
        format: bytes,
    },
    Figure { title: "pulled", samples: |it| &it.pulled, times: |nodes, _| nodes, format: bytes },
    Figure {
        title: "wake-ups per day",
        samples: |it| &it.wake_ups,
        times: |nodes, pods| nodes * pods * ORPHANS_PER_DAY / 1000.0,
        format: |value| HumanCount(value as u64).to_string(),
    },
    Figure {
        title: "CPU time per day",
        samples: |it| &it.cpu,
        times: |nodes, pods| nodes * pods * ORPHANS_PER_DAY / 1000.0,
        format: |value| HumanDuration(Duration::from_secs_f64(value / 1000.0)).to_string(),
    },
];

fn bytes(value: f64) -> String {
    HumanBytes(value as u64).to_string()
}

/// The section of the report.
pub fn section(peers: &[Peer]) -> String {
    let header = ["", "program"].into_iter().chain(FIGURES.iter().map(|it| it.title));
    let mut rows = Vec::new();
    for (size, nodes, pods) in SIZES {
        for peer in [OURS, UPSTREAM].map(|index| &peers[index]) {
            let mut row = vec![size.to_owned(), peer.name.to_owned()];
            for Figure { samples, times, format, .. } in &FIGURES {
                let median = samples(&peer.results).median();
                let total = median.map(|it| format(it.max(0.0) * times(nodes, pods)));
                row.push(total.unwrap_or("–".to_owned()));
            }
            rows.push(row);
        }
    }
    format!(
        "## At scale\n\nComputed from the figures above. What is pulled is the manifest, the \
         configuration and the layer of an image for one platform, both made by `cargo xtask image`. \
         Wake-ups and CPU time are those of pods that share their PID namespace and have one orphan \
         every 10 seconds, such as a probe that leaves a process behind; in other pods PID 1 has no \
         orphans and costs nothing with either program.\n\n{}\n",
        markdown::table(header.collect::<Vec<_>>(), rows)
    )
}
