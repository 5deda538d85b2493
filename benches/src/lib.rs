//! What the benches share: events that are the same in every run, the hot path's functions by name, and servers of
//! their own.

pub mod client;
pub mod fixtures;
pub mod hot;
pub mod servers;
