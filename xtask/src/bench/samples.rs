//! Measurements and the table that shows them.

use std::fmt;
use std::time::Duration;

/// Repeated measurements of one thing, and its unit.
#[derive(Debug, Clone)]
pub(super) struct Samples {
    values: Vec<f64>,
    unit: &'static str,
}

impl Samples {
    pub(super) fn new(unit: &'static str) -> Samples {
        Samples { values: Vec::new(), unit }
    }

    /// Durations, in milliseconds.
    pub(super) fn of_durations(durations: impl IntoIterator<Item = Duration>) -> Samples {
        let values = durations.into_iter().map(|duration| duration.as_secs_f64() * 1000.0).collect();
        Samples { values, unit: "ms" }
    }

    pub(super) fn of_one(value: f64, unit: &'static str) -> Samples {
        Samples { values: vec![value], unit }
    }

    pub(super) fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The value below which this share of the samples lies, of 0 to 1.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (share * (sorted.len().saturating_sub(1)) as f64).round() as usize;
        sorted.get(place).copied().unwrap_or(f64::NAN)
    }
}

/// Adds a line to the table, at once: what comes later may fail.
pub(super) fn show(what: impl Into<String>, samples: Samples) {
    println!("{}", Row { what: what.into(), samples });
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    what: String,
    samples: Samples,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { what, samples } = self;
        let count = samples.values.len();
        write!(f, "| {what} | {} {} |", number(samples.quantile(0.5)), samples.unit)?;
        match count {
            0 | 1 => write!(f, " | {count} |"),
            _ => write!(f, " {} … {} | {count} |", number(samples.quantile(0.0)), number(samples.quantile(1.0))),
        }
    }
}

/// The head of the table.
pub(super) const HEAD: &str = "| what | median | least … most | samples |\n|---|---|---|---|";

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_median_and_spread() {
        let millis = [30, 10, 20].map(Duration::from_millis);
        let row = Row { what: "start".to_owned(), samples: Samples::of_durations(millis) };
        assert_eq!(row.to_string(), "| start | 20.0 ms | 10.0 … 30.0 | 3 |");
        let row = Row { what: "memory".to_owned(), samples: Samples::of_one(1234.5, "MiB") };
        assert_eq!(row.to_string(), "| memory | 1234 MiB | | 1 |");
    }

    #[test]
    fn quantiles_are_samples() {
        let samples = Samples { values: (1..=100).map(f64::from).collect(), unit: "ms" };
        assert_eq!((samples.quantile(0.0), samples.quantile(0.99), samples.quantile(1.0)), (1.0, 99.0, 100.0));
    }
}
