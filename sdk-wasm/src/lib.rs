//! Transforms for EventPulse's webhooks: plain functions that filter or reshape what an endpoint receives.
//!
//! ```
//! use eventpulse_transform::{Context, Outcome, Payload, Result};
//!
//! #[derive(serde::Deserialize)]
//! struct Order {
//!     amount: f64,
//! }
//!
//! fn transform(context: &Context, payload: Payload) -> Result<Outcome> {
//!     let order: Order = payload.json()?;
//!     let min = context.config_as("min")?.unwrap_or(0.0);
//!     if order.amount < min {
//!         return Ok(Outcome::drop("a small order"));
//!     }
//!     Ok(Outcome::unchanged())
//! }
//!
//! eventpulse_transform::export!(transform);
//!
//! # fn main() {
//! let context = Context::new("order.paid").with_config("min", "100");
//! let outcome = transform(&context, Payload::from(r#"{"amount":99.5}"#)).unwrap();
//! assert_eq!(outcome, Outcome::drop("a small order"));
//! # }
//! ```
//!
//! The function is ordinary Rust: `cargo test` runs it on your machine, with no WebAssembly in sight. Built for
//! `wasm32-unknown-unknown`, the crate becomes a module for `PUT /webhooks/:id/transform`.
//!
//! A transform has no clock, no randomness, no network and no files, and every call begins with fresh memory: the same
//! event gives the same bytes, today and at the retry tomorrow.
//!
//! # Features
//!
//! `small`, which is on by default, puts a heap of 30 KiB into the module's first memory. The host gives every call fresh
//! memory, and a module that does not grow it is several times cheaper to call. What does not fit takes more
//! memory, as without the feature.

// What is generated from the contract names this crate as its users do.
extern crate self as eventpulse_transform;

#[cfg(any(all(target_arch = "wasm32", feature = "small"), test))]
mod arena;
// Checked in, because its generator is far more to compile than all else that an author needs.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
#[rustfmt::skip]
pub mod bindings;
mod context;
mod export;
pub mod log;
mod outcome;
mod payload;

pub use context::Context;
pub use outcome::{Body, Outcome};
pub use payload::Payload;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub use export::private;

/// Any error, a text too: `?` takes what implements [`std::error::Error`], and `Err("no amount")?` a reason of your own.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a transform gives back. An error is a failure of this one delivery, and what becomes of it is the webhook's
/// `onError`.
pub type Result<T = Outcome, E = Error> = std::result::Result<T, E>;
