//! The hot path's pure functions, each ready to be called. The micro benches time them and the guard counts their
//! instructions: one list, so that both speak of the same work.

use std::{hint::black_box, time::Duration};

use bytes::Bytes;
use eventpulse::{
    deliver::{
        outcome::{self, Call, Kept, Reply},
        request::{Content, Target},
        sign::Signer,
    },
    ingest::{Draft, keys::Form},
    model::{EventId, Span, Timestamp, Try},
    stream::{Keys, entry},
};

use crate::fixtures::{KEY, KEY_SECRET, KIND, LARGE, SECRET, SMALL, body, event, webhook};

/// One function with its input.
pub struct Hot {
    pub name: &'static str,
    /// Bytes it goes through, for the throughput.
    pub bytes: u64,
    pub call: Box<dyn Fn()>,
}

/// A function that is given the same input again and again. Neither the input nor the result can be optimised away.
fn hot<I: 'static, T>(name: &'static str, bytes: usize, input: I, call: impl Fn(&I) -> T + 'static) -> Hot {
    let call = move || {
        black_box(call(black_box(&input)));
    };
    Hot { name, bytes: bytes as u64, call: Box::new(call) }
}

/// All of them, in the order in which an event meets them.
pub fn all() -> Vec<Hot> {
    let mut all = vec![
        hot("parse/300", SMALL, body(SMALL), parse),
        hot("parse/4096", LARGE, body(LARGE), parse),
        hot("key_check", KEY.len(), Form::new(KEY_SECRET), |form| form.hash(black_box(KEY).as_bytes())),
        hot("render_201/300", SMALL, event(1 << 40, SMALL), render_201),
        hot("render_201/4096", LARGE, event(1 << 40, LARGE), render_201),
        hot("stream_entry", 5 * size_of::<i64>(), span(), stream_entry),
        hot("eligible", KIND.len(), webhook(), |webhook| webhook.eligible(black_box(KIND), 7)),
    ];
    all.extend(delivery());
    all
}

/// What each attempt costs, beside the call itself.
fn delivery() -> Vec<Hot> {
    let signer = || Signer::new(SECRET);
    let target = || Target::new(webhook()).expect("a readable URL");
    vec![
        hot("delivery_body/300", SMALL, event(1 << 40, SMALL), |event| Content::Original.body(event)),
        hot("delivery_body/4096", LARGE, event(1 << 40, LARGE), |event| Content::Original.body(event)),
        hot("sign_seed/300", SMALL, (signer(), body(SMALL)), sign_seed),
        hot("sign_seed/4096", LARGE, (signer(), body(LARGE)), sign_seed),
        hot("sign_standard/300", SMALL, (signer(), body(SMALL)), sign_standard),
        hot("sign_standard/4096", LARGE, (signer(), body(LARGE)), sign_standard),
        hot("request/300", SMALL, (target(), event(1 << 40, SMALL)), |(target, event)| {
            let content = Content::Original;
            let body = content.body(event);
            target.request(event, Try::FIRST, Timestamp(1_767_225_601_000), &content, body)
        }),
        hot("judge", 2, (), |()| judge()),
    ]
}

fn parse(body: &Bytes) -> Draft {
    Draft::parse(body).expect("a valid body")
}

/// As `http/events.rs` answers.
fn render_201(event: &eventpulse::model::Event) -> Bytes {
    let mut out = Vec::with_capacity(event.payload.len() + event.kind.len() + 128);
    out.extend_from_slice(b"{\"ok\":true,\"event\":");
    event.write_json(&mut out);
    out.push(b'}');
    out.into()
}

fn span() -> (Keys, Span) {
    (Keys::new("0123456789abcdef", 0), Span { first: EventId(1 << 40), n: 128, version: 42 })
}

/// An XADD as `stream/producer.rs` makes it, down to the bytes on the wire.
fn stream_entry((keys, span): &(Keys, Span)) -> Vec<u8> {
    let mut command = redis::cmd("XADD");
    command.arg(&keys.events).arg("*");
    for (field, value) in entry::encode(*span, false) {
        command.arg(field).arg(value);
    }
    command.get_packed_command()
}

fn sign_seed((signer, body): &(Signer, Bytes)) -> String {
    signer.seed(body)
}

fn sign_standard((signer, body): &(Signer, Bytes)) -> String {
    signer.standard("msg_1099511627776_1767225600123_3", "1767225601", body)
}

fn judge() -> outcome::Verdict {
    let reply = Reply { status: hyper::StatusCode::OK, body: b"ok".to_vec(), retry_after: None };
    let call = Call { result: Ok(reply), took: Duration::from_millis(black_box(12)) };
    outcome::judge(call, Kept { success: 256, failure: 4096 })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_function_runs_and_has_a_name_of_its_own() {
        let all = all();
        for function in &all {
            (function.call)();
        }
        assert_eq!(all.iter().map(|f| f.name).collect::<HashSet<_>>().len(), all.len());
    }
}
