//! The request of one attempt: the envelope around the producer's bytes, and its headers.

use std::{
    fmt::{self, Display, Write as _},
    str,
    sync::Arc,
};

use bytes::Bytes;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, USER_AGENT,
};

use super::{
    post::{Endpoint, Post},
    sign::Signer,
};
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
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a request gets besides the account's own headers, in whose place nothing of theirs can stand.
const OURS: [HeaderName; 14] = [
    SIGNATURE,
    NEXT_SIGNATURE,
    EVENT_ID,
    EVENT_TYPE,
    ATTEMPT,
    WEBHOOK_SIGNATURE,
    WEBHOOK_TIMESTAMP,
    WEBHOOK_ID,
    TRACEPARENT,
    CONTENT_TYPE,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    USER_AGENT,
    HOST,
];

/// A webhook with what each of its requests needs, made once.
pub struct Target {
    pub webhook: Webhook,
    endpoint: Arc<Endpoint>,
    /// None when the secret cannot be read.
    signer: Option<Signer>,
    /// Of the secret before, until then.
    before: Option<(Signer, Timestamp)>,
}

impl Target {
    /// None when the stored URL cannot be read, as after an edit by hand.
    pub fn new(webhook: Webhook) -> Option<Target> {
        let read = |(name, value): &(String, String)| {
            let mut value = HeaderValue::from_str(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.as_str()).ok()?, value))
        };
        let own = webhook.own.headers.iter().filter_map(read).filter(|(name, _)| !OURS.contains(name));
        Some(Target {
            endpoint: Arc::new(Endpoint::new(webhook.url.parse().ok()?, own.collect())?),
            signer: webhook.secret.as_deref().map(Signer::new),
            before: webhook.secret_before.as_ref().map(|(secret, until)| (Signer::new(secret), *until)),
            webhook,
        })
    }

    /// Of its endpoint.
    pub fn host(&self) -> &str {
        self.endpoint.origin.authority.host()
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
    ) -> Option<Post> {
        // The id stays the same over all attempts of this delivery, and is unique even if a restored database hands an event id
        // out again.
        let id = format_args!("msg_{}_{}_{}", event.id, event.created_at.0, self.webhook.id);
        self.signed(id, event, tried, now, content, body)
    }

    /// The request of a test: an event that stands nowhere, under an id that no delivery has.
    pub fn test_request(&self, now: Timestamp) -> Option<Post> {
        let payload = format!("{{\"message\":\"a test from EventPulse\",\"time\":\"{now}\"}}");
        let event = Event {
            id: EventId(0),
            account: self.webhook.account,
            kind: "eventpulse.test".into(),
            payload: payload.into(),
            created_at: now,
            trace: None,
        };
        let id = format_args!("test_{}_{}", now.0, self.webhook.id);
        let body = Content::Original.body(&event);
        self.signed(id, &event, Try::FIRST, now, &Content::Original, body)
    }

    fn signed(
        &self,
        id: fmt::Arguments,
        event: &Event,
        tried: Try,
        now: Timestamp,
        content: &Content,
        body: Bytes,
    ) -> Option<Post> {
        let signer = self.signer.as_ref()?;
        // Who knows one secret only has to find its signature: the header with room for two has both, and the other stays the
        // old one's for as long as that counts.
        let before = self.before.as_ref().filter(|(_, until)| now < *until).map(|(signer, _)| signer);
        let mut post = Post::new(&self.endpoint, body.clone());
        match content {
            Content::Original | Content::Payload(_) => {
                post.put(CONTENT_TYPE, |text| text.push_str("application/json"));
            }
            Content::Whole { content_type, headers, .. } => {
                copy(&mut post, CONTENT_TYPE, content_type);
                let free =
                    |name: &HeaderName| !OURS.contains(name) || *name == TRACEPARENT && event.trace.is_none();
                let others = headers.iter().filter(|(name, _)| free(name));
                others.for_each(|(name, value)| copy(&mut post, name.clone(), value));
            }
        }
        if before.is_some() {
            post.put(NEXT_SIGNATURE, |text| signer.push_seed(&body, text));
        }
        post.put(SIGNATURE, |text| before.unwrap_or(signer).push_seed(&body, text));
        post.put(EVENT_ID, |text| number(text, event.id.0));
        // Types may hold any letter but control characters, which is what a header value allows.
        if !event.kind.contains(|c: char| c.is_ascii_control()) {
            post.put(EVENT_TYPE, |text| text.push_str(&event.kind));
        }
        post.put(ATTEMPT, |text| number(text, tried.attempt));
        let id = post.put(WEBHOOK_ID, |text| push(text, id));
        let timestamp = post.put(WEBHOOK_TIMESTAMP, |text| number(text, now.seconds()));
        let mac = |signer: &Signer, post: &Post| {
            signer.standard_mac(post.value(id.clone()), post.value(timestamp.clone()), &body)
        };
        let (first, second) = (mac(signer, &post), before.map(|before| mac(before, &post)));
        post.put(WEBHOOK_SIGNATURE, |text| {
            first.push(text);
            if let Some(second) = second {
                text.push(' ');
                second.push(text);
            }
        });
        Some(post)
    }
}

/// A value from a module is text.
fn copy(post: &mut Post, name: HeaderName, value: &HeaderValue) {
    if let Ok(value) = str::from_utf8(value.as_bytes()) {
        post.put(name, |text| text.push_str(value));
    }
}

fn number(text: &mut String, value: impl itoa::Integer) {
    text.push_str(itoa::Buffer::new().format(value));
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

    fn target(headers: &[(&str, &str)]) -> Target {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Target::new(Webhook {
            id: WebhookId(3),
            account: AccountId(1),
            url: "http://example.com/hook?a=b".into(),
            secret: Some("whsec_AAAA".into()),
            secret_before: None,
            event_types: None,
            state: State::Active,
            since: 0,
            until: None,
            own: crate::model::Own { headers, ..Default::default() },
            transform: None,
        })
        .unwrap()
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
        let target = target(&[]);
        let event = event("order.créé", b"1");
        let mut tried = Try::FIRST;
        let body = Content::Original.body(&event);
        let one = target.request(&event, tried, Timestamp(5_000), &Content::Original, body.clone()).unwrap();
        tried.attempt = 2;
        let two = target.request(&event, tried, Timestamp(9_000), &Content::Original, body).unwrap();
        assert_eq!(one.field("webhook-id"), Some("msg_7_1704067200123_3"));
        assert_eq!(one.field("webhook-id"), two.field("webhook-id"));
        assert_eq!(two.field("x-eventpulse-attempt"), Some("2"));
        assert_eq!(two.field("webhook-timestamp"), Some("9"));
        assert_eq!(one.field("x-eventpulse-event-type"), Some("order.créé"));
    }

    #[test]
    fn nothing_stands_in_the_place_of_what_is_ours() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let target = target(&[("X-Team", "a"), ("Webhook-Id", "b"), ("traceparent", "c"), ("Host", "d")]);
        let headers = [("x-trace", "e"), ("traceparent", parent), ("webhook-timestamp", "f")]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .to_vec();
        let content = Content::Whole {
            content_type: HeaderValue::from_static("text/plain"),
            bytes: Bytes::new(),
            headers,
        };
        let mut event = event("a\u{7f}b", b"1");
        let names = |event: &Event| {
            let post = target.request(event, Try::FIRST, Timestamp(5_000), &content, Bytes::new()).unwrap();
            assert_eq!(
                (post.field("content-type"), post.field("webhook-timestamp")),
                (Some("text/plain"), Some("5"))
            );
            let request = post.finish();
            let text = String::from_utf8(request.wire.start.clone()).unwrap();
            let mut lines: Vec<String> =
                text.lines().skip(1).filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect();
            lines.sort();
            lines
        };
        let expected = [
            "content-length",
            "content-type",
            "host",
            "traceparent",
            "user-agent",
            "webhook-id",
            "webhook-signature",
            "webhook-timestamp",
            "x-eventpulse-attempt",
            "x-eventpulse-event-id",
            "x-eventpulse-signature",
            "x-team",
            "x-trace",
        ];
        assert_eq!(names(&event), expected, "no type that a header cannot hold");
        // The producer's own trace goes out, which the caller adds.
        event.trace = crate::model::Trace::parse(parent.as_bytes()).map(Box::new);
        assert!(event.trace.is_some() && !names(&event).contains(&"traceparent".to_owned()));
    }
}
