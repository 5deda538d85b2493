//! Load on EventPulse, and what came of it.
//!
//! [`generator`] sends, [`receiver`] keeps the ledger of what arrived, [`stack`] starts everything that takes part, and
//! [`cpu`] says what it cost whom. `loadtest/README.md` says how to use them.

pub mod ab;
pub mod compare;
pub mod cpu;
pub mod generator;
pub mod receiver;
pub mod stack;
mod ticks;
pub mod trials;
pub mod wire;
