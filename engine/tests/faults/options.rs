//! What a run is to do, as `scripts/faults` hands it over in the environment.

use std::time::Duration;

use crate::fault::Fault;

/// Faults of a run within `cargo test`, each once: one of each kind, and those that are quick.
const SHORT: &[Fault] = &[
    Fault::DiesAnswered,
    Fault::DiesReplied,
    Fault::DispatcherKilled,
    Fault::RedisLost,
    Fault::RedisWipedThrice,
    Fault::PostgresCrash,
];
const SHORT_SEED: u64 = 6;

/// How long faults go on being injected.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// So many were.
    Count(usize),
    /// So much time has passed.
    Time(Duration),
}

pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) until: Until,
    /// What may be drawn.
    pub(crate) faults: Vec<Fault>,
    /// Of the producers, events a second.
    pub(crate) rate: u32,
}

impl Options {
    /// Load alone.
    pub(crate) fn quiet() -> Options {
        Options { seed: 0, until: Until::Time(Duration::from_secs(5)), faults: Vec::new(), rate: 150 }
    }

    /// `FAULTS_MINUTES`, `FAULTS_SEED`, `FAULTS_ONLY` (names with commas between), `FAULTS_RATE`.
    pub(crate) fn from_environment() -> Options {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name: &str| {
            text(name)
                .map(|text| text.parse::<f64>().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
        };
        let named = text("FAULTS_ONLY").map(|names| names.split(',').map(Fault::named).collect());
        let drawn = || Fault::ALL.iter().copied().filter(|fault| fault.drawn()).collect();
        let (until, faults) = match number("FAULTS_MINUTES") {
            Some(minutes) => {
                (Until::Time(Duration::from_secs_f64(minutes * 60.0)), named.unwrap_or_else(drawn))
            }
            None => (Until::Count(SHORT.len()), SHORT.to_vec()),
        };
        Options {
            seed: number("FAULTS_SEED").map_or(SHORT_SEED, |seed| seed as u64),
            until,
            faults,
            rate: number("FAULTS_RATE").map_or(150, |rate| rate as u32),
        }
    }
}
