//! Log lines and the ids of requests.

use eventpulse_testkit::eventually;
use serde_json::{Value, json};

use crate::harness::{
    App, PATIENCE, database,
    process::{self, Process},
};

/// An answer's status and the id it came with.
async fn ask(app: &App, key: &str, body: &str, id: Option<&str>) -> (u16, Option<String>) {
    let mut request = app.client.post(app.url("/send-event")).header("x-api-key", key);
    if let Some(id) = id {
        request = request.header("x-request-id", id);
    }
    let response = request.body(body.to_owned()).send().await.expect("an answer");
    let told = response.headers().get("x-request-id").map(|id| id.to_str().expect("text").to_owned());
    (response.status().as_u16(), told)
}

#[tokio::test]
async fn a_request_has_its_own_id_in_the_answer_or_a_made_one_when_it_fails() {
    let app = App::start("request-id").await;
    let account = app.register("http://127.0.0.1:9/").await;
    let (good, bad) = (r#"{"type":"t","payload":1}"#, r#"{"type":1}"#);
    let ask_badly = |id| ask(&app, &account.key, bad, id);
    // Nothing is made for a request that succeeds.
    let request = app.client.post(app.url("/send-event")).header("x-api-key", &account.key);
    let request = request.header("content-type", "application/json").body(good);
    assert!(request.send().await.expect("an answer").headers().get("x-request-id").is_none());
    let request = app.client.get(app.url("/events")).header("x-api-key", &account.key);
    let response = request.header("x-request-id", "Root=1-a:b/c").send().await.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-request-id"]),
        (200, &"Root=1-a:b/c".parse().expect("a value"))
    );
    assert_eq!(ask_badly(Some("mine-1")).await.1.as_deref(), Some("mine-1"));
    let (_, one) = ask_badly(None).await;
    let (_, two) = ask_badly(None).await;
    assert!(one.is_some() && two.is_some() && one != two, "{one:?} {two:?}");
    // What would mean something in a log is not repeated.
    for strange in ["a b", "{\"a\":1}", &"x".repeat(129)] {
        let (status, told) = ask_badly(Some(strange)).await;
        assert!(status >= 400 && told.as_deref().is_some_and(|told| told != strange), "{told:?}");
    }
    app.stop().await;
}

/// The lines that a process wrote, each of which must be an object.
fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// With the account's rows locked away, what needs them fails for a reason of our own.
#[tokio::test]
async fn a_json_log_tells_a_failed_request_by_its_id_and_at_most_once_a_second() {
    let url = database("json-log").await;
    let mut command = process::serve(&url, "--role api");
    command.env("EVENTPULSE_LOG__FORMAT", "json");
    let gateway = Process::spawn(command);
    let output = gateway.says("\"ready\"").await;
    let ready = lines(&output).into_iter().find(|line| line["message"] == "ready").expect("it is ready");
    assert_eq!((&ready["level"], &ready["target"]), (&json!("INFO"), &json!("eventpulse")));
    let base = format!("http://{}", ready["gateway"].as_str().expect("an address"));
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    let made = client.post(format!("{base}/register-webhook"));
    let made =
        made.json(&json!({ "name": "w", "url": "http://127.0.0.1:9/" })).send().await.expect("an answer");
    let key = made.json::<Value>().await.expect("JSON")["apiKey"].as_str().expect("a key").to_owned();
    let db = crate::harness::postgres(&url).await;
    db.batch_execute("ALTER TABLE dlq_entries RENAME TO dlq_entries_away").await.expect("renamed");
    // Answers to requests at once come within one second, or a few on a busy machine.
    let begin = std::time::Instant::now();
    let asked = (0..40).map(|n| {
        let request = client.get(format!("{base}/dlq")).header("x-api-key", &key);
        request.header("x-request-id", format!("request-{n}")).send()
    });
    for answer in futures_util::future::join_all(asked).await {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 503);
        assert!(answer.headers()["x-request-id"].to_str().expect("text").starts_with("request-"));
    }
    let seconds = begin.elapsed().as_secs() + 1;
    let told = eventually("the failure is told", PATIENCE, async || {
        let output = gateway.output();
        let told: Vec<Value> =
            lines(&output).into_iter().filter(|line| line["message"] == "request failed").collect();
        if told.is_empty() { Err(output) } else { Ok(told) }
    })
    .await;
    assert!(told.len() as u64 <= seconds, "{} lines in {seconds} s", told.len());
    let first = &told[0];
    assert!(first["request_id"].as_str().is_some_and(|id| id.starts_with("request-")), "{first}");
    assert_eq!(
        (&first["status"], &first["level"], &first["suppressed"]),
        (&json!(503), &json!("WARN"), &json!(0))
    );
    assert!(first["error"].as_str().is_some_and(|error| error.contains("dlq_entries")), "{first}");
}
