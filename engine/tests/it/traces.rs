//! A producer's trace, from its request to the receiver, and the spans that a collector gets of it.

use eventpulse::config::{Config, Roles};
use eventpulse_testkit::{
    Receiver,
    collector::{Span, spans},
    eventually,
    receiver::Reply,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Account, App, PATIENCE, certificates::Authority, config, count, database, postgres};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// The header of a producer that samples its trace, and of one that does not.
fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

fn unsampled() -> String {
    format!("00-{TRACE}-{PARENT}-00")
}

/// Settings that export to `collector`.
fn exporting(config: &mut Config, collector: &Receiver) {
    config.trace.endpoint = collector.url("");
    config.trace.sample = 0.0;
}

/// Sends as a producer does that gives `headers`, and returns the ids of the events.
async fn send(app: &App, account: &Account, path: &str, headers: &[(&str, &str)], body: &Value) -> Vec<i64> {
    let mut request = app.client.post(app.url(path)).header("x-api-key", &account.key).json(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    let body: Value = response.json().await.expect("JSON");
    let id = |event: &Value| event["id"].as_i64().expect("an id");
    body["events"]
        .as_array()
        .map_or_else(|| vec![id(&body["event"])], |events| events.iter().map(id).collect())
}

async fn send_one(app: &App, account: &Account, traceparent: &str) -> i64 {
    let event = json!({ "type": "t", "payload": 1 });
    send(app, account, "/send-event", &[("traceparent", traceparent)], &event).await[0]
}

/// What the receiver was told of the trace at each request for this event.
fn told(receiver: &Receiver, event: i64) -> Vec<Option<String>> {
    let header = |headers: &hyper::HeaderMap, name: &str| {
        headers.get(name).map(|value| value.to_str().expect("text").to_owned())
    };
    let requests = receiver.requests();
    let of_event =
        requests.iter().filter(|r| header(&r.headers, "x-eventpulse-event-id") == Some(event.to_string()));
    of_event.map(|r| header(&r.headers, "traceparent")).collect()
}

async fn arrives(receiver: &Receiver, n: usize) {
    eventually("the requests arrive", PATIENCE * 2, async || {
        let count = receiver.count();
        if count >= n { Ok(()) } else { Err(format!("{count} of {n}")) }
    })
    .await;
}

/// Waits for so many spans, and gives them.
async fn exported(collector: &Receiver, n: usize) -> Vec<Span> {
    eventually("the spans arrive", PATIENCE, async || {
        let spans = spans(collector);
        if spans.len() >= n { Ok(spans) } else { Err(format!("{spans:?}")) }
    })
    .await
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

#[tokio::test]
async fn a_producers_trace_goes_on_to_each_attempt_and_to_the_receiver() {
    let (collector, receiver) = (Receiver::start().await, Receiver::start().await);
    receiver.script(|request| if request.n == 0 { Reply::status(500) } else { Reply::ok() });
    let app = App::with("traced", |c| exporting(c, &collector)).await;
    let account = app.register(&receiver.url("/secret-path")).await;
    let event = send_one(&app, &account, &sampled()).await;
    let spans = exported(&collector, 4).await;
    assert_eq!(spans.len(), 4, "{spans:?}");
    assert!(spans.iter().all(|span| span.trace == TRACE && span.service == "eventpulse"), "{spans:?}");
    assert!(spans.iter().all(|span| span.start > 0 && span.start <= span.end), "{spans:?}");
    assert!(spans.iter().all(|span| span.attribute("eventpulse.event.id") == event.to_string()), "{spans:?}");

    let ingest = named(&spans, "ingest")[0];
    assert_eq!((&*ingest.parent, ingest.kind as i32, &ingest.error), (PARENT, 4, &None));
    let stream = named(&spans, "stream")[0];
    assert_eq!((&stream.parent, stream.kind as i32, &stream.error), (&ingest.id, 1, &None));
    let attempts = named(&spans, "attempt");
    for (attempt, n) in attempts.iter().zip(["1", "2"]) {
        assert_eq!((&attempt.parent, attempt.kind as i32), (&ingest.id, 3));
        assert_eq!(attempt.attribute("eventpulse.attempt"), n);
        assert_eq!(attempt.attribute("eventpulse.webhook.id"), account.webhook.to_string());
        assert_eq!(attempt.attribute("http.request.method"), "POST");
        assert_eq!(attempt.attribute("server.address"), "127.0.0.1");
        assert!(attempt.attributes.iter().all(|(_, value)| !value.contains("secret-path")), "{attempt:?}");
    }
    let outcome = |attempt: &Span| {
        let text = |name: &str| attempt.attribute(name).to_owned();
        (text("http.response.status_code"), text("eventpulse.outcome"), text("error.type"))
    };
    assert_eq!(outcome(attempts[0]), ("500".to_owned(), "failed".to_owned(), "http_status".to_owned()));
    assert_eq!(outcome(attempts[1]), ("200".to_owned(), "success".to_owned(), String::new()));
    assert!(
        attempts[0].error.as_ref().is_some_and(|error| error.contains("500")) && attempts[1].error.is_none()
    );

    let expected: Vec<_> = attempts.iter().map(|a| Some(format!("00-{TRACE}-{}-01", a.id))).collect();
    assert_eq!(told(&receiver, event), expected, "each attempt is the parent of what its receiver does");
    assert_eq!(app.metric("eventpulse_trace_spans_exported_total"), 4.0);
    app.stop().await;
}

#[tokio::test]
async fn what_a_producer_does_not_sample_is_passed_on_and_not_exported() {
    let (collector, receiver) = (Receiver::start().await, Receiver::start().await);
    let app = App::with("unsampled", |c| {
        exporting(c, &collector);
        c.trace.sample = 1.0;
    })
    .await;
    let account = app.register(&receiver.url("/")).await;
    let theirs = send_one(&app, &account, &unsampled()).await;
    arrives(&receiver, 1).await;
    // One without a trace gets its own, and what comes after the first shows that nothing of the first came.
    let ours = send(&app, &account, "/send-event", &[], &json!({ "type": "t", "payload": 2 })).await[0];
    arrives(&receiver, 2).await;
    let (theirs, ours) = (told(&receiver, theirs), told(&receiver, ours));
    // The end of the process does not wait until more spans come, and loses none.
    app.stop().await;
    let spans = spans(&collector);
    assert_eq!(spans.len(), 3, "{spans:?}");
    assert_eq!(theirs, [Some(unsampled())]);
    let (ingest, attempt) = (named(&spans, "ingest")[0], named(&spans, "attempt")[0]);
    assert!(spans.iter().all(|span| span.trace == ingest.trace && span.trace != TRACE), "{spans:?}");
    assert_eq!(ingest.parent, "", "a root");
    assert_eq!(ours, [Some(format!("00-{}-{}-03", attempt.trace, attempt.id))]);
}

#[tokio::test]
async fn without_a_collector_the_header_is_passed_on_as_it_came() {
    let config = config(&database("untraced").await);
    let gateway = App::of(config.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    let event = json!({ "type": "t", "payload": 1 });
    let (one, header) = (json!([event, event]), sampled());
    // Every way into the table, and out of it, since this dispatcher has no ring.
    let given: &[(&str, &str)] = &[("traceparent", &header)];
    let mut traced = send(&gateway, &account, "/send-event", given, &event).await;
    let keyed = [given[0], ("idempotency-key", "one")];
    traced.extend(send(&gateway, &account, "/send-event", &keyed, &event).await);
    traced.extend(send(&gateway, &account, "/send-events", given, &one).await);
    let mut untraced = send(&gateway, &account, "/send-event", &[], &event).await;
    untraced.extend(send(&gateway, &account, "/send-events", &[], &one).await);
    for wrong in
        ["", "nonsense", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", &format!("{header}-x")]
    {
        untraced.push(send_one(&gateway, &account, wrong).await);
    }
    let twice = [given[0], given[0]];
    untraced.extend(send(&gateway, &account, "/send-event", &twice, &event).await);
    let dispatcher = App::of(config, Roles::Dispatcher).await;
    let n = traced.len() + untraced.len();
    arrives(&receiver, n).await;
    for id in &traced {
        assert_eq!(told(&receiver, *id), [Some(header.clone())]);
    }
    for id in &untraced {
        assert_eq!(told(&receiver, *id), [None]);
    }
    let db = postgres(&gateway.database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM events WHERE trace IS NOT NULL").await, 4);

    // A new round keeps it: the event is the same.
    let resend = gateway.client.post(gateway.url(&format!("/events/{}/resend", traced[0])));
    let body = json!({ "webhookId": account.webhook });
    eventually("the first round is recorded", PATIENCE, async || {
        let request =
            resend.try_clone().expect("a body in memory").header("x-api-key", &account.key).json(&body);
        let status = request.send().await.expect("an answer").status();
        if status.is_success() { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    arrives(&receiver, n + 1).await;
    assert_eq!(told(&receiver, traced[0]), [Some(header.clone()), Some(header)]);
    gateway.stop().await;
    dispatcher.stop().await;
}

#[tokio::test]
async fn of_a_request_with_many_events_the_budget_says_how_many_are_exported() {
    let (collector, receiver) = (Receiver::start().await, Receiver::start().await);
    let app = App::with("trace-budget", |c| {
        exporting(c, &collector);
        c.trace.events_per_second_max = 3;
    })
    .await;
    let account = app.register(&receiver.url("/")).await;
    let events: Vec<_> = (0..5).map(|n| json!({ "type": "t", "payload": n })).collect();
    let ids = send(&app, &account, "/send-events", &[("traceparent", &sampled())], &json!(events)).await;
    arrives(&receiver, 5).await;
    let refused = app.metric("eventpulse_trace_events_refused_total");
    app.stop().await;
    let spans = spans(&collector);
    let ingest = named(&spans, "ingest");
    assert_eq!((ingest.len(), ingest[0].attribute("eventpulse.events")), (1, "5"));
    assert_eq!((named(&spans, "stream").len(), named(&spans, "attempt").len()), (3, 3), "{spans:?}");
    assert_eq!(refused, 2.0);
    let exported = |id: &i64| {
        named(&spans, "attempt").iter().any(|a| a.attribute("eventpulse.event.id") == id.to_string())
    };
    assert_eq!(ids.iter().map(exported).collect::<Vec<_>>(), [true, true, true, false, false]);
    for id in &ids[3..] {
        // Without a span of its own, but in the trace: what comes next belongs to the request.
        assert_eq!(told(&receiver, *id), [Some(format!("00-{TRACE}-{}-01", ingest[0].id))]);
    }
}

#[tokio::test]
async fn a_dead_collector_costs_spans_and_no_delivery() {
    const EVENTS: usize = 5_000;
    let collector = Receiver::start().await;
    let receiver = Receiver::start().await;
    receiver.keep_bodies(false);
    let app = App::with("no-collector", |c| {
        exporting(c, &collector);
        c.trace.events_per_second_max = 10_000;
    })
    .await;
    // Nobody listens there any more.
    drop(collector);
    let account = app.register(&receiver.url("/")).await;
    let events: Vec<_> = (0..EVENTS).map(|n| json!({ "type": "t", "payload": n })).collect();
    send(&app, &account, "/send-events", &[("traceparent", &sampled())], &json!(events)).await;
    arrives(&receiver, EVENTS).await;
    assert_eq!(receiver.count(), EVENTS);
    let dropped = || app.metric("eventpulse_trace_spans_dropped_total");
    eventually("what does not fit into the queue is dropped", PATIENCE, async || {
        if dropped() > 0.0 { Ok(()) } else { Err("nothing is dropped".to_owned()) }
    })
    .await;
    assert!(app.metric("eventpulse_trace_export_failures_total") > 0.0);
    assert_eq!(app.metric("eventpulse_trace_spans_exported_total"), 0.0);
    let metrics = app.engine.metrics.clone();
    app.stop().await;
    // Every span is accounted for: one for the request, two for each event.
    let text = metrics.render();
    let line = text.lines().find(|line| line.starts_with("eventpulse_trace_spans_dropped_total "));
    assert_eq!(line.unwrap().rsplit_once(' ').unwrap().1, (2 * EVENTS + 1).to_string());
}

#[tokio::test]
async fn an_export_is_tried_again_unless_the_collector_refuses_it() {
    let (collector, receiver) = (Receiver::start().await, Receiver::start().await);
    collector.script(|request| if request.n == 0 { Reply::status(503) } else { Reply::ok() });
    let app = App::with("trace-again", |c| {
        exporting(c, &collector);
        c.trace.headers = eventpulse::config::value::Secret::new("authorization=Bearer one,x-team=a");
    })
    .await;
    let account = app.register(&receiver.url("/")).await;
    send_one(&app, &account, &sampled()).await;
    eventually("three spans are taken", PATIENCE, async || {
        let taken = app.metric("eventpulse_trace_spans_exported_total");
        if taken == 3.0 { Ok(()) } else { Err(taken.to_string()) }
    })
    .await;
    assert_eq!(app.metric("eventpulse_trace_export_failures_total"), 1.0);
    assert_eq!(app.metric("eventpulse_trace_spans_dropped_total"), 0.0);
    collector.script(|_| Reply::status(400));
    send_one(&app, &account, &sampled()).await;
    eventually("what is refused is dropped at once", PATIENCE, async || {
        let dropped = app.metric("eventpulse_trace_spans_dropped_total");
        if dropped == 3.0 { Ok(()) } else { Err(dropped.to_string()) }
    })
    .await;
    let requests = collector.requests();
    assert!(
        requests.iter().all(|r| r.headers["authorization"] == "Bearer one" && r.headers["x-team"] == "a")
    );
    assert_eq!(requests[0].body, requests[1].body, "the same spans");
    app.stop().await;
}

/// Gives the port of a TLS server for `localhost` in front of a collector.
async fn behind_tls(collector: &Receiver, authority: &Authority) -> u16 {
    let (certificate, key) = authority.issue("localhost", 7);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
        .expect("a pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (port, behind) = (listener.local_addr().expect("bound").port(), collector.addr());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust the certificate goes away here.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut collector = TcpStream::connect(behind).await.expect("the collector listens");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut collector).await });
        }
    });
    port
}

#[tokio::test]
async fn a_collector_behind_tls_gets_spans_only_when_its_certificate_is_trusted() {
    let (collector, receiver) = (Receiver::start().await, Receiver::start().await);
    let authority = Authority::new();
    let endpoint = format!("https://localhost:{}/", behind_tls(&collector, &authority).await);
    let start = async |hint: &str, roots: String| {
        let app = App::with(hint, |c| {
            exporting(c, &collector);
            c.trace.endpoint.clone_from(&endpoint);
            c.trace.roots = roots;
        })
        .await;
        let account = app.register(&receiver.url("/")).await;
        send_one(&app, &account, &sampled()).await;
        app
    };
    let app = start("trace-untrusted", String::new()).await;
    eventually("the export fails", PATIENCE, async || {
        let failures = app.metric("eventpulse_trace_export_failures_total");
        if failures > 0.0 { Ok(()) } else { Err("it did not".to_owned()) }
    })
    .await;
    app.stop().await;
    assert_eq!(collector.count(), 0);
    let app = start("trace-trusted", authority.file()).await;
    exported(&collector, 3).await;
    app.stop().await;
}
