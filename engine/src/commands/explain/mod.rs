//! `eventpulse explain EVENT`: where an event is, why, and what comes next, for whoever has the two stores' addresses.
//!
//! [`gather`] asks Postgres and Redis, [`story`] says in plain words what it means, [`render`] lays it out. No payload, reply,
//! secret or path of a URL is shown.

mod render;
mod story;

use std::{collections::BTreeMap, time::Duration};

use clap::Args;

use self::story::{Attempt, Entry, Letter, Owner, Report, Scheduled};
use crate::{
    config::Config,
    model::{EventId, Webhook, WebhookId},
    store::{
        self, Store,
        explain::{Batch, Named, Outline},
    },
    stream::{self, Keys, Redis, breaker::Breakers, consumer::Claims},
};

/// Entries of the stream looked through for the event's batch.
const STREAM_MAX: usize = 10_000;

/// Instances beat once a second; between two looks a living one has.
const BEAT: Duration = Duration::from_millis(2500);

/// Attempts of one webhook that are shown, the last ones.
const ATTEMPTS_MAX: usize = 12;

/// Webhooks shown that have nothing to do with the event.
const STRANGERS_MAX: usize = 10;

/// What may be asked for.
#[derive(Args)]
pub struct Options {
    /// The event's id.
    event: i64,
    /// As JSON, with the same fields.
    #[arg(long)]
    json: bool,
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Stream(#[from] stream::Error),
    #[error("there is no event {0}: it was never accepted here, or was removed by retention.events")]
    Unknown(i64),
    #[error("the report could not be written")]
    Json(#[from] serde_json::Error),
}

/// # Errors
/// When Postgres cannot be reached or does not know the event. A Redis that cannot be reached is part of the answer.
pub async fn run(config: &Config, options: Options) -> Result<(), Error> {
    let report = gather(config, EventId(options.event)).await?;
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", render::render(&report)),
    }
    Ok(())
}

async fn gather(config: &Config, id: EventId) -> Result<Report, Error> {
    let store = Store::new(config.database_url.reveal(), 1)?;
    let event = store.outline_of(id).await?.ok_or(Error::Unknown(id.0))?;
    let engine = store.identity().await?.engine;
    // In this order: a delivery moves from the batch to the schedule to its last attempt.
    let batch = store.batch_row_of(id).await?;
    let waiting = store.waiting(id).await?;
    let attempts = store.attempts(event.account, id).await?;
    let letters = store.letters_of(id).await?;
    let webhooks = store.webhooks_of(&[event.account]).await?;
    let mut names: BTreeMap<i64, Named> =
        store.names_of(event.account).await?.into_iter().map(|named| (named.webhook.0, named)).collect();
    let ids: Vec<WebhookId> = webhooks.iter().map(|webhook| webhook.id).collect();
    let (entry, open) = ask_redis(config, &engine, batch.as_ref(), &ids).await;
    let owner = match &batch {
        Some(batch) if !batch.streamed => Some(owner(&store, id, batch).await?),
        _ => None,
    };
    let mut report = Report::new(id, &event, batch.as_ref(), owner, entry);
    for (at, webhook) in webhooks.iter().enumerate() {
        let mut facts = facts(webhook, names.remove(&webhook.id.0), &event, batch.as_ref());
        facts.breaker_open = open.get(at).copied();
        let tries = attempts.iter().filter(|a| a.webhook == webhook.id).map(Attempt::of);
        facts.attempts = tries.collect();
        facts.scheduled = waiting.iter().find(|w| w.webhook == webhook.id).map(Scheduled::of);
        facts.dead_letters = letters.iter().filter(|l| l.webhook == webhook.id).map(Letter::of).collect();
        report.add(facts, ATTEMPTS_MAX, STRANGERS_MAX);
    }
    report.conclude();
    Ok(report)
}

/// What a webhook's own row says of it and the event.
fn facts(
    webhook: &Webhook,
    named: Option<Named>,
    event: &Outline,
    batch: Option<&Batch>,
) -> story::WebhookReport {
    let came_later = named.as_ref().is_some_and(|named| named.created_at > event.created_at);
    let owed = story::owed(webhook, &event.kind, batch.map(|batch| batch.span.version), came_later);
    let (name, disabled_reason) =
        named.map_or_else(Default::default, |named| (named.name, named.disabled_reason));
    story::WebhookReport::new(webhook, &name, disabled_reason.as_deref(), owed)
}

/// Where the batch's entry is, and which breakers are open. Redis may be away, which must not hide what Postgres says.
async fn ask_redis(
    config: &Config,
    engine: &str,
    batch: Option<&Batch>,
    webhooks: &[WebhookId],
) -> (Entry, Vec<bool>) {
    let ask = async {
        let redis = Redis::new(config.redis_url.reveal(), &config.stream.roots, config.stream.reply_timeout)?;
        let keys = Keys::new(engine, 0);
        let open = Breakers::new(redis.commands()?, keys.clone()).are_open(webhooks).await?;
        let Some(batch) = batch else { return Ok::<_, stream::Error>((Entry::Settled, open)) };
        let mut claims = Claims::new(redis.commands()?, keys, "explain".to_owned());
        let holder = claims.holder(batch.span.first.0, STREAM_MAX).await?;
        Ok((Entry::of(holder), open))
    };
    match ask.await {
        Ok(found) => found,
        Err(error) => (Entry::Unknown(crate::chain(&error)), Vec::new()),
    }
}

/// Whether the instance that is to stream a batch lives.
async fn owner(store: &Store, id: EventId, before: &Batch) -> Result<Owner, store::Error> {
    let Some(beat) = before.beat else { return Ok(Owner::Gone) };
    tokio::time::sleep(BEAT).await;
    Ok(match store.batch_row_of(id).await? {
        Some(batch) if batch.owner == before.owner && batch.beat == Some(beat) => Owner::Silent,
        Some(Batch { beat: None, .. }) => Owner::Gone,
        // Taken over, or streamed and settled meanwhile: somebody lives.
        _ => Owner::Beating,
    })
}
