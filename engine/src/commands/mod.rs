//! Commands of the binary that are more than a start of the engine.

pub mod reconcile;
pub mod transform;
