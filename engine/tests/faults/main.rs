//! The fault suite: the real binary in processes of its own under load, a seeded schedule of faults, and then the ledger:
//! what was accepted is settled, what was delivered was recorded, and every repeat has a fault that explains it.
//!
//! `scripts/faults` runs it for longer; docs/faults.md says what is injected and checked.

mod check;
mod fault;
mod index;
mod inject;
mod load;
mod node;
mod options;
mod report;
mod rng;
mod run;
mod site;
mod world;

use std::sync::{Mutex, MutexGuard, PoisonError};

use options::Options;

/// Each run fills the machine, so there is one at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn without_faults_nothing_is_missed_or_repeated() {
    let _turn = turn();
    run::run(&Options::quiet());
}

/// What `scripts/faults` runs for as long as it is told, and for half a minute otherwise.
#[test]
fn a_seeded_schedule_of_faults_loses_nothing() {
    let _turn = turn();
    run::run(&Options::from_environment());
}
