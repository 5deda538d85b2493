//! A stream entry: which batch, under which configuration, and whether it may have been seen before.

use std::collections::HashMap;

use redis::Value;

use super::Error;
use crate::model::{EventId, Span};

/// The format of entries this version writes. A reader takes this one and the one before.
const FORMAT: i64 = 1;

/// One entry as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Redis's id of the entry, for the ack.
    pub id: String,
    pub span: Span,
    /// Some of it may be settled already: attempts and the schedule are read before anything is sent.
    pub check: bool,
}

/// The fields of an entry. Their names repeat, which a stream node stores once.
pub fn encode(span: Span, check: bool) -> [(&'static str, i64); 5] {
    [
        ("v", FORMAT),
        ("first", span.first.0),
        ("n", i64::from(span.n)),
        ("config", span.version),
        ("check", i64::from(check)),
    ]
}

/// Reads `[id, [field, value, ...]]`.
pub(super) fn decode(value: &Value) -> Result<Entry, Error> {
    let (id, fields): (String, HashMap<String, i64>) =
        redis::from_redis_value_ref(value).map_err(|_| Error::Entry)?;
    let field = |name: &str| fields.get(name).copied().ok_or(Error::Entry);
    if field("v")? != FORMAT {
        return Err(Error::Entry);
    }
    Ok(Entry {
        id,
        span: Span {
            first: EventId(field("first")?),
            n: i32::try_from(field("n")?).map_err(|_| Error::Entry)?,
            version: field("config")?,
        },
        check: field("check")? != 0,
    })
}

/// Reads the id and the first event of an entry of any format: they are written alike in all of them, for those who only ask
/// which batches are in the stream.
pub(super) fn outline(value: &Value) -> Result<(String, i64), Error> {
    let (id, mut fields): (String, HashMap<String, Value>) =
        redis::from_redis_value_ref(value).map_err(|_| Error::Entry)?;
    let first = fields.remove("first").ok_or(Error::Entry)?;
    Ok((id, redis::from_redis_value(first).map_err(|_| Error::Entry)?))
}

/// Reads any bytes as Redis's reply to a reader.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzzed(data: &[u8]) {
    let Ok(value) = redis::parse_redis_value(data) else { return };
    for value in super::consumer::parts(&value) {
        let Ok(entry) = decode(value) else { continue };
        // Who asks only for the batch finds the same.
        let (id, first) = outline(value).expect("all of it could be read");
        assert_eq!((id, first), (entry.id, entry.span.first.0));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(fields: &[(&str, i64)]) -> Value {
        let text = |s: &str| Value::BulkString(s.as_bytes().to_vec());
        let fields = fields.iter().flat_map(|(k, v)| [text(k), text(&v.to_string())]).collect();
        Value::Array(vec![text("17-0"), Value::Array(fields)])
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(first in 1i64..1 << 53, n in 1i32..=1024, version: i64, check: bool) {
            let span = Span { first: EventId(first), n, version };
            let entry = decode(&value(&encode(span, check))).unwrap();
            prop_assert_eq!(entry, Entry { id: "17-0".into(), span, check });
        }
    }

    /// An entry of each format that was ever written, as Redis gives it. One that is here is never changed: processes of an
    /// older version may have left some.
    #[test]
    fn entries_of_every_format_so_far_are_read() {
        let fixtures = [(1, ["v", "1", "first", "8192", "n", "3", "config", "17", "check", "1"])];
        assert_eq!(
            fixtures.last().map(|(format, _)| *format),
            Some(FORMAT),
            "a new format needs its entry here"
        );
        for (format, words) in fixtures {
            let text = |s: &str| Value::BulkString(s.as_bytes().to_vec());
            let fields = words.iter().map(|word| text(word)).collect();
            let entry = decode(&Value::Array(vec![text("17-0"), Value::Array(fields)])).unwrap();
            let span = Span { first: EventId(8192), n: 3, version: 17 };
            assert_eq!(entry, Entry { id: "17-0".into(), span, check: true }, "format {format}");
        }
    }

    #[test]
    fn of_an_unknown_format_the_batch_is_known() {
        let newer = value(&[("v", 99), ("first", 4096), ("novelty", 5)]);
        assert!(decode(&newer).is_err());
        assert_eq!(outline(&newer).unwrap(), ("17-0".to_owned(), 4096));
        assert!(outline(&value(&[("v", 99)])).is_err());
    }

    #[test]
    fn an_entry_of_another_format_is_refused() {
        assert!(decode(&value(&[("v", 99), ("first", 1), ("n", 1), ("config", 1), ("check", 0)])).is_err());
        assert!(decode(&value(&[("first", 1)])).is_err());
        assert!(decode(&Value::Nil).is_err());
    }
}
