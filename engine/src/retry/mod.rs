//! Retries: when the next attempt is due, and keeping Redis's near window filled from the schedule.
//!
//! The schedule in Postgres is the truth. Redis's `due` holds what is due soon; losing it costs the time
//! until the feeder's next pass.

pub mod feeder;
pub mod schedule;
