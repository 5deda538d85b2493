//! Runs a private Postgres and a private Redis as child processes, for `eventpulse dev` and for the tests, and for the
//! tests alone a private Prometheus.
//!
//! Promises:
//! - The servers listen on 127.0.0.1 only, on free ports, and keep everything in the directory that they are given.
//! - No server outlives the process that started it, however that process ends: see `watchdog.rs`.
//!   Each server hangs on a pipe that the kernel closes with us, so there is nothing that a crash could skip.
//! - A directory has one user at a time; what a crashed user left behind is stopped or taken over.
//! - Postgres keeps its promises too: `fsync` and `synchronous_commit` stay on, so that a test of durability means something.
//!
//! Everything here blocks and needs no async runtime; call it from a blocking thread when there is one.

mod cluster;
mod error;
mod find;
mod home;
mod launch;
mod port;
mod postgres;
mod process;
mod prometheus;
mod redis;
mod user;
mod watchdog;

pub use error::Error;
pub use home::remove;
pub use port::free_ports;
pub use postgres::Postgres;
pub use process::alive;
pub use prometheus::Prometheus;
pub use redis::Redis;
