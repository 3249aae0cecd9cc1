//! Figures that are measured, and tables of them. A figure is known by its title, which says its unit
//! and its workload.

use harness::markdown;
use indicatif::HumanFloatCount;
use std::collections::BTreeMap;
use std::ptr;

pub const FILE: &str = "file, bytes";
pub const PULLED: &str = "pulled, bytes";
pub const OWN_MEMORY: &str = "anonymous memory + page tables, KiB";
pub const ANONYMOUS: &str = "anonymous, KiB";
pub const PAGE_TABLES: &str = "page tables, KiB";
pub const RESIDENT: &str = "resident, KiB";
pub const WAKE_UPS: &str = "wake-ups of PID 1 per 1,000 orphans";
pub const CPU: &str = "CPU time of PID 1 per 1,000 orphans, ms";
pub const INTERRUPTIONS: &str = "interruptions per 1,000 orphans";
pub const CHURN_WAKE_UPS: &str = "wake-ups of PID 1 in the minute";
pub const CHURN_CPU: &str = "CPU time of PID 1 in the minute, ms";
pub const CHURN_INTERRUPTIONS: &str = "interruptions in the minute";
pub const CLONE_TO_GONE: &str = "start, sleep and stop, µs";
pub const EXEC_TO_ASLEEP: &str = "exec to asleep, µs";

/// Samples of every figure.
#[derive(Default)]
pub struct Results(BTreeMap<String, Samples>);

/// What the rounds of a measurement found; empty if there was nothing to measure.
#[derive(Default)]
pub struct Samples(Vec<f64>);

impl Results {
    /// Adds what one round found.
    pub fn add(&mut self, figure: &str, sample: f64) {
        self.0.entry(figure.to_owned()).or_default().0.push(sample);
    }

    /// The samples of a figure.
    pub fn of(&self, figure: &str) -> &Samples {
        static NONE: Samples = Samples(Vec::new());
        self.0.get(figure).unwrap_or(&NONE)
    }
}

impl Samples {
    /// The value below which a share of the samples lies, interpolated. NaN if there are no samples.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = share * sorted.len().saturating_sub(1) as f64;
        let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
        let (low, high) = (at(place.floor()), at(place.ceil()));
        low + (high - low) * place.fract()
    }

    /// The sample in the middle.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Whether the middle halves overlap, so that the spread hides the difference.
    pub fn overlaps(&self, other: &Self) -> bool {
        let begins_in = |a: &Self, b: &Self| a.quantile(0.25) <= b.quantile(0.75);
        begins_in(self, other) && begins_in(other, self)
    }

    /// A cell of a table: the median, the spread if it can be seen, and how many times `base` it is.
    /// There is no multiple of nothing, and `≈` stands where the spread hides it.
    fn cell(&self, base: &Self) -> String {
        let (median, base_median) = (self.median(), base.median());
        let spread = (self.quantile(0.75) - self.quantile(0.25)) / 2.0;
        let spread = number_like(median.max(spread), spread);
        let mut cell = number(median);
        if !self.0.is_empty() && spread != "0" {
            cell += &format!(" ± {spread}");
        }
        if !ptr::eq(self, base) && base_median > 0.0 && median > 0.0 {
            let ratio = median / base_median;
            cell += &match ratio {
                _ if self.overlaps(base) && ratio != 1.0 => " (≈)".to_owned(),
                ..0.1 => format!(" (1/{})", number_like(100.0, 1.0 / ratio)),
                _ => format!(" ({}×)", number_like(1.0, ratio)),
            };
        }
        cell
    }
}

/// A table of figures. Each row has its name, its results, and those that multiples of are shown.
pub fn table<'a>(
    figures: &[&str],
    rows: impl IntoIterator<Item = (String, &'a Results, &'a Results)>,
) -> String {
    let rows = rows.into_iter().map(|(name, results, base)| {
        let cells = figures.iter().map(|figure| results.of(figure).cell(base.of(figure)));
        [name].into_iter().chain(cells).collect::<Vec<_>>()
    });
    let rows = rows.filter(|row| row[1..].iter().any(|cell| cell != "–"));
    markdown::table([&[""], figures].concat(), rows)
}

/// Formats a number with those digits that mean something: at least three.
pub fn number(value: f64) -> String {
    number_like(value, value)
}

/// Formats a number with as many digits after the point as `scale` needs to have three.
fn number_like(scale: f64, value: f64) -> String {
    let digits = (2.0 - scale.abs().log10().floor()).clamp(0.0, 6.0) as usize;
    match format!("{:.digits$}", HumanFloatCount(value)) {
        _ if value.is_nan() => "–".to_owned(),
        text => text,
    }
}
