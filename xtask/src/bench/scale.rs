//! What the measured figures come to on a node and in a cluster.

use super::peer::{OURS, Peer, Results, UPSTREAM};
use super::samples::Samples;
use harness::markdown;
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use std::time::Duration;

/// Orphans of a pod per day, if a probe leaves one each time: every 10 seconds, the default of Kubernetes.
const ORPHANS_PER_DAY: f64 = 24.0 * 3600.0 / 10.0;

/// Nodes, and pods on each of them. 110 is the limit that the kubelet has by default.
const SIZES: [(&str, f64, f64); 3] = [
    ("node, 110 pods", 1.0, 110.0),
    ("node, 500 pods", 1.0, 500.0),
    ("5,000 nodes, 110 pods each", 5000.0, 110.0),
];

/// A figure of all pods or nodes.
struct Row {
    title: &'static str,
    figure: fn(&Results) -> &Samples,
    /// How many times the figure counts, for so many nodes with so many pods each.
    times: fn(f64, f64) -> f64,
    format: fn(f64) -> String,
}

const ROWS: [Row; 5] = [
    Row {
        title: "anonymous memory + page tables",
        figure: |it| &it.own_memory,
        times: |nodes, pods| nodes * pods * 1024.0,
        format: bytes,
    },
    Row {
        title: "KernelStack + Slab",
        figure: |it| &it.kernel_memory,
        times: |nodes, pods| nodes * pods * 1024.0,
        format: bytes,
    },
    Row { title: "pulled", figure: |it| &it.pulled, times: |nodes, _| nodes, format: bytes },
    Row {
        title: "wake-ups per day",
        figure: |it| &it.wake_ups,
        times: |nodes, pods| nodes * pods * ORPHANS_PER_DAY / 1000.0,
        format: |value| HumanCount(value as u64).to_string(),
    },
    Row {
        title: "CPU time per day",
        figure: |it| &it.cpu,
        times: |nodes, pods| nodes * pods * ORPHANS_PER_DAY / 1000.0,
        format: |value| HumanDuration(Duration::from_secs_f64(value / 1000.0)).to_string(),
    },
];

fn bytes(value: f64) -> String {
    HumanBytes(value as u64).to_string()
}

/// The section of the report.
pub fn section(peers: &[Peer]) -> String {
    let mut header = vec![String::new()];
    for (size, ..) in SIZES {
        header.extend([OURS, UPSTREAM].map(|index| format!("{size}: {}", peers[index].name)));
    }
    let rows = ROWS.iter().map(|row| {
        let mut cells = vec![row.title.to_owned()];
        for (_, nodes, pods) in SIZES {
            cells.extend([OURS, UPSTREAM].map(|index| {
                let median = (row.figure)(&peers[index].results).median();
                median.map_or("–".to_owned(), |it| {
                    (row.format)(it.max(0.0) * (row.times)(nodes, pods))
                })
            }));
        }
        cells
    });
    format!(
        "## At scale\n\nComputed from the figures above. What is pulled is the manifest, the \
         configuration and the layer of an image for one platform, both made by `cargo xtask image`. \
         Wake-ups and CPU time are those of pods that share their PID namespace and have one orphan \
         every 10 seconds, such as a probe that leaves a process behind; in other pods PID 1 has no \
         orphans and costs nothing with either program.\n\n{}\n",
        markdown::table(header, rows)
    )
}
