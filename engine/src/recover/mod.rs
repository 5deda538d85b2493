//! What no process has in hand any more: batches of instances that died, own batches that never reached the
//! stream, and deliveries that were lost on the way. And what one process does for all once in a while.

mod account;
pub mod backlog;
pub mod depths;
pub mod rebuild;
pub mod retention;
pub mod sweep;
pub mod takeover;
pub mod upkeep;
