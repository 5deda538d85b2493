//! A name server whose answers a test decides, one query after another.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::net::UdpSocket;

use crate::background::Background;

const HEADER: usize = 12;
const TYPE_A: [u8; 2] = [0, 1];

/// Answers every name with addresses of IPv4, and has none of IPv6. Stops when dropped.
pub struct Names {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _task: Background,
}

impl Names {
    /// Serves on a free port of loopback. `answer` gets how often an address of IPv4 was asked for before.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(answer: impl Fn(usize) -> Vec<Ipv4Addr> + Send + 'static) -> Names {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let task = async move {
            let socket = UdpSocket::from_std(socket).expect("a runtime");
            let mut query = [0; 1500];
            loop {
                let Ok((n, peer)) = socket.recv_from(&mut query).await else { continue };
                let Some(question) = question(&query[..n]) else { continue };
                let addresses = if question[question.len() - 4..].starts_with(&TYPE_A) {
                    answer(counter.fetch_add(1, Ordering::Relaxed))
                } else {
                    Vec::new()
                };
                let _ = socket.send_to(&reply(&query[..2], question, &addresses), peer).await;
            }
        };
        Names { address, asked, _task: Background::run("names", task) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often an address of IPv4 was asked for.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The first question of a query: its labels, a zero, and two bytes each of type and class.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut end = HEADER;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    query.get(HEADER..end + 5)
}

/// An answer that nobody may keep.
fn reply(id: &[u8], question: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    let n = u8::try_from(addresses.len()).expect("a few addresses");
    // A response to a recursive query; one question, n answers, nothing else.
    let mut reply = [id, &[0x81, 0x80, 0, 1, 0, n, 0, 0, 0, 0], question].concat();
    for address in addresses {
        // The name at byte 12, type A, class IN, a time to live of zero, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}
