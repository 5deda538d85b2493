//! The recorder's two statements against the tables themselves: what a repeat does, and what is scheduled meanwhile.

use eventpulse::{
    model::{AccountId, EventId, Try, WebhookId},
    store::{
        Address, Link,
        settle::{Attempt, Origin, Record, Status},
    },
};
use tokio_postgres::Client;

use crate::harness::{PATIENCE, count, database, postgres};

fn delivered(event: i64) -> Record {
    Record {
        event: EventId(event),
        webhook: WebhookId(7),
        account: AccountId(1),
        tried: Try::FIRST,
        was_scheduled: false,
        origin: Origin::Entry,
        attempt: Some(Attempt {
            status: Status::Success,
            code: Some(204),
            body: Some("fine".to_owned()),
            error: None,
            reason_code: "delivered",
            duration_ms: 3,
            transform: None,
        }),
        later: None,
        dead: None,
    }
}

/// Says that somebody else owes this delivery by now, in this round.
async fn schedule(db: &Client, event: i64, webhook: i64, round: i16) {
    db.execute(
        "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
         VALUES ($1, $2, $3, 1, now(), now() + interval '1 hour', 'held')",
        &[&event, &webhook, &round],
    )
    .await
    .expect("a row");
}

async fn start(hint: &str) -> (Link, Client) {
    let url = database(hint).await;
    (Link::new(Address::parse(&url).expect("a URL"), PATIENCE), postgres(&url).await)
}

/// 1. A process records some deliveries and dies before it acks their entry. 2. Another takes the entry over, makes them
///    again beside new ones, and records all. 3. The new ones are recorded too, and the others counted.
#[tokio::test]
async fn a_delivery_recorded_before_is_a_repeat_and_hurts_no_neighbour() {
    let (mut link, db) = start("repeat").await;
    assert_eq!(link.settle(&[delivered(1), delivered(2)]).await.expect("recorded"), []);
    let mut repeats = link.settle(&[delivered(2), delivered(3), delivered(1)]).await.expect("recorded");
    repeats.sort_unstable();
    assert_eq!(repeats, [1, 2].map(|event| (EventId(event), WebhookId(7))));
    assert_eq!(count(&db, "SELECT count(*) FROM delivery_attempts WHERE status = 'success'").await, 3);
    assert_eq!(link.settle(&[delivered(4)]).await.expect("the connection still works"), []);
    let row = db
        .query_one(
            "SELECT webhook_id, round, attempt, response_code, response_body, error, reason_code, duration_ms,
                created_at > now() - interval '1 minute' FROM delivery_attempts WHERE event_id = 4",
            &[],
        )
        .await
        .expect("one row");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i16>(1), row.get::<_, i16>(2)), (7, 1, 1));
    assert_eq!((row.get::<_, i16>(3), row.get::<_, &str>(4)), (204, "fine"));
    assert_eq!((row.get::<_, Option<&str>>(5), row.get::<_, &str>(6)), (None, "delivered"));
    assert!(row.get::<_, i32>(7) == 3 && row.get::<_, bool>(8));
}

#[tokio::test]
async fn a_first_try_that_was_delivered_ends_what_is_scheduled_of_it_and_nothing_else() {
    let (mut link, db) = start("ends").await;
    schedule(&db, 10, 7, 1).await;
    schedule(&db, 10, 8, 1).await;
    schedule(&db, 11, 7, 1).await;
    // A round that was begun since is not ended by the one before it.
    schedule(&db, 12, 7, 2).await;
    link.settle(&[delivered(10), delivered(12), delivered(13)]).await.expect("recorded");
    let rows = db.query("SELECT event_id, webhook_id FROM scheduled ORDER BY 1, 2", &[]).await.expect("rows");
    let left: Vec<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(left, [(10, 8), (11, 7), (12, 7)]);
}

/// What transforms say of first tries goes the short way too, and a repeat is found all the same.
#[tokio::test]
async fn what_transforms_made_or_dropped_is_recorded_as_such() {
    let (mut link, db) = start("transformed").await;
    let mut records = [delivered(1), delivered(2), delivered(3)];
    schedule(&db, 2, 7, 1).await;
    let attempts = records.iter_mut().filter_map(|record| record.attempt.as_mut());
    for (attempt, version) in attempts.zip([None, Some(4), Some(4)]) {
        attempt.transform = version;
    }
    let dropped = records[1].attempt.as_mut().expect("an attempt");
    (dropped.status, dropped.code, dropped.body) = (Status::Filtered, None, None);
    (dropped.error, dropped.reason_code) = (Some("too small".to_owned()), "filtered");
    assert_eq!(link.settle(&records).await.expect("recorded"), []);
    let rows = db
        .query(
            "SELECT status, reason_code, error, transform_version, response_code FROM delivery_attempts ORDER BY event_id",
            &[],
        )
        .await
        .expect("rows");
    let row = |n: usize| -> (String, String, Option<String>, Option<i32>, Option<i16>) {
        let row = &rows[n];
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))
    };
    let (success, delivered) = ("success".to_owned(), "delivered".to_owned());
    assert_eq!(row(0), (success.clone(), delivered.clone(), None, None, Some(204)));
    assert_eq!(row(1), ("filtered".into(), "filtered".into(), Some("too small".into()), Some(4), None));
    assert_eq!(row(2), (success, delivered, None, Some(4), Some(204)));
    assert_eq!(count(&db, "SELECT count(*) FROM scheduled").await, 0, "a drop settles");
    assert_eq!(link.settle(&records).await.expect("recorded").len(), 3, "repeats");
}
