//! Commands of the binary that are more than a start of the engine.

pub mod healthcheck;
pub mod secrets;
pub mod transform;
