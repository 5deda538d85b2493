//! What another version left: rows of the schema before, and entries of a format that does not exist yet.

use std::time::Duration;

use eventpulse::{
    config::Roles,
    store::{Address, migrate},
};
use eventpulse_testkit::{Receiver, eventually, stack};
use futures_util::{StreamExt, stream};
use redis::{Value, aio::MultiplexedConnection};
use serde_json::json;

use crate::harness::{App, PATIENCE, config, count, database, ids, postgres, swept_soon};

async fn redis_connection() -> MultiplexedConnection {
    let client = redis::Client::open(stack().redis_url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// The stream's key and its one entry's id and fields.
async fn only_entry(app: &App, redis: &mut MultiplexedConnection) -> (String, String, Vec<Value>) {
    let db = postgres(&app.database).await;
    let engine: String = db.query_one("SELECT id FROM engine_state", &[]).await.unwrap().get(0);
    let key = format!("eventpulse:{engine}:{{0}}:events");
    eventually("an entry is in the stream", PATIENCE, async || {
        let mut range = redis::cmd("XRANGE");
        let entries: Vec<(String, Vec<Value>)> =
            range.arg(&key).arg("-").arg("+").query_async(redis).await.map_err(|e| e.to_string())?;
        let [(id, fields)] = &entries[..] else { return Err(format!("{} entries", entries.len())) };
        Ok((key.clone(), id.clone(), fields.clone()))
    })
    .await
}

/// 1. A newer process adds an entry in a format of its own. 2. An older one reads it beside others. It must neither ack
/// it, nor stop at it, nor take its batch for one that got lost: the newer one would then deliver it a second time.
#[tokio::test]
async fn an_entry_of_a_newer_format_is_left_for_those_who_can_read_it() {
    let url = database("newer").await;
    let mut settings = config(&url);
    swept_soon(&mut settings);
    let gateway = App::of(settings.clone(), Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = gateway.register(&receiver.url("/")).await;
    let event = gateway.send(&account.key, "t", json!("newer")).await;
    let mut redis = redis_connection().await;
    let (key, id, _) = only_entry(&gateway, &mut redis).await;
    let rewrite = |format: i64| {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("XADD").arg(&key).arg("*").arg("v").arg(format).arg("first").arg(event);
        pipe.arg("n").arg(1).arg("config").arg(i64::from(i32::MAX)).arg("check").arg(0);
        pipe.arg("novelty").arg(7);
        pipe
    };
    let added: Vec<String> = rewrite(2).query_async(&mut redis).await.unwrap();
    let () = redis::cmd("XDEL").arg(&key).arg(&id).query_async(&mut redis).await.unwrap();

    let dispatcher = App::of(settings, Roles::Dispatcher).await;
    let later = gateway.send(&account.key, "t", json!("later")).await;
    eventually("what can be read is delivered", PATIENCE, async || {
        if receiver.count() > 0 { Ok(()) } else { Err("nothing yet".to_owned()) }
    })
    .await;
    // The later one's batch goes, so the sweep has looked at both.
    let db = postgres(&url).await;
    eventually("the later batch is swept", PATIENCE, async || {
        let left = count(&db, "SELECT count(*) FROM batches").await;
        if left == 1 { Ok(()) } else { Err(format!("{left} batches")) }
    })
    .await;
    assert_eq!(ids(&receiver), [later]);
    assert_eq!(dispatcher.metric("eventpulse_sweep_missing_total"), 0.0);
    let (_, left, _) = only_entry(&gateway, &mut redis).await;
    assert_eq!(left, added[0]);
    for app in [gateway, dispatcher] {
        app.stop().await;
    }
}

/// The schema of each version so far, with an event of then on its way, a retry and a dead letter.
#[tokio::test]
async fn what_older_schemas_left_is_finished() {
    // Three engines at once: each may open 34 connections, and the tests' Postgres has 200 for all that runs.
    stream::iter((1..migrate::newest()).map(finished_from)).buffer_unordered(3).collect::<()>().await;
}

async fn finished_from(version: i64) {
    let url = eventpulse_testkit::database(&format!("schema{version}")).await;
    let address = Address::parse(&url).unwrap();
    migrate::migrate_to(&address, version).await.unwrap();
    let receiver = Receiver::start().await;
    let db = postgres(&url).await;
    let rows = format!(
        "INSERT INTO accounts (version) VALUES (2);
         UPDATE engine_state SET config_version = 2;
         INSERT INTO webhooks (account_id, name, url, secret, since_version, version)
             VALUES (1, 'old', '{}', 'whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=', 2, 2);
         SELECT nextval('event_id_blocks'), nextval('instance_ids');
         INSERT INTO events (id, account_id, type, payload, created_at)
             SELECT id, 1, 't', '1', now() FROM generate_series(1024, 1027) AS id;
         INSERT INTO batches (first_id, last_id, n, owner, state, config_version, created_at)
             VALUES (1024, 1025, 2, 1, 0, 2, now());
         INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
             VALUES (1026, 1, 1, 2, now(), now() + interval '1 day', 'retry');
         INSERT INTO dlq_entries (account_id, event_id, webhook_id, round, attempts, reason, reason_code)
             VALUES (1, 1027, 1, 1, 3, 'gone', 'status');",
        receiver.url("/")
    );
    db.batch_execute(&rows).await.unwrap_or_else(|e| panic!("schema {version}: {e:?}"));
    migrate::migrate(&address).await.unwrap();
    let mut settings = config(&url);
    swept_soon(&mut settings);
    settings.recover.sweep_every = Duration::from_millis(200);
    let app = App::of(settings, Roles::Both).await;
    eventually(&format!("schema {version}: what was owed is delivered"), PATIENCE * 2, async || {
        let mut got = ids(&receiver);
        got.sort_unstable();
        if got == [1024, 1025, 1026] { Ok(()) } else { Err(format!("{got:?}")) }
    })
    .await;
    app.settled().await;
    assert_eq!(count(&db, "SELECT count(*) FROM dlq_entries WHERE requeued_at IS NULL").await, 1);
    app.stop().await;
}
