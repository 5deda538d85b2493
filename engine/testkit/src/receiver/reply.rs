//! What a script lets the receiver do with a request.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;

/// A reply, or the lack of one. Built from one of the first functions and refined with the `with_` ones.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(crate) kind: Kind,
    pub(crate) delay: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Answer(Answer),
    Reset,
    Hang,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    pub(crate) slow: Option<(usize, Duration)>,
}

impl Reply {
    /// Answers 200 with an empty body.
    pub fn ok() -> Reply {
        Reply::status(200)
    }

    /// Answers with `code` and an empty body.
    ///
    /// # Panics
    /// When `code` is not between 100 and 999.
    pub fn status(code: u16) -> Reply {
        Reply {
            kind: Kind::Answer(Answer {
                status: StatusCode::from_u16(code).expect("a status code"),
                headers: Vec::new(),
                body: Bytes::new(),
                slow: None,
            }),
            delay: None,
        }
    }

    /// Sends the caller elsewhere, with a 302.
    pub fn redirect(location: &str) -> Reply {
        Reply::status(302).with_header("location", location)
    }

    /// Answers 200 with `body` in pieces of `chunk` bytes and a `pause` before each.
    pub fn slow_body(body: impl Into<Bytes>, chunk: usize, pause: Duration) -> Reply {
        let mut reply = Reply::ok().with_body(body);
        if let Kind::Answer(answer) = &mut reply.kind {
            answer.slow = Some((chunk.max(1), pause));
        }
        reply
    }

    /// Aborts the connection: the caller sees a reset and not one byte.
    pub fn reset() -> Reply {
        Reply { kind: Kind::Reset, delay: None }
    }

    /// Never answers and keeps the connection open, until the caller gives up.
    pub fn hang() -> Reply {
        Reply { kind: Kind::Hang, delay: None }
    }

    /// Waits before it answers or resets.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Reply {
        self.delay = Some(delay);
        self
    }

    /// Sets the body of an answer.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Reply {
        if let Kind::Answer(answer) = &mut self.kind {
            answer.body = body.into();
        }
        self
    }

    /// Adds a header to an answer.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Reply {
        if let Kind::Answer(answer) = &mut self.kind {
            answer.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}
