//! What the tests and benches stand on: real servers of their own, a receiver that does as it is told, a proxy
//! that can cut the wire, and waiting for a state instead of sleeping.
//!
//! Nothing here is mocked. [`stack`] runs a Postgres and a Redis once per test binary; each test takes a
//! [`database`] and a key [`prefix`] of its own, and a test that stops or kills a server takes a
//! [`private_postgres`] or [`private_redis`]. The helpers have threads of their own, so they go on working
//! when a test blocks its runtime, and a test's paused clock does not reach them.

mod background;
pub mod collector;
pub mod guests;
mod names;
pub mod proxy;
pub mod receiver;
mod redis_cluster;
mod stack;
mod wait;

pub use eventpulse_embedded::{Postgres, Prometheus, Redis, alive};
pub use names::Names;
pub use proxy::TcpProxy;
pub use receiver::{Receiver, Reply};
pub use redis_cluster::RedisCluster;
pub use stack::{Stack, database, prefix, private_postgres, private_redis, redis_cluster, scratch, stack};
pub use wait::eventually;
