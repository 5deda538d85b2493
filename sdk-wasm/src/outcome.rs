//! What is to be done with an event.

use serde::Serialize;

/// What a transform wants done with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes out as it came.
    Unchanged,
    /// This JSON goes out in place of the payload, inside of the usual envelope.
    Payload(Vec<u8>),
    /// This goes out in place of the whole HTTP body.
    Body(Body),
    /// Nothing goes out, for this reason. The delivery is recorded as filtered.
    Drop(String),
}

impl Outcome {
    /// Sends the event as it came.
    pub fn unchanged() -> Outcome {
        Outcome::Unchanged
    }

    /// Sends this in place of the payload, inside of the usual envelope.
    ///
    /// # Errors
    /// When the value has no form in JSON, such as a map whose keys are not text.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Outcome, serde_json::Error> {
        serde_json::to_vec(value).map(Outcome::Payload)
    }

    /// Sends these bytes, which must be JSON, in place of the payload.
    pub fn payload(json: impl Into<Vec<u8>>) -> Outcome {
        Outcome::Payload(json.into())
    }

    /// Sends this in place of the whole HTTP body. [`Body`] has more: JSON, and headers.
    pub fn body(content_type: &str, bytes: impl Into<Vec<u8>>) -> Outcome {
        Outcome::Body(Body::new(content_type, bytes))
    }

    /// Sends nothing, for this reason, which stands with the delivery.
    pub fn drop(reason: impl Into<String>) -> Outcome {
        Outcome::Drop(reason.into())
    }
}

impl From<Body> for Outcome {
    fn from(body: Body) -> Outcome {
        Outcome::Body(body)
    }
}

/// A whole HTTP body, in place of the envelope. It is signed as any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    content_type: String,
    bytes: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Body {
    /// Makes a body of these bytes.
    pub fn new(content_type: &str, bytes: impl Into<Vec<u8>>) -> Body {
        Body { content_type: content_type.to_owned(), bytes: bytes.into(), headers: Vec::new() }
    }

    /// Makes a body of this value, as `application/json`.
    ///
    /// # Errors
    /// When the value has no form in JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Body, serde_json::Error> {
        serde_json::to_vec(value).map(|bytes| Body::new("application/json", bytes))
    }

    /// Adds a header. The host refuses names that are not on its list; `docs/transforms.md` has it.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Body {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Returns the content type.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the headers that were added, name and value.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    #[cfg(target_arch = "wasm32")]
    pub(crate) fn into_parts(self) -> (String, Vec<u8>, Vec<(String, String)>) {
        (self.content_type, self.bytes, self.headers)
    }
}
