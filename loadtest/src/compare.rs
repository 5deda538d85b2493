//! What the engine's ingest costs beside what it is made of, all from one run: hyper alone, COPY alone, XADD alone.
//!
//! A figure of one run says little where the host's speed drifts by a third. So every term is measured in every round,
//! in turn, and ratios are taken within a round.

pub mod parts;
pub mod pool;
pub mod rounds;
pub mod verdict;

use std::collections::BTreeMap;

use serde::Serialize;

/// One term in one round. Times are microseconds of processor time for each event.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figure {
    /// Events (requests, rows) a second.
    pub rate: f64,
    pub engine: f64,
    pub postgres: f64,
    pub redis: f64,
    /// The generator, or the client of a part.
    pub client: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Events of a commit.
    pub batch: f64,
    /// Cores that others used.
    pub foreign: f64,
}

/// All terms of one round by their names.
pub type Round = BTreeMap<String, Figure>;

/// Median, least and most.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => (f64::NAN, f64::NAN, f64::NAN),
        n if n % 2 == 1 => (values[n / 2], values[0], values[n - 1]),
        n => ((values[n / 2 - 1] + values[n / 2]) / 2.0, values[0], values[n - 1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
        assert!(spread(Vec::new()).0.is_nan());
    }
}
