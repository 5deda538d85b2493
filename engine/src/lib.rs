//! EventPulse: events in by HTTP, committed to Postgres, pushed through Redis Streams, delivered as signed
//! webhooks.
//!
//! Reading [`http`] -> [`ingest`] -> [`store`] -> [`stream`] -> [`dispatch`] -> [`lane`] -> [`deliver`] ->
//! [`settle`] -> [`retry`] -> [`recover`] is reading the life of an event. ARCHITECTURE.md has the map and the
//! invariants.

pub mod commands;
pub mod compile;
pub mod config;
pub mod deliver;
pub mod dev;
pub mod dispatch;
pub mod engine;
pub mod failpoint;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod http;
pub mod huge_pages;
pub mod ingest;
pub mod lane;
pub mod logs;
pub mod metrics;
pub mod model;
pub mod recover;
pub mod retry;
pub mod settle;
pub mod store;
pub mod stream;
pub mod trace;
pub mod transform;

/// Ends when the engine is to stop, or when there is nobody left to say so.
async fn stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// An error and its causes on one line, for the place where it is handled.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
