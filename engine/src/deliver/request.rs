//! The request of one attempt: the envelope around the producer's bytes, and its headers.

use std::fmt::{Display, Write as _};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Uri,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};

use super::sign::Signer;
use crate::model::{Event, EventId, Timestamp, Try, Webhook, write_event};

/// What goes out in place of what came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The producer's payload in the envelope.
    Original,
    /// Other JSON in the envelope.
    Payload(Bytes),
    /// No envelope, but a body of its own kind with further headers.
    Whole { content_type: HeaderValue, bytes: Bytes, headers: Vec<(HeaderName, HeaderValue)> },
}

impl Content {
    /// The bytes of the body.
    pub fn body(&self, event: &Event) -> Bytes {
        match self {
            Content::Original => envelope(event, &event.payload),
            Content::Payload(payload) => envelope(event, payload),
            Content::Whole { bytes, .. } => bytes.clone(),
        }
    }
}

const SIGNATURE: HeaderName = HeaderName::from_static("x-eventpulse-signature");
const NEXT_SIGNATURE: HeaderName = HeaderName::from_static("x-eventpulse-signature-next");
const EVENT_ID: HeaderName = HeaderName::from_static("x-eventpulse-event-id");
const EVENT_TYPE: HeaderName = HeaderName::from_static("x-eventpulse-event-type");
const ATTEMPT: HeaderName = HeaderName::from_static("x-eventpulse-attempt");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");

const AGENT: &str = concat!("EventPulse/", env!("CARGO_PKG_VERSION"));

/// A webhook with what each of its requests needs, made once.
pub struct Target {
    pub webhook: Webhook,
    uri: Uri,
    /// None when the secret cannot be read.
    signer: Option<Signer>,
    /// Of the secret before, until then.
    before: Option<(Signer, Timestamp)>,
    /// The account's own, read once.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// None when the stored URL cannot be read, as after an edit by hand.
    pub fn new(webhook: Webhook) -> Option<Target> {
        let read = |(name, value): &(String, String)| {
            let mut value = HeaderValue::from_str(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.as_str()).ok()?, value))
        };
        Some(Target {
            uri: webhook.url.parse().ok()?,
            signer: webhook.secret.as_deref().map(Signer::new),
            before: webhook.secret_before.as_ref().map(|(secret, until)| (Signer::new(secret), *until)),
            headers: webhook.own.headers.iter().filter_map(read).collect(),
            webhook,
        })
    }

    /// Of its endpoint.
    pub fn host(&self) -> Option<&str> {
        self.uri.host()
    }

    /// The id that stays the same over all attempts of this delivery, and is unique even if a restored
    /// database hands an event id out again.
    fn delivery_id(&self, event: &Event) -> String {
        format!("msg_{}_{}_{}", event.id, event.created_at.0, self.webhook.id)
    }

    /// The request of one attempt with this body, signed for `now`; none when the secret cannot be read, since whatever else
    /// signed it would be wrong.
    pub fn request(
        &self,
        event: &Event,
        tried: Try,
        now: Timestamp,
        content: &Content,
        body: Bytes,
    ) -> Option<Request<Full<Bytes>>> {
        self.signed(&self.delivery_id(event), event, tried, now, content, body)
    }

    /// The request of a test: an event that stands nowhere, under an id that no delivery has.
    pub fn test_request(&self, now: Timestamp) -> Option<Request<Full<Bytes>>> {
        let payload = format!("{{\"message\":\"a test from EventPulse\",\"time\":\"{now}\"}}");
        let event = Event {
            id: EventId(0),
            account: self.webhook.account,
            kind: "eventpulse.test".into(),
            payload: payload.into(),
            created_at: now,
            trace: None,
        };
        let id = format!("test_{}_{}", now.0, self.webhook.id);
        let body = Content::Original.body(&event);
        self.signed(&id, &event, Try::FIRST, now, &Content::Original, body)
    }

    fn signed(
        &self,
        id: &str,
        event: &Event,
        tried: Try,
        now: Timestamp,
        content: &Content,
        body: Bytes,
    ) -> Option<Request<Full<Bytes>>> {
        let signer = self.signer.as_ref()?;
        let timestamp = now.seconds().to_string();
        let mut values = Values::new(event.kind.len());
        // Who knows one secret only has to find its signature: the header with room for two has both, and the other stays the
        // old one's for as long as that counts.
        let before = self.before.as_ref().filter(|(_, until)| now < *until).map(|(signer, _)| signer);
        if before.is_some() {
            values.put(NEXT_SIGNATURE, |text| signer.push_seed(&body, text));
        }
        values.put(SIGNATURE, |text| before.unwrap_or(signer).push_seed(&body, text));
        values.put(EVENT_ID, |text| push(text, event.id));
        values.put(EVENT_TYPE, |text| text.push_str(&event.kind));
        values.put(ATTEMPT, |text| push(text, tried.attempt));
        values.put(WEBHOOK_SIGNATURE, |text| {
            signer.push_standard(id, &timestamp, &body, text);
            if let Some(before) = before {
                text.push(' ');
                before.push_standard(id, &timestamp, &body, text);
            }
        });
        values.put(WEBHOOK_TIMESTAMP, |text| text.push_str(&timestamp));
        values.put(WEBHOOK_ID, |text| text.push_str(id));

        let (mut content_type, mut further) = (HeaderValue::from_static("application/json"), &[][..]);
        if let Content::Whole { content_type: own, headers, .. } = content {
            content_type.clone_from(own);
            further = headers;
        }
        let mut headers = HeaderMap::with_capacity(values.len() + self.headers.len() + further.len() + 4);
        headers.extend(self.headers.iter().chain(further).cloned());
        // Ours come after, so that nothing can stand in their place.
        for (name, value) in values.cut() {
            headers.insert(name, value);
        }
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        Some(request)
    }
}

/// The values of a request's headers in one piece of memory: a piece for each would cost more than what is in them.
struct Values {
    text: String,
    /// Each with where it ends.
    names: Vec<(HeaderName, usize)>,
}

impl Values {
    fn new(kind_bytes: usize) -> Values {
        Values { text: String::with_capacity(384 + kind_bytes), names: Vec::with_capacity(8) }
    }

    fn len(&self) -> usize {
        self.names.len()
    }

    fn put(&mut self, name: HeaderName, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.names.push((name, self.text.len()));
    }

    fn cut(self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let text = Bytes::from(self.text);
        let mut start = 0;
        self.names.into_iter().filter_map(move |(name, end)| {
            let value = text.slice(start..end);
            start = end;
            // Types may hold any letter but control characters, which is what a header value allows.
            Some((name, HeaderValue::from_maybe_shared(value).ok()?))
        })
    }
}

fn push(text: &mut String, value: impl Display) {
    // A string takes everything.
    let _ = write!(text, "{value}");
}

/// The usual body: a payload spliced in as it is.
pub fn envelope(event: &Event, payload: &[u8]) -> Bytes {
    let mut body = Vec::with_capacity(payload.len() + event.kind.len() + 96);
    write_event(&mut body, event.id, &event.kind, Some(payload), event.created_at);
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AccountId, State, WebhookId};

    fn event(kind: &str, payload: &'static [u8]) -> Event {
        Event {
            id: EventId(7),
            account: AccountId(1),
            kind: kind.into(),
            payload: Bytes::from_static(payload),
            created_at: Timestamp(1_704_067_200_123),
            trace: None,
        }
    }

    #[test]
    fn the_envelope_keeps_the_payloads_bytes() {
        let event = event("a\"b", b"{ \"x\": 1e400 }");
        let body = Content::Original.body(&event);
        assert_eq!(
            body,
            "{\"id\":7,\"type\":\"a\\\"b\",\"payload\":{ \"x\": 1e400 },\"createdAt\":\"2024-01-01T00:00:00.123Z\"}"
        );
    }

    #[test]
    fn the_delivery_id_is_the_same_for_every_attempt() {
        let target = Target::new(Webhook {
            id: WebhookId(3),
            account: AccountId(1),
            url: "http://example.com/hook?a=b".into(),
            secret: Some("whsec_AAAA".into()),
            secret_before: None,
            event_types: None,
            state: State::Active,
            since: 0,
            until: None,
            own: crate::model::Own::default(),
            transform: None,
        })
        .unwrap();
        let event = event("order.créé", b"1");
        let mut tried = Try::FIRST;
        let body = Content::Original.body(&event);
        let one = target.request(&event, tried, Timestamp(5_000), &Content::Original, body.clone()).unwrap();
        tried.attempt = 2;
        let two = target.request(&event, tried, Timestamp(9_000), &Content::Original, body).unwrap();
        assert_eq!(one.headers()["webhook-id"], "msg_7_1704067200123_3");
        assert_eq!(one.headers()["webhook-id"], two.headers()["webhook-id"]);
        assert_eq!(two.headers()["x-eventpulse-attempt"], "2");
        assert_eq!(two.headers()["webhook-timestamp"], "9");
        assert_eq!(one.headers()["x-eventpulse-event-type"].as_bytes(), "order.créé".as_bytes());
    }
}
