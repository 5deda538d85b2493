//! Uploading, setting, rolling back, trying and removing a webhook's module, by its account and nobody else.

use std::path::{Path, PathBuf};

use eventpulse::{
    config::Config,
    model::{EventId, WebhookId},
    store::{Store, transforms::Counts},
};
use eventpulse_testkit::{eventually, guests};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Account, App, PATIENCE, count, postgres};

const WASM: &str = "application/wasm";

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// Calls what is below a webhook's transform with a JSON body.
async fn call(app: &App, account: &Account, method: Method, below: &str, body: Value) -> (u16, Value) {
    let url = app.url(&format!("/webhooks/{}/transform{below}", account.webhook));
    answer(app.client.request(method, url).header("x-api-key", &account.key).json(&body)).await
}

async fn put_as(app: &App, account: &Account, kind: &str, wasm: Vec<u8>) -> (u16, Value) {
    let url = app.url(&format!("/webhooks/{}/transform", account.webhook));
    let request = app.client.put(url).header("x-api-key", &account.key).header("content-type", kind);
    answer(request.body(wasm)).await
}

async fn put(app: &App, account: &Account, wasm: Vec<u8>) -> (u16, Value) {
    put_as(app, account, WASM, wasm).await
}

/// Uploads a module that must be ready at once; returns the version.
async fn ready(app: &App, account: &Account, wasm: Vec<u8>) -> Value {
    let (status, body) = put(app, account, wasm).await;
    assert_eq!((status, &body["transform"]["state"]), (201, &json!("ready")), "{body}");
    body["transform"].clone()
}

async fn patch(app: &App, account: &Account, body: Value) -> Value {
    let (status, body) = call(app, account, Method::PATCH, "", body).await;
    assert_eq!(status, 200, "{body}");
    body["transform"].clone()
}

async fn show(app: &App, account: &Account) -> Value {
    let (status, body) = app.get(&account.key, &format!("/webhooks/{}/transform", account.webhook)).await;
    assert_eq!(status, 200, "{body}");
    body["transform"].clone()
}

/// The numbers of the versions there are, newest first.
fn numbers(transform: &Value) -> Vec<i64> {
    let versions = transform["versions"].as_array().expect("versions");
    versions.iter().map(|version| version["version"].as_i64().expect("a number")).collect()
}

fn refused(found: &(u16, Value), status: u16, code: &str, says: &str) {
    let error = &found.1["error"];
    assert_eq!((found.0, &error["code"]), (status, &json!(code)), "{found:?}");
    assert!(error["message"].as_str().expect("a message").contains(says), "{error}");
}

/// Waits until a webhook's transform is as `is` wants it.
async fn until(app: &App, account: &Account, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(what, PATIENCE, async || {
        let transform = show(app, account).await;
        if is(&transform) { Ok(transform) } else { Err(transform.to_string()) }
    })
    .await
}

async fn until_count(app: &App, what: &str, sql: &str, n: i64) {
    let db = postgres(&app.database).await;
    eventually(what, PATIENCE, async || {
        let found = count(&db, sql).await;
        if found == n { Ok(()) } else { Err(format!("{found}, not {n}")) }
    })
    .await;
}

async fn execute(app: &App, sql: &str) -> u64 {
    postgres(&app.database).await.execute(sql, &[]).await.expect("the statement runs")
}

/// A compiler that waits until it is let, in a folder that goes with it.
struct Gate {
    folder: PathBuf,
}

impl Gate {
    fn new(name: &str) -> Gate {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        // Left by a test before that failed.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let gate = Gate { folder };
        let script = format!(
            "#!/bin/sh\nwhile [ ! -e '{}' ]; do /bin/sleep 0.02; done\nexec '{}' \"$@\"\n",
            gate.folder.join("open").display(),
            env!("CARGO_BIN_EXE_eventpulse"),
        );
        // Written by another process: one that this one starts meanwhile would inherit the open file, and nobody
        // can run a file that is open for writing.
        let write = std::process::Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" > \"$2\" && chmod +x \"$2\"", "sh", &script])
            .arg(gate.compiler())
            .status();
        assert!(write.expect("a shell").success());
        gate
    }

    fn compiler(&self) -> PathBuf {
        self.folder.join("compiler")
    }

    fn settings(&self, config: &mut Config) {
        config.transform.compiler = Some(self.compiler());
        config.transform.cache_folder = self.folder.join("cache").to_str().expect("a name").to_owned();
    }

    fn open(&self) {
        std::fs::write(self.folder.join("open"), "").expect("a file");
    }

    fn shut(&self) {
        std::fs::remove_file(self.folder.join("open")).expect("it was open");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn app_with_accounts<const N: usize>(
    hint: &str,
    change: impl FnOnce(&mut Config),
) -> (App, [Account; N]) {
    let app = App::with(hint, change).await;
    // Nothing is delivered in these tests.
    let mut accounts = Vec::new();
    for _ in 0..N {
        accounts.push(app.register("http://127.0.0.1:9/").await);
    }
    (app, accounts.try_into().expect("so many"))
}

#[tokio::test]
async fn a_module_is_uploaded_configured_rolled_back_and_removed() {
    let (app, [account]) = app_with_accounts("tf-life", |_| {}).await;
    let nothing = show(&app, &account).await;
    assert_eq!((&nothing["version"], &nothing["versions"]), (&Value::Null, &json!([])));
    let webhook = format!("/webhooks/{}", account.webhook);
    assert_eq!(app.get(&account.key, &webhook).await.1["webhook"]["transform"], Value::Null);

    let first = ready(&app, &account, guests::echo()).await;
    let hash: String = Sha256::digest(guests::echo()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((&first["version"], &first["inForce"]), (&json!(1), &json!(true)));
    assert_eq!((&first["sha256"], &first["size"]), (&json!(hash), &json!(guests::echo().len())));
    assert_eq!((&first["onError"], &first["config"]), (&json!("retry"), &json!({})));
    let again = put(&app, &account, guests::echo()).await;
    assert_eq!((again.0, &again.1["transform"]["version"]), (200, &json!(1)), "the same bytes");

    let second = patch(&app, &account, json!({ "config": { "z": "1", "a": "2" }, "onError": "drop" })).await;
    assert_eq!((&second["version"], &second["sha256"]), (&json!(2), &first["sha256"]));
    assert_eq!(second["config"].to_string(), r#"{"z":"1","a":"2"}"#, "in their order");
    assert_eq!(second["onError"], "drop");
    let same = patch(&app, &account, json!({ "config": { "z": "1", "a": "2" } })).await;
    assert_eq!(same["version"], 2, "nothing changes");

    let third = ready(&app, &account, guests::copy()).await;
    assert_eq!((&third["version"], &third["config"]), (&json!(3), &second["config"]), "taken over");
    assert_eq!(third["onError"], "drop");
    let (_, body) = app.get(&account.key, &webhook).await;
    let brief = json!({ "version": 3, "state": "ready", "onError": "drop", "suspended": false });
    assert_eq!(body["webhook"]["transform"], brief);

    let version_before = config_version(&app, &account).await;
    let (status, body) = call(&app, &account, Method::POST, "/activate", json!({ "version": 1 })).await;
    assert_eq!((status, &body["transform"]["inForce"]), (200, &json!(true)), "{body}");
    let shown = show(&app, &account).await;
    assert_eq!((&shown["version"], &shown["onError"]), (&json!(1), &json!("retry")));
    assert_eq!(numbers(&shown), [3, 2, 1]);
    assert!(config_version(&app, &account).await > version_before, "dispatchers are told");
    refused(
        &call(&app, &account, Method::POST, "/activate", json!({ "version": 9 })).await,
        404,
        "not_found",
        "",
    );
    for body in [json!({}), json!({ "version": "1" }), json!({ "version": 1, "x": 1 }), json!([])] {
        refused(&call(&app, &account, Method::POST, "/activate", body).await, 400, "invalid_body", "");
    }

    let in_use = call(&app, &account, Method::DELETE, "/1", json!({})).await;
    refused(&in_use, 409, "version_in_use", "");
    assert_eq!(call(&app, &account, Method::DELETE, "/2", json!({})).await.0, 200);
    refused(&call(&app, &account, Method::DELETE, "/2", json!({})).await, 404, "not_found", "");
    refused(&call(&app, &account, Method::DELETE, "/x", json!({})).await, 400, "invalid_id", "");
    refused(&call(&app, &account, Method::DELETE, "/99999999999", json!({})).await, 404, "not_found", "");
    assert_eq!(numbers(&show(&app, &account).await), [3, 1]);

    assert_eq!(call(&app, &account, Method::DELETE, "", json!({})).await.0, 200);
    let nothing = show(&app, &account).await;
    assert_eq!((&nothing["version"], &nothing["versions"]), (&Value::Null, &json!([])));
    refused(&call(&app, &account, Method::DELETE, "", json!({})).await, 404, "no_transform", "");
    refused(&call(&app, &account, Method::PATCH, "", json!({})).await, 404, "no_transform", "");
    let next = ready(&app, &account, guests::echo()).await;
    assert_eq!(next["version"], 4, "a number never comes back");
    app.stop().await;
}

/// The version of the configuration in which an account changed last.
async fn config_version(app: &App, account: &Account) -> i64 {
    let db = postgres(&app.database).await;
    let sql = "SELECT a.version FROM accounts AS a JOIN webhooks AS w ON w.account_id = a.id
               WHERE w.id = $1 AND w.version = a.version";
    db.query_one(sql, &[&account.webhook]).await.expect("both have the same").get(0)
}

#[tokio::test]
async fn what_is_refused_is_told_exactly_and_changes_nothing() {
    let (app, [account, other]) = app_with_accounts("tf-refused", |config| {
        config.transform.module_bytes_max = 300_000;
        config.transform.large_from_bytes = 300_000;
    })
    .await;
    ready(&app, &account, guests::echo()).await;
    let before = show(&app, &account).await;
    let mut damaged = guests::copy();
    damaged.truncate(damaged.len() - 10);
    let cases: [(Vec<u8>, &str, &str); 7] = [
        (b"hello, this is no module".to_vec(), "not_wasm", "this is not a WebAssembly module"),
        (guests::exports_nothing(), "no_transform_export", "no transform export found"),
        (guests::exports_another_type(), "no_transform_export", "no transform export found"),
        (guests::imports_wasi(), "forbidden_import", "wasi:cli/environment@0.2.6"),
        (guests::echo_with_pages(1025), "memory_over_limit", "memory"),
        (guests::many_functions(60_000), "too_complex", "functions"),
        (damaged, "does_not_compile", "the module is damaged"),
    ];
    for (wasm, code, says) in cases {
        refused(&put(&app, &account, wasm).await, 422, code, says);
    }
    refused(&put(&app, &account, Vec::new()).await, 400, "empty_body", "");
    refused(&put(&app, &account, vec![0; 300_001]).await, 413, "body_too_large", "300000");
    for kind in ["application/json", "application/octet-stream", "text/plain"] {
        refused(&put_as(&app, &account, kind, guests::copy()).await, 415, "unsupported_media_type", WASM);
    }
    assert_eq!(show(&app, &account).await, before, "the version in force is as it was");

    let many: Value = (0..65).map(|n| (n.to_string(), json!(""))).collect::<serde_json::Map<_, _>>().into();
    for (body, code, says) in [
        (json!({ "colour": 1 }), "unknown_field", "`colour`"),
        (json!({ "config": { "limit": 5 } }), "invalid_config", "`limit`"),
        (json!({ "config": many }), "invalid_config", "64"),
        (json!({ "config": { "a": "x".repeat(16 << 10) } }), "invalid_config", "16384"),
        (json!({ "config": { "a": "\0" } }), "invalid_config", "NUL"),
        (json!({ "onError": "stop" }), "invalid_on_error", "`onError`"),
    ] {
        refused(&call(&app, &account, Method::PATCH, "", body).await, 400, code, says);
    }
    assert_eq!(show(&app, &account).await, before);

    let theirs = Account { key: other.key.clone(), ..account.clone() };
    for (method, below, body) in [
        (Method::GET, "", json!({})),
        (Method::PATCH, "", json!({ "onError": "drop" })),
        (Method::DELETE, "", json!({})),
        (Method::DELETE, "/1", json!({})),
        (Method::POST, "/activate", json!({ "version": 1 })),
        (Method::POST, "/dry-run", json!({ "event": { "type": "t", "payload": 1 } })),
    ] {
        refused(&call(&app, &theirs, method, below, body).await, 404, "not_found", "");
    }
    refused(&put(&app, &theirs, guests::copy()).await, 404, "not_found", "");
    for (method, below, status) in [
        (Method::POST, "", 405),
        (Method::GET, "/activate", 405),
        (Method::DELETE, "/dry-run", 405),
        (Method::GET, "/1", 405),
        (Method::GET, "/1/2", 404),
    ] {
        assert_eq!(call(&app, &account, method, below, json!({})).await.0, status, "{below}");
    }
    assert_eq!(show(&app, &account).await, before);
    assert_eq!(show(&app, &other).await["versions"], json!([]));
    app.stop().await;
}

#[tokio::test]
async fn a_slow_compilation_is_answered_before_it_ends() {
    let gate = Gate::new("tf-slow");
    let (app, [account, refused_one, other]) =
        app_with_accounts("tf-slow", |config| gate.settings(config)).await;
    let uploads = tokio::join!(
        put(&app, &account, guests::echo()),
        put(&app, &refused_one, guests::exports_nothing()),
    );
    for (status, body) in [&uploads.0, &uploads.1] {
        assert_eq!((*status, &body["transform"]["state"]), (202, &json!("compiling")), "{body}");
        assert_eq!(body["transform"]["inForce"], true, "the first, and its deliveries wait");
    }
    // It is neither to be called nor to be changed yet, and the same bytes are the same upload.
    let again = put(&app, &account, guests::echo()).await;
    assert_eq!((again.0, &again.1["transform"]["version"]), (202, &json!(1)));
    let event = json!({ "event": { "type": "t", "payload": 1 } });
    refused(&call(&app, &account, Method::POST, "/dry-run", event).await, 409, "not_ready", "");
    refused(
        &call(&app, &account, Method::POST, "/activate", json!({ "version": 1 })).await,
        409,
        "not_ready",
        "",
    );
    refused(
        &call(&app, &account, Method::PATCH, "", json!({ "onError": "drop" })).await,
        409,
        "not_ready",
        "1",
    );
    refused(&call(&app, &account, Method::DELETE, "/1", json!({})).await, 409, "version_in_use", "");
    // One more of the account takes its last place.
    let second = put(&app, &account, guests::copy()).await;
    assert_eq!((second.0, &second.1["transform"]["inForce"]), (202, &json!(false)), "{second:?}");
    refused(&put(&app, &account, guests::digits()).await, 429, "too_many_uploads", "");
    gate.open();
    let done = until(&app, &account, "the second is in force", |t| t["version"] == 2).await;
    assert_eq!(done["state"], "ready");
    let rejected = until(&app, &refused_one, "it is rejected", |t| t["version"] == Value::Null).await;
    assert_eq!(rejected["versions"][0]["state"], "rejected");
    let reason = rejected["versions"][0]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("no_transform_export: no transform export found"), "{reason}");
    refused(
        &call(&app, &refused_one, Method::POST, "/activate", json!({ "version": 1 })).await,
        409,
        "not_ready",
        "",
    );
    // Its places are free again.
    ready(&app, &account, guests::digits()).await;
    ready(&app, &other, guests::digits()).await;
    app.stop().await;
}

#[tokio::test]
async fn what_was_decided_later_stays() {
    let gate = Gate::new("tf-order");
    let (app, [account, left]) = app_with_accounts("tf-order", |config| gate.settings(config)).await;
    gate.open();
    ready(&app, &account, guests::echo()).await;
    ready(&app, &account, guests::copy()).await;
    gate.shut();
    // 3 compiles while 4, whose module is here already, comes into force.
    let slow = put(&app, &account, guests::digits()).await;
    assert_eq!((slow.0, &slow.1["transform"]["version"]), (202, &json!(3)));
    assert_eq!(ready(&app, &account, guests::copy()).await["version"], 4);
    // 5 compiles while its account goes back to 1.
    let slow = put(&app, &account, guests::body()).await;
    assert_eq!((slow.0, &slow.1["transform"]["version"]), (202, &json!(5)));
    assert_eq!(call(&app, &account, Method::POST, "/activate", json!({ "version": 1 })).await.0, 200);
    gate.open();
    let done = until(&app, &account, "all are ready", |t| {
        t["versions"].as_array().expect("versions").iter().all(|v| v["state"] == "ready")
    })
    .await;
    assert_eq!((&done["version"], numbers(&done)), (&json!(1), vec![5, 4, 3, 2, 1]));
    gate.shut();
    // One that is removed while it compiles does not come back.
    let slow = put(&app, &left, guests::log()).await;
    assert_eq!(slow.0, 202);
    assert_eq!(call(&app, &left, Method::DELETE, "", json!({})).await.0, 200);
    gate.open();
    ready(&app, &left, guests::echo()).await;
    let shown = show(&app, &left).await;
    assert_eq!((&shown["version"], numbers(&shown)), (&json!(2), vec![2]));
    app.stop().await;
}

#[tokio::test]
async fn a_compilation_that_nobody_renews_is_taken_over() {
    let (app, [good, bad, gone, fresh, last]) = app_with_accounts("tf-takeover", |_| {}).await;
    let db = postgres(&app.database).await;
    for (account, wasm, age) in
        [(&good, guests::log(), 60), (&bad, guests::exports_nothing(), 40), (&fresh, guests::log_flood(), 5)]
    {
        let hash = Sha256::digest(&wasm).to_vec();
        let sql = "INSERT INTO transform_modules (sha256, wasm) VALUES ($1, $2)";
        db.execute(sql, &[&hash, &wasm]).await.expect("a module");
        compiling(&db, account, &hash, f64::from(age)).await;
    }
    // As its upload left it, and then its webhook was deleted.
    let hash = Sha256::digest(guests::log()).to_vec();
    let delete = app.client.delete(app.url(&format!("/webhooks/{}", gone.webhook)));
    assert_eq!(answer(delete.header("x-api-key", &gone.key)).await.0, 200);
    compiling(&db, &gone, &hash, 50.0).await;
    let done = until(&app, &good, "it is compiled", |t| t["state"] == "ready").await;
    assert_eq!(done["version"], 1);
    let done = until(&app, &bad, "it is rejected", |t| t["versions"][0]["state"] == "rejected").await;
    assert_eq!(done["version"], Value::Null, "as before its upload");
    until_count(
        &app,
        "what the deleted webhook left is removed",
        "SELECT count(*) FROM transforms WHERE removed_at IS NOT NULL",
        1,
    )
    .await;
    // They are compiled one after the other, so whatever was taken over before this one is done when it is.
    compiling(&db, &last, &hash, 60.0).await;
    until(&app, &last, "the last is compiled", |t| t["state"] == "ready").await;
    assert_eq!(show(&app, &fresh).await["state"], "compiling", "somebody is at it");
    app.stop().await;
}

/// The row of a first upload whose process was killed so many seconds after it renewed it for the last time.
async fn compiling(db: &tokio_postgres::Client, account: &Account, hash: &[u8], age: f64) {
    let sql = "INSERT INTO transforms (webhook_id, version, sha256, size, state, compiling_at)
               VALUES ($1, 1, $2, 1, 'compiling', now() - $3 * interval '1 second')";
    db.execute(sql, &[&account.webhook, &hash, &age]).await.expect("a version");
    let sql = "UPDATE webhooks SET transform_version = 1, transform_last = 1 WHERE id = $1";
    db.execute(sql, &[&account.webhook]).await.expect("in force");
}

/// A delivery that was sent with a version and is owed far in the future.
async fn owe(app: &App, account: &Account, event: i64, version: i32) {
    let sql = "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason, transform_version)
               VALUES ($1, $2, 1, 2, now() + interval '1 hour', now() + interval '2 hours', 'retry', $3)";
    let db = postgres(&app.database).await;
    db.execute(sql, &[&EventId(event), &WebhookId(account.webhook), &version]).await.expect("a row");
}

const VERSIONS: &str = "SELECT count(*) FROM transforms";
const MODULES: &str = "SELECT count(*) FROM transform_modules";

#[tokio::test]
async fn a_version_stays_as_long_as_deliveries_need_it() {
    let (app, [account]) = app_with_accounts("tf-owed", |config| config.transform.versions_max = 3).await;
    ready(&app, &account, guests::echo()).await;
    owe(&app, &account, 7, 1).await;
    for n in 0..4 {
        patch(&app, &account, json!({ "config": { "n": n.to_string() } })).await;
    }
    let shown = show(&app, &account).await;
    assert_eq!(
        (&shown["version"], numbers(&shown)),
        (&json!(5), vec![5, 4, 1]),
        "the oldest that is not owed goes"
    );
    refused(&call(&app, &account, Method::DELETE, "/1", json!({})).await, 409, "version_in_use", "");
    owe(&app, &account, 8, 4).await;
    let full = call(&app, &account, Method::PATCH, "", json!({ "onError": "drop" })).await;
    refused(&full, 409, "too_many_versions", "");
    assert_eq!(numbers(&show(&app, &account).await), [5, 4, 1], "and leaves no trace");
    assert_eq!(put(&app, &account, guests::copy()).await.0, 409);

    assert_eq!(call(&app, &account, Method::DELETE, "", json!({})).await.0, 200);
    assert_eq!(numbers(&show(&app, &account).await), Vec::<i64>::new());
    let store = Store::new(&app.database, 1).expect("a URL");
    let webhook = WebhookId(account.webhook);
    let kept = store.transform(webhook, 4).await.expect("an answer").expect("dispatch still has it");
    assert_eq!(*kept.config, [("n".to_owned(), "2".to_owned())]);
    assert_eq!(store.module(&kept.sha256).await.expect("an answer").expect("its bytes"), guests::echo());
    // In this order: modules are looked at when a version has gone.
    execute(&app, "UPDATE transform_modules SET uploaded_at = now() - interval '11 minutes'").await;
    execute(&app, "UPDATE transforms SET removed_at = now() - interval '11 minutes'").await;
    until_count(&app, "all but two are gone", VERSIONS, 2).await;
    // The module of a refused upload is nobody's; that of these two stays.
    until_count(&app, "one module is left", MODULES, 1).await;
    execute(&app, "DELETE FROM scheduled").await;
    until_count(&app, "no version is left", VERSIONS, 0).await;
    until_count(&app, "no module is left", MODULES, 0).await;
    app.stop().await;
}

#[tokio::test]
async fn a_module_that_two_webhooks_have_is_stored_once_and_goes_with_the_last() {
    let (app, [one, two]) = app_with_accounts("tf-shared", |_| {}).await;
    let (first, second) = tokio::join!(put(&app, &one, guests::echo()), put(&app, &two, guests::echo()));
    assert_eq!((first.0, second.0), (201, 201));
    let db = postgres(&app.database).await;
    assert_eq!((count(&db, VERSIONS).await, count(&db, MODULES).await), (2, 1));
    for (account, left) in [(&one, 1), (&two, 0)] {
        let delete = app.client.delete(app.url(&format!("/webhooks/{}", account.webhook)));
        assert_eq!(answer(delete.header("x-api-key", &account.key)).await.0, 200);
        let marked = "SELECT count(*) FROM transforms WHERE removed_at IS NULL";
        until_count(&app, "it is removed with its webhook", marked, left).await;
        execute(&app, "UPDATE transform_modules SET uploaded_at = now() - interval '11 minutes'").await;
        execute(&app, "UPDATE transforms SET removed_at = removed_at - interval '11 minutes'").await;
        until_count(&app, "the version goes", VERSIONS, left).await;
        until_count(&app, "the module stays for the other", MODULES, left.min(1)).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn uploads_at_once_become_one_version_or_one_after_the_other() {
    let (app, [account]) = app_with_accounts("tf-race", |_| {}).await;
    let (a, b) = tokio::join!(put(&app, &account, guests::echo()), put(&app, &account, guests::echo()));
    let mut statuses = [a.0, b.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201], "{a:?} {b:?}");
    assert_eq!(numbers(&show(&app, &account).await), [1]);
    let (a, b) = tokio::join!(put(&app, &account, guests::copy()), put(&app, &account, guests::digits()));
    assert_eq!((a.0, b.0), (201, 201), "{a:?} {b:?}");
    let shown = show(&app, &account).await;
    assert_eq!((&shown["version"], numbers(&shown)), (&json!(3), vec![3, 2, 1]));
    app.stop().await;
}

/// 1. An upload has looked at its webhook and compiles. 2. The webhook is deleted. 3. The version would be nobody's.
#[tokio::test]
async fn an_upload_to_a_webhook_that_is_deleted_meanwhile_is_refused() {
    let (app, [account]) = app_with_accounts("tf-deleted", |_| {}).await;
    let mut db = postgres(&app.database).await;
    let holder = db.transaction().await.expect("begun");
    holder.execute("SELECT FROM engine_state FOR UPDATE", &[]).await.expect("locked");
    let upload = async {
        let found = put(&app, &account, guests::echo()).await;
        refused(&found, 404, "not_found", "");
    };
    let delete = async {
        let watch = postgres(&app.database).await;
        eventually("the upload waits for its turn", PATIENCE, async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                       AND query LIKE '%RETURNING config_version'";
            if count(&watch, sql).await > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        holder.execute("UPDATE webhooks SET state = 'deleted'", &[]).await.expect("deleted");
        holder.commit().await.expect("committed");
    };
    tokio::join!(upload, delete);
    let db = postgres(&app.database).await;
    assert_eq!(count(&db, VERSIONS).await, 0);
    app.stop().await;
}

async fn dry_run(app: &App, account: &Account, body: Value) -> Value {
    let (status, body) = call(app, account, Method::POST, "/dry-run", body).await;
    assert_eq!(status, 200, "{body}");
    body
}

#[tokio::test]
async fn a_dry_run_tells_each_outcome_and_writes_nothing() {
    let (app, [account]) = app_with_accounts("tf-dry", |_| {}).await;
    let event = json!({ "event": { "type": "t", "payload": { "n": 12 }, "id": 7 } });
    refused(&call(&app, &account, Method::POST, "/dry-run", event.clone()).await, 404, "no_transform", "");
    for (wasm, expected) in [
        (guests::echo(), json!({ "outcome": "unchanged" })),
        (guests::digits(), json!({ "outcome": "payload", "payload": { "n": 23 } })),
        (
            guests::body(),
            json!({ "outcome": "body", "body": "hello", "base64": false, "contentType": "text/plain; charset=utf-8",
                    "headers": { "x-from": "a module" } }),
        ),
        (guests::drop_odd(), json!({ "outcome": "drop", "reason": "odd id" })),
        (guests::trap(), json!({ "outcome": "error", "error": { "kind": "trap" } })),
        (guests::endless_loop(), json!({ "outcome": "error", "error": { "kind": "deadline" } })),
        (guests::huge_output(), json!({ "outcome": "error", "error": { "kind": "too_large" } })),
        (guests::not_json(), json!({ "outcome": "error", "error": { "kind": "bad_output" } })),
        (guests::error(), json!({ "outcome": "error", "error": { "kind": "error" } })),
    ] {
        ready(&app, &account, wasm).await;
        let mut found = dry_run(&app, &account, event.clone()).await;
        if let Some(error) = found["error"].as_object_mut() {
            assert!(error.remove("message").is_some_and(|message| message.is_string()));
        }
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(&found[name], value, "{found}");
        }
        assert!(found["cpuMicros"].is_u64() && found["memoryBytes"].is_u64(), "{found}");
    }
    let found =
        dry_run(&app, &account, json!({ "event": { "type": "t", "payload": 1 }, "version": 1 })).await;
    assert_eq!(
        (&found["outcome"], &found["version"]),
        (&json!("unchanged"), &json!(1)),
        "an earlier version"
    );
    ready(&app, &account, guests::log()).await;
    let found = dry_run(&app, &account, event.clone()).await;
    let levels =
        ["debug", "info", "warn", "error"].map(|level| json!({ "level": level, "text": "one line" }));
    assert_eq!(found["log"], json!(levels));
    let db = postgres(&app.database).await;
    let rows = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM delivery_attempts)
        + (SELECT sum(calls)::bigint FROM transforms)";
    assert_eq!(count(&db, rows).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn a_dry_run_keeps_every_byte_and_names_what_is_wrong() {
    let (app, [account]) = app_with_accounts("tf-bytes", |_| {}).await;
    ready(&app, &account, guests::copy()).await;
    let payload = r#"{"b": 1.0, "a":  1e400,"a":"\u00e9"}"#;
    let url = app.url(&format!("/webhooks/{}/transform/dry-run", account.webhook));
    let send = |body: String| {
        let request = app.client.post(&url).header("x-api-key", &account.key);
        request.header("content-type", "application/json").body(body).send()
    };
    let text = send(format!(r#"{{"event":{{"type":"t","payload":{payload}}}}}"#)).await.expect("an answer");
    let text = text.text().await.expect("a body");
    assert!(text.contains(&format!(r#""payload":{payload},"#)), "{text}");
    ready(&app, &account, guests::from_config()).await;
    let event = json!({ "type": "t", "payload": null });
    let found = dry_run(&app, &account, json!({ "event": event, "config": { "a": "[1, 2]" } })).await;
    assert_eq!((&found["outcome"], &found["payload"]), (&json!("payload"), &json!([1, 2])), "{found}");
    for (body, status, code) in [
        (json!({}), 400, "missing_event"),
        (json!([]), 400, "invalid_body"),
        (json!({ "event": event, "colour": 1 }), 400, "invalid_body"),
        (json!({ "event": 1 }), 400, "not_an_object"),
        (json!({ "event": { "payload": 1 } }), 400, "missing_type"),
        (json!({ "event": { "type": "t" } }), 400, "missing_payload"),
        (json!({ "event": { "type": "t", "payload": 1, "id": "x" } }), 400, "invalid_id"),
        (json!({ "event": { "type": "t", "payload": 1, "createdAt": "x" } }), 400, "invalid_time"),
        (json!({ "event": event, "version": "1" }), 400, "invalid_version"),
        (json!({ "event": event, "version": 9 }), 404, "not_found"),
        (json!({ "event": event, "config": { "a": 1 } }), 400, "invalid_config"),
    ] {
        refused(&call(&app, &account, Method::POST, "/dry-run", body).await, status, code, "");
    }
    app.stop().await;
}

/// What the modules compiled elsewhere are to a gateway whose cache is empty.
#[tokio::test]
async fn a_dry_run_compiles_what_is_not_here_and_an_account_has_one_at_a_time() {
    let (app, [account]) = app_with_accounts("tf-elsewhere", |_| {}).await;
    ready(&app, &account, guests::digits()).await;
    let gate = Gate::new("tf-elsewhere");
    let mut config = crate::harness::config(&app.database);
    gate.settings(&mut config);
    let second = App::of(config, eventpulse::config::Roles::Api).await;
    let event = json!({ "event": { "type": "t", "payload": 4 } });
    let first = dry_run(&second, &account, event.clone());
    let next = async {
        eventually("the first has its place", PATIENCE, async || {
            let found = call(&second, &account, Method::POST, "/dry-run", event.clone()).await;
            if found.0 == 429 { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        gate.open();
    };
    let (found, ()) = tokio::join!(first, next);
    assert_eq!(found["payload"], 5);
    second.stop().await;
    app.stop().await;
}

#[tokio::test]
async fn a_suspended_version_pauses_its_webhook_until_somebody_says_so() {
    let (app, [account]) = app_with_accounts("tf-suspended", |_| {}).await;
    let store = Store::new(&app.database, 2).expect("a URL");
    let webhook = WebhookId(account.webhook);
    let suspend =
        async |version| store.suspend_transform(webhook, version, "it traps").await.expect("an answer");
    let state = async || {
        let (_, body) = app.get(&account.key, &format!("/webhooks/{}", account.webhook)).await;
        (body["webhook"]["state"].clone(), body["webhook"]["transform"]["suspended"].clone())
    };
    let (active, paused) = ((json!("active"), json!(false)), (json!("paused"), json!(true)));
    let resumed = "SELECT count(*) FROM webhooks WHERE resumed_at > now() - interval '1 minute'";
    let forget = "UPDATE webhooks SET resumed_at = NULL";
    let db = postgres(&app.database).await;
    ready(&app, &account, guests::trap()).await;

    let before = config_version(&app, &account).await;
    let twice = tokio::join!(suspend(1), suspend(1));
    assert!(twice.0 ^ twice.1, "one of them did so");
    assert_eq!(state().await, paused);
    assert!(config_version(&app, &account).await > before, "dispatchers are told");
    let shown = show(&app, &account).await;
    assert_eq!((&shown["state"], &shown["suspended"]), (&json!("suspended"), &json!(true)));
    assert_eq!(shown["versions"][0]["reason"], "it traps");
    // Activated again.
    assert_eq!(call(&app, &account, Method::POST, "/activate", json!({ "version": 1 })).await.0, 200);
    assert_eq!((state().await, count(&db, resumed).await), (active.clone(), 1));
    let shown = show(&app, &account).await;
    assert_eq!((&shown["state"], &shown["versions"][0]["reason"]), (&json!("ready"), &Value::Null));
    // The webhook made active by its account.
    execute(&app, forget).await;
    assert!(suspend(1).await);
    app.set_state(&account, "active").await;
    assert_eq!((state().await, count(&db, resumed).await), (active.clone(), 1));
    assert_eq!(show(&app, &account).await["state"], "ready");
    // A new version.
    execute(&app, forget).await;
    assert!(suspend(1).await);
    ready(&app, &account, guests::echo()).await;
    assert_eq!((state().await, count(&db, resumed).await), (active.clone(), 1));
    assert!(!suspend(1).await, "not in force");
    // Other settings.
    assert!(suspend(2).await);
    patch(&app, &account, json!({ "config": { "a": "b" } })).await;
    assert_eq!(state().await, active);
    // A pause of the account's own is not ended by it.
    app.set_state(&account, "paused").await;
    assert!(suspend(3).await);
    assert_eq!(state().await, (json!("paused"), json!(false)));
    assert_eq!(call(&app, &account, Method::POST, "/activate", json!({ "version": 3 })).await.0, 200);
    assert_eq!(state().await, (json!("paused"), json!(false)));
    app.set_state(&account, "active").await;
    // Without its transform nothing of what waits is sent as it is before its account says so.
    assert!(suspend(3).await);
    assert_eq!(call(&app, &account, Method::DELETE, "", json!({})).await.0, 200);
    assert_eq!(state().await, (json!("paused"), Value::Null));
    app.set_state(&account, "active").await;
    // Where failures are not tried again, deliveries go on.
    let version = ready(&app, &account, guests::trap()).await["version"].as_i64().expect("a number");
    let version =
        patch(&app, &account, json!({ "onError": "original" })).await["version"].as_i64().unwrap_or(version);
    assert!(suspend(i32::try_from(version).expect("small")).await);
    assert_eq!(state().await, active);
    assert_eq!(show(&app, &account).await["state"], "suspended");
    app.stop().await;
}

#[tokio::test]
async fn what_dispatchers_count_is_added_up() {
    let (app, [account, other]) = app_with_accounts("tf-counts", |_| {}).await;
    ready(&app, &account, guests::echo()).await;
    ready(&app, &other, guests::echo()).await;
    let store = Store::new(&app.database, 4).expect("a URL");
    let (a, b) = (WebhookId(account.webhook), WebhookId(other.webhook));
    let one = Counts { calls: 5, changed: 1, dropped: 2, failed: 1, cpu_us: 40 };
    let many = [(a, 1, one), (b, 1, one), (a, 1, one), (WebhookId(i64::MAX), 1, one), (a, 77, one)];
    let back: Vec<_> = many.iter().rev().copied().collect();
    let calls = (0..20).flat_map(|_| [store.add_transform_counts(&many), store.add_transform_counts(&back)]);
    for done in futures_util::future::join_all(calls).await {
        done.expect("nobody waits for ever");
    }
    let shown = show(&app, &account).await["versions"][0].clone();
    let found =
        ["calls", "changed", "dropped", "failed", "cpuMicros"].map(|name| shown[name].as_i64().unwrap());
    assert_eq!(found, [400, 80, 160, 80, 3200]);
    assert_eq!(show(&app, &other).await["versions"][0]["calls"], 200);
    app.stop().await;
}
