//! An HTTP/1.1 connection, driven by the call that has it and by nothing else.
//!
//! One request at a time, so there is nothing to hand over between tasks: the call writes its request in one piece, reads what
//! comes, and gives the connection back or drops it. What follows from the head of a reply is in [`head`], where its body ends
//! in [`body`].

pub(super) mod body;
pub(super) mod head;

use std::{
    future::poll_fn,
    io::{self, Read as _},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::client::TlsStream;

use self::{
    body::Body,
    head::{HEAD_BYTES_MAX, Head},
};

/// Room for one read. Most replies are smaller, and then one read is all: a socket that gave less than it was asked for is known
/// to be empty.
const READ: usize = 2 << 10;

/// What a connection goes over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// Ready where there is anything to read, the end and an error among it. Reads nothing from the network: what a peer has to say
    /// to a session of TLS may have no end.
    fn poll_unasked(&mut self, cx: &mut Context) -> Poll<()>;

    /// Whether a write that fails has sent nothing.
    fn fails_whole(&self) -> bool;
}

impl Io for TcpStream {
    fn poll_unasked(&mut self, cx: &mut Context) -> Poll<()> {
        self.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map(|_| ())
    }

    fn fails_whole(&self) -> bool {
        true
    }
}

/// No byte is expected of an idle session: the tickets of TLS 1.3 come before the first reply.
impl Io for TlsStream<TcpStream> {
    fn poll_unasked(&mut self, cx: &mut Context) -> Poll<()> {
        let (stream, session) = self.get_mut();
        match session.reader().read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.poll_unasked(cx),
            // Text that was in one record with the reply, or the end.
            _ => Poll::Ready(()),
        }
    }

    fn fails_whole(&self) -> bool {
        false
    }
}

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
    pub(super) fn new(io: impl Io + 'static, id: u64) -> H1 {
        H1 { id, born: Instant::now(), io: Box::new(io), input: BytesMut::new() }
    }

    /// Whether it can take a request. Whatever a peer sends unasked, the end among it, says no.
    pub(super) fn is_ready(&mut self) -> bool {
        self.input.is_empty() && at_once(|cx| self.io.poll_unasked(cx)).is_pending()
    }

    /// Closes an idle connection in good order, as far as that needs no waiting.
    pub(super) fn close(mut self) {
        let _ = at_once(|cx| Pin::new(&mut self.io).poll_shutdown(cx));
    }

    /// Sends a request and reads the head of its reply. A peer may answer before it has read all: then the rest is written while the
    /// body of the reply is read.
    ///
    /// # Errors
    /// When there is no reply; the connection is of no more use.
    ///
    /// # Cancel safety
    /// Not safe: the connection has to be dropped.
    pub(super) async fn exchange(&mut self, sending: &mut Sending<'_>) -> Result<(Head, Body), Failed> {
        let mut seen = 0;
        let mut spent = 0;
        loop {
            let read = poll_fn(|cx| self.poll(sending, cx)).await;
            let fails_whole = self.io.fails_whole();
            let failed = |error, sending: &mut Sending| {
                let begun = sending.written > 0 || sending.error.is_some() && !fails_whole;
                // Why it could not be written says more than that there is nothing to read.
                Failed { error: sending.error.take().map_or(error, Error::Io), begun }
            };
            match read {
                Ok(0) => return Err(failed(Error::Closed, sending)),
                // Not a reply to this request.
                Ok(_) if sending.written == 0 => return Err(failed(Error::Closed, sending)),
                Ok(_) => {}
                Err(error) => return Err(failed(error.into(), sending)),
            }
            while let Some(end) = head::end(&self.input, seen) {
                let reply = Head::parse(&self.input[..end]).map_err(|e| failed(e.into(), sending))?;
                self.input.advance(end);
                (seen, spent) = (0, spent + end);
                if let Some(reply) = reply {
                    return Ok(reply);
                }
            }
            seen = self.input.len();
            if spent + seen > HEAD_BYTES_MAX {
                return Err(failed(head::Error::Large.into(), sending));
            }
        }
    }

    /// Writes what can be written now, and reads.
    fn poll(&mut self, sending: &mut Sending, cx: &mut Context) -> Poll<io::Result<usize>> {
        sending.poll(&mut self.io, cx);
        self.input.reserve(READ);
        pin!(self.io.read_buf(&mut self.input)).poll(cx)
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
        sending: &mut Sending<'_>,
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
            if poll_fn(|cx| self.poll(sending, cx)).await? == 0 {
                return body.end_of_input().map(|()| true);
            }
        }
    }

    /// Writes what is left of a request whose reply is there, until that is all or the peer takes no more.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn send_rest(&mut self, sending: &mut Sending<'_>) {
        poll_fn(|cx| {
            sending.poll(&mut self.io, cx);
            if sending.is_over() || sending.error.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether nothing came after the reply. To be asked once it was read to its end.
    pub(super) fn is_clean(&mut self) -> bool {
        let clean = self.input.is_empty();
        // An idle connection holds no memory of its own.
        self.input = BytesMut::new();
        clean
    }
}

/// Polls without waiting. Not by the measure of a task, which would be told to wait, whatever there is, once it has done much in its
/// turn.
fn at_once<T>(poll: impl FnMut(&mut Context) -> Poll<T>) -> Poll<T> {
    let future = pin!(tokio::task::unconstrained(poll_fn(poll)));
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// How far a request is.
pub(super) struct Sending<'a> {
    wire: &'a Wire,
    written: usize,
    flushed: bool,
    /// Nothing more is written. The peer may have answered before.
    error: Option<io::Error>,
}

impl<'a> Sending<'a> {
    pub(super) fn new(wire: &'a Wire) -> Sending<'a> {
        Sending { wire, written: 0, flushed: false, error: None }
    }

    /// Whether the peer has all of it.
    pub(super) fn is_over(&self) -> bool {
        self.flushed
    }

    /// Writes as much as can be written now.
    fn poll(&mut self, io: &mut Box<dyn Io>, cx: &mut Context) {
        if self.flushed || self.error.is_some() {
            return;
        }
        if let Poll::Ready(Err(error)) = self.poll_write(io, cx) {
            self.error = Some(error);
        }
    }

    fn poll_write(&mut self, io: &mut Box<dyn Io>, cx: &mut Context) -> Poll<io::Result<()>> {
        while self.written < self.wire.len() {
            match ready!(Pin::new(&mut *io).poll_write(cx, self.wire.from(self.written)))? {
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
