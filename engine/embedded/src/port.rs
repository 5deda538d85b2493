//! Ports on 127.0.0.1: finding a free one, and keeping it while its server is down.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};

use crate::Error;

/// A port bound without listening: callers are refused, as when the server is simply down, yet nobody else is
/// given the port, not even as the near end of an outgoing connection (a client that calls a dead port of
/// this range can otherwise end up connected to itself).
pub(crate) struct Kept(OwnedFd);

/// Asks the system for a free port. Another process may take it before its server does.
pub(crate) fn free() -> Result<u16, Error> {
    let found = keep(0).and_then(|kept| Ok(SocketAddrV4::try_from(getsockname(&kept.0)?)?.port()));
    found.map_err(Error::Port)
}

/// Finds `n` different free ports, for servers that need more than the one they are started with.
///
/// # Errors
/// When the system has none.
pub fn free_ports(n: usize) -> Result<Vec<u16>, Error> {
    // All are bound until the last is found, so that none is found twice.
    let kept = (0..n).map(|_| keep(0)).collect::<io::Result<Vec<_>>>().map_err(Error::Port)?;
    let port = |kept: &Kept| Ok(SocketAddrV4::try_from(getsockname(&kept.0)?)?.port());
    kept.iter().map(port).collect::<io::Result<_>>().map_err(Error::Port)
}

/// Says whether somebody listens on `port` now.
pub(crate) fn taken(port: u16) -> bool {
    keep(port).is_err()
}

/// Keeps `port`, or any with 0.
///
/// Never a listening socket: a child that another thread forks at the same moment has a copy of it until it
/// executes its program, and a copy that listens would keep our server off the port.
pub(crate) fn keep(port: u16) -> io::Result<Kept> {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    bind(&fd, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(Kept(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_kept_port_refuses_and_is_nobody_elses() {
        let port = free().expect("port");
        assert!(!taken(port));
        let kept = keep(port).expect("keep");
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        drop(kept);
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("free again");
        assert!(taken(port));
    }
}
