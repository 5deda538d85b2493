//! TLS to Postgres and Redis, as their URLs ask for it.

use std::{net::TcpListener, time::Duration};

use eventpulse::{
    config::{Roles, value::Secret},
    store::{Address, Store, migrate},
    stream::Redis,
};
use eventpulse_testkit::{Receiver, eventually, private_postgres, private_redis};
use serde_json::json;

use crate::{
    access::last,
    harness::{App, PATIENCE, certificates::Authority, config, count, postgres},
};

/// Gives a running Postgres a certificate, and waits until it uses it.
async fn encrypt_postgres(url: &str, authority: &Authority, host: &str) {
    let db = postgres(url).await;
    let (certificate, key) = authority.issue(host, 30);
    // Postgres may run as another user, who alone may read the key: so it writes the files itself.
    for (file, text) in [("server.crt", certificate), ("server.key", key)] {
        let copy = format!(
            "COPY (SELECT unnest(string_to_array('{text}', E'\\n'))) TO PROGRAM 'umask 077; cat > {file}'"
        );
        db.batch_execute(&copy).await.expect("a file");
    }
    db.batch_execute("ALTER SYSTEM SET ssl = on").await.expect("set");
    db.batch_execute("SELECT pg_reload_conf()").await.expect("told");
    eventually("Postgres speaks TLS", PATIENCE, async || {
        let on = postgres(url).await.query_one("SHOW ssl", &[]).await.expect("an answer");
        if on.get::<_, &str>(0) == "on" { Ok(()) } else { Err("off".to_owned()) }
    })
    .await;
}

/// Connects with these parameters; whether that worked, and whether it is encrypted then.
async fn tried(url: &str, parameters: &str) -> Option<bool> {
    let (store, db) = (Store::new(&format!("{url}?{parameters}"), 1).expect("a URL"), postgres(url).await);
    store.ping().await.ok()?;
    let sql = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
               WHERE application_name = 'eventpulse' AND ssl";
    let encrypted = count(&db, sql).await == 1;
    drop(store);
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'eventpulse'";
    eventually("the connection is gone", PATIENCE, async || match count(&db, sql).await {
        0 => Ok(()),
        n => Err(n.to_string()),
    })
    .await;
    Some(encrypted)
}

#[tokio::test]
async fn sslmode_is_honoured() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = private_postgres().await;
    let url = server.url("eventpulse");
    for (parameters, expected) in
        [("sslmode=disable", Some(false)), ("sslmode=prefer", Some(false)), ("sslmode=require", None)]
    {
        assert_eq!(tried(&url, parameters).await, expected, "without TLS: {parameters}");
    }
    encrypt_postgres(&url, &authority, "localhost").await;
    let named = url.replace("127.0.0.1", "localhost");
    assert_ne!(named, url);
    let (right, wrong) =
        (format!("sslrootcert={}", authority.file()), format!("sslrootcert={}", other.file()));
    for (host, parameters, expected) in [
        (&url, "sslmode=disable".to_owned(), Some(false)),
        (&url, "sslmode=prefer".to_owned(), Some(true)),
        (&url, "application_name=eventpulse".to_owned(), Some(true)),
        (&url, "sslmode=require".to_owned(), Some(true)),
        (&url, format!("sslmode=require&{right}"), Some(true)),
        (&url, format!("sslmode=require&{wrong}"), None),
        (&url, format!("sslmode=verify-ca&{right}"), Some(true)),
        (&url, format!("sslmode=verify-ca&{wrong}"), None),
        (&url, "sslmode=verify-ca".to_owned(), None),
        (&url, format!("sslmode=verify-full&{right}"), None),
        (&named, format!("sslmode=verify-full&{right}"), Some(true)),
        (&named, format!("sslmode=verify-full&{wrong}"), None),
        (&named, "sslmode=verify-full&sslrootcert=system".to_owned(), None),
    ] {
        assert_eq!(tried(host, &parameters).await, expected, "{host} {parameters}");
    }
    server.stop().expect("stopped");
}

/// Lets a running Redis speak TLS on a port of its own, and gives that.
async fn encrypt_redis(url: &str, authority: &Authority, host: &str) -> u16 {
    let client = redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let (certificate, key) = authority.place(host, 30);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a port").port();
    redis::cmd("CONFIG")
        .arg("SET")
        .arg(&["tls-cert-file", &certificate, "tls-key-file", &key, "tls-ca-cert-file", &authority.file()])
        .arg(&["tls-auth-clients", "no", "tls-port", &port.to_string()])
        .query_async::<()>(&mut connection)
        .await
        .expect("set");
    port
}

#[tokio::test]
async fn the_engine_works_over_tls_to_both_stores() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (postgres_server, redis_server) = tokio::join!(private_postgres(), private_redis());
    let port = encrypt_redis(&redis_server.url(), &authority, "localhost").await;
    let (named, numbered) = (format!("rediss://localhost:{port}"), format!("rediss://127.0.0.1:{port}"));
    for (url, roots, works) in [
        (&named, authority.file(), true),
        (&named, other.file(), false),
        (&named, String::new(), false),
        (&numbered, authority.file(), false),
    ] {
        let redis = Redis::new(url, &roots, Duration::from_secs(5)).expect("a URL");
        let patience = if works { PATIENCE } else { Duration::ZERO };
        assert_eq!(redis.wait_for(patience).await.is_ok(), works, "{url} {roots}");
    }

    let plain = postgres_server.url("eventpulse");
    encrypt_postgres(&plain, &authority, "localhost").await;
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        plain.replace("127.0.0.1", "localhost"),
        authority.file()
    );
    migrate::migrate(&Address::parse(&url).expect("a URL")).await.expect("migrated");
    let mut config = config(&url);
    config.redis_url = Secret::new(named);
    config.stream.roots = authority.file();
    let app = App::of(config, Roles::Both).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.send(&account.key, "t", json!(1)).await;
    last(&receiver, 1).await;
    let db = postgres(&plain).await;
    let count_of = async |ssl: &str| {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE application_name = 'eventpulse' AND {ssl}"
        );
        count(&db, &sql).await
    };
    assert!(count_of("ssl").await > 2);
    assert_eq!(count_of("NOT ssl").await, 0);
    app.stop().await;
    postgres_server.stop().expect("stopped");
    redis_server.stop().expect("stopped");
}
