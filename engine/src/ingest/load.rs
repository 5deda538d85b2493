//! The body of `POST /send-events`: many events as one JSON array or as lines of JSON, checked without building a
//! tree and without a copy of any of them.

use std::{fmt, ops::Range};

use bytes::Bytes;
use serde::{
    Deserializer as _,
    de::{Error as _, SeqAccess, Visitor},
};
use serde_json::Deserializer;
use sha2::{Digest, Sha256};

use super::{
    Permit,
    event::{self, Fields, Invalid, invalid, not_utf8, syntax},
};

/// The code of the refusal of more events than one request may hold.
pub const TOO_MANY: &str = "too_many_events";

/// The code of the refusal of an event that `POST /send-event` would not take either.
pub const TOO_LARGE: &str = "event_too_large";

/// How the events of a request are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON array.
    Array,
    /// One JSON object a line. Lines with nothing in them are passed over.
    Lines,
}

/// What one request may hold.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub events: usize,
    /// Bytes of one event's payload.
    pub payload_bytes: usize,
}

/// The events of one request, in its own buffer, for as long as the commit or the answer needs them.
#[derive(Debug)]
pub struct Load {
    body: Bytes,
    events: Vec<Place>,
    /// Types that were written with escapes, one behind the other.
    unescaped: String,
    /// What the buffer takes of the bytes that all requests may hold.
    permit: Option<Permit>,
}

/// Where an event stands. Offsets, because ten thousand slices would be as many counters to keep.
#[derive(Debug)]
struct Place {
    kind: Range<u32>,
    /// The type is in `unescaped`, not in the body.
    escaped: bool,
    payload: Range<u32>,
}

fn range(at: usize, len: usize) -> Range<u32> {
    let end = |n| u32::try_from(n).expect("a body is at most 64 MiB");
    end(at)..end(at + len)
}

fn usize_of(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl Load {
    fn new(body: Bytes, permit: Option<Permit>) -> Load {
        Load { body, events: Vec::new(), unescaped: String::new(), permit }
    }

    /// Reads the body of `POST /send-event`.
    ///
    /// # Errors
    /// As [`Draft::parse`](super::Draft::parse) does.
    pub fn one(body: Bytes, permit: Option<Permit>) -> Result<Load, Invalid> {
        let mut load = Load::new(body.clone(), permit);
        let (kind, payload) = event::read(&body)?;
        load.add(&kind, payload);
        Ok(load)
    }

    /// Reads the body of `POST /send-events`.
    ///
    /// # Errors
    /// Names the first event that is wrong, and what is wrong with it.
    pub fn many(body: Bytes, permit: Option<Permit>, format: Format, most: Most) -> Result<Load, Invalid> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(invalid("empty_body", "send a JSON array of events, or one event a line as NDJSON"));
        }
        let mut load = Load::new(body.clone(), permit);
        match format {
            Format::Array => load.read_array(&body, most),
            Format::Lines => load.read_lines(&body, most),
        }?;
        load.events.shrink_to_fit();
        Ok(load)
    }

    fn read_array(&mut self, body: &[u8], most: Most) -> Result<(), Invalid> {
        // What is valid before a byte that is not is read all the same, to say in which event that byte stands.
        let (text, torn) = match std::str::from_utf8(body) {
            Ok(text) => (text, None),
            Err(error) => {
                (std::str::from_utf8(&body[..error.valid_up_to()]).unwrap_or_default(), Some(error))
            }
        };
        let mut reader = Deserializer::from_str(text);
        let mut refused = None;
        let array = Array { load: self, most, refused: &mut refused };
        let outcome = reader.deserialize_seq(array).and_then(|()| {
            let end = reader.end();
            // The array was whole, so what follows it belongs to no event.
            end.inspect_err(|error| refused = (!error.is_eof()).then(|| syntax(error)))
        });
        let is_array = text.trim_ascii_start().starts_with('[');
        let index = is_array.then_some(self.events.len());
        match (outcome, refused, torn) {
            (Err(error), None, Some(torn)) if error.is_eof() => Err(Invalid { index, ..not_utf8(torn) }),
            (Ok(()), _, Some(torn)) => Err(not_utf8(torn)),
            (Ok(()), ..) if self.events.is_empty() => Err(invalid("empty_batch", "the array holds no event")),
            (Ok(()), ..) => Ok(()),
            (Err(_), Some(refused), _) => Err(refused),
            (Err(error), None, _) if error.is_data() && !is_array => {
                Err(invalid("not_an_array", "the body must be a JSON array of events"))
            }
            (Err(error), None, _) if error.is_data() => Err(Invalid { index, ..not_an_object() }),
            (Err(error), None, _) => Err(Invalid { index, ..syntax(&error) }),
        }
    }

    fn read_lines(&mut self, body: &[u8], most: Most) -> Result<(), Invalid> {
        for (number, line) in body.split(|b| *b == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let index = Some(self.events.len());
            self.read_line(line, number + 1, most).map_err(|invalid| Invalid { index, ..invalid })?;
        }
        Ok(())
    }

    fn read_line(&mut self, line: &[u8], number: usize, most: Most) -> Result<(), Invalid> {
        let wrong = |error: serde_json::Error| {
            if error.is_data() {
                return not_an_object();
            }
            // Its own place is that within the line.
            let text = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            let what = text.strip_suffix(&place).unwrap_or(&text);
            invalid(
                "invalid_json",
                format!("the body is not JSON: {what} at line {number} column {}", error.column()),
            )
        };
        let text = std::str::from_utf8(line).map_err(|error| {
            let at = error.valid_up_to();
            invalid("invalid_utf8", format!("the body is not UTF-8 at byte {at} of line {number}"))
        })?;
        let fields: Fields<'_> = serde_json::from_str(text).map_err(wrong)?;
        self.check(fields, most)
    }

    fn check(&mut self, fields: Fields<'_>, most: Most) -> Result<(), Invalid> {
        if self.events.len() >= most.events {
            let message = format!("one request may hold at most {} events", most.events);
            return Err(invalid(TOO_MANY, message));
        }
        let (kind, payload) = fields.check()?;
        if payload.len() > most.payload_bytes {
            let message = format!("the payload of an event must be at most {} bytes", most.payload_bytes);
            return Err(invalid(TOO_LARGE, message));
        }
        self.add(&kind, payload);
        Ok(())
    }

    fn add(&mut self, kind: &str, payload: &str) {
        let found = self.find(kind);
        let at = found.unwrap_or(self.unescaped.len());
        if found.is_none() {
            self.unescaped.push_str(kind);
        }
        let payload_at = self.find(payload).expect("a payload is a part of the body");
        self.events.push(Place {
            kind: range(at, kind.len()),
            escaped: found.is_none(),
            payload: range(payload_at, payload.len()),
        });
    }

    /// Where a part of the body begins; none for text that is elsewhere.
    fn find(&self, part: &str) -> Option<usize> {
        let at = (part.as_ptr() as usize).checked_sub(self.body.as_ptr() as usize)?;
        (at + part.len() <= self.body.len()).then_some(at)
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Bytes that stay in memory for it.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.unescaped.len() + self.events.len() * size_of::<Place>()
    }

    pub fn kind(&self, event: usize) -> &str {
        let place = &self.events[event];
        let bytes = if place.escaped { self.unescaped.as_bytes() } else { &self.body };
        std::str::from_utf8(&bytes[usize_of(&place.kind)]).expect("it was read as text")
    }

    pub fn payload(&self, event: usize) -> &[u8] {
        &self.body[usize_of(&self.events[event].payload)]
    }

    /// What the request holds of the bytes that all may hold, if it is large.
    pub fn permit(&self) -> Option<&Permit> {
        self.permit.as_ref()
    }

    /// Tells this load from every other: the events alone, not the white space or the order of fields around them.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // With its length in front no part can pass for the end of the one before.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for event in 0..self.len() {
            part(self.kind(event).as_bytes());
            part(self.payload(event));
        }
        hash.update((self.len() as u64).to_le_bytes());
        hash.finalize().into()
    }
}

fn not_an_object() -> Invalid {
    invalid("not_an_object", "each event must be a JSON object with `type` and `payload`")
}

/// Reads an array into a load, one event after the other.
struct Array<'l> {
    load: &'l mut Load,
    most: Most,
    /// Why reading ended where the text itself is well formed.
    refused: &'l mut Option<Invalid>,
}

impl<'de> Visitor<'de> for Array<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
        while let Some(fields) = seq.next_element::<Fields<'de>>()? {
            let index = Some(self.load.len());
            if let Err(invalid) = self.load.check(fields, self.most) {
                *self.refused = Some(Invalid { index, ..invalid });
                return Err(S::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
