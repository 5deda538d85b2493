//! How long an event took from its commit to its outcome.
//!
//! The commit's time is Postgres', the outcome's this machine's: where their clocks differ, so does what is measured, and what
//! would be negative counts as nothing.

use crate::{
    deliver::Verdict,
    metrics::Deliver,
    model::{Event, Timestamp, Try},
};

/// Notes what an attempt says of it. New rounds are asked for, at whatever time, and say nothing.
pub(super) fn note(metrics: &Deliver, event: &Event, tried: Try, verdict: &Verdict) {
    if tried.round != Try::FIRST.round {
        return;
    }
    let seconds = since(event.created_at, Timestamp::now());
    if tried == Try::FIRST {
        metrics.first_attempt.record(seconds);
    }
    if matches!(verdict, Verdict::Delivered(_)) {
        metrics.published_to_delivered.record(seconds);
    }
}

fn since(earlier: Timestamp, later: Timestamp) -> f64 {
    (later.0 - earlier.0).max(0) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_behind_makes_no_time_negative() {
        assert_eq!(since(Timestamp(1_000), Timestamp(3_500)), 2.5);
        assert_eq!(since(Timestamp(1_000), Timestamp(900)), 0.0);
    }
}
