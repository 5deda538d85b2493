//! Events, keys and webhooks that are the same in every run and on every machine.

use bytes::Bytes;
use eventpulse::{
    ingest::Draft,
    model::{AccountId, Event, EventId, Own, State, Timestamp, Webhook, WebhookId},
};

/// Bytes of a small and of a large request body. The payload is all but 35 bytes of it.
pub const SMALL: usize = 300;
pub const LARGE: usize = 4096;

/// What a deployment signs the check value of its keys with.
pub const KEY_SECRET: &[u8] = b"the secret of the benches";

/// A key that passes that check.
pub const KEY: &str = "ep_live_Ghb8S34-INWhjcgmiRgF7ggkDosw9sNCT-scu2locbc6bdSHQ";

/// A webhook's secret: 32 bytes, all of them 7.
pub const SECRET: &str = "whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// The type of every event here.
pub const KIND: &str = "order.created";

/// Letters that look random, as payloads do: text that repeats would flatter Postgres, which compresses it. The
/// generator is Steele, Lea and Flood's SplitMix64, which needs no state but a number.
fn letters(seed: u64, n: usize) -> String {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            char::from(b'a' + ((z ^ (z >> 31)) % 26) as u8)
        })
        .collect()
}

/// The body of a `POST /send-event` of exactly `bytes` bytes: an order with numbers, a list, an escape, and a note
/// that fills it up.
///
/// # Panics
/// When `bytes` is too few for the order itself.
pub fn body(bytes: usize) -> Bytes {
    let head = format!(
        "{{\"type\":\"{KIND}\",\"payload\":{{\"id\":48151623,\"total\":1299.5,\"currency\":\"EUR\",\
         \"items\":[{{\"sku\":\"A-100\",\"n\":2}},{{\"sku\":\"B\\u00e9-7\",\"n\":1}}],\"paid\":true,\"note\":\""
    );
    let tail = "\"}}";
    let fill = bytes.checked_sub(head.len() + tail.len()).expect("room for the order");
    format!("{head}{}{tail}", letters(bytes as u64, fill)).into()
}

/// That event as it is once it is accepted.
///
/// # Panics
/// When `bytes` is too few, see [`body`].
pub fn event(id: i64, bytes: usize) -> Event {
    let draft = Draft::parse(&body(bytes)).expect("a valid body");
    Event {
        id: EventId(id),
        account: AccountId(1),
        kind: draft.kind,
        payload: draft.payload,
        created_at: Timestamp(1_767_225_600_123),
        trace: None,
    }
}

/// A webhook that takes three kinds of events; [`KIND`] is the last of them.
pub fn webhook() -> Webhook {
    Webhook {
        id: WebhookId(3),
        account: AccountId(1),
        url: "http://127.0.0.1:9/hooks/orders".to_owned(),
        secret: Some(SECRET.to_owned()),
        secret_before: None,
        event_types: Some(["invoice.*", "customer.updated", KIND].map(str::to_owned).to_vec()),
        state: State::Active,
        since: 1,
        until: None,
        own: Own::default(),
        transform: None,
    }
}

#[cfg(test)]
mod tests {
    use eventpulse::ingest::keys::Form;

    use super::*;

    #[test]
    fn bodies_have_the_size_they_are_named_for() {
        assert_eq!((body(SMALL).len(), body(LARGE).len()), (300, 4096));
        assert_eq!(event(1, SMALL).payload.len(), 265);
        assert_eq!(event(1, LARGE).payload.len(), 4061);
    }

    #[test]
    fn what_is_measured_is_the_good_case() {
        assert!(Form::new(KEY_SECRET).hash(KEY.as_bytes()).is_some());
        assert!(webhook().eligible(KIND, 1));
    }
}
