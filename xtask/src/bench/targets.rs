//! The targets for the figures of the product. `cargo xtask bench --check` fails if one is missed.

use super::figures::{CLONE_TO_GONE, CPU, FILE, OWN_MEMORY, WAKE_UPS, number};
use super::peer::{DO_NOTHING, OURS, Peer, UPSTREAM};
use harness::markdown;

/// A figure, the peer that it is a share of, its largest value that is allowed, and the reason.
type Target = (&'static str, Option<usize>, f64, &'static str);

const TARGETS: [Target; 6] = [
    (OWN_MEMORY, Some(UPSTREAM), 0.36, "a node has one instance for each pod"),
    (OWN_MEMORY, Some(DO_NOTHING), 0.99, "giving the stack back saves more than all features cost"),
    (WAKE_UPS, None, 0.0, "the kernel reaps: a sleeping pod stays asleep"),
    (CPU, None, 0.0, "PID 1 has nothing to do"),
    (CLONE_TO_GONE, Some(UPSTREAM), 0.45, "a pod starts with this program and ends with it"),
    (FILE, Some(UPSTREAM), 1.0 / 400.0, "what is not there needs no update and no scan"),
];

/// What is compared with the limit of a target, from the lowest tenth of the samples.
fn measured(peers: &[Peer], &(figure, of, ..): &Target) -> f64 {
    let lowest = |index: usize| peers[index].results.of(figure).quantile(0.1);
    lowest(OURS) / of.map_or(1.0, lowest)
}

fn is_met(peers: &[Peer], target: &Target) -> bool {
    (0.0..=target.2).contains(&measured(peers, target))
}

/// The targets that are missed.
pub fn missed(peers: &[Peer]) -> Vec<String> {
    let missed = TARGETS.iter().filter(|target| !is_met(peers, target));
    missed.map(|target| format!("{} ({})", target.0, target.3)).collect()
}

/// All targets as a table.
pub fn table(peers: &[Peer]) -> String {
    let rows = TARGETS.iter().map(|target| {
        let &(figure, of, limit, reason) = target;
        let of = of.map_or("", |index| peers[index].name);
        let verdict = if is_met(peers, target) { "met" } else { "missed" };
        let value = number(measured(peers, target));
        [figure, of, &number(limit), &value, verdict, reason].map(String::from)
    });
    markdown::table(["target", "share of", "at most", "measured", "", "reason"], rows)
}
