//! Figures: what was measured of each peer, and what can be said about it.

use serde_json::{Value, json};

/// One thing that was measured of each peer.
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// How many digits after the point mean anything.
    pub digits: usize,
    /// What was seen of each peer, in the order of the peers; nothing if it could not be measured.
    pub samples: Vec<Vec<f64>>,
}

/// The middle of what was seen, and between which values half of it lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The one in the middle.
    pub median: f64,
    /// A quarter is below.
    pub lower: f64,
    /// A quarter is above.
    pub upper: f64,
}

impl Figure {
    /// A figure of which nothing has been seen yet.
    pub fn new(name: impl Into<String>, unit: &'static str, digits: usize, peers: usize) -> Self {
        Self { name: name.into(), unit, digits, samples: vec![Vec::new(); peers] }
    }

    /// What there is to say about a peer.
    pub fn summary(&self, peer: usize) -> Option<Summary> {
        let samples = &self.samples[peer];
        (!samples.is_empty()).then(|| Summary {
            median: quantile(samples, 0.5),
            lower: quantile(samples, 0.25),
            upper: quantile(samples, 0.75),
        })
    }

    /// A peer's median as a multiple of ours, the first; nothing if the middle halves overlap, unless
    /// they are the same number.
    pub fn ratio(&self, peer: usize) -> Option<Ratio> {
        let (ours, theirs) = (self.summary(0)?, self.summary(peer)?);
        if ours.median == theirs.median {
            Some(Ratio::Same)
        } else if ours.lower <= theirs.upper && theirs.lower <= ours.upper {
            Some(Ratio::Hidden)
        } else if ours.median <= 0.0 || theirs.median < 0.0 {
            // Nothing, or less than that by noise, has no multiples.
            None
        } else {
            Some(Ratio::Times(theirs.median / ours.median))
        }
    }

    /// A cell of a table.
    pub fn cell(&self, peer: usize) -> String {
        let Some(Summary { median, lower, upper }) = self.summary(peer) else {
            return "–".into();
        };
        let mut cell = number(median, self.digits);
        let spread = number((upper - lower) / 2.0, self.digits);
        if spread.chars().any(|digit| ('1'..='9').contains(&digit)) {
            cell += &format!(" ± {spread}");
        }
        if peer > 0 {
            match self.ratio(peer) {
                Some(Ratio::Times(times)) => cell += &format!(" ({times:.2}×)"),
                Some(Ratio::Hidden) => cell += " (≈)",
                Some(Ratio::Same) | None => {}
            }
        }
        cell
    }

    /// All that was seen, for `--json`.
    pub fn json(&self, peers: &[String]) -> Value {
        let of = |peer: usize| {
            let summary = self.summary(peer)?;
            Some(json!({
                "peer": peers[peer],
                "median": summary.median,
                "lower_quartile": summary.lower,
                "upper_quartile": summary.upper,
                "samples": self.samples[peer],
            }))
        };
        let values: Vec<_> = (0..peers.len()).filter_map(of).collect();
        json!({ "name": self.name, "unit": self.unit, "values": values })
    }
}

/// How a peer's figure relates to ours.
pub enum Ratio {
    /// So many times ours.
    Times(f64),
    /// The same number.
    Same,
    /// The spread hides the difference.
    Hidden,
}

/// The value below which a share of the samples lies, interpolated.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// A number with thousands set apart.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let is_negative = value < 0.0 && text.contains(|digit| ('1'..='9').contains(&digit));
    format!("{}{grouped}{fraction}", if is_negative { "-" } else { "" })
}

/// What one measurement found.
pub struct Section {
    /// What was measured.
    pub title: &'static str,
    /// How, and what to think of it.
    pub note: String,
    /// The figures.
    pub figures: Vec<Figure>,
    /// A chart that belongs to it: its file's name and what it shows.
    pub chart: Option<(&'static str, &'static str)>,
}
