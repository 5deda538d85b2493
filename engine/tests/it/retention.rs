//! Old events go a partition at a time, and none that is still needed.

use std::time::Duration;

use eventpulse::{recover::retention::drop_oldest, store::Store};

use crate::harness::{count, database, postgres};

const DAY: Duration = Duration::from_secs(86_400);

/// Partitions 0 to 4 are of the past, 5 is in use. In each but the fourth, which is empty, there are ten events, so many days old.
async fn filled(hint: &str) -> (Store, tokio_postgres::Client) {
    let url = database(hint).await;
    let (store, db) = (Store::new(&url, 2).expect("a store"), postgres(&url).await);
    db.batch_execute(
        "SELECT setval('event_id_blocks', 5 * 65536 + 1); SELECT make_partitions(5 * 67108864::bigint);
         INSERT INTO events (id, account_id, type, payload, created_at)
         SELECT part * 67108864::bigint + n, 1, 't', '1', now() - (50 - part * 10) * interval '1 day'
         FROM generate_series(0, 5) AS part, generate_series(1, 10) AS n WHERE part <> 3;
         INSERT INTO delivery_attempts (event_id, webhook_id, round, attempt, status, reason_code, duration_ms, created_at)
         SELECT id, 1, 1, 1, 'success', 'delivered', 1, created_at FROM events",
    )
    .await
    .expect("rows");
    (store, db)
}

async fn left(db: &tokio_postgres::Client) -> Vec<i64> {
    let sql = "SELECT DISTINCT id / 67108864 AS part FROM events ORDER BY part";
    db.query(sql, &[]).await.expect("rows").iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn whole_partitions_go_once_all_in_them_is_old() {
    let (store, db) = filled("retention").await;
    assert_eq!(left(&db).await, [0, 1, 2, 4, 5]);
    // 30 days: those of 50 and 40 days, and the empty one; of 30 days and less none.
    let keep = DAY * 30 + DAY / 2;
    for expected in [&[1, 2, 4, 5][..], &[2, 4, 5], &[2, 4, 5]] {
        assert!(drop_oldest(&store, keep).await.expect("Postgres answers"));
        assert_eq!(left(&db).await, expected);
    }
    assert!(!drop_oldest(&store, keep).await.expect("Postgres answers"));
    assert_eq!(store.partitions().await.expect("partitions"), [2, 4, 5, 6, 7, 8, 9]);
    assert_eq!(
        count(&db, "SELECT count(*) FROM delivery_attempts").await,
        30,
        "attempts go with their events"
    );
    // However little is kept, the partition in use stays.
    while drop_oldest(&store, Duration::from_millis(1)).await.expect("Postgres answers") {}
    assert_eq!(left(&db).await, [5]);
}

#[tokio::test]
async fn what_is_owed_keeps_its_partition() {
    let (store, db) = filled("retention-owed").await;
    db.batch_execute(
        "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
         VALUES (7, 1, 1, 1, now(), now(), 'paused');
         INSERT INTO batches (first_id, last_id, n, owner, state, config_version, created_at)
         VALUES (67108864 - 1, 67108864 + 1, 3, 1, 1, 1, now() - interval '40 days');
         INSERT INTO dlq_entries (account_id, event_id, webhook_id, round, attempts, reason, reason_code)
         SELECT 1, 2 * 67108864::bigint + n, 1, 1, 8, 'x', 'x' FROM generate_series(1, 5) AS n",
    )
    .await
    .expect("rows");
    while drop_oldest(&store, DAY).await.expect("Postgres answers") {}
    assert_eq!(left(&db).await, [0, 1, 5], "one has a row in the schedule, one a batch");
    assert_eq!(count(&db, "SELECT count(*) FROM dlq_entries").await, 0, "a letter goes with its event");
    db.batch_execute("DELETE FROM scheduled; DELETE FROM batches").await.expect("settled");
    while drop_oldest(&store, DAY).await.expect("Postgres answers") {}
    assert_eq!(left(&db).await, [5]);
}
