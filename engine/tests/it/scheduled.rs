//! The schedule as the feeder reads it.

use std::collections::HashSet;

use eventpulse::store::Store;

use crate::harness::{count, database, postgres};

#[tokio::test]
async fn pages_of_what_is_due_soon_leave_nothing_out() {
    let url = database("pages").await;
    let (store, db) = (Store::new(&url, 2).expect("a store"), postgres(&url).await);
    // Seven at each of fifty times, two of each shelved, and one beyond the horizon.
    db.batch_execute(
        "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
         SELECT time, hook, 1, 1, now() + (time - 25) * interval '1 second', now() + interval '1 hour',
             CASE WHEN hook < 3 THEN 'backlog' ELSE 'retry' END
         FROM generate_series(1, 50) AS time, generate_series(1, 7) AS hook;
         INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
         VALUES (99, 1, 1, 1, now() + interval '5 minutes', now() + interval '1 hour', 'retry')",
    )
    .await
    .expect("rows");
    assert_eq!(count(&db, "SELECT count(*) FROM scheduled").await, 351);
    let (mut after, mut found, mut times) = (None, Vec::new(), Vec::new());
    loop {
        let page = store.upcoming(60_000, after, 16).await.expect("a page");
        assert!(page.deliveries.len() <= 16);
        found.extend(page.deliveries.iter().map(|(key, _)| *key));
        times.extend(page.last.map(|(time, _)| time));
        after = page.last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((found.len(), found.iter().collect::<HashSet<_>>().len()), (250, 250));
    assert!(times.is_sorted());
}
