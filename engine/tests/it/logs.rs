//! Log lines and the ids of requests.

use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
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

/// Everything that is nobody else's business, through both roles, with every level of every module written.
#[tokio::test]
async fn no_log_line_holds_a_key_a_secret_or_a_payload() {
    let url = database("secret-log").await;
    let mut command = process::serve(&url, "");
    command
        .env("EVENTPULSE_LOG__FILTER", "trace")
        .env("REGISTRATION_TOKEN", "token-5up3r")
        .env("EVENTPULSE_SECRETS_KEY", "one:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let process = Process::spawn(command);
    let base = process.ready().await;
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    let ask = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap_or_default())
    };
    let receiver = Receiver::start().await;
    // The first attempt fails with a reply of its own, the second succeeds.
    receiver.script(|request| {
        let first = request.headers["x-eventpulse-attempt"] == "1";
        if first { Reply::status(500).with_body("reply-h1dden") } else { Reply::ok() }
    });

    let body = json!({
        "name": "w",
        "url": receiver.url("/hook?token=query-h1dden"),
        "headers": { "x-their-key": "header-h1dden" },
    });
    let register = client.post(format!("{base}/register-webhook")).json(&body);
    let (status, made) = ask(register.bearer_auth("token-5up3r")).await;
    assert_eq!(status, 201, "{made}");
    let key = made["apiKey"].as_str().expect("a key").to_owned();
    let secret = made["webhook"]["secret"].as_str().expect("a secret").to_owned();
    let hook = format!("{base}/webhooks/{}", made["webhook"]["id"]);
    let (status, rotated) = ask(client.post(format!("{hook}/rotate-secret")).header("x-api-key", &key)).await;
    assert_eq!(status, 200, "{rotated}");
    let (status, second) = ask(client
        .post(format!("{base}/api-keys"))
        .header("x-api-key", &key)
        .json(&json!({ "name": "ci", "scope": "send" })))
    .await;
    assert_eq!(status, 201, "{second}");
    let event = json!({ "type": "t", "payload": { "card": "payload-h1dden" } });
    for (key, wanted) in [(&*key, 201), ("ep_live_wrong-h1dden", 401)] {
        let send = client.post(format!("{base}/send-event")).header("x-api-key", key);
        let (status, body) = ask(send.header("idempotency-key", "idempotency-h1dden").json(&event)).await;
        assert_eq!(status, wanted, "{body}");
    }
    // What is wrong with these is told to who sent them.
    for body in ["{\"type\": \"t\", \"payload\": bad-h1dden", "{\"type\": 7, \"payload\": \"bad-h1dden\"}"] {
        let send = client.post(format!("{base}/send-event")).header("x-api-key", &key);
        assert_eq!(ask(send.body(body)).await.0, 400);
    }
    eventually("the second attempt is made", PATIENCE, async || match receiver.count() {
        2 => Ok(()),
        n => Err(n.to_string()),
    })
    .await;
    let mut process = process;
    process.signal(rustix::process::Signal::TERM);
    assert!(process.exit().await.success());

    let output = process.output();
    assert!(output.contains("DEBUG eventpulse::"), "more is written than usual: {output}");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut secrets = vec!["h1dden".to_owned(), "5up3r".to_owned(), key, secret];
    secrets.extend([
        text(&rotated["secret"]),
        text(&second["key"]["apiKey"]),
        "AAECAwQFBgcICQoLDA0O".to_owned(),
    ]);
    let mut found = Vec::new();
    for secret in secrets {
        // As bytes too, in which parameters of statements are written.
        let bytes = secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
        for form in [secret, bytes] {
            found.extend(output.lines().filter(|line| line.contains(&form)).map(str::to_owned));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
