//! `POST /send-events`: many events in one request, all of them or none.

use std::{collections::HashMap, time::Duration};

use eventpulse_testkit::{Receiver, eventually};
use serde_json::{Value, json};

use crate::{
    harness::{Account, App, PATIENCE, count, postgres, swept_soon},
    sockets::Wire,
};

const ARRAY: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// What came back, the body as it was.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e} in {:.300}", self.text))
    }

    /// Asserts that all events are accepted; returns their ids.
    pub(crate) fn ids(&self) -> Vec<i64> {
        assert_eq!(self.status, 201, "{:.300}", self.text);
        let body = self.json();
        let events = body["events"].as_array().cloned().unwrap_or_else(|| vec![body["event"].clone()]);
        events.iter().map(|event| event["id"].as_i64().expect("an id")).collect()
    }

    /// Asserts a refusal; returns the index it names.
    pub(crate) fn refused(&self, case: &str, status: u16, code: &str) -> Option<u64> {
        assert_eq!(self.status, status, "{case}: {:.300}", self.text);
        let body = self.json();
        assert_eq!(body["error"]["code"], code, "{case}: {body}");
        assert_eq!(body["ok"], false, "{case}");
        body["error"].get("index").map(|index| index.as_u64().expect("a number"))
    }
}

/// Posts to a path with headers; panics when there is no answer.
pub(crate) async fn post(
    app: &App,
    path: &str,
    key: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Answer {
    let mut request = app.client.post(app.url(path)).header("x-api-key", key).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap_or_else(|e| panic!("no answer: {}", eventpulse::chain(&e)));
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.expect("a body") }
}

async fn send(app: &App, account: &Account, kind: &str, body: impl Into<reqwest::Body>) -> Answer {
    post(app, "/send-events", &account.key, &[("content-type", kind)], body).await
}

pub(crate) fn array(events: &[String]) -> String {
    format!("[{}]", events.join(","))
}

pub(crate) fn event(kind: &str, payload: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"payload\":{payload}}}")
}

async fn stored(app: &App) -> i64 {
    count(&postgres(&app.database).await, "SELECT count(*) FROM events").await
}

/// Waits until each of `ids` came to the receiver, and asserts that each came once.
pub(crate) async fn delivered_once(receiver: &Receiver, ids: &[i64]) -> HashMap<i64, bytes::Bytes> {
    let found = eventually("every event is delivered", PATIENCE * 2, async || {
        let mut found = HashMap::new();
        for request in receiver.requests() {
            let id = request.headers["x-eventpulse-event-id"].to_str().unwrap().parse::<i64>().unwrap();
            found.insert(id, request.body);
        }
        let missing = ids.iter().filter(|id| !found.contains_key(id)).count();
        if missing == 0 { Ok(found) } else { Err(format!("{missing} of {} are missing", ids.len())) }
    })
    .await;
    assert_eq!((found.len(), receiver.count()), (ids.len(), ids.len()), "each once, and no other");
    found
}

#[tokio::test]
async fn both_formats_are_accepted_in_order_and_delivered_once() {
    let app = App::with("bulk", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let payloads = ["{\"b\":1.0,\"a\":[ ]}", "null", "1e400", "\"\\ud800\"", "-0.10", "\"é\""];
    let events: Vec<String> =
        payloads.iter().enumerate().map(|(i, p)| event(&format!("order.{i}"), p)).collect();
    let mut all = HashMap::new();
    for (kind, body) in [(ARRAY, array(&events)), (LINES, events.join("\r\n") + "\n\n")] {
        let answer = send(&app, &account, kind, body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let text = &answer.text;
        assert!(text.starts_with("{\"ok\":true,\"events\":[{\"id\":") && text.ends_with("}]}"), "{text}");
        let mut rest = text.as_str();
        let mut last = 0;
        for (i, payload) in payloads.iter().enumerate() {
            let (_, after) = rest.split_once("{\"id\":").expect("an event");
            let (id, after) = after.split_once(',').unwrap();
            let expected = format!("\"type\":\"order.{i}\",\"payload\":{payload},\"createdAt\":\"");
            assert!(after.starts_with(&expected), "{after} instead of {expected}");
            let id: i64 = id.parse().unwrap();
            assert!(id > last, "ids ascend in the order of the request");
            (last, rest) = (id, after);
            all.insert(id, *payload);
        }
    }
    let ids: Vec<i64> = all.keys().copied().collect();
    let got = delivered_once(&receiver, &ids).await;
    for (id, payload) in all {
        let body = String::from_utf8(got[&id].to_vec()).unwrap();
        assert!(body.contains(&format!("\"payload\":{payload},\"createdAt\"")), "{body} for {payload}");
    }
    app.settled().await;
    assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
    assert_eq!(app.metric("eventpulse_recover_leftovers_total"), 0.0, "sent at once, not found later");
    app.stop().await;
}

#[tokio::test]
async fn ten_thousand_events_are_one_request() {
    let app = App::with("bulkmany", swept_soon).await;
    let receiver = Receiver::start().await;
    receiver.keep_bodies(false);
    let account = app.register(&receiver.url("/")).await;
    let filler = "x".repeat(100);
    let events: Vec<String> =
        (0..10_000).map(|n| event("many", &format!("{{\"n\":{n},\"f\":\"{filler}\"}}"))).collect();
    let answer = send(&app, &account, LINES, events.join("\n")).await;
    let ids = answer.ids();
    assert_eq!(ids.len(), 10_000);
    assert!(ids.windows(2).all(|w| w[0] < w[1]));
    let body = answer.json();
    assert!((0..10_000).all(|n| body["events"][n]["payload"]["n"] == json!(n)), "in order");
    let db = postgres(&app.database).await;
    let rows = db.query("SELECT id, payload FROM events ORDER BY id", &[]).await.unwrap();
    let right = rows.iter().zip(&ids).enumerate().all(|(n, (row, id))| {
        row.get::<_, i64>(0) == *id && row.get::<_, &str>(1).starts_with(&format!("{{\"n\":{n},"))
    });
    assert!(right && rows.len() == 10_000, "{} rows", rows.len());
    let wrong = "SELECT count(*) FROM batches WHERE n > 1024 OR last_id - first_id + 1 <> n
        OR first_id / 1024 <> last_id / 1024";
    assert_eq!(count(&db, wrong).await, 0, "each batch lies in one block");
    eventually("all are delivered", PATIENCE * 4, async || match receiver.count() {
        10_000 => Ok(()),
        n => Err(format!("{n}")),
    })
    .await;
    app.settled().await;
    assert_eq!(receiver.count(), 10_000, "each once");
    assert_eq!(app.metric("eventpulse_sweep_missing_total"), 0.0);
    app.stop().await;
}

#[tokio::test]
async fn one_wrong_event_refuses_all_and_is_named() {
    let app = App::start("bulkwrong").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let good = event("a", "1");
    let wrong: [(&[u8], &str); 6] = [
        (b"{\"payload\":1}", "missing_type"),
        (b"{\"type\":\"a\"}", "missing_payload"),
        (b"{\"type\":\"\",\"payload\":1}", "invalid_type"),
        (b"[1]", "not_an_object"),
        (b"{\"type\":\"a\",\"payload\":}", "invalid_json"),
        (b"{\"type\":\"a\",\"payload\":\"\xff\"}", "invalid_utf8"),
    ];
    for (event, code) in wrong {
        let mut array = b"[".to_vec();
        let mut lines = Vec::new();
        for part in [good.as_bytes(), good.as_bytes(), good.as_bytes(), event, good.as_bytes()] {
            if array.len() > 1 {
                array.push(b',');
            }
            array.extend_from_slice(part);
            lines.extend_from_slice(part);
            lines.push(b'\n');
        }
        array.push(b']');
        for (kind, body) in [(ARRAY, array), (LINES, lines)] {
            let case = format!("{kind}, {code}");
            assert_eq!(send(&app, &account, kind, body).await.refused(&case, 400, code), Some(3), "{case}");
        }
    }
    assert_eq!(stored(&app).await, 0);
    assert_eq!(count(&postgres(&app.database).await, "SELECT count(*) FROM batches").await, 0);
    app.stop().await;
}

#[tokio::test]
async fn what_is_too_much_or_nothing_is_refused() {
    let app = App::with("bulklimits", |config| {
        config.http.body_bytes_max = 2000;
        config.ingest.bulk_bytes_max = 40_000;
        config.ingest.bulk_events_max = 100;
    })
    .await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let events = |n: usize| vec![event("a", "1"); n];
    let refused: [(&str, String, u16, &str, Option<u64>); 9] = [
        (ARRAY, String::new(), 400, "empty_body", None),
        (LINES, "\n\r\n \n".into(), 400, "empty_body", None),
        (ARRAY, "[]".into(), 400, "empty_batch", None),
        (ARRAY, event("a", "1"), 400, "not_an_array", None),
        (ARRAY, array(&events(101)), 413, "too_many_events", Some(100)),
        (LINES, events(101).join("\n"), 413, "too_many_events", Some(100)),
        (ARRAY, array(&[event("a", "1"), event("a", &"1".repeat(2001))]), 413, "event_too_large", Some(1)),
        (ARRAY, format!("[{}]", " ".repeat(40_000)), 413, "body_too_large", None),
        ("text/csv", "a,b".into(), 415, "unsupported_media_type", None),
    ];
    for (kind, body, status, code, index) in refused {
        let case = format!("{kind} {body:.40}");
        assert_eq!(send(&app, &account, kind, body).await.refused(&case, status, code), index, "{case}");
    }
    let response = app.client.get(app.url("/send-events")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["allow"]), (405, &"POST".parse().unwrap()));
    assert_eq!(post(&app, "/send-events", "nobody", &[], "[]").await.status, 401);
    assert_eq!(stored(&app).await, 0);
    // Just within, without a content type, and without a length said in advance.
    assert_eq!(post(&app, "/send-events", &account.key, &[], array(&events(100))).await.ids().len(), 100);
    let padded = format!("{}{}", array(&events(100)), " ".repeat(40_000 - 2 - 100 * 24 - 99));
    let mut wire = Wire::open(&app).await;
    wire.send(format!(
        "POST /send-events HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ntransfer-encoding: chunked\r\n\r\n",
        account.key
    ))
    .await;
    for piece in padded.as_bytes().chunks(7000) {
        wire.send(format!("{:x}\r\n", piece.len())).await;
        wire.send(piece).await;
        wire.send("\r\n").await;
    }
    wire.send("0\r\n\r\n").await;
    assert_eq!(wire.answer().await.status, 201);
    assert_eq!(stored(&app).await, 200);
    app.stop().await;
}

#[tokio::test]
async fn a_minimal_answer_leaves_the_payloads_out() {
    let app = App::start("minimal").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let minimal = [("content-type", ARRAY), ("prefer", "respond-async, return=minimal")];
    let keyed = [minimal[0], minimal[1], ("idempotency-key", "minimal-1")];
    let other = [("content-type", ARRAY), ("prefer", "return=representation")];
    for (path, body) in
        [("/send-event", event("a", "[1]")), ("/send-events", array(&[event("a", "[1]"), event("b", "2")]))]
    {
        let keyed = if path == "/send-event" { &keyed[..] } else { &minimal[..] };
        for headers in [&minimal[..], keyed] {
            let answer = post(&app, path, &account.key, headers, body.clone()).await;
            assert_eq!(answer.headers["preference-applied"], "return=minimal", "{path}");
            let ids = answer.ids();
            let body = answer.json();
            let first = if ids.len() == 1 { &body["event"] } else { &body["events"][0] };
            let names: Vec<&String> = first.as_object().unwrap().keys().collect();
            assert_eq!(names, ["id", "type", "createdAt"], "{path}");
        }
        let answer = post(&app, path, &account.key, &other, body).await;
        assert!(!answer.headers.contains_key("preference-applied"));
        assert!(answer.text.contains("\"payload\":[1]"), "{}", answer.text);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_request_that_postgres_refuses_takes_no_other_with_it() {
    let app = App::with("bulkpoison", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let db = postgres(&app.database).await;
    db.batch_execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (type <> 'poison')").await.unwrap();
    send(&app, &account, ARRAY, array(&[event("a", "1")])).await.ids();
    for keyed in [false, true] {
        // While commits wait for this lock, requests gather, and share the next transaction.
        db.batch_execute("BEGIN; LOCK TABLE batches IN SHARE MODE").await.unwrap();
        let calls = (0..12).map(|n| {
            let kind = if n % 5 == 2 { "poison" } else { "good" };
            let body = array(&[event("good", "0"), event(kind, &n.to_string()), event("good", "2")]);
            let key = format!("poison-{n}");
            let headers: &[(&str, &str)] = if keyed { &[("idempotency-key", &key)] } else { &[] };
            let headers: Vec<(String, String)> =
                headers.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            let (client, url, api) = (app.client.clone(), app.url("/send-events"), account.key.clone());
            tokio::spawn(async move {
                let mut request = client.post(url).header("x-api-key", api).body(body);
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                let response = request.send().await.unwrap();
                (kind, response.status().as_u16(), response.json::<Value>().await.unwrap())
            })
        });
        let calls: Vec<_> = calls.collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        db.batch_execute("COMMIT").await.unwrap();
        for call in calls {
            let (kind, status, body) = call.await.unwrap();
            match kind {
                "good" => assert_eq!(status, 201, "{body}"),
                _ => assert_eq!((status, &body["error"]["code"]), (400, &json!("event_rejected")), "{body}"),
            }
        }
    }
    assert_eq!(stored(&app).await, 1 + 2 * 10 * 3, "ten of twelve, twice");
    assert_eq!(count(&db, "SELECT count(*) FROM idempotency_keys").await, 10, "a refused request has no key");
    assert!(app.metric("eventpulse_ingest_batch_splits_total") >= 4.0);
    app.settled().await;
    assert_eq!(receiver.count(), 61);
    app.stop().await;
}

/// A client that does not read its answers once held them in memory without a bound.
#[tokio::test]
async fn answers_that_nobody_reads_hold_bounded_memory() {
    const MIB: usize = 1 << 20;
    let app = App::with("slowreader", |config| config.http.held_bytes_max = 60 * MIB).await;
    let receiver = Receiver::start().await;
    let (one, two) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let db = postgres(&app.database).await;
    // Far more than the kernel takes for a socket whose other end does not read.
    let body = array(&vec![event("large", &format!("\"{}\"", "x".repeat(MIB - 100))); 12]);
    let head = |account: &Account| {
        format!(
            "POST /send-events HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: {}\r\n\r\n",
            account.key,
            body.len()
        )
    };
    let mut silent = Vec::new();
    for n in 0..4 {
        let mut wire = Wire::open(&app).await;
        wire.send(head(if n < 2 { &one } else { &two })).await;
        wire.send(&body).await;
        silent.push(wire);
        let events = (n + 1) * 12;
        eventually("it is committed", PATIENCE, async || {
            match count(&db, "SELECT count(*) FROM events").await {
                found if found == events => Ok(()),
                found => Err(format!("{found} of {events}")),
            }
        })
        .await;
    }
    let held = || app.metric("eventpulse_http_held_bytes") as usize;
    assert!((48 * MIB - 100_000..=60 * MIB).contains(&held()), "{} are held", held());
    // Each account has its part, and there is no room for a third.
    let answer = send(&app, &one, ARRAY, body.clone()).await;
    answer.refused("the share", 429, "account_overloaded");
    assert!(answer.headers.contains_key("retry-after"));
    let three = app.register(&receiver.url("/")).await;
    let larger = array(&vec![event("large", &format!("\"{}\"", "x".repeat(MIB - 100))); 15]);
    send(&app, &three, ARRAY, larger).await.refused("all of it", 503, "overloaded");
    // Small requests are never asked.
    send(&app, &one, ARRAY, array(&[event("small", "1")])).await.ids();
    app.send(&one.key, "small", json!(1)).await;

    drop(silent);
    eventually("all is given back", PATIENCE, async || match held() {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes")),
    })
    .await;
    send(&app, &one, ARRAY, body).await.ids();
    eventually("that too", PATIENCE, async || match held() {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes")),
    })
    .await;
    app.stop().await;
}
