//! Secrets of webhooks at rest: encrypted, brought under another key, and never signed with when they cannot be read.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use eventpulse::{
    config::{Roles, keys, value::Secret},
    engine::{Engine, Error},
    store::{self, Seal, Store},
};
use eventpulse_testkit::{Receiver, eventually};
use serde_json::{Value, json};

use crate::{
    access::{last, verifies},
    harness::{Account, App, PATIENCE, config, count, database, postgres, process},
};

/// A key, by its name and one byte.
fn key(id: &str, byte: u8) -> String {
    format!("{id}:{}", BASE64_STANDARD.encode([byte; 32]))
}

/// Both roles with these keys, on a database that may be another's.
async fn start(database: &str, keys: &str) -> App {
    let mut config = config(database);
    config.secrets_key = Secret::new(keys);
    config.retry.schedule = "".parse().expect("a schedule");
    App::of(config, Roles::Both).await
}

/// What stands in Postgres of all secrets.
async fn stored(database: &str) -> Vec<String> {
    let all = "SELECT secret FROM webhooks UNION ALL SELECT secret_before FROM webhooks WHERE secret_before IS NOT NULL";
    let rows = postgres(database).await.query(all, &[]).await.expect("the query runs");
    rows.iter().map(|row| row.get(0)).collect()
}

async fn rotate(app: &App, account: &Account) -> String {
    let (status, body) =
        app.post(&account.key, &format!("/webhooks/{}/rotate-secret", account.webhook)).await;
    assert_eq!(status, 200, "{body}");
    body["secret"].as_str().expect("a secret").to_owned()
}

/// Runs `secrets encrypt`; gives whether it succeeded, and what it said.
async fn encrypt(database: &str, keys: &str) -> (bool, String) {
    let mut command = process::command("secrets encrypt");
    command.env("DATABASE_URL", database).env("EVENTPULSE_SECRETS_KEY", keys);
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("text"))
}

async fn refused(database: &str, keys: &str) -> Error {
    let mut config = config(database);
    config.secrets_key = Secret::new(keys);
    Engine::start(config, Roles::Both).await.err().expect("the start is refused")
}

#[tokio::test]
async fn with_a_key_secrets_are_stored_encrypted_and_sign_as_before() {
    let app = start(&database("sealed").await, &key("a", 1)).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.send(&account.key, "t", json!(1)).await;
    assert!(verifies(&account.secret, &last(&receiver, 1).await));
    let next = rotate(&app, &account).await;
    app.send(&account.key, "t", json!(2)).await;
    let both = last(&receiver, 2).await;
    assert!(verifies(&account.secret, &both) && verifies(&next, &both));
    let (status, body) = app.post(&account.key, &format!("/webhooks/{}/test", account.webhook)).await;
    assert_eq!((status, &body["delivered"]), (200, &json!(true)));
    assert!(verifies(&next, &last(&receiver, 3).await));
    let stored = stored(&app.database).await;
    assert_eq!(stored.len(), 2);
    assert!(stored.iter().all(|secret| secret.starts_with("enc:v1:a:")), "{stored:?}");
    app.stop().await;
}

#[tokio::test]
async fn plain_secrets_stay_readable_and_are_brought_under_a_key_and_the_next() {
    let database = database("resealed").await;
    let (a, b) = (key("a", 1), key("b", 2));
    let receiver = Receiver::start().await;
    let plain = start(&database, "").await;
    let account = plain.register(&receiver.url("/")).await;
    let next = rotate(&plain, &account).await;
    // More than one step has, among them one whose old secret's time is up.
    let db = postgres(&database).await;
    let more = "INSERT INTO webhooks (account_id, name, url, secret, since_version, version, secret_before, secret_until)
        SELECT account_id, name, 'http://127.0.0.1:9/', 'whsec_' || n, since_version, version, 'whsec_old', now() - interval '1 s'
        FROM webhooks, generate_series(1, 600) AS n";
    db.execute(more, &[]).await.expect("rows");
    plain.stop().await;

    // With a key beside it nothing changes for what is plain.
    let mixed = start(&database, &a).await;
    mixed.send(&account.key, "t", json!(1)).await;
    assert!(verifies(&next, &last(&receiver, 1).await));
    let (ok, said) = encrypt(&database, &a).await;
    assert!(ok && said.contains("601 webhooks"), "{said}");
    mixed.send(&account.key, "t", json!(2)).await;
    mixed.stop().await;
    let both = last(&receiver, 2).await;
    assert!(verifies(&next, &both) && verifies(&account.secret, &both));
    let under =
        |stored: &[String], prefix: &str| stored.iter().filter(|text| text.starts_with(prefix)).count();
    let now = stored(&database).await;
    assert_eq!(
        (now.len(), under(&now, "enc:v1:a:")),
        (602, 602),
        "the old secrets whose time is up are gone"
    );

    let both_keys = format!("{b},{a}");
    let (ok, said) = encrypt(&database, &both_keys).await;
    assert!(ok && said.contains("601 webhooks") && said.contains("key b"), "{said}");
    assert!(!said.contains("whsec_") && !said.contains(&b[2..]), "{said}");
    let (ok, said) = encrypt(&database, &b).await;
    assert!(ok && said.contains("0 webhooks"), "a second time there is nothing to do: {said}");
    assert_eq!(under(&stored(&database).await, "enc:v1:b:"), 602);
    let rotated = start(&database, &b).await;
    rotated.send(&account.key, "t", json!(3)).await;
    let third = last(&receiver, 3).await;
    assert!(verifies(&next, &third) && verifies(&account.secret, &third));
    rotated.stop().await;
}

#[tokio::test]
async fn a_start_without_a_key_that_secrets_need_is_refused() {
    let database = database("unsealed").await;
    let app = start(&database, &key("a", 1)).await;
    let account = app.register("http://127.0.0.1:9/").await;
    app.stop().await;
    for keys in [String::new(), key("b", 2), key("a", 3)] {
        let error = refused(&database, &keys).await;
        let Error::Store(store::Error::MissingKeys(missing)) = &error else { panic!("{error:?}") };
        assert_eq!(missing.iter().collect::<Vec<_>>(), ["a"]);
        assert!(error.to_string().contains("EVENTPULSE_SECRETS_KEY"), "{error}");
    }
    let (ok, said) = encrypt(&database, &key("b", 2)).await;
    assert!(!ok && said.contains("1 webhooks") && said.contains("asked for: a"), "{said}");
    // What needs no signature any more needs no key.
    let db = postgres(&database).await;
    db.execute("UPDATE webhooks SET state = 'deleted' WHERE id = $1", &[&account.webhook])
        .await
        .expect("gone");
    start(&database, "").await.stop().await;
}

/// As when another process encrypts with a key that this one was not told of.
#[tokio::test]
async fn a_secret_that_cannot_be_read_signs_nothing() {
    let app = start(&database("unreadable").await, &key("a", 1)).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let keys = keys::parse(&Secret::new(format!("{},{}", key("b", 2), key("a", 1)))).expect("keys");
    let other = Store::new(&app.database, 1).expect("a store").with_seal(Seal::new(&keys));
    assert_eq!(other.encrypt_secrets().await.expect("encrypted").changed, 1);
    let id = app.send(&account.key, "t", json!(1)).await;
    let attempt: Value = eventually("the attempt is recorded", PATIENCE, async || {
        let (_, body) = app.get(&account.key, &format!("/events/{id}/attempts")).await;
        body["attempts"].get(0).cloned().ok_or_else(|| body.to_string())
    })
    .await;
    assert_eq!(
        (&attempt["reasonCode"], &attempt["responseCode"]),
        (&json!("secret_unreadable"), &Value::Null)
    );
    assert_eq!(app.metric("eventpulse_deliver_unsigned_total"), 1.0);
    let (status, body) = app.post(&account.key, &format!("/webhooks/{}/test", account.webhook)).await;
    assert_eq!((status, &body["error"]["code"]), (422, &json!("secret_unreadable")));
    assert_eq!(receiver.count(), 0);
    let db = postgres(&app.database).await;
    assert_eq!(count(&db, "SELECT count(*) FROM webhooks WHERE state = 'active'").await, 1);
    app.stop().await;
}

/// Values of one webhook are of no use in another's row.
#[tokio::test]
async fn an_encrypted_secret_is_bound_to_its_webhook() {
    let database = database("bound").await;
    let app = start(&database, &key("a", 1)).await;
    let (_one, two) = (app.register("http://127.0.0.1:9/").await, app.register("http://127.0.0.1:9/").await);
    app.stop().await;
    let db = postgres(&database).await;
    let swap = "UPDATE webhooks SET secret = (SELECT secret FROM webhooks WHERE id <> $1) WHERE id = $1";
    db.execute(swap, &[&two.webhook]).await.expect("swapped");
    db.execute("DELETE FROM webhooks WHERE id <> $1", &[&two.webhook]).await.expect("removed");
    assert!(matches!(refused(&database, &key("a", 1)).await, Error::Store(store::Error::MissingKeys(_))));
}
