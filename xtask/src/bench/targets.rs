//! The targets for the figures of the product. `cargo xtask bench --check` fails if one is missed.

use super::peer::{DO_NOTHING, OURS, Peer, Results, UPSTREAM};
use super::samples::{Samples, number};
use harness::markdown;

/// A limit for a figure.
struct Target {
    name: &'static str,
    reason: &'static str,
    /// The largest value that is allowed.
    limit: f64,
    figure: fn(&[Peer]) -> Option<f64>,
}

const TARGETS: &[Target] = &[
    Target {
        name: "anonymous memory + page tables, share of upstream's",
        reason: "a node has one instance for each pod",
        limit: 0.36,
        figure: |peers| share(peers, UPSTREAM, |it| &it.own_memory),
    },
    Target {
        name: "anonymous memory + page tables, share of the do-nothing program's",
        reason: "giving the stack back saves more than all features cost",
        limit: 0.99,
        figure: |peers| share(peers, DO_NOTHING, |it| &it.own_memory),
    },
    Target {
        name: "wake-ups of PID 1 per 1,000 orphans",
        reason: "the kernel reaps: a sleeping pod stays asleep",
        limit: 0.0,
        figure: |peers| peers[OURS].results.wake_ups.median(),
    },
    Target {
        name: "CPU time of PID 1 per 1,000 orphans, ms",
        reason: "PID 1 has nothing to do",
        limit: 0.0,
        figure: |peers| peers[OURS].results.cpu.median(),
    },
    Target {
        name: "clone to gone, fastest tenth, share of upstream's",
        reason: "a pod starts with this program and ends with it",
        limit: 0.45,
        // What else the machine does only adds to a time.
        figure: |peers| {
            let fast = |index: usize| peers[index].results.clone_to_gone.quantile(0.1);
            Some(fast(OURS)? / fast(UPSTREAM)?)
        },
    },
    Target {
        name: "file, share of upstream's",
        reason: "what is not there needs no update and no scan",
        limit: 1.0 / 400.0,
        figure: |peers| share(peers, UPSTREAM, |it| &it.file),
    },
];

/// Our median as a share of a peer's.
fn share(peers: &[Peer], of: usize, figure: fn(&Results) -> &Samples) -> Option<f64> {
    Some(figure(&peers[OURS].results).median()? / figure(&peers[of].results).median()?)
}

impl Target {
    fn is_met(&self, peers: &[Peer]) -> bool {
        (self.figure)(peers).is_some_and(|value| (0.0..=self.limit).contains(&value))
    }
}

/// The names of the targets that are missed. One that could not be measured is.
pub fn missed(peers: &[Peer]) -> Vec<String> {
    TARGETS.iter().filter(|it| !it.is_met(peers)).map(|it| it.name.to_owned()).collect()
}

/// All targets as a table.
pub fn table(peers: &[Peer]) -> String {
    let rows = TARGETS.iter().map(|target| {
        let measured = (target.figure)(peers).map_or("–".to_owned(), |it| number(it, 4));
        let verdict = if target.is_met(peers) { "met" } else { "missed" };
        [target.name, &number(target.limit, 4), &measured, verdict, target.reason].map(String::from)
    });
    markdown::table(["target", "at most", "measured", "", "reason"], rows)
}
