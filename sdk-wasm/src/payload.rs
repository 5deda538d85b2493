//! What the producer sent.

use serde::Deserialize;

/// The event's payload: the producer's JSON, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// Returns the bytes as the producer sent them. They are valid JSON.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives the bytes away, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Reads the payload as a type of yours, or as `serde_json::Value`. Text in it may be borrowed from the payload.
    ///
    /// # Errors
    /// When the payload has another shape, and beyond 128 levels of nesting.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Payload(bytes)
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Payload {
        Payload(text.into_bytes())
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Payload {
        Payload(bytes.to_vec())
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Payload {
        Payload::from(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        for text in ["0.1", "2.2250738585072014e-308", "1.7976931348623157e308", "9007199254740993", "99.99"]
        {
            let value: serde_json::Value = Payload::from(text).json().unwrap();
            let back: f64 = value.to_string().parse().unwrap();
            assert_eq!(back, text.parse::<f64>().unwrap(), "{text} became {value}");
        }
    }

    #[test]
    fn text_is_borrowed() {
        let payload = Payload::from(r#"{"a":"b"}"#);
        let map: std::collections::BTreeMap<&str, &str> = payload.json().unwrap();
        assert_eq!(map["a"], "b");
    }
}
