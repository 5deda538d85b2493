//! What one call of one module comes to.

use eventpulse::transform::{Input, Kind, Outcome};
use eventpulse_testkit::guests;

use super::{Hosted, PAYLOAD, input, kind, payload};

#[tokio::test]
async fn every_outcome_comes_out() {
    let hosted = Hosted::new("outcomes");
    assert_eq!(hosted.run(guests::echo()).await.result, Ok(Outcome::Unchanged));
    assert_eq!(payload(&hosted.run(guests::copy()).await), PAYLOAD);

    let odd = hosted.compile(guests::drop_odd()).await;
    let called = hosted.host.call(&odd, input(41, PAYLOAD)).await;
    assert_eq!(called.result, Ok(Outcome::Drop("odd id".to_owned())));
    let called = hosted.host.call(&odd, input(42, PAYLOAD)).await;
    assert_eq!(called.result, Ok(Outcome::Unchanged));

    let called = hosted.run(guests::digits()).await;
    assert_eq!(payload(&called), PAYLOAD.replace("1299", "2399"));
    assert!(called.cpu.as_nanos() > 0);
    assert_eq!(called.memory, 65_536);

    let Ok(Outcome::Body(body)) = hosted.run(guests::body()).await.result else { panic!("not a body") };
    assert_eq!(body.content_type, "text/plain; charset=utf-8");
    assert_eq!(body.bytes, "hello");
    assert_eq!(body.headers.len(), 1);
    assert_eq!((body.headers[0].0.as_str(), &body.headers[0].1), ("x-from", &"a module".parse().unwrap()));
    assert_eq!(hosted.count("eventpulse_transform_calls_total{outcome=\"body\"}"), 1.0);
}

#[tokio::test]
async fn settings_reach_the_module() {
    let hosted = Hosted::new("config");
    let module = hosted.compile(guests::from_config()).await;
    for value in ["{\"a\":1}", "[true]"] {
        let config = vec![("x".to_owned(), value.to_owned()), ("y".to_owned(), "2".to_owned())];
        let input = Input { config: config.into(), ..input(1, PAYLOAD) };
        assert_eq!(payload(&hosted.host.call(&module, input).await), value);
    }
}

/// Every hostile guest has an end of its own, and leaves the threads as they were.
#[tokio::test]
async fn every_failure_has_its_kind_and_the_next_call_is_served() {
    let hosted = Hosted::new("hostile");
    let echo = hosted.compile(guests::echo()).await;
    let cases: [(&str, Vec<u8>, Kind, &str); 15] = [
        ("endless loop", guests::endless_loop(), Kind::Deadline, "more than 50 ms of CPU time"),
        ("start loop", guests::start_loop(), Kind::Deadline, "more than 50 ms of CPU time"),
        ("memory bomb", guests::memory_bomb(), Kind::Memory, "64 MiB"),
        ("recursion", guests::recursion(), Kind::Trap, "call stack exhausted"),
        ("trap", guests::trap(), Kind::Trap, "unreachable"),
        ("panic", guests::log_then_trap(), Kind::Trap, "unreachable"),
        ("error", guests::error(), Kind::Error, "no amount\u{fffd} given"),
        ("huge output", guests::huge_output(), Kind::TooLarge, "1048576"),
        ("many headers", guests::many_headers(), Kind::TooLarge, "1048576"),
        ("wild pointer", guests::wild_pointer(), Kind::Trap, "out of bounds"),
        ("no JSON", guests::not_json(), Kind::BadOutput, "no JSON"),
        ("no text", guests::not_text(), Kind::BadOutput, "no text"),
        ("header", guests::bad_header(), Kind::BadOutput, "Host"),
        ("header value", guests::bad_header_value(), Kind::BadOutput, "x-a"),
        ("too long", guests::spin(2_000_000_000), Kind::Deadline, "CPU time"),
    ];
    for (name, wasm, expected, message) in cases {
        let module = hosted.compile(wasm).await;
        // As often as there are threads, so that each has met it.
        for _ in 0..4 {
            let called = hosted.call(&module, PAYLOAD).await;
            let failure = called.result.expect_err(name);
            assert_eq!(failure.kind, expected, "{name}: {failure}");
            assert!(failure.message.contains(message), "{name}: {failure}");
            assert!(!failure.message.contains('\0'), "{name}");
            assert_eq!(hosted.call(&echo, PAYLOAD).await.result, Ok(Outcome::Unchanged), "after {name}");
        }
    }
    let failures =
        |kind: &str| hosted.count(&format!("eventpulse_transform_failures_total{{kind=\"{kind}\"}}"));
    assert_eq!(failures("deadline"), 12.0);
    assert_eq!(failures("memory"), 4.0);
    assert_eq!(failures("too_large"), 8.0);
    assert_eq!(failures("bad_output"), 16.0);
    assert_eq!(failures("error"), 4.0);
    assert_eq!(failures("trap"), 16.0);
}

#[tokio::test]
async fn who_does_without_what_it_may_not_have_is_well() {
    let hosted = Hosted::new("shy");
    assert_eq!(hosted.run(guests::memory_shy()).await.result, Ok(Outcome::Unchanged));
    assert_eq!(hosted.run(guests::table_bomb()).await.result, Ok(Outcome::Unchanged));
}

#[tokio::test]
async fn logs_are_kept_within_their_limits() {
    let hosted = Hosted::new("logs");
    let called = hosted.run(guests::log()).await;
    let levels: Vec<&str> = called.log.iter().map(|line| line.level).collect();
    assert_eq!(levels, ["debug", "info", "warn", "error"]);
    assert!(called.log.iter().all(|line| line.text == "one line"));
    assert_eq!(hosted.count("eventpulse_transform_log_cut_total"), 0.0);

    let called = hosted.run(guests::log_flood()).await;
    assert_eq!(called.result, Ok(Outcome::Unchanged));
    let bytes: usize = called.log.iter().map(|line| line.text.len()).sum();
    assert!(bytes <= hosted.settings.log_bytes_max, "{bytes}");
    assert!(called.log.iter().all(|line| line.text.len() <= hosted.settings.log_line_bytes_max + 2));
    assert!(called.log.iter().all(|line| !line.text.contains('\0')));
    // The last lines are the ones that are kept: they say how it ended.
    assert_eq!(called.log.last().unwrap().text, "the last one");
    let long = &called.log[called.log.len() - 2].text;
    assert!(long.len() == 1023 && long.starts_with('a') && long.ends_with('é'), "{}", long.len());
    assert_eq!(hosted.count("eventpulse_transform_log_cut_total"), 1.0);

    let called = hosted.run(guests::log_then_trap()).await;
    assert_eq!(kind(&called), Kind::Trap);
    assert_eq!(called.log[0].text, "panicked at src/lib.rs:7: no amount");
}
