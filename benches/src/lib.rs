//! What the benches share: events that are the same in every run, the hot path's functions by name, servers of
//! their own, and the guard that counts instructions.

pub mod client;
pub mod fixtures;
pub mod hot;
pub mod instructions;
pub mod servers;
