//! The answer to `POST /send-events`, written piece by piece from the request's own buffer: a client that reads it
//! slowly, or not at all, holds its request's bytes and little more.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;

use super::reply::Body;
use crate::{
    ingest::{Load, Receipts},
    model,
};

/// Bytes after which a piece is written.
const PIECE: usize = 64 << 10;

/// What is left to write.
pub struct Answer {
    load: Arc<Load>,
    receipts: Receipts,
    minimal: bool,
    /// The next event; none once all is written.
    next: Option<usize>,
}

/// A piece on its way to the client. It keeps the load, and the load its permit, until the kernel has taken it.
struct Piece {
    bytes: Vec<u8>,
    _load: Arc<Load>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answer {
    /// The body with all events; in one piece, and so with its length, if that is enough.
    pub(super) fn body(load: Arc<Load>, receipts: Receipts, minimal: bool) -> Body {
        let short = load.bytes() < PIECE / 2;
        let mut answer = Answer { load, receipts, minimal, next: Some(0) };
        if short
            && let Some(piece) = answer.piece()
            && answer.next.is_none()
        {
            return Body::Whole(Full::new(piece));
        }
        answer.next = Some(0);
        Body::Events(Box::new(answer))
    }

    pub(super) fn piece(&mut self) -> Option<Bytes> {
        let mut event = self.next?;
        let mut out = Vec::with_capacity(PIECE + PIECE / 8);
        if event == 0 {
            out.extend_from_slice(b"{\"ok\":true,\"events\":[");
        }
        while event < self.load.len() && out.len() < PIECE {
            if event > 0 {
                out.push(b',');
            }
            write_event(&mut out, &self.load, &self.receipts, self.minimal, event);
            event += 1;
        }
        self.next = (event < self.load.len()).then_some(event);
        if self.next.is_none() {
            out.extend_from_slice(b"]}");
        }
        Some(Bytes::from_owner(Piece { bytes: out, _load: self.load.clone() }))
    }

    pub(super) fn is_end(&self) -> bool {
        self.next.is_none()
    }
}

/// The body with the only event of a load, as `POST /send-event` answers.
pub(super) fn single(load: Arc<Load>, receipts: &Receipts, minimal: bool) -> Body {
    let mut out = Vec::with_capacity(128 + load.bytes());
    out.extend_from_slice(b"{\"ok\":true,\"event\":");
    write_event(&mut out, &load, receipts, minimal, 0);
    out.push(b'}');
    Body::Whole(Full::new(Bytes::from_owner(Piece { bytes: out, _load: load })))
}

fn write_event(out: &mut Vec<u8>, load: &Load, receipts: &Receipts, minimal: bool, event: usize) {
    let payload = (!minimal).then(|| load.payload(event));
    model::write_event(out, receipts.id(event), load.kind(event), payload, receipts.created_at);
}
