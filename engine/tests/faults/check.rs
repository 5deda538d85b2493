//! The ledger: whether what was accepted is settled, and whether our tables and the receiver's log tell the same story.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use tokio_postgres::Client;

use crate::{
    index::{self, Standing},
    load::Ledger,
    site::Site,
    world::{Answered, Key, Manner, RARE_TYPE},
};

/// How long nothing may come of it, after the last event and the last fault: leases, expiries behind a breaker, and the
/// sweep. A machine that is slow has a backlog by then, which is no fault as long as it shrinks.
const STALL: Duration = Duration::from_secs(240);

/// The longest that a backlog may take.
const SETTLED: Duration = Duration::from_secs(1800);

/// What was found.
#[derive(Default)]
pub(crate) struct Findings {
    /// What must not be.
    pub(crate) wrong: Vec<String>,
    pub(crate) events: usize,
    pub(crate) deliveries: usize,
    pub(crate) dead: usize,
    pub(crate) filtered: usize,
    /// Deliveries that were answered with a 2xx more than once: when first, and when again.
    pub(crate) repeats: Vec<(Key, u64, u64)>,
    /// Those whose earlier answer came too late or did not arrive, and was recorded as a failed attempt.
    pub(crate) late: usize,
}

/// Waits until nothing is owed and nothing is in hand. Says what still is, if it takes too long.
pub(crate) async fn settled(site: &mut Site) -> Result<Duration, String> {
    let begun = Instant::now();
    let (mut least, mut since) = (i64::MAX, begun);
    let database = site.database().await;
    loop {
        let owed = owed(&database).await;
        let standing = index::standing(&site.redis.url()).await;
        let rest = Standing { due: standing.due, ..Standing::default() };
        if owed.is_empty() && standing == rest {
            return Ok(begun.elapsed());
        }
        let left = owed.iter().map(|(_, n)| n).sum();
        if left < least {
            (least, since) = (left, Instant::now());
        }
        if since.elapsed() > STALL || begun.elapsed() > SETTLED {
            let (stood, all) = (since.elapsed(), begun.elapsed());
            return Err(format!(
                "not settled after {all:?}, {stood:?} without progress: {owed:?} {standing:?}"
            ));
        }
        site.rest(Duration::from_millis(500)).await;
    }
}

/// Rows of `batches` and `scheduled`, by what they wait for.
async fn owed(database: &Client) -> Vec<(String, i64)> {
    let sql = "SELECT 'batch ' || state, count(*) FROM batches GROUP BY 1
               UNION ALL SELECT w.name || ' ' || s.reason, count(*) FROM scheduled AS s JOIN webhooks AS w ON w.id = s.webhook_id GROUP BY 1";
    let rows = database.query(sql, &[]).await.expect("the query runs");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Looks through everything.
pub(crate) async fn look(site: &Site, ledger: &Ledger) -> Findings {
    let database = site.database().await;
    let mut found = Findings::default();
    let mut answered = site.world().log.answered();
    let stored = promised(site, &database, ledger, &mut found).await;
    // What is gone with a Postgres that was set back may have been delivered.
    answered.retain(|(event, _), _| stored.contains(event) || site.forgiven.is_empty());
    unique(&database, &mut found).await;
    let unheard = unheard(&database).await;
    outcomes(site, &database, &answered, &unheard, &mut found).await;
    letters(&database, &mut found).await;
    for (key, times) in &answered {
        let again = &times[1..];
        let late = again.len().min(unheard.get(key).copied().unwrap_or(0));
        found.late += late;
        // Which of them was late is not known, so the later ones count.
        found.repeats.extend(again[late..].iter().map(|again| (*key, times[late].at_ms, again.at_ms)));
    }
    found
}

/// How many attempts of each delivery ended without an answer: the receiver may have given one all the same.
async fn unheard(database: &Client) -> HashMap<Key, usize> {
    let sql = "SELECT event_id, webhook_id, count(*) FROM delivery_attempts
               WHERE response_code IS NULL AND status IN ('failed', 'dead') GROUP BY 1, 2";
    let rows = database.query(sql, &[]).await.expect("attempts");
    let count = |n: i64| usize::try_from(n).expect("a count");
    rows.iter().map(|row| ((row.get(0), row.get(1)), count(row.get(2)))).collect()
}

/// Every event that got a 2xx is there. Returns all that are.
async fn promised(site: &Site, database: &Client, ledger: &Ledger, found: &mut Findings) -> HashSet<i64> {
    let rows = database.query("SELECT id FROM events", &[]).await.expect("events");
    let stored: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    found.events = stored.len();
    let forgiven = |n: &usize| site.forgiven.iter().any(|places| places.contains(n));
    let promised = ledger.accepted().into_iter().enumerate().filter(|(n, _)| !forgiven(n));
    let gone: Vec<i64> = promised.map(|(_, id)| id).filter(|id| !stored.contains(id)).collect();
    if !gone.is_empty() {
        found.wrong.push(format!("{} accepted events are not stored: {:?}", gone.len(), few(&gone)));
    }
    stored
}

/// No event stands twice, and what was sent with an idempotency key until it was answered stands once.
async fn unique(database: &Client, found: &mut Findings) {
    let sql = "SELECT payload, count(*) FROM events GROUP BY payload HAVING count(*) > 1";
    let rows = database.query(sql, &[]).await.expect("events");
    if !rows.is_empty() {
        let payloads: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        found.wrong.push(format!("{} events are stored twice: {:?}", rows.len(), few(&payloads)));
    }
}

/// Every event, promised or not, has one end for each webhook that it was owed to, and the receiver agrees.
async fn outcomes(
    site: &Site,
    database: &Client,
    answered: &HashMap<Key, Vec<Answered>>,
    unheard: &HashMap<Key, usize>,
    found: &mut Findings,
) {
    let sql = "SELECT e.id, e.type, array_agg(a.status) FILTER (WHERE a.status <> 'failed')
               FROM events AS e JOIN webhooks AS w ON w.account_id = e.account_id AND w.id = $1
               LEFT JOIN delivery_attempts AS a ON a.event_id = e.id AND a.webhook_id = w.id
               GROUP BY e.id, e.type";
    let mut unrecorded: HashSet<Key> = answered.keys().copied().collect();
    for webhook in &site.world().webhooks {
        let (mut lost, mut invented, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        let mut several = Vec::new();
        for row in database.query(sql, &[&webhook.id]).await.expect("outcomes") {
            let (event, kind): (i64, String) = (row.get(0), row.get(1));
            let ends: Vec<String> = row.get::<_, Option<Vec<String>>>(2).unwrap_or_default();
            if webhook.manner == Manner::Lazy && kind != RARE_TYPE {
                continue;
            }
            found.deliveries += 1;
            let key = (event, webhook.id);
            match ends.first().map(String::as_str) {
                None => lost.push(event),
                Some("success") => {
                    if !unrecorded.remove(&key) {
                        invented.push(event);
                    }
                }
                Some("filtered") => {
                    found.filtered += 1;
                    if webhook.manner != Manner::Even || event % 2 == 0 {
                        wrong.push(event);
                    }
                }
                Some(_) => {
                    found.dead += 1;
                    if unheard.contains_key(&key) {
                        unrecorded.remove(&key);
                    }
                }
            }
            // A repeat that has a number of its own: two attempts, and both did succeed.
            let repeated = ends.iter().all(|end| end == "success")
                && answered.get(&key).is_some_and(|times| times.len() >= ends.len());
            if ends.len() > 1 && !repeated {
                several.push(format!("{event}: {ends:?}"));
            }
        }
        if !several.is_empty() {
            let (id, n) = (webhook.id, several.len());
            found.wrong.push(format!(
                "webhook {id} {:?}: {n} ended twice: {:?}",
                webhook.manner,
                few(&several)
            ));
        }
        for (what, events) in [("lost", lost), ("recorded, not received", invented), ("filtered", wrong)] {
            if !events.is_empty() {
                let (id, manner, n) = (webhook.id, webhook.manner, events.len());
                found.wrong.push(format!("webhook {id} {manner:?}: {n} {what}: {:?}", few(&events)));
            }
        }
    }
    if !unrecorded.is_empty() {
        let keys: Vec<Key> = unrecorded.into_iter().collect();
        found.wrong.push(format!("{} received, not recorded as delivered: {:?}", keys.len(), few(&keys)));
    }
}

/// A delivery that died has its letter.
async fn letters(database: &Client, found: &mut Findings) {
    let sql = "SELECT count(*) FROM delivery_attempts AS a WHERE status = 'dead' AND NOT EXISTS (SELECT FROM dlq_entries AS d
               WHERE d.event_id = a.event_id AND d.webhook_id = a.webhook_id AND d.round = a.round)";
    let without: i64 = database.query_one(sql, &[]).await.expect("letters").get(0);
    if without > 0 {
        found.wrong.push(format!("{without} deliveries died without a letter"));
    }
}

fn few<T>(items: &[T]) -> &[T] {
    &items[..items.len().min(10)]
}
