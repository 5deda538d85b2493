//! Gauges that say how far behind the work is. Each process asks for itself, at the sweep's pace, so that none shows what another
//! knew long ago; what cannot be asked for is `NaN`, which no alert takes for a number.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    metrics::{Metrics, worst::Webhook},
    store::{
        Store,
        worst::{By, Worst},
    },
    stream,
};

/// Looks of which one counts the dead letters, and one asks for the worst webhooks: that takes milliseconds where there is much.
const COSTLY_EVERY: u32 = 6;

/// Pause between looks at the pools, which ask nobody.
const POOLS_EVERY: Duration = Duration::from_secs(1);

/// What it takes to ask.
pub struct Depths {
    pub store: Store,
    pub stream: stream::depths::Depths,
    pub every: Duration,
    /// Webhooks that the metrics name.
    pub worst_max: usize,
    pub metrics: Arc<Metrics>,
}

impl Depths {
    pub async fn run(self, stop: watch::Receiver<bool>) {
        // On their own: whoever asks may itself wait for a connection.
        let pools = pools(self.store.clone(), self.metrics.clone(), stop.clone());
        tokio::join!(self.ask(stop), pools);
    }

    async fn ask(mut self, mut stop: watch::Receiver<bool>) {
        let mut looks = 0_u32;
        loop {
            let costly = looks.is_multiple_of(COSTLY_EVERY);
            tokio::join!(
                ask_postgres(&self.store, costly, &self.metrics),
                ask_for_the_worst(&self.store, if costly { self.worst_max } else { 0 }, &self.metrics),
                ask_redis(&mut self.stream, &self.metrics),
            );
            looks = looks.wrapping_add(1);
            if !pause(self.every, &mut stop).await {
                return;
            }
        }
    }
}

async fn pools(store: Store, metrics: Arc<Metrics>, mut stop: watch::Receiver<bool>) {
    loop {
        look_at_pools(&store, &metrics);
        if !pause(POOLS_EVERY, &mut stop).await {
            return;
        }
    }
}

/// False when there is nothing more to do.
async fn pause(time: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = crate::stopped(stop) => false,
    }
}

fn look_at_pools(store: &Store, metrics: &Metrics) {
    let pools = store.address().pools().in_use();
    metrics.store.used.set(pools.used as f64);
    metrics.store.idle.set(pools.idle as f64);
    metrics.store.waiting.set(pools.waiting as f64);
}

async fn ask_postgres(store: &Store, letters: bool, metrics: &Metrics) {
    let ages = store.ages().await;
    let (oldest, overdue) = ages.map_or((f64::NAN, f64::NAN), |ages| (ages.oldest_undelivered, ages.overdue));
    metrics.recover.oldest_undelivered.set(oldest);
    metrics.retry.overdue.set(overdue);
    if letters {
        let open = store.open_letters().await.map_or(f64::NAN, |open| open as f64);
        metrics.dlq.depth.set(open);
    }
}

/// While Postgres cannot be asked nobody is named.
async fn ask_for_the_worst(store: &Store, max: usize, metrics: &Metrics) {
    if max == 0 {
        return;
    }
    let found = store.worst_webhooks(By::Trouble, max as i64).await.unwrap_or_else(|error| {
        tracing::debug!(error = crate::chain(&error), "the worst webhooks not asked for");
        Vec::new()
    });
    let webhook = |worst: &Worst| Webhook {
        id: worst.webhook.0,
        failed: worst.failed as f64,
        waiting: worst.waiting as f64,
        seconds: worst.ms.map(|ms| ms / 1000.0),
    };
    metrics.worst.set(found.iter().map(webhook).collect());
}

async fn ask_redis(stream: &mut stream::depths::Depths, metrics: &Metrics) {
    let found = stream.ask().await.ok();
    let value = |value: Option<u64>| value.map_or(f64::NAN, |value| value as f64);
    metrics.stream.length.set(value(found.map(|found| found.length)));
    metrics.stream.pending.set(value(found.map(|found| found.pending)));
    metrics.stream.lag.set(value(found.map(|found| found.lag)));
    metrics.stream.memory_used.set(value(found.map(|found| found.memory_used)));
    metrics.stream.memory_max.set(value(found.map(|found| found.memory_max)));
}
