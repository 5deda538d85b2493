//! Requests that are wrong, hostile or somebody else's: each is refused for what it is, and only it.

use std::{collections::HashMap, sync::Arc};

use eventpulse::{
    config::value::Secret,
    ingest::keys::Form,
    model::AccountId,
    store::{
        Store,
        api_keys::{New, Revoked},
    },
};
use eventpulse_testkit::{Receiver, Reply, eventually};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    harness::{App, PATIENCE, count, postgres},
    sockets::{self, Wire},
};

const JSON: &str = "application/json";
const BODY_MAX: usize = 1 << 20;

/// What came back, the body as it was: much of what is accepted here no JSON library would read.
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The id in an event's 201.
    fn id(&self) -> i64 {
        let text = self.text();
        let digits =
            text.strip_prefix("{\"ok\":true,\"event\":{\"id\":").and_then(|rest| rest.split_once(','));
        digits.and_then(|(id, _)| id.parse().ok()).unwrap_or_else(|| panic!("no id in {text:.300}"))
    }

    /// Asserts that this is a refusal of the one shape, and returns its message.
    fn refused(&self, case: &str, status: u16, code: &str) -> String {
        let text = self.text();
        assert_eq!(self.status, status, "{case}: {text:.300}");
        let kind = self.headers.get("content-type").and_then(|kind| kind.to_str().ok());
        assert_eq!(kind, Some(JSON), "{case}");
        let body = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{case}: {e} in {text:.300}"));
        let (found, message) = shape(case, &body);
        assert_eq!(found, code, "{case}: {message}");
        message
    }
}

/// Asserts the shape of an error's body; returns its code and message.
fn shape(case: &str, body: &Value) -> (String, String) {
    let names = |value: &Value| -> Vec<String> {
        let mut names: Vec<String> =
            value.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(body), ["error", "ok"], "{case}: {body}");
    assert_eq!(body["ok"], false, "{case}: {body}");
    assert_eq!(names(&body["error"]), ["code", "message"], "{case}: {body}");
    let code = body["error"]["code"].as_str().unwrap_or_default();
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert!(
        code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !code.is_empty()
            && !message.is_empty(),
        "{case}: {body}"
    );
    (code.to_owned(), message.to_owned())
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap_or_else(|e| panic!("no answer: {}", eventpulse::chain(&e)));
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.expect("a body").to_vec() }
}

fn post(app: &App, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
    app.client.post(app.url(path)).header("content-type", JSON).body(body)
}

async fn send(app: &App, key: &str, body: impl Into<reqwest::Body>) -> Answer {
    answer(post(app, "/send-event", body).header("x-api-key", key)).await
}

async fn get(app: &App, key: &str, path: &str) -> Answer {
    answer(app.client.get(app.url(path)).header("x-api-key", key)).await
}

async fn stored(app: &App) -> i64 {
    count(&postgres(&app.database).await, "SELECT count(*) FROM events").await
}

/// All that ingest refused or had trouble with, which good input never is.
fn trouble(app: &App) -> Vec<(&'static str, f64)> {
    let names = [
        "eventpulse_ingest_refused_total{reason=\"queue_full\"}",
        "eventpulse_ingest_refused_total{reason=\"unavailable\"}",
        "eventpulse_ingest_refused_total{reason=\"rejected\"}",
        "eventpulse_ingest_batch_splits_total",
        "eventpulse_ingest_unknown_outcomes_total",
    ];
    names.into_iter().map(|name| (name, app.metric(name))).filter(|(_, n)| *n != 0.0).collect()
}

/// Waits for `ids` at the receiver; gives the bodies by id.
async fn delivered(receiver: &Receiver, ids: impl IntoIterator<Item = i64>) -> HashMap<i64, bytes::Bytes> {
    let ids: Vec<i64> = ids.into_iter().collect();
    eventually("every accepted event is delivered", PATIENCE, async || {
        let found: HashMap<i64, bytes::Bytes> = (receiver.requests().into_iter())
            .filter_map(|r| {
                Some((r.headers.get("x-eventpulse-event-id")?.to_str().ok()?.parse().ok()?, r.body))
            })
            .collect();
        let missing = ids.iter().filter(|id| !found.contains_key(id)).count();
        if missing == 0 { Ok(found) } else { Err(format!("{missing} of {} are missing", ids.len())) }
    })
    .await
}

/// The part of an event's JSON that its producer decides.
fn fragment(id: i64, kind: &str, payload: &str) -> String {
    format!("{{\"id\":{id},\"type\":{},\"payload\":{payload},\"createdAt\":\"", json!(kind))
}

#[tokio::test]
async fn wrong_events_are_refused_with_what_to_change() {
    let app = App::start("wrong_events").await;
    let receiver = Receiver::start().await;
    let key = app.register(&receiver.url("/")).await.key;
    let long = format!("{{\"type\":\"{}\",\"payload\":1}}", "x".repeat(257));
    // 129 letters of two bytes: the bound is one of bytes.
    let wide = format!("{{\"type\":\"{}\",\"payload\":1}}", "é".repeat(129));
    let deep = "[".repeat(100_000);
    let cases: &[(&[u8], &str, &str)] = &[
        // The last column is what the message must hold: the place, or the field.
        (b"", "empty_body", "`type`"),
        (b" \r\n\t", "empty_body", "`payload`"),
        (b"nonsense", "invalid_json", "line 1 column"),
        (b"{", "invalid_json", "line 1 column 1"),
        (b"{\"type\":\"a\",\"payload\":{\"b\":1}", "invalid_json", "line 1 column 29"),
        (b"{\"type\":\"a\",\n\n \"payload\":tru}", "invalid_json", "line 3 column"),
        (b"{\"type\":\"a\",\"payload\":}", "invalid_json", "line 1 column 23"),
        (b"{\"type\":\"a\" \"payload\":1}", "invalid_json", "line 1 column 13"),
        (b"{\"type\":\"a\",\"payload\":1,}", "invalid_json", "line 1 column"),
        (b"{'type':'a','payload':1}", "invalid_json", "line 1 column 2"),
        (b"{\"type\":\"a\",\"payload\":1}x", "invalid_json", "line 1 column 25"),
        (b"{\"type\":\"a\",\"payload\":1}{\"type\":\"a\",\"payload\":1}", "invalid_json", "line 1 column 25"),
        (b"{\"type\":\"a\",\"payload\":1}\0", "invalid_json", "line 1 column 25"),
        (b"{\"type\":\"a\",\"payload\":NaN}", "invalid_json", "line 1 column"),
        (b"{\"type\":\"a\",\"payload\":01}", "invalid_json", "line 1 column"),
        (b"{\"type\":\"a\",\"payload\":\"\x01\"}", "invalid_json", "line 1 column"),
        (b"{\"type\":\"a\",\"payload\":\"\0\"}", "invalid_json", "line 1 column"),
        (b"{\"type\":\"a\",\"payload\":\"\\x41\"}", "invalid_json", "line 1 column"),
        (b"\x0c{\"type\":\"a\",\"payload\":1}", "invalid_json", "line 1 column"),
        ("\u{feff}{\"type\":\"a\",\"payload\":1}".as_bytes(), "invalid_json", "line 1 column"),
        (deep.as_bytes(), "invalid_json", "line 1 column 100000"),
        (b"{\"type\":\"a\",\"payload\":\"\xff\"}", "invalid_utf8", "byte 23"),
        (b"{\"type\":\"a\",\"payload\":\"\xc0\x80\"}", "invalid_utf8", "byte 23"),
        (b"{\"type\":\"a\",\"payload\":\"\xed\xa0\x80\"}", "invalid_utf8", "byte 23"),
        (b"{\"type\":\"a\",\"payload\":\"\xf4\x90\x80\x80\"}", "invalid_utf8", "byte 23"),
        (b"{\"type\":\"\xc3\",\"payload\":1}", "invalid_utf8", "byte 9"),
        (b"\xff\xfe{\0", "invalid_utf8", "byte 0"),
        (b"[1]", "not_an_object", "`type`"),
        (b"null", "not_an_object", "`type`"),
        (b"\"x\"", "not_an_object", "`type`"),
        (b"42", "not_an_object", "`type`"),
        (b"{}", "missing_type", "`type`"),
        (b"{\"payload\":1}", "missing_type", "`type`"),
        (b"{\"Type\":\"a\",\"payload\":1}", "missing_type", "`type`"),
        (b"{\"type\":null,\"payload\":1}", "missing_type", "`type`"),
        (b"{\"type\":1,\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":true,\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":[\"a\"],\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":{},\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":\"\",\"payload\":1}", "invalid_type", "`type`"),
        (long.as_bytes(), "invalid_type", "256"),
        (wide.as_bytes(), "invalid_type", "256"),
        (b"{\"type\":\"a\\u0000\",\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":\"a\\r\\nx-injected: 1\",\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":\"\\u001f\",\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":\"\x7f\",\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":\"\\u0085\",\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":\"\\ud800\",\"payload\":1}", "invalid_type", "`type`"),
        (b"{\"type\":\"a\"}", "missing_payload", "`payload`"),
        (b"{\"type\":\"a\",\"Payload\":1}", "missing_payload", "`payload`"),
        (b"{\"type\":\"a\",\"data\":{\"payload\":null}}", "missing_payload", "`payload`"),
        (b"{\"type\":\"a\",\"type\":\"b\",\"payload\":1}", "duplicate_field", "`type`"),
        (b"{\"type\":\"a\",\"payload\":1,\"payload\":null}", "duplicate_field", "`payload`"),
    ];
    for (body, code, holds) in cases {
        let case = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let message = send(&app, &key, body.to_vec()).await.refused(&case, 400, code);
        assert!(message.contains(holds), "{case}: {message:?} does not hold {holds:?}");
    }
    assert_eq!(stored(&app).await, 0, "a refused event is not stored");
    assert_eq!(trouble(&app), [], "they were refused before ingest");
    app.stop().await;
}

#[tokio::test]
async fn payloads_are_kept_byte_for_byte() {
    let app = App::start("byte_for_byte").await;
    let receiver = Receiver::start().await;
    let key = app.register(&receiver.url("/")).await.key;
    let payloads = [
        "null",
        "true",
        "0",
        "-0",
        "-0.10",
        "1E+2",
        "1e400",
        "-1e400",
        "1e-400",
        "12345678901234567890123456789012345678901234567890",
        "0.1000000000000000055511151231257827021181583404541015625",
        "\"\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "\"é\\u00e9\\u00E9\"",
        "\"\\/ / \\u002f\"",
        "\"\u{2028}\u{2029}\u{7f}\u{ffff}\u{10ffff}\u{feff}\"",
        "\"😀 \\ud83d\\ude00\"",
        "\"'; DROP TABLE events; -- $1 \\\\x00\"",
        "[]",
        "[ 1 ,2,\t3 ]",
        "{ }",
        "{\"b\":1,\"a\":2}",
        "{\"a\":1,\"a\":2,\"a\":null}",
        "{\"\":0,\"\\u0000\":1,\"\\ud800\":2}",
        "{\"type\":\"inner\",\"payload\":{\"id\":1},\"createdAt\":\"never\"}",
        "{\r\n  \"a\" : [ { } , [ ] ]\r\n}",
    ];
    let mut accepted = Vec::new();
    for payload in payloads {
        // The fields in either order, with space around, with others beside them, and under escaped names.
        for (n, body) in [
            format!("{{\"type\":\"kept\",\"payload\":{payload}}}"),
            format!(" {{\t\"payload\" : {payload} ,\r\n \"type\" : \"kept\" }}\n"),
            format!("{{\"id\":7,\"payload\":{payload},\"createdAt\":{payload},\"type\":\"k\\u0065pt\"}}"),
            format!("{{\"p\\u0061yload\":{payload},\"ty\\u0070e\":\"kept\"}}"),
        ]
        .into_iter()
        .enumerate()
        {
            let answer = send(&app, &key, body.clone()).await;
            assert_eq!(answer.status, 201, "{body}: {}", answer.text());
            let (id, text) = (answer.id(), answer.text());
            let start = format!("{{\"ok\":true,\"event\":{}", fragment(id, "kept", payload));
            assert!(text.starts_with(&start) && text.ends_with("Z\"}}"), "form {n} of {payload}: {text}");
            accepted.push((id, payload));
        }
    }
    let bodies = delivered(&receiver, accepted.iter().map(|(id, _)| *id)).await;
    let list = get(&app, &key, "/events?limit=200").await;
    assert_eq!(list.status, 200);
    for (id, payload) in &accepted {
        let fragment = fragment(*id, "kept", payload);
        assert!(bodies[id].starts_with(fragment.as_bytes()), "{payload} was delivered as {:?}", bodies[id]);
        assert!(list.text().contains(&fragment), "{payload} is not in the list");
        let one = get(&app, &key, &format!("/events/{id}")).await;
        assert!(one.text().contains(&fragment), "{payload} is shown as {}", one.text());
    }
    app.stop().await;
}

/// Events that the checks, JSON libraries, Postgres or a header might choke on. Each may be accepted or
/// refused, but must not take others down with it.
fn nasty() -> Vec<Vec<u8>> {
    let event = |payload: &str| format!("{{\"type\":\"nasty\",\"payload\":{payload}}}").into_bytes();
    let kind = |kind: &str| format!("{{\"type\":{kind},\"payload\":1}}").into_bytes();
    let raw = |inner: &[u8]| [b"{\"type\":\"nasty\",\"payload\":\"", inner, b"\"}"].concat();
    vec![
        event(&("[".repeat(100_000) + &"]".repeat(100_000))),
        event(&("{\"a\":".repeat(100_000) + "1" + &"}".repeat(100_000))),
        event(&"[".repeat(100_000)),
        format!("{{\"type\":{0},\"payload\":1}}", "[".repeat(50_000) + &"]".repeat(50_000)).into_bytes(),
        format!("{{\"x\":{0},\"type\":\"n\",\"payload\":null}}", "[".repeat(50_000) + &"]".repeat(50_000))
            .into_bytes(),
        event("{\"a\":1,\"a\":2,\"a\":{\"b\":1,\"b\":2}}"),
        b"{\"type\":\"a\",\"type\":\"b\",\"payload\":1,\"payload\":2}".to_vec(),
        event("\"\\u0000\""),
        event("{\"\\u0000\":\"\\u0000\"}"),
        event("\"\\ud800\""),
        event("\"\\udc00\\ud800 \\uD83D\""),
        event("{\"\\udfff\":1}"),
        event("1e400"),
        event("[-1e400,1e-400,1E99999999999999999999]"),
        event(&"9".repeat(100_000)),
        raw(b"\0"),
        raw(b"\xff"),
        raw(b"\xed\xa0\x80"),
        raw(b"\xc0\x80"),
        raw("\u{ffff}\u{fffe}\u{10ffff}\u{202e}".as_bytes()),
        kind("\"\\u0000\""),
        kind("\"\\ud800\""),
        kind("\"a\\r\\nhost: elsewhere\""),
        kind("\"'; DROP TABLE events; --\""),
        kind("\"{\\\"a\\\",NULL}\""),
        kind("\" spaces around \""),
        kind("\"😀\\ud83d\\ude00\u{feff}\u{ffff}\""),
        kind(&format!("\"{}\"", "x".repeat(256))),
        kind(&format!("\"{}\"", "x".repeat(100_000))),
    ]
}

#[tokio::test]
async fn nasty_events_harm_no_others() {
    const TASKS: usize = 16;
    const EACH: usize = 60;
    let app = App::start("nasty").await;
    let receiver = Receiver::start().await;
    let key = app.register(&receiver.url("/")).await.key;
    let nasty = Arc::new(nasty());
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (client, url, key, nasty) =
            (app.client.clone(), app.url("/send-event"), key.clone(), nasty.clone());
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for n in 0..EACH {
                let nth = task * EACH + n;
                // Tasks start at different places, so that all kinds meet in one batch.
                let which = (n % 2 == 1).then(|| (task * 7 + n / 2) % nasty.len());
                let body = match which {
                    Some(which) => nasty[which].clone(),
                    None => format!("{{\"type\":\"good\",\"payload\":{nth}}}").into_bytes(),
                };
                let request = client.post(&url).header("x-api-key", &key).header("content-type", JSON);
                answers.push((nth, which, answer(request.body(body)).await));
            }
            answers
        });
    }
    let (mut good, mut bad) = (HashMap::new(), HashMap::new());
    let mut refused = vec![0; nasty.len()];
    while let Some(answers) = tasks.join_next().await {
        for (nth, which, answer) in answers.expect("no panic") {
            let sent: &[u8] = which.map_or(b"a good one", |which| &nasty[which]);
            let case = String::from_utf8_lossy(&sent[..sent.len().min(60)]);
            match (which, answer.status) {
                (None, 201) => assert!(good.insert(answer.id(), nth).is_none(), "an id was given twice"),
                (Some(which), 201) => {
                    assert!(bad.insert(answer.id(), which).is_none(), "an id was given twice")
                }
                (Some(which), 400) => {
                    let body = serde_json::from_slice(&answer.body).expect("JSON");
                    let (code, _) = shape(&case, &body);
                    assert_ne!(code, "event_rejected", "{case}: it went as far as Postgres");
                    refused[which] += 1;
                }
                (_, status) => panic!("{status} for {case}: {:.300}", answer.text()),
            }
        }
    }
    assert_eq!(good.len(), TASKS * EACH / 2);
    assert_eq!(trouble(&app), [], "no batch may fail");
    let bodies = delivered(&receiver, good.keys().chain(bad.keys()).copied()).await;
    for (id, nth) in &good {
        let fragment = fragment(*id, "good", &nth.to_string());
        assert!(bodies[id].starts_with(fragment.as_bytes()), "event {nth} was delivered as {:?}", bodies[id]);
    }
    // Those that were accepted are whole, and a kind is either accepted or not.
    for (id, which) in &bad {
        let sent = String::from_utf8(nasty[*which].clone()).expect("only text is accepted");
        assert_eq!(refused[*which], 0, "sometimes accepted, sometimes not: {sent:.60}");
        if let Some(payload) = sent.strip_prefix("{\"type\":\"nasty\",\"payload\":") {
            let fragment = fragment(*id, "nasty", payload.strip_suffix('}').expect("an object"));
            assert!(bodies[id].starts_with(fragment.as_bytes()), "{sent:.60} was not delivered as it came");
        }
    }
    assert!(bad.len() > EACH && refused.iter().sum::<i32>() > 0, "both kinds were tried");
    assert_eq!(stored(&app).await, (good.len() + bad.len()) as i64);
    app.stop().await;
}

/// 1. A commit is one statement for many producers.
/// 2. Postgres refuses one row, and with it the statement.
/// 3. Only the row's own producer may learn of it.
#[tokio::test]
async fn a_row_that_postgres_refuses_is_refused_alone() {
    const N: usize = 100;
    let app = App::with("poison", |config| config.ingest.commit_timeout = PATIENCE).await;
    let receiver = Receiver::start().await;
    let key = app.register(&receiver.url("/")).await.key;
    let db = postgres(&app.database).await;
    db.batch_execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (type <> 'poison')")
        .await
        .expect("a constraint");
    let mut wanted = Vec::new();
    wanted.push(app.send(&key, "good", json!("first")).await);

    for round in 0..3 {
        // While commits wait for this lock, requests gather, and share the next one.
        db.batch_execute("BEGIN; LOCK TABLE batches IN SHARE MODE").await.expect("a lock");
        let lookups = || app.metric("eventpulse_ingest_key_lookups_total{from=\"memory\"}");
        let (before, splits) = (lookups(), app.metric("eventpulse_ingest_batch_splits_total"));
        let mut tasks = JoinSet::new();
        for n in 0..N {
            // One alone, some apart, and neighbours at the end.
            let poison = match round {
                0 => n == N / 2,
                1 => n % 10 == 3,
                _ => n > N - 5,
            };
            let kind = if poison { "poison" } else { "good" };
            let body = format!("{{\"type\":\"{kind}\",\"payload\":[{round},{n}]}}");
            let request = post(&app, "/send-event", body).header("x-api-key", &key);
            tasks.spawn(async move { (n, poison, answer(request).await) });
        }
        let mut answers = Vec::new();
        let (_, ()) = tokio::join!(
            async {
                while let Some(done) = tasks.join_next().await {
                    answers.push(done.expect("no panic"));
                }
            },
            async {
                eventually("all requests wait for the commit", PATIENCE, async || match lookups() - before {
                    n if n >= N as f64 => Ok(()),
                    n => Err(format!("{n} came in")),
                })
                .await;
                db.batch_execute("COMMIT").await.expect("no lock");
            }
        );
        for (n, poison, answer) in answers {
            let case = format!("event {n} of round {round}");
            if poison {
                answer.refused(&case, 400, "event_rejected");
            } else {
                assert_eq!(answer.status, 201, "{case}: {}", answer.text());
                wanted.push(answer.id());
            }
        }
        assert!(
            app.metric("eventpulse_ingest_batch_splits_total") > splits,
            "round {round}: nobody shared a batch"
        );
    }
    let poison = 1 + N / 10 + 4;
    assert_eq!(wanted.len(), 1 + 3 * N - poison);
    assert_eq!(app.metric("eventpulse_ingest_refused_total{reason=\"rejected\"}"), poison as f64);
    assert_eq!(app.metric("eventpulse_ingest_refused_total{reason=\"unavailable\"}"), 0.0);
    delivered(&receiver, wanted.iter().copied()).await;
    assert_eq!(stored(&app).await, wanted.len() as i64);
    assert_eq!(receiver.count(), wanted.len());
    app.stop().await;
}

#[tokio::test]
async fn only_json_is_taken() {
    let app = App::start("media_type").await;
    let receiver = Receiver::start().await;
    let key = app.register(&receiver.url("/")).await.key;
    let event = json!({ "type": "a", "payload": 1 }).to_string();
    let form = json!({ "name": "n", "url": receiver.url("/") }).to_string();
    let requests = |kind: Option<&str>| {
        [("/send-event", &event), ("/register-webhook", &form)].map(|(path, body)| {
            let request = app.client.post(app.url(path)).header("x-api-key", &key).body(body.clone());
            match kind {
                Some(kind) => request.header("content-type", kind),
                None => request,
            }
        })
    };
    let wrong = [
        "text/plain",
        "text/json",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json2",
        "application/xml",
        "application",
        "json",
        "",
    ];
    for kind in wrong {
        for request in requests(Some(kind)) {
            answer(request).await.refused(kind, 415, "unsupported_media_type");
        }
    }
    assert_eq!(stored(&app).await, 0);
    let right = [
        None,
        Some("application/json"),
        Some("Application/JSON; charset=utf-8"),
        Some("application/json;charset=\"x\""),
        Some("application/cloudevents+json"),
    ];
    for kind in right {
        for request in requests(kind) {
            let answer = answer(request).await;
            assert_eq!(answer.status, 201, "{kind:?}: {}", answer.text());
        }
    }
    app.stop().await;
}

/// An event whose body has exactly `length` bytes.
fn event_of(length: usize) -> String {
    let around = "{\"type\":\"large\",\"payload\":\"\"}".len();
    format!("{{\"type\":\"large\",\"payload\":\"{}\"}}", "x".repeat(length - around))
}

/// The same body, announced by its length or in chunks.
fn both_ways(key: &str, body: &str) -> [(&'static str, Vec<u8>); 2] {
    let sized = sockets::head(key, &format!("content-length: {}\r\n", body.len())) + body;
    let mut chunked = sockets::head(key, "transfer-encoding: chunked\r\n").into_bytes();
    for chunk in body.as_bytes().chunks(50_000) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    [("a length", sized.into_bytes()), ("chunks", chunked)]
}

#[tokio::test]
async fn bodies_are_bounded() {
    let app = App::start("body_size").await;
    let receiver = Receiver::start().await;
    let key = app.register(&receiver.url("/")).await.key;
    let mut accepted = Vec::new();
    for (way, request) in both_ways(&key, &event_of(BODY_MAX)) {
        let mut wire = Wire::open(&app).await;
        // Twice on one connection, which is as good as new after it.
        for _ in 0..2 {
            wire.send(&request).await;
            let answer = wire.answer().await;
            assert_eq!(answer.status, 201, "the limit by {way}");
            accepted.push(answer.json()["event"]["id"].as_i64().expect("an id"));
        }
    }
    for length in [BODY_MAX + 1, 8 * BODY_MAX] {
        for (way, request) in both_ways(&key, &event_of(length)) {
            let case = format!("{length} bytes by {way}");
            let mut wire = Wire::open(&app).await;
            // Whole, before anything is read, as simple clients do.
            wire.send(&request).await;
            let answer = wire.answer().await;
            assert_eq!(answer.status, 413, "{case}: {answer:?}");
            let (code, message) = shape(&case, &answer.json());
            assert_eq!(code, "body_too_large", "{case}");
            assert!(message.contains("1048576"), "{case}: {message}");
            assert_eq!(answer.header("connection"), Some("close"), "{case}");
            wire.ended().await;
        }
    }
    // Announced, never sent.
    for length in ["1048577", "1099511627776", "9223372036854775807"] {
        let mut wire = Wire::open(&app).await;
        wire.send(sockets::head(&key, &format!("content-length: {length}\r\n"))).await;
        assert_eq!(wire.answer().await.status, 413, "{length}");
        wire.ended().await;
    }
    let form = json!({ "name": "x".repeat(BODY_MAX), "url": receiver.url("/") }).to_string();
    answer(post(&app, "/register-webhook", form)).await.refused("a form", 413, "body_too_large");

    let bodies = delivered(&receiver, accepted.iter().copied()).await;
    assert!(bodies.values().all(|body| body.len() > BODY_MAX));
    assert_eq!(stored(&app).await, accepted.len() as i64);
    app.stop().await;
}

/// Every call that needs a key.
const CALLS: [(&str, &str); 14] = [
    ("POST", "/send-event"),
    ("GET", "/events"),
    ("GET", "/events/1"),
    ("GET", "/events/1/attempts"),
    ("GET", "/dlq"),
    ("POST", "/dlq/1/retry"),
    ("POST", "/register-webhook"),
    ("GET", "/webhooks/1/transform"),
    ("PUT", "/webhooks/1/transform"),
    ("PATCH", "/webhooks/1/transform"),
    ("DELETE", "/webhooks/1/transform"),
    ("DELETE", "/webhooks/1/transform/1"),
    ("POST", "/webhooks/1/transform/activate"),
    ("POST", "/webhooks/1/transform/dry-run"),
];

/// One of [`CALLS`], with a body that would do.
fn call(app: &App, (method, path): (&str, &str)) -> reqwest::RequestBuilder {
    let method = method.parse().expect("a method");
    let request = app.client.request(method, app.url(path)).header("content-type", JSON);
    match path {
        "/send-event" => request.body(json!({ "type": "a", "payload": 1 }).to_string()),
        "/register-webhook" => request.body(json!({ "name": "n", "url": "http://127.0.0.1:9/" }).to_string()),
        _ => request,
    }
}

#[tokio::test]
async fn every_call_needs_a_good_key() {
    let app = App::start("keys").await;
    let receiver = Receiver::start().await;
    let key = app.register(&receiver.url("/")).await.key;
    let db = postgres(&app.database).await;
    let row = db.query_one("SELECT key_secret FROM engine_state", &[]).await.expect("a row");
    // Of the right form, with the right check value, and given to nobody.
    let nobodys = Form::new(row.get(0)).fresh().text;
    let foreign = Form::new(b"another deployment").fresh().text;
    let mut flipped = key.clone().into_bytes();
    flipped[20] = if flipped[20] == b'A' { b'B' } else { b'A' };
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("no key", vec![]),
        ("an empty key", vec![vec![]]),
        ("a word", vec![b"nonsense".to_vec()]),
        ("the prefix", vec![b"ep_live_".to_vec()]),
        ("a key of nobody", vec![nobodys.into_bytes()]),
        ("a key of another deployment", vec![foreign.into_bytes()]),
        ("a key with a letter changed", vec![flipped]),
        ("a key in capitals", vec![key.to_uppercase().into_bytes()]),
        ("a key and a letter", vec![format!("{key}A").into_bytes()]),
        ("a key less a letter", vec![key.as_bytes()[..key.len() - 1].to_vec()]),
        ("two keys in one header", vec![format!("{key}, {key}").into_bytes()]),
        ("the same key twice", vec![key.clone().into_bytes(), key.clone().into_bytes()]),
        ("a good key and a bad one", vec![key.clone().into_bytes(), b"nonsense".to_vec()]),
        ("bytes that are no text", vec![b"ep_live_\xff\xfe".to_vec()]),
        ("10 kB", vec![vec![b'x'; 10_000]]),
    ];
    for (case, keys) in &cases {
        for which in CALLS {
            if keys.is_empty() && which.1 == "/register-webhook" {
                // That is how a new account is made.
                continue;
            }
            let mut request = call(&app, which).header("authorization", format!("Bearer {key}"));
            for key in keys {
                let value = reqwest::header::HeaderValue::from_bytes(key).expect("a header's value");
                request = request.header("x-api-key", value);
            }
            answer(request).await.refused(&format!("{case}: {which:?}"), 401, "unauthorized");
        }
    }
    assert_eq!(stored(&app).await, 0);
    assert_eq!(count(&db, "SELECT count(*) FROM webhooks").await, 1);
    app.send(&key, "good", json!(1)).await;
    app.stop().await;
}

#[tokio::test]
async fn a_revoked_key_is_felt_soon() {
    let app = App::start("revoked").await;
    let receiver = Receiver::start().await;
    let (account, other) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let db = postgres(&app.database).await;
    let row = db.query_one("SELECT account_id FROM webhooks WHERE id = $1", &[&account.webhook]).await;
    let owner = AccountId(row.expect("a row").get(0));
    // Known to the cache, from where it has to go.
    let mut accepted = vec![app.send(&account.key, "before", json!(1)).await];
    let store = Store::new(&app.database, 1).expect("a store");
    let keys = store.list_keys(owner, i64::MAX, 10).await.expect("Postgres answers");
    let spare = New { name: "spare", scope: "manage", hash: &[7; 32], prefix: "ep_live_spare" };
    store.add_key(owner, &spare, 10).await.expect("Postgres answers").expect("room for it");
    assert_eq!(store.revoke_key(owner, keys[0].id).await.expect("Postgres answers"), Revoked::Done);
    let last = eventually("the key is refused", PATIENCE, async || {
        let answer = send(&app, &account.key, json!({ "type": "a", "payload": 2 }).to_string()).await;
        if answer.status == 201 {
            accepted.push(answer.id());
            return Err("it is taken".to_owned());
        }
        Ok(answer)
    })
    .await;
    last.refused("a revoked key", 401, "unauthorized");
    for which in CALLS {
        let request = call(&app, which).header("x-api-key", &account.key);
        answer(request).await.refused(&format!("a revoked key: {which:?}"), 401, "unauthorized");
    }
    accepted.push(app.send(&other.key, "after", json!(3)).await);
    // What was accepted is owed, whatever became of the key.
    delivered(&receiver, accepted.iter().copied()).await;
    assert_eq!(stored(&app).await, accepted.len() as i64);
    app.stop().await;
}

#[tokio::test]
async fn what_is_somebody_elses_does_not_exist() {
    let app = App::start("foreign").await;
    let receiver = Receiver::start().await;
    receiver.script(|_| Reply::status(500));
    let quiet = Receiver::start().await;
    let (mine, theirs) = (app.register(&quiet.url("/")).await, app.register(&receiver.url("/")).await);
    let event = app.send(&theirs.key, "theirs", json!("secret")).await;
    let letter = eventually("a dead letter of theirs", PATIENCE, async || {
        let (_, body) = app.get(&theirs.key, "/dlq").await;
        body["dlqEntries"][0]["id"].as_i64().ok_or_else(|| body.to_string())
    })
    .await;

    for id in [event.to_string(), "0".to_owned(), (event + 1_000_000).to_string(), i64::MAX.to_string()] {
        for path in [format!("/events/{id}"), format!("/events/{id}/attempts")] {
            get(&app, &mine.key, &path).await.refused(&path, 404, "not_found");
        }
    }
    for id in [letter.to_string(), "0".to_owned(), i64::MAX.to_string()] {
        let path = format!("/dlq/{id}/retry");
        let request = app.client.post(app.url(&path)).header("x-api-key", &mine.key);
        answer(request).await.refused(&path, 404, "not_found");
    }
    for path in ["/events?limit=200", "/dlq?limit=200"] {
        let (status, body) = app.get(&mine.key, path).await;
        assert_eq!(status, 200);
        let list = body["events"].as_array().or_else(|| body["dlqEntries"].as_array()).expect("a list");
        assert!(list.is_empty(), "{path}: {body}");
    }
    // They were there all the time, and nobody touched them.
    assert_eq!(get(&app, &theirs.key, &format!("/events/{event}")).await.status, 200);
    let (_, body) = app.get(&theirs.key, "/dlq").await;
    assert_eq!(body["dlqEntries"][0]["requeuedAt"], Value::Null);
    assert_eq!(app.post(&theirs.key, &format!("/dlq/{letter}/retry")).await.0, 200);
    let again = app.client.post(app.url(&format!("/dlq/{letter}/retry"))).header("x-api-key", &theirs.key);
    answer(again).await.refused("a second requeue", 409, "already_requeued");
    assert_eq!(quiet.count(), 0);
    app.stop().await;
}

#[tokio::test]
async fn ids_and_pages_have_a_form() {
    let app = App::start("ids").await;
    let key = app.register("http://127.0.0.1:9/").await.key;
    let huge = "9".repeat(400);
    let ids = [
        "",
        "abc",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "0x10",
        "1,2",
        "%31",
        "1%00",
        "%EF%BC%91",
        "null",
        "*",
        "1;2",
        "9223372036854775808",
        "18446744073709551617",
        &huge,
    ];
    for id in ids {
        for path in [format!("/events/{id}"), format!("/events/{id}/attempts")] {
            get(&app, &key, &path).await.refused(&path, 400, "invalid_id");
        }
        let path = format!("/dlq/{id}/retry");
        let request = app.client.post(app.url(&path)).header("x-api-key", &key);
        answer(request).await.refused(&path, 400, "invalid_id");
    }
    for list in ["/events", "/dlq"] {
        for limit in ["0", "-1", "201", "x", "", "1.5", "1e1", "99999999999999999999", "%31", "1&limit=0"] {
            let path = format!("{list}?limit={limit}");
            let message = get(&app, &key, &path).await.refused(&path, 400, "invalid_limit");
            assert!(message.contains("`limit`"), "{path}: {message}");
        }
        for before in ["-1", "x", "", "1.5", "9223372036854775808", "99999999999999999999"] {
            let path = format!("{list}?limit=5&before={before}");
            let message = get(&app, &key, &path).await.refused(&path, 400, "invalid_before");
            assert!(message.contains("`before`"), "{path}: {message}");
        }
        for query in ["", "limit=1", "limit=200&before=0", "before=9223372036854775807", "x=y&&=", "limits=0"]
        {
            let answer = get(&app, &key, &format!("{list}?{query}")).await;
            assert_eq!(answer.status, 200, "{list}?{query}: {}", answer.text());
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn wrong_forms_are_refused_with_the_field() {
    let app = App::with("forms", |config| config.targets.allow_private = false).await;
    let url = "https://example.com/hook";
    let of = |name: &Value, url: &Value| json!({ "name": name, "url": url }).to_string();
    let named = |name: Value| of(&name, &json!(url));
    let to = |url: &str| of(&json!("n"), &json!(url));
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let mut cases = vec![
        (String::new(), "invalid_json", "JSON"),
        ("{".to_owned(), "invalid_json", "line 1 column 1"),
        ("[]".to_owned(), "invalid_body", "`name`"),
        ("\"x\"".to_owned(), "invalid_body", "`name`"),
        ("null".to_owned(), "invalid_body", "`name`"),
        (format!("{{\"name\":{deep},\"url\":\"{url}\"}}"), "invalid_json", "line 1 column"),
        (format!("{{\"name\":\"a\",\"name\":\"b\",\"url\":\"{url}\"}}"), "invalid_body", "`name`"),
        (format!("{{\"name\":\"\\ud800\",\"url\":\"{url}\"}}"), "invalid_json", "line 1 column"),
        (json!({ "url": url }).to_string(), "invalid_name", "`name`"),
        (named(Value::Null), "invalid_name", "`name`"),
        (named(json!(1)), "invalid_name", "`name`"),
        (named(json!(["n"])), "invalid_name", "`name`"),
        (named(json!("")), "invalid_name", "`name`"),
        (named(json!(" \t ")), "invalid_name", "`name`"),
        (named(json!("x".repeat(256))), "invalid_name", "255"),
        (named(json!("é".repeat(256))), "invalid_name", "255"),
        (named(json!("a\0b")), "invalid_name", "`name`"),
        (named(json!("a\nb")), "invalid_name", "`name`"),
        (json!({ "name": "n" }).to_string(), "invalid_url", "`url`"),
        (of(&json!("n"), &Value::Null), "invalid_url", "`url`"),
        (of(&json!("n"), &json!(1)), "invalid_url", "`url`"),
        (of(&json!("n"), &json!([url])), "invalid_url", "`url`"),
        (to(&format!("https://example.com/{}", "x".repeat(2029))), "invalid_url", "2048"),
        (to("https://user:password@example.com/"), "invalid_url", "user name"),
        (to("https://user@example.com/"), "invalid_url", "user name"),
        (to("https://example.com@127.0.0.1/"), "invalid_url", "user name"),
        (
            json!({ "name": "n", "url": url, "eventTypes": ["a\0"] }).to_string(),
            "invalid_event_types",
            "`eventTypes`",
        ),
        (
            json!({ "name": "n", "url": url, "eventTypes": "a" }).to_string(),
            "invalid_event_types",
            "`eventTypes`",
        ),
    ];
    for url in [
        "",
        " ",
        "nonsense",
        "/hook",
        "example.com/hook",
        "//example.com/hook",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "data:text/plain,x",
        "unix:/var/run/docker.sock",
        "http:",
        "http://",
        "http:///hook",
        "https://:443/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:x/",
        "http://exa mple.com/",
        "http://example.com/a b",
        "http://example.com/\r\nx-injected: 1",
        "http://example.com/\0",
        " https://example.com/",
        "http://[::1/",
    ] {
        cases.push((to(url), "invalid_url", "`url`"));
    }
    for (body, code, holds) in &cases {
        let case = &body[..body.char_indices().nth(120).map_or(body.len(), |(at, _)| at)];
        let message = answer(post(&app, "/register-webhook", body.clone())).await.refused(case, 400, code);
        assert!(message.contains(holds), "{case}: {message:?} does not hold {holds:?}");
    }
    for host in [
        "127.0.0.1",
        "127.1.2.3:8080",
        "localhost",
        "LocalHost.",
        "api.localhost:3000",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1:80",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "[::1]",
        "[::]:80",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
        "[64:ff9b::a00:1]",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
    ] {
        let message = answer(post(&app, "/register-webhook", to(&format!("http://{host}/hook")))).await;
        let message = message.refused(host, 422, "private_target");
        assert!(message.contains("`url`"), "{host}: {message}");
    }
    let db = postgres(&app.database).await;
    let rows = "SELECT (SELECT count(*) FROM accounts) + (SELECT count(*) FROM api_keys)";
    assert_eq!(count(&db, rows).await, 0, "a refused form leaves no account");

    // At the bounds, and odd but right.
    let longest = format!("https://example.com/{}", "x".repeat(2028));
    let right = [
        named(json!("é".repeat(255))),
        to(&longest),
        to("http://example.com:8080/?a=b&c=%00"),
        to("https://8.8.8.8/"),
        format!("{{\"x\":{deep},\"url\":\"{url}\",\"name\":\" n \"}}"),
    ];
    for (n, body) in right.iter().enumerate() {
        let answer = answer(post(&app, "/register-webhook", body.clone())).await;
        assert_eq!(answer.status, 201, "{n}: {body:.120}: {}", answer.text());
    }
    assert_eq!(count(&db, "SELECT count(*) FROM webhooks").await, right.len() as i64);
    app.stop().await;
}

#[tokio::test]
async fn paths_and_methods_are_told_apart() {
    let app = App::start("paths").await;
    let key = app.register("http://127.0.0.1:9/").await.key;
    let nowhere = [
        "/",
        "//",
        "/event",
        "/EVENTS",
        "//events",
        "/events/1/2",
        "/events/1/attempts/",
        "/events/1/attempts/2",
        "/dlq/1",
        "/dlq/1/retry/2",
        "/dlq/1/Retry",
        "/send-event/",
        "/send-event/1",
        "/health/",
        "/%65vents",
        "/api/events",
        "/index.html",
        "/events%2F1",
    ];
    for path in nowhere {
        for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let method = method.parse().expect("a method");
            let request = app.client.request(method, app.url(path)).header("x-api-key", &key).body("{}");
            answer(request).await.refused(path, 404, "not_found");
        }
    }
    let table = [
        ("/send-event", "POST"),
        ("/register-webhook", "POST"),
        ("/dlq/1/retry", "POST"),
        ("/events", "GET"),
        ("/events/1", "GET"),
        ("/events/1/attempts", "GET"),
        ("/dlq", "GET"),
        ("/health", "GET"),
        ("/metrics", "GET"),
    ];
    for (path, allowed) in table {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            if method == allowed {
                continue;
            }
            let case = format!("{method} {path}");
            let request = app.client.request(method.parse().expect("a method"), app.url(path));
            let answer = answer(request.header("x-api-key", &key).body("{}")).await;
            answer.refused(&case, 405, "method_not_allowed");
            assert_eq!(answer.headers.get("allow").and_then(|a| a.to_str().ok()), Some(allowed), "{case}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn the_registration_token_guards_new_accounts_only() {
    let app = App::with("token", |config| config.registration.token = Secret::new("open sesame")).await;
    let register = |authorization: Option<&str>, key: Option<&str>| {
        let mut request = call(&app, ("POST", "/register-webhook"));
        if let Some(text) = authorization {
            request = request.header("authorization", text);
        }
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        answer(request)
    };
    let wrong = [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer open"),
        Some("Bearer open sesam"),
        Some("Bearer open sesame!"),
        Some("Bearer Open Sesame"),
        Some("Basic open sesame"),
        Some("open sesame"),
    ];
    for authorization in wrong {
        let case = format!("{authorization:?}");
        let message = register(authorization, None).await.refused(&case, 401, "unauthorized");
        assert!(message.contains("token") && !message.contains("sesame"), "{case}: {message}");
    }
    let db = postgres(&app.database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM accounts").await, 0);

    let first = register(Some("Bearer open sesame"), None).await;
    assert_eq!(first.status, 201, "{}", first.text());
    let body: Value = serde_json::from_slice(&first.body).expect("JSON");
    let key = body["apiKey"].as_str().expect("a key");
    assert_eq!(register(None, Some(key)).await.status, 201, "a key holder needs no token");
    assert_eq!(register(Some("Bearer wrong"), Some(key)).await.status, 201, "and none is looked at");
    // A bad key with a good token is still a bad key, and makes no account.
    let mixed = register(Some("Bearer open sesame"), Some("ep_live_nobody")).await;
    mixed.refused("a bad key with the token", 401, "unauthorized");
    assert_eq!(count(&db, "SELECT count(*) FROM accounts").await, 1);
    assert_eq!(count(&db, "SELECT count(*) FROM webhooks").await, 3);
    app.stop().await;
}

#[tokio::test]
async fn a_key_for_sending_may_send_and_nothing_else() {
    let app = App::start("scope").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let db = postgres(&app.database).await;
    // Before the key is used for the first time, so no cache knows it otherwise.
    let changed = db.execute("UPDATE api_keys SET scope = 'send'", &[]).await.expect("an update");
    assert_eq!(changed, 1);
    let id = app.send(&account.key, "sent", json!(1)).await;
    delivered(&receiver, [id]).await;
    let (event, attempts) = (format!("/events/{id}"), format!("/events/{id}/attempts"));
    let more = [("GET", event.as_str()), ("GET", attempts.as_str())];
    for which in CALLS.into_iter().chain(more).filter(|(_, path)| *path != "/send-event") {
        let request = call(&app, which).header("x-api-key", &account.key);
        answer(request).await.refused(&format!("{which:?}"), 403, "forbidden");
    }
    assert_eq!(count(&db, "SELECT count(*) FROM webhooks").await, 1);
    app.send(&account.key, "sent", json!(2)).await;
    app.stop().await;
}
