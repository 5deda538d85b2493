//! Load on EventPulse, and what came of it.
//!
//! [`generator`] sends, [`receiver`] keeps the ledger of what arrived, [`stack`] starts everything that takes part, and
//! [`cpu`] says what it cost whom. `loadtest/README.md` says how to use them.

pub mod ab;
pub mod compare;
pub mod cpu;
pub mod generator;
pub mod receiver;
pub mod stack;
mod ticks;
pub mod trials;
pub mod wire;

/// Listens on a port of this machine, with room for more connections that nobody has accepted yet than any load makes at a time: of
/// those above it the first packet is lost, and each comes a second late.
///
/// # Errors
/// When the port cannot be had.
pub fn listen(port: u16) -> std::io::Result<tokio::net::TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(std::net::SocketAddr::from(([127, 0, 0, 1], port)))?;
    socket.listen(4096)
}
