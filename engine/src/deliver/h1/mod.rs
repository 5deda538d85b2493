//! An HTTP/1.1 connection, driven by the call that has it and by nothing else.
//!
//! One request at a time, so there is nothing to hand over between tasks: the call writes its request in one piece, reads what
//! comes, and gives the connection back or drops it. What follows from the head of a reply is in [`head`], where its body ends
//! in [`body`].

pub(super) mod body;
pub(super) mod head;

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};

use self::{
    body::Body,
    head::{HEAD_BYTES_MAX, Head},
};

/// Room for one read. Most replies are smaller, and then one read is all: a socket that gave less than it was asked for is known
/// to be empty.
const READ: usize = 2 << 10;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection. Dropping it closes it at once, whatever it is doing.
pub(super) struct H1 {
    pub(super) id: u64,
    pub(super) born: Instant,
    io: Box<dyn Io>,
    /// What was read and not used yet.
    input: BytesMut,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the connection was closed")]
    Closed,
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("what came is no HTTP")]
    Head(#[from] head::Error),
    #[error("a chunk of the body is broken")]
    Chunk,
}

/// A request as it goes over the wire.
pub(super) struct Wire {
    /// The head, and the body if it is small.
    pub(super) start: Vec<u8>,
    pub(super) rest: Bytes,
}

impl Wire {
    fn len(&self) -> usize {
        self.start.len() + self.rest.len()
    }

    /// What is left after `written` bytes.
    fn from(&self, written: usize) -> &[u8] {
        match written.checked_sub(self.start.len()) {
            None => &self.start[written..],
            Some(at) => &self.rest[at..],
        }
    }
}

/// A request that got no reply.
pub(super) struct Failed {
    pub(super) error: Error,
    /// Whether the peer may have any of it.
    pub(super) begun: bool,
}

impl H1 {
    pub(super) fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, id: u64) -> H1 {
        H1 { id, born: Instant::now(), io: Box::new(io), input: BytesMut::new() }
    }

    /// Whether it can take a request. Whatever a peer sends unasked, the end among it, says no.
    pub(super) fn is_ready(&mut self) -> bool {
        let mut byte = [0];
        let read = poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut byte)));
        // Or a task that has done much in its turn would be told to wait, whatever there is to read.
        let read = pin!(tokio::task::unconstrained(read));
        read.poll(&mut Context::from_waker(Waker::noop())).is_pending() && self.input.is_empty()
    }

    /// Closes an idle connection in good order, as far as that needs no waiting.
    pub(super) fn close(mut self) {
        let _ = Pin::new(&mut self.io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }

    /// Sends a request and reads the head of its reply. A peer may answer before it has read all: that is its reply.
    ///
    /// # Errors
    /// When there is no reply; the connection is of no more use.
    ///
    /// # Cancel safety
    /// Not safe: the connection has to be dropped.
    pub(super) async fn exchange(&mut self, wire: &Wire) -> Result<(Head, Body), Failed> {
        let mut sending = Sending { written: 0, flushed: false, error: None };
        let mut seen = 0;
        let mut spent = 0;
        loop {
            let read = poll_fn(|cx| {
                sending.poll(&mut self.io, wire, cx);
                poll_input(&mut self.io, &mut self.input, cx)
            })
            .await;
            let failed = |error| Failed { error, begun: sending.written > 0 };
            match read {
                Ok(0) => {
                    // Why it could not be written says more than that there is nothing to read.
                    return Err(failed(sending.error.take().map_or(Error::Closed, Error::Io)));
                }
                Ok(_) => {}
                Err(error) => return Err(failed(sending.error.take().unwrap_or(error).into())),
            }
            while let Some(end) = head::end(&self.input, seen) {
                let reply = Head::parse(&self.input[..end]).map_err(|e| failed(e.into()))?;
                self.input.advance(end);
                (seen, spent) = (0, spent + end);
                if let Some((mut head, body)) = reply {
                    head.keeps &= sending.is_over(wire);
                    return Ok((head, body));
                }
            }
            seen = self.input.len();
            if spent + seen > HEAD_BYTES_MAX {
                return Err(failed(head::Error::Large.into()));
            }
        }
    }

    /// Reads of a body until it ends or `into` has more than `max` bytes. Returns whether it has ended.
    ///
    /// # Errors
    /// When the body breaks off. What `into` has by then came before.
    ///
    /// # Cancel safety
    /// Safe: what was read is in `into`, or is read by the next call.
    pub(super) async fn read(
        &mut self,
        body: &mut Body,
        max: usize,
        into: &mut Vec<u8>,
    ) -> Result<bool, Error> {
        loop {
            if body.take(&mut self.input, max, into)? {
                return Ok(true);
            }
            if into.len() > max {
                return Ok(false);
            }
            if poll_fn(|cx| poll_input(&mut self.io, &mut self.input, cx)).await? == 0 {
                return body.end_of_input().map(|()| true);
            }
        }
    }

    /// Whether nothing came after the reply. To be asked once it was read to its end.
    pub(super) fn is_clean(&mut self) -> bool {
        let clean = self.input.is_empty();
        // An idle connection holds no memory of its own.
        self.input = BytesMut::new();
        clean
    }
}

fn poll_input(io: &mut Box<dyn Io>, input: &mut BytesMut, cx: &mut Context) -> Poll<io::Result<usize>> {
    input.reserve(READ);
    pin!(io.read_buf(input)).poll(cx)
}

/// How far a request is.
struct Sending {
    written: usize,
    flushed: bool,
    /// Nothing more is written. The peer may have answered before.
    error: Option<io::Error>,
}

impl Sending {
    fn is_over(&self, wire: &Wire) -> bool {
        self.written == wire.len() && self.flushed
    }

    /// Writes as much as can be written now.
    fn poll(&mut self, io: &mut Box<dyn Io>, wire: &Wire, cx: &mut Context) {
        if self.flushed || self.error.is_some() {
            return;
        }
        if let Poll::Ready(Err(error)) = self.poll_write(io, wire, cx) {
            self.error = Some(error);
        }
    }

    fn poll_write(&mut self, io: &mut Box<dyn Io>, wire: &Wire, cx: &mut Context) -> Poll<io::Result<()>> {
        while self.written < wire.len() {
            match ready!(Pin::new(&mut *io).poll_write(cx, wire.from(self.written)))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        ready!(Pin::new(&mut *io).poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }
}

#[cfg(any(test, fuzzing))]
pub(super) mod fuzzed;
#[cfg(test)]
mod tests;
