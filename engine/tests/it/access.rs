//! Who may do what: keys made, seen and revoked, and secrets that change while receivers still know the old one.

use eventpulse_testkit::{Receiver, eventually, receiver::Recorded};
use reqwest::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::harness::{App, PATIENCE, count, postgres};

async fn call(app: &App, method: Method, key: &str, path: &str, body: Value) -> (u16, Value) {
    let request = app.client.request(method, app.url(path)).header("x-api-key", key);
    let response = request.json(&body).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{what} in {value}"))
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() {
    let app = App::start("keys").await;
    let receiver = Receiver::start().await;
    let (ours, theirs) = (app.register(&receiver.url("/")).await, app.register(&receiver.url("/")).await);
    let make = json!({ "name": "ci", "scope": "send" });
    let (status, body) = call(&app, Method::POST, &ours.key, "/api-keys", make.clone()).await;
    assert_eq!(status, 201, "{body}");
    let (id, sender) = (body["key"]["id"].as_i64().expect("an id"), text(&body["key"]["apiKey"], "a key"));
    app.send(sender, "t", json!(1)).await;
    let (status, refused) = call(&app, Method::POST, sender, "/api-keys", make).await;
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("forbidden")));
    assert_eq!(app.get(sender, "/api-keys").await.0, 403);

    let (_, listed) = app.get(&ours.key, "/api-keys").await;
    let keys = listed["keys"].as_array().expect("keys");
    assert_eq!(keys.len(), 2);
    assert_eq!((&keys[0]["name"], &keys[0]["scope"]), (&json!("ci"), &json!("send")));
    assert!(sender.starts_with(text(&keys[0]["prefix"], "a prefix")));
    assert!(!listed.to_string().contains(sender), "its text is shown once");
    let first = keys[1]["id"].as_i64().expect("an id");

    let path = |id: i64| format!("/api-keys/{id}");
    assert_eq!(call(&app, Method::DELETE, &theirs.key, &path(id), json!({})).await.0, 404);
    let (status, body) = call(&app, Method::DELETE, &ours.key, &path(first), json!({})).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("last_manage_key")), "{body}");
    assert_eq!(call(&app, Method::DELETE, &ours.key, &path(id), json!({})).await.0, 200);
    assert_eq!(call(&app, Method::DELETE, &ours.key, &path(id), json!({})).await.0, 404);
    eventually("the key is refused", PATIENCE, async || {
        let body = json!({ "type": "t", "payload": 1 }).to_string();
        let (status, _) = app.try_send(sender, &body).await;
        if status == 401 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let db = postgres(&app.database).await;
    app.stop().await;
    let used = "SELECT count(*) FROM api_keys WHERE last_used_at > now() - interval '5 minutes'";
    assert_eq!(count(&db, used).await, 2, "of those that are not revoked");
}

#[tokio::test]
async fn of_the_last_two_keys_one_stays() {
    let app = App::start("last-keys").await;
    let account = app.register("http://127.0.0.1:9/").await;
    for _ in 0..5 {
        let (status, body) =
            call(&app, Method::POST, &account.key, "/api-keys", json!({ "name": "other" })).await;
        assert_eq!(status, 201, "{body}");
        let (_, listed) = app.get(&account.key, "/api-keys").await;
        let ids: Vec<i64> =
            listed["keys"].as_array().unwrap().iter().filter_map(|k| k["id"].as_i64()).collect();
        let other = text(&body["key"]["apiKey"], "a key").to_owned();
        let (one, two) = (format!("/api-keys/{}", ids[0]), format!("/api-keys/{}", ids[1]));
        // Each is asked to go by the other; the first of the list is the new one.
        let (new, old) = tokio::join!(
            call(&app, Method::DELETE, &account.key, &one, json!({})),
            call(&app, Method::DELETE, &other, &two, json!({}))
        );
        // The second one's own key may be felt to be gone before it is asked whether it may go.
        let refused = |status| [401, 409].contains(&status);
        assert!((new.0 == 200 && refused(old.0)) || (old.0 == 200 && refused(new.0)), "{new:?} {old:?}");
        if new.0 != 200 {
            break;
        }
    }
    app.stop().await;
}

pub(crate) async fn last(receiver: &Receiver, n: usize) -> Recorded {
    eventually("the delivery arrives", PATIENCE, async || {
        if receiver.count() >= n { Ok(()) } else { Err(receiver.count().to_string()) }
    })
    .await;
    receiver.requests().remove(n - 1)
}

pub(crate) fn verifies(secret: &str, request: &Recorded) -> bool {
    Webhook::new(secret).expect("a secret").verify(&request.body, &request.headers).is_ok()
}

/// The signature that the seed's header would have under a secret.
fn seed(secret: &str, request: &Recorded) -> String {
    eventpulse::deliver::sign::Signer::new(secret).seed(&request.body)
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_the_old_one_until_its_time_is_up() {
    let app = App::start("rotated").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let path = format!("/webhooks/{}/rotate-secret", account.webhook);
    let (status, body) = call(&app, Method::POST, &account.key, &path, json!({})).await;
    assert_eq!(status, 200, "{body}");
    let next = text(&body["secret"], "a secret").to_owned();
    assert_ne!(next, account.secret);
    app.send(&account.key, "t", json!(1)).await;
    let both = last(&receiver, 1).await;
    assert!(verifies(&account.secret, &both) && verifies(&next, &both));
    assert_eq!(both.headers["x-eventpulse-signature"], seed(&account.secret, &both).as_str());
    assert_eq!(both.headers["x-eventpulse-signature-next"], seed(&next, &both).as_str());

    let (_, body) = call(&app, Method::POST, &account.key, &path, json!({ "overlapSeconds": 0 })).await;
    let newest = text(&body["secret"], "a secret").to_owned();
    app.send(&account.key, "t", json!(2)).await;
    let one = last(&receiver, 2).await;
    assert!(verifies(&newest, &one) && !verifies(&next, &one) && !verifies(&account.secret, &one));
    assert_eq!(one.headers["x-eventpulse-signature"], seed(&newest, &one).as_str());
    assert!(!one.headers.contains_key("x-eventpulse-signature-next"));

    let other = app.register(&receiver.url("/")).await;
    assert_eq!(call(&app, Method::POST, &other.key, &path, json!({})).await.0, 404);
    let (status, body) = call(&app, Method::POST, &account.key, &path, json!({ "overlapSeconds": -1 })).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_overlap")));
    app.stop().await;
}
