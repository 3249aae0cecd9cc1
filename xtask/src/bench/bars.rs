//! The bars: what the product has promised about its figures.

use super::figures::{Figure, Section, number};
use super::memory::{self, KINDS, OWN};
use super::peer::{CATATONIT, FLOOR, OURS, Peer};

/// A promise and what was measured.
pub struct Bar {
    /// What is promised.
    pub promise: &'static str,
    /// What was seen.
    pub seen: String,
    /// Whether it is held; nothing if it could not be told.
    pub held: Option<bool>,
}

impl Bar {
    /// In a word.
    pub fn verdict(&self) -> &'static str {
        match self.held {
            Some(true) => "held",
            Some(false) => "missed",
            None => "cannot be told",
        }
    }
}

/// All of them.
pub fn all(peers: &[Peer], sections: &[Section]) -> Vec<Bar> {
    // What is less than nothing is noise.
    let of = |figure: &str, peer: &str| {
        let index = peers.iter().position(|it| it.name == peer)?;
        let median = find(sections, figure)?.summary(index)?.median;
        (median >= 0.0).then_some(median)
    };
    let ours = |figure: &str| of(figure, OURS);
    let account = |peer: &str| Some(of(OWN[0], peer)? + of(OWN[1], peer)?);
    let pages = |peer: &str| {
        let pages = of(KINDS[0], peer)? + of(KINDS[1], peer)?;
        // A promise is neither held nor missed by what something else did on the machine.
        account(peer).is_none_or(|account| memory::agree(pages, account)).then_some(pages)
    };
    let share = |ours: Option<f64>, theirs: Option<f64>| Some(ours? / theirs?);

    let life = share(ours("clone to gone"), of("clone to gone", CATATONIT));
    vec![
        at_most(
            "AnonPages + PageTables: at most 0.36 of catatonit's",
            share(pages(OURS), pages(CATATONIT)),
            0.36,
            2,
        ),
        at_most(
            "AnonPages + PageTables: less than doing nothing costs (share)",
            share(pages(OURS), pages(FLOOR)),
            1.0_f64.next_down(),
            2,
        ),
        at_most(
            "Anonymous + VmPTE, undisturbed: at most 0.36 of catatonit's",
            share(account(OURS), account(CATATONIT)),
            0.36,
            2,
        ),
        at_most(
            "Anonymous + VmPTE, undisturbed: less than doing nothing costs (share)",
            share(account(OURS), account(FLOOR)),
            1.0_f64.next_down(),
            2,
        ),
        at_most("wake-ups for all orphans: 0", ours("wake-ups of PID 1"), 0.0, 0),
        at_most("CPU time for all orphans: 0 ms", ours("CPU time of PID 1"), 0.0, 3),
        at_most("clone to gone: at most 0.45 of catatonit's", life, 0.45, 2),
        at_most("system calls until asleep: at most 12", ours("system calls"), 12.0, 0),
        at_most("file: at most 1,280 bytes", ours("file"), 1280.0, 0),
        at_most("file, the dream: at most 1,024 bytes", ours("file"), 1024.0, 0),
    ]
}

fn at_most(promise: &'static str, seen: Option<f64>, limit: f64, digits: usize) -> Bar {
    Bar {
        promise,
        seen: seen.map_or("–".to_owned(), |value| number(value, digits)),
        held: seen.map(|value| value <= limit),
    }
}

/// A figure by its name.
pub fn find<'a>(sections: &'a [Section], name: &str) -> Option<&'a Figure> {
    sections.iter().flat_map(|section| &section.figures).find(|figure| figure.name == name)
}
