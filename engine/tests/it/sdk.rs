//! The guest SDK and the command line, as an author meets them: examples built from source, called by the host, and uploaded.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use eventpulse_testkit::{Receiver, eventually};
use serde_json::json;

use crate::{
    harness::{App, PATIENCE, process, swept_soon},
    transforms::{arrived, json_of, verify},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs `scripts/guests` and gives back the modules that it built, by name.
fn build(arguments: &[&str]) -> HashMap<String, PathBuf> {
    let script = root().join("scripts/guests");
    let output = Command::new(script).args(arguments).arg("--no-install").output().expect("the script runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "scripts/guests: {text}{errors}\nscripts/guests installs what is missing"
    );
    let paths = text.lines().filter_map(|line| line.split('\t').next()).map(PathBuf::from);
    paths.map(|path| (path.file_stem().expect("a name").to_string_lossy().into_owned(), path)).collect()
}

fn example(name: &str) -> &'static Path {
    static MODULES: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    &MODULES.get_or_init(|| build(&[]))[name]
}

fn temp(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("eventpulse-sdk-test-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// `eventpulse transform …` in a folder, with a cache of its own for all tests of this process.
fn cli(folder: &Path, line: &str) -> (Option<i32>, String) {
    let mut command = process::command(&format!("transform {line}"));
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk-cache");
    command.current_dir(folder).env("EVENTPULSE_TRANSFORM__CACHE_FOLDER", cache);
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// What `run` says of an example's call.
fn call(name: &str, payload: &str, settings: &str) -> (Option<i32>, String) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = temp(&format!("call-{number}"));
    let event = format!(r#"{{"id":1024,"type":"order.paid","payload":{payload}}}"#);
    std::fs::write(folder.join("event.json"), event).expect("written");
    let answer = cli(&folder, &format!("run {} --event event.json {settings}", example(name).display()));
    std::fs::remove_dir_all(folder).expect("removed");
    answer
}

#[track_caller]
fn says((code, text): (Option<i32>, String), expected: &str) {
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(expected), "{text}\nlacks {expected}");
}

#[track_caller]
fn fails((code, text): (Option<i32>, String), expected: &str) {
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(expected), "{text}\nlacks {expected}");
}

#[test]
fn the_examples_do_what_they_say() {
    says(call("filter", r#"{"amount":250.5}"#, "--set min=100"), "outcome  unchanged\n");
    says(call("filter", r#"{"amount":99.5}"#, "--set min=100"), "outcome  drop: amount 99.5 is below 100\n");
    let (code, text) = call("filter", r#"{"id":1}"#, "--set min=100");
    assert!(
        code == Some(1) && text.contains("transform_error") && text.contains("missing field `amount`"),
        "{text}"
    );

    let answer =
        call("reshape", r#"{"amount":1,"customer":[7]}"#, "--set set.via=shop --set rename.customer=buyer");
    says(answer, "outcome  payload\n{\"amount\":1,\"buyer\":[7],\"via\":\"shop\"}\n");

    let answer = call("redact", r#"{"a":{"email":"x","n":1.5}}"#, "");
    says(answer.clone(), "outcome  payload\n{\"a\":{\"email\":\"***\",\"n\":1.5}}\n");
    says(answer, "log      info: 1 values hidden\n");

    let answer = call("slack", r#"{"orderId":"A-7","amount":9.5}"#, "--set currency=USD");
    says(
        answer,
        "outcome  body\ncontent-type: application/json\nx-event-id: 1024\n\n\
         {\"text\":\"*order.paid* order `A-7`, 9.50 USD\"}\n",
    );
}

/// Each on a webhook of its own, by way of the API, to an endpoint that verifies what it gets.
#[tokio::test]
async fn the_examples_change_real_deliveries() {
    let app = App::with("examples", swept_soon).await;
    let payload = json!({ "orderId": "A-7", "amount": 250.5, "customer": { "email": "a@b.cc" } });
    for (name, settings, expected) in [
        ("filter", json!({ "min": "100" }), Some(payload.clone())),
        ("filter", json!({ "min": "1000" }), None),
        (
            "reshape",
            json!({ "rename.customer": "buyer", "set.via": "shop" }),
            Some(json!({ "orderId": "A-7", "amount": 250.5, "buyer": { "email": "a@b.cc" }, "via": "shop" })),
        ),
        (
            "redact",
            json!({}),
            Some(json!({ "orderId": "A-7", "amount": 250.5, "customer": { "email": "***" } })),
        ),
        ("slack", json!({ "currency": "USD" }), Some(json!("*order.paid* order `A-7`, 250.50 USD"))),
    ] {
        let receiver = Receiver::start().await;
        let account = app.register(&receiver.url("/")).await;
        let wasm = std::fs::read(example(name)).expect("readable");
        app.set_transform_of(&account, wasm, settings).await;
        let event = app.send(&account.key, "order.paid", payload.clone()).await;
        let Some(expected) = expected else {
            app.settled().await;
            assert_eq!(receiver.count(), 0, "{name}");
            continue;
        };
        let request = arrived(&receiver, 1).await.remove(0);
        verify(&account, &request);
        let body = json_of(&request);
        if name == "slack" {
            assert_eq!(body["text"], expected);
            assert_eq!(request.headers["x-event-id"], event.to_string().as_str());
        } else {
            assert_eq!(body["payload"], expected, "{name}");
        }
    }
    app.stop().await;
}

#[test]
fn small_payloads_stay_in_the_first_memory_and_large_ones_do_not_need_to() {
    let fields: Vec<String> = (0..40).map(|n| format!(r#""field{n}":"{n}{n}{n}{n}""#)).collect();
    says(call("reshape", &format!("{{{}}}", fields.join(",")), "--set set.a=b"), "memory   128 KiB\n");
    // Far beyond the arena: the memory grows, and nothing is lost.
    let items = "{\"text\":\"some words\",\"n\":[1,2,3]},".repeat(8_000);
    let payload = format!("{{\"items\":[{}null]}}", items);
    says(call("reshape", &payload, "--set set.a=b"), &format!("{},\"items\"", "{\"a\":\"b\""));
}

/// The stack is small: the deepest JSON that serde_json reads has to fit, and beyond it is an error and no trap.
#[test]
fn the_deepest_json_fits_the_stack() {
    for (name, open, close) in [("redact", "{\"a\":", "}"), ("redact", "[", "]"), ("reshape", "{\"a\":", "}")]
    {
        let nested = |depth: usize| format!("{}\"x@y.zz\"{}", open.repeat(depth), close.repeat(depth));
        says(call(name, &nested(127), "--set set.b=c"), "outcome  payload\n");
        fails(call(name, &nested(128), ""), "recursion limit exceeded");
    }
}

#[test]
fn a_new_project_builds_outside_of_the_repository() {
    let folder = temp("new");
    says(cli(&folder, "new my-filter"), "my-filter is written");
    fails(cli(&folder, "new my-filter"), "is there already");
    fails(cli(&folder, "new ../elsewhere"), "cannot be a project's name");
    let project = folder.join("my-filter");
    let source = std::fs::read_to_string(project.join("src/lib.rs")).expect("source");
    let panics = "    assert!(context.config(\"panic\").is_none(), \"no {}\", \"panic\");\n";
    let at = source.find("    let min").expect("the function's first line");
    std::fs::write(project.join("src/lib.rs"), format!("{}{panics}{}", &source[..at], &source[at..]))
        .expect("written");
    let module = &build(&["--project", project.to_str().expect("a name in UTF-8")])["my_filter"];
    let module = module.display();

    let answer = cli(&project, &format!("check {module}"));
    for expected in [
        "form     core module\n",
        "imports  $root log\n",
        "memory   128 KiB at the start\n",
        "state    ready\n",
    ] {
        says(answer.clone(), expected);
    }
    says(cli(&project, &format!("run {module} --event event.json --set min=100")), "outcome  unchanged\n");
    let answer = cli(&project, &format!("run {module} --event event.json --set panic=yes"));
    fails(answer.clone(), "transform_trap");
    fails(answer.clone(), "panicked at src/lib.rs:");
    fails(answer, "no panic");
    says(
        cli(&project, &format!("bench {module} --event event.json --calls 50")),
        "threads  p50 us  p99 us  calls/s\n",
    );

    std::fs::write(project.join("bad.json"), "{}").expect("written");
    fails(cli(&project, &format!("run {module} --event bad.json")), "is no event: missing field `type`");
    fails(cli(&project, &format!("run {module} --event none.json")), "none.json cannot be read");
    fails(cli(&project, "check event.json"), "not_wasm");
    std::fs::write(project.join("empty.wasm"), b"\0asm\x01\0\0\0").expect("written");
    let answer = cli(&project, "check empty.wasm");
    fails(answer.clone(), "form     core module\n");
    fails(answer, "no_transform_export");
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn a_new_project_in_javascript_has_the_example() {
    let folder = temp("new-js");
    says(cli(&folder, "new my-filter --lang js"), "my-filter is written");
    let package = std::fs::read_to_string(folder.join("my-filter/package.json")).expect("written");
    assert!(package.contains("\"name\": \"my-filter\""), "{package}");
    let contract = root().join("sdk-wasm/wit/transform.wit");
    let written = folder.join("my-filter/wit/transform.wit");
    assert_eq!(std::fs::read(written).expect("written"), std::fs::read(contract).expect("there"));
    std::fs::remove_dir_all(folder).expect("removed");
}

#[tokio::test]
async fn a_pushed_example_filters_what_its_endpoint_gets() {
    let app = App::with("pushed", swept_soon).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let push = |key: String, module: PathBuf| {
        let line =
            format!("push {} --webhook {} --url {} --key {key}", module.display(), account.webhook, app.base);
        tokio::task::spawn_blocking(move || cli(&std::env::temp_dir(), &line))
    };
    let module = example("filter").to_owned();
    fails(
        push("ep_live_wrong".to_owned(), module.clone()).await.expect("no panic"),
        "the gateway answered 401",
    );
    fails(
        push(account.key.clone(), root().join("Cargo.toml")).await.expect("no panic"),
        "the gateway answered 422",
    );
    let answer = push(account.key.clone(), module.clone()).await.expect("no panic");
    says(answer, &format!("version 1 of webhook {} is ready\n", account.webhook));
    let answer = push(account.key.clone(), module).await.expect("no panic");
    let same = format!("nothing changed: version 1 of webhook {} has this module already\n", account.webhook);
    says(answer, &same);

    let url = app.url(&format!("/webhooks/{}/transform", account.webhook));
    let request =
        app.client.patch(url).header("x-api-key", &account.key).json(&json!({ "config": { "min": "100" } }));
    assert!(request.send().await.expect("an answer").status().is_success());
    let small = app.send(&account.key, "order.paid", json!({ "amount": 99 })).await;
    let large = app.send(&account.key, "order.paid", json!({ "amount": 100 })).await;
    app.settled().await;
    eventually("the large one arrives", PATIENCE, async || {
        if receiver.count() == 1 { Ok(()) } else { Err(format!("{} requests", receiver.count())) }
    })
    .await;
    assert_eq!(crate::harness::ids(&receiver), [large]);
    let (_, event) = app.get(&account.key, &format!("/events/{small}")).await;
    assert!(event.to_string().contains("\"filtered\""), "{event}");
    app.stop().await;
}
