//! Samples of one figure, and what can be said about them.

use indicatif::HumanFloatCount;

/// What the rounds of a measurement found; empty if there was nothing to measure.
#[derive(Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds what one round found.
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// The value below which a share of the samples lies, interpolated.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = share * sorted.len().checked_sub(1)? as f64;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        Some(low + (high - low) * place.fract())
    }

    /// The sample in the middle.
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// Half the distance between the quartiles.
    fn spread(&self) -> Option<f64> {
        Some((self.quantile(0.75)? - self.quantile(0.25)?) / 2.0)
    }

    /// A cell of a table: the median, the spread if it can be seen, and how many times `base` it is.
    /// There is no multiple of nothing, and `≈` stands where the middle halves of the samples overlap.
    pub fn cell(&self, base: Option<&Self>, digits: usize) -> String {
        let (Some(median), Some(spread)) = (self.median(), self.spread()) else {
            return "–".to_owned();
        };
        let mut cell = number(median, digits);
        if number(spread, digits) != "0" {
            cell += &format!(" ± {}", number(spread, digits));
        }
        match base.and_then(Self::median) {
            Some(base_median) if base_median > 0.0 && median > 0.0 => {
                let overlap = base.is_some_and(|base| self.overlaps(base));
                let times = if overlap { "≈".to_owned() } else { times(median / base_median) };
                format!("{cell} ({times})")
            }
            _ => cell,
        }
    }

    /// Whether the middle halves overlap, so that the spread hides the difference.
    pub fn overlaps(&self, other: &Self) -> bool {
        let is_below = |a: &Self, b: &Self| a.quantile(0.75) < b.quantile(0.25);
        self.median() != other.median() && !is_below(self, other) && !is_below(other, self)
    }
}

/// Formats a number with at most so many digits after the point.
pub fn number(value: f64, digits: usize) -> String {
    match format!("{:.digits$}", HumanFloatCount(value)) {
        zero if zero == "-0" => "0".to_owned(),
        text => text,
    }
}

/// Formats a multiple, or a small share such as 1/500.
fn times(ratio: f64) -> String {
    match ratio {
        ..0.1 => format!("1/{}", number(1.0 / ratio, 0)),
        _ => format!("{}×", number(ratio, 2)),
    }
}
