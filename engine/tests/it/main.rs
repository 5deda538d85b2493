//! The engine against a real Postgres and a real Redis, through its HTTP port.

mod backlog;
mod bad_input;
mod bulk;
mod client;
mod contract;
mod deferred;
mod delivery;
mod dlq;
mod harness;
mod idempotency;
mod lanes;
mod life;
mod outage;
mod overload;
mod process;
mod replay;
mod scheduled;
mod sdk;
mod settle;
mod shared_work;
mod sockets;
mod test_event;
mod transform_host;
mod transforms;
mod volume;
mod webhooks;
