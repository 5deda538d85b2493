//! Commands of the binary that are more than a start of the engine.

pub mod explain;
pub mod healthcheck;
pub mod reconcile;
pub mod secrets;
mod text;
pub mod top;
pub mod transform;
