//! Commands of the binary that are more than a start of the engine.

pub mod healthcheck;
pub mod reconcile;
pub mod secrets;
pub mod transform;
