//! One delivery attempt: the signed request, the call, and what its outcome means.
//!
//! A request is never sent twice without saying so: one of which no byte was written goes on a new
//! connection, and after the first byte a dead connection is a failed attempt.

pub(crate) mod address;
pub mod client;
mod connect;
mod dns;
mod gate;
mod h1;
mod h2;
mod origin;
pub mod outcome;
mod pool;
pub mod post;
mod proxy;
pub mod request;
pub mod sign;
pub mod target;

#[cfg(any(test, fuzzing))]
pub(crate) use self::h1::fuzzed::reply;
pub use self::{
    client::Client,
    outcome::Verdict,
    request::{Content, Target},
};
