//! What no process has in hand any more: batches of instances that died, own batches that never reached the
//! stream, and deliveries that were lost on the way.

pub mod sweep;
pub mod takeover;
