//! An event of a file.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, read, show};
use crate::model::{AccountId, Event, EventId, Timestamp};

/// The whole answer of `GET /events/:id`.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    event: Option<&'a RawValue>,
}

/// As `POST /send-event` takes it. What the API shows beside is taken too, so that a real event can be pasted.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    id: Option<i64>,
    created_at: Option<String>,
}

pub(super) fn of_file(path: &Path) -> Result<Arc<Event>, Error> {
    parse(&read(path)?).map(Arc::new).map_err(|why| Error::Event { path: show(path), why })
}

fn parse(text: &[u8]) -> Result<Event, String> {
    let answer: Answer = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let event = answer.event.map_or(text, |event| event.get().as_bytes());
    let written: Written = serde_json::from_slice(event).map_err(|error| error.to_string())?;
    let created_at = match &written.created_at {
        None => Timestamp::now(),
        Some(text) => text
            .parse()
            .map_err(|()| format!("`createdAt` is `{text}`, not such as 2026-01-31T08:00:00.123Z"))?,
    };
    Ok(Event {
        id: EventId(written.id.unwrap_or(1)),
        account: AccountId(1),
        kind: written.kind.into(),
        payload: Bytes::copy_from_slice(written.payload.get().as_bytes()),
        created_at,
        trace: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_is_sent_and_as_it_is_shown() {
        let event = parse(br#"{"type":"a.b","payload":{ "n" : 1.50 }}"#).unwrap();
        assert_eq!((&*event.kind, &event.payload[..]), ("a.b", &br#"{ "n" : 1.50 }"#[..]));
        let shown =
            br#"{"id":7,"type":"a","payload":null,"createdAt":"2026-01-31T08:00:00.123Z","deliveries":[]}"#;
        let event = parse(shown).unwrap();
        assert_eq!(
            (event.id, event.created_at.to_string()),
            (EventId(7), "2026-01-31T08:00:00.123Z".to_owned())
        );
        let answer = br#"{"ok":true,"event":{"id":8,"type":"a","payload":{"n":1.50}}}"#;
        let event = parse(answer).unwrap();
        assert_eq!((event.id, &event.payload[..]), (EventId(8), &br#"{"n":1.50}"#[..]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("{}", "missing field `type`"),
            (r#"{"type":"a"}"#, "missing field `payload`"),
            ("[", "EOF"),
            (r#"{"type":"a","payload":1,"createdAt":"today"}"#, "`createdAt` is `today`"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
