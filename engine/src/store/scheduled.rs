//! The schedule: deliveries that are owed later.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio_postgres::Row;

use super::{Error, Store, Text, events, shelf::SPARED_UNTIL};
use crate::model::{AccountId, Event, EventId, Key, Pin, Try, WebhookId};

/// A scheduled delivery with its event.
#[derive(Debug)]
pub struct Owed {
    pub key: Key,
    pub tried: Try,
    /// How far away its time is; negative when it has passed.
    pub due_in_ms: i64,
    /// How much time it has left; negative when there is none.
    pub expires_in_ms: i64,
    /// What it was sent with before.
    pub pin: Option<Pin>,
    /// The configuration in which its webhook changed last; 0 for one that is not there.
    pub version: i64,
    /// None when the event is gone, such as after Postgres was restored from a backup.
    pub event: Option<Arc<Event>>,
}

/// A place in the order of the schedule.
pub type Place = (SystemTime, Key);

/// One page of what is due soon.
#[derive(Debug)]
pub struct Upcoming {
    pub deliveries: Vec<(Key, i64)>,
    pub last: Option<Place>,
}

impl Store {
    /// The rows behind leased members of `due`. Members without a row are missing from the answer. What waited in a pause has
    /// `spare_ms` from its end on before it counts as expired.
    pub async fn owed(&self, keys: &[Key], spare_ms: i64) -> Result<Vec<Owed>, Error> {
        let (events, webhooks) = columns(keys);
        let client = self.client().await?;
        let sql = format!(
            "SELECT s.event_id, s.webhook_id, s.round, s.attempt,
                    (extract(epoch FROM s.next_at - now()) * 1000)::bigint,
                    (extract(epoch FROM greatest(s.expires_at, {SPARED_UNTIL}) - now()) * 1000)::bigint, e.account_id, e.type, e.payload, e.created_at,
                    s.transform_version, s.body_hash, coalesce(h.version, 0), e.trace
             FROM unnest($1::bigint[], $2::bigint[]) AS k (event_id, webhook_id)
             JOIN scheduled AS s USING (event_id, webhook_id) LEFT JOIN events AS e ON e.id = s.event_id
             LEFT JOIN webhooks AS h ON h.id = s.webhook_id"
        );
        let statement = client.prepare_cached(&sql).await?;
        let rows = client.query(&statement, &[&events, &webhooks, &(spare_ms as f64)]).await?;
        Ok(rows
            .iter()
            .map(|row| Owed {
                key: (row.get(0), row.get(1)),
                tried: Try { round: row.get(2), attempt: row.get(3) },
                due_in_ms: row.get(4),
                expires_in_ms: row.get(5),
                pin: row.get::<_, Option<i32>>(10).map(|version| Pin { version, hash: row.get(11) }),
                version: row.get(12),
                event: row.get::<_, Option<AccountId>>(6).map(|account| {
                    Arc::new(Event {
                        id: row.get(0),
                        account,
                        kind: row.get(7),
                        payload: row.get::<_, Text>(8).0,
                        created_at: row.get(9),
                        trace: events::trace(row, 13),
                    })
                }),
            })
            .collect())
    }

    /// Up to `limit` deliveries whose time is within `horizon_ms`, soonest first, with the milliseconds until then; those
    /// after `after`, where it is given, and the place after which the next ones stand.
    pub async fn upcoming(
        &self,
        horizon_ms: i64,
        after: Option<Place>,
        limit: i64,
    ) -> Result<Upcoming, Error> {
        let client = self.client().await?;
        let sql =
            "SELECT event_id, webhook_id, greatest(0, extract(epoch FROM next_at - now()) * 1000)::bigint, next_at
             FROM scheduled WHERE next_at < now() + $1 * interval '1 millisecond' AND next_at >= $3
                 AND (next_at, event_id, webhook_id) > ($3, $4, $5)
                 AND reason NOT IN ('breaker', 'backlog', 'paused')
             ORDER BY next_at, event_id, webhook_id LIMIT $2";
        let horizon = horizon_ms as f64;
        let (time, (event, webhook)) = after.unwrap_or((UNIX_EPOCH, (EventId(0), WebhookId(0))));
        let statement = client.prepare_cached(sql).await?;
        let rows = client.query(&statement, &[&horizon, &limit, &time, &event, &webhook]).await?;
        let key = |row: &Row| (row.get(0), row.get(1));
        Ok(Upcoming {
            last: rows.last().map(|row| (row.get(3), key(row))),
            deliveries: rows.iter().map(|row| (key(row), row.get(2))).collect(),
        })
    }

    /// Schedules deliveries that the sweep found missing, at once.
    pub async fn schedule_missing(&self, keys: &[Key], expires_ms: i64) -> Result<u64, Error> {
        let (events, webhooks) = columns(keys);
        let expires = expires_ms as f64;
        let client = self.client().await?;
        let sql = "INSERT INTO scheduled (event_id, webhook_id, round, attempt, next_at, expires_at, reason)
                   SELECT k.event_id, k.webhook_id, 1, 1, now(), now() + $3 * interval '1 millisecond', 'missing'
                   FROM unnest($1::bigint[], $2::bigint[]) AS k (event_id, webhook_id)
                   WHERE NOT EXISTS (SELECT FROM delivery_attempts AS a WHERE a.event_id = k.event_id
                       AND a.webhook_id = k.webhook_id AND a.status <> 'failed')
                   ON CONFLICT DO NOTHING";
        Ok(client.execute(sql, &[&events, &webhooks, &expires]).await?)
    }

    /// Forgets deliveries whose event does not exist.
    pub async fn drop_orphans(&self, keys: &[Key]) -> Result<(), Error> {
        let (events, webhooks) = columns(keys);
        let client = self.client().await?;
        let sql =
            "DELETE FROM scheduled AS s USING unnest($1::bigint[], $2::bigint[]) AS k (event_id, webhook_id)
                   WHERE s.event_id = k.event_id AND s.webhook_id = k.webhook_id
                     AND NOT EXISTS (SELECT FROM events WHERE id = s.event_id)";
        client.execute(sql, &[&events, &webhooks]).await?;
        Ok(())
    }
}

fn columns(keys: &[Key]) -> (Vec<i64>, Vec<i64>) {
    keys.iter().map(|(event, webhook)| (event.0, webhook.0)).unzip()
}
