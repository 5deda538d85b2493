//! The ratios that say whether ingest costs what its parts cost.

use serde::Serialize;

use super::{Figure, Round, spread};

/// Sizes of COPY batches that are measured.
pub const COPY_SIZES: [usize; 5] = [16, 64, 128, 256, 500];

/// A ratio over all rounds, and what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub name: &'static str,
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub must: f64,
    pub aim: f64,
    /// Whether larger is better.
    pub at_least: bool,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        if self.at_least { self.median >= self.must } else { self.median <= self.must }
    }
}

type Ratio = (&'static str, f64, f64, bool, fn(&Round) -> Option<f64>);

const RATIOS: [Ratio; 7] = [
    ("ingest CPU / sum of its parts, 256 connections", 1.4, 1.15, false, |r| {
        Some(total(r.get("ingest 256")?) / parts(r, 256)?)
    }),
    ("engine CPU / bare hyper CPU, 256 connections", 1.7, 1.4, false, |r| {
        Some(r.get("ingest 256")?.engine / r.get("bare 256")?.engine)
    }),
    ("events/s / bare hyper requests/s, 64 connections", 0.28, 0.37, true, |r| {
        Some(r.get("ingest 64")?.rate / r.get("bare 64")?.rate)
    }),
    ("events/s / bare hyper requests/s, 256 connections", 0.38, 0.50, true, |r| {
        Some(r.get("ingest 256")?.rate / r.get("bare 256")?.rate)
    }),
    ("/send-events of 500: events/s / COPY rows/s", 0.5, 0.7, true, |r| {
        Some(r.get("bulk")?.rate / r.get("copy 500")?.rate)
    }),
    ("p50 at 5,000/s / one commit of 16 rows", 5.0, 2.8, false, |r| {
        Some(r.get("fixed 5000")?.p50 / r.get("copy 16")?.p50)
    }),
    ("latency of one connection / of a bare INSERT", 1.6, 1.3, false, |r| {
        Some(r.get("ingest 1")?.p50 / r.get("insert")?.p50)
    }),
];

fn total(figure: &Figure) -> f64 {
    figure.engine + figure.postgres + figure.redis
}

/// What hyper, COPY and XADD take together for each event, at the batch size that the engine had.
pub fn parts(round: &Round, connections: usize) -> Option<f64> {
    let batch = round.get(&format!("ingest {connections}"))?.batch;
    let bare = round.get(&format!("bare {connections}"))?.engine;
    let xadd = round.get("xadd")?;
    Some(bare + copy_cost(round, batch)? + (xadd.client + xadd.redis) / batch)
}

/// Of a row in a batch of that size: between two measured sizes on a line over 1/size, because a batch costs a fixed
/// amount and each row another.
pub fn copy_cost(round: &Round, batch: f64) -> Option<f64> {
    let cost = |size: usize| {
        let figure = round.get(&format!("copy {size}"))?;
        Some(figure.client + figure.postgres)
    };
    let upper =
        COPY_SIZES.iter().position(|size| *size as f64 >= batch).unwrap_or(COPY_SIZES.len() - 1).max(1);
    let (small, large) = (COPY_SIZES[upper - 1], COPY_SIZES[upper]);
    let (x0, x1) = (1.0 / small as f64, 1.0 / large as f64);
    let (y0, y1) = (cost(small)?, cost(large)?);
    Some(y0 + (y1 - y0) * (1.0 / batch - x0) / (x1 - x0))
}

/// All ratios for which there are figures.
pub fn verdicts(rounds: &[Round]) -> Vec<Verdict> {
    let verdict = |(name, must, aim, at_least, ratio): &Ratio| {
        let values: Vec<f64> = rounds.iter().filter_map(ratio).collect();
        if values.is_empty() {
            return None;
        }
        let (median, least, most) = spread(values);
        Some(Verdict { name, median, least, most, must: *must, aim: *aim, at_least: *at_least })
    };
    RATIOS.iter().filter_map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        let round = |speed: f64| {
            let figure =
                |engine, rate| Figure { engine: engine * speed, rate: rate / speed, ..Figure::default() };
            Round::from([
                ("ingest 256".to_owned(), figure(12.0, 60.0)),
                ("bare 256".to_owned(), figure(8.0, 120.0)),
            ])
        };
        let verdicts = verdicts(&[round(1.0), round(1.7), round(0.8)]);
        assert_eq!(verdicts.len(), 2, "only what there are figures for");
        assert!(
            (verdicts[0].median - 1.5).abs() < 1e-9 && (verdicts[0].most - verdicts[0].least).abs() < 1e-9
        );
        assert!(verdicts[0].holds() && verdicts[1].holds());
    }

    #[test]
    fn the_cost_of_a_batch_lies_between_its_neighbours() {
        let copy = |size: usize| {
            (format!("copy {size}"), Figure { postgres: 3.0 + 160.0 / size as f64, ..Figure::default() })
        };
        let round: Round = COPY_SIZES.map(copy).into_iter().collect();
        for batch in [16.0, 40.0, 128.0, 200.0, 500.0] {
            assert!((copy_cost(&round, batch).unwrap() - (3.0 + 160.0 / batch)).abs() < 1e-9, "{batch}");
        }
    }
}
