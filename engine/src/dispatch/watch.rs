//! What keeps a dispatcher honest while it works: its beat, claims from consumers that died, its own entries
//! that a broken connection swallowed, and deliveries that wait in a lane for too long.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Context, deferred, intake::Intake, parking, poison};
use crate::{
    metrics::{Metrics, Part},
    stream::consumer::{Claimed, Claims},
};

/// Between looks at the lanes' queues: a quarter second late is late enough for a hold of seconds.
const LANES: Duration = Duration::from_millis(250);

/// Between looks for entries of consumers that are gone. One that ends in order takes its beat back, and what it leaves
/// should not wait for longer than a second.
const CLAIMS: Duration = Duration::from_millis(500);

/// Own entries are looked for less often: a scan of what is pending costs more than one of consumers.
const OWN: Duration = Duration::from_secs(10);

/// Entries claimed or resumed in one go.
const CLAIM_MAX: usize = 64;

/// Sleeps, and says whether to go on.
async fn pause(time: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = crate::stopped(stop) => false,
    }
}

/// Beats, and tells the fence. It has a stop signal of its own, after the drain of what is in flight.
pub(super) async fn beats(context: Arc<Context>, mut claims: Claims, mut stop: watch::Receiver<bool>) {
    let every = context.config.dispatch.beat;
    loop {
        let sent = Instant::now();
        match claims.beat(context.config.dispatch.dead_after).await {
            Ok(alive) => {
                context.fence.beaten(sent);
                context.peers.store(alive, Relaxed);
                context.metrics.dispatch.peers.set(alive as f64);
            }
            Err(error) => tracing::debug!(error = crate::chain(&error), "no beat"),
        }
        if !pause(every, &mut stop).await {
            return;
        }
    }
}

/// Takes up what nobody holds.
pub(super) async fn claims(intake: Intake, mut claims: Claims, mut stop: watch::Receiver<bool>) {
    let dispatch = &intake.context.config.dispatch;
    let (every, dead_after, own) =
        (CLAIMS.min(dispatch.beat), dispatch.dead_after, OWN.min(dispatch.beat * 5));
    let metrics = intake.context.metrics.clone();
    let mut looked = Instant::now();
    while pause(every, &mut stop).await {
        if intake.context.gate.epoch().is_none() {
            continue;
        }
        // As long as there is a full load to claim, more may wait behind it.
        let mut full = true;
        while full && !*stop.borrow() {
            let term = intake.context.fence.term();
            let claimed = claims.claim(dead_after, CLAIM_MAX, &intake.context.gate).await;
            let Claimed { entries, suspects } = claimed.unwrap_or_else(|error| {
                tracing::debug!(error = crate::chain(&error), "nothing claimed");
                Claimed::default()
            });
            let n = entries.len() + suspects.len();
            full = n == CLAIM_MAX;
            metrics.dispatch.claimed.increment(n as u64);
            if !suspects.is_empty() {
                let (intake, claims) = (intake.clone(), claims.clone());
                tokio::spawn(poison::take_carefully(intake, claims, suspects, term, stop.clone()));
            }
            intake.take(entries, term, true, &mut stop).await;
        }
        full = looked.elapsed() >= own;
        if full {
            looked = Instant::now();
        }
        while full && !*stop.borrow() {
            let term = intake.context.fence.term();
            let held = |id: &str| intake.context.opened.contains(id);
            let entries = claims.unheld(held, CLAIM_MAX).await.unwrap_or_else(|error| {
                tracing::debug!(error = crate::chain(&error), "own entries not looked at");
                Vec::new()
            });
            full = entries.len() == CLAIM_MAX;
            metrics.dispatch.resumed.increment(entries.len() as u64);
            intake.take(entries, term, true, &mut stop).await;
        }
    }
}

/// Parks what waits too long, forgets idle lanes, and keeps the gauges.
pub(super) async fn lanes(context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    let mut levels = Levels::new(&context.metrics);
    while pause(LANES, &mut stop).await {
        for (_, lane) in context.lanes.all() {
            for delivery in lane.overdue() {
                parking::turn_away(&context, delivery).await;
            }
        }
        deferred::turn_out(&context).await;
        levels.show(&context);
    }
}

/// What this dispatcher holds, on the gauges that it shares with the other workers.
struct Levels {
    lanes: Part,
    queued: Part,
    waiting: Part,
    slow: Part,
    breakers_open: Part,
    held: Part,
    held_slow: Part,
}

impl Levels {
    fn new(metrics: &Metrics) -> Levels {
        let Metrics { lane, dispatch, .. } = metrics;
        Levels {
            lanes: Part::of(&lane.open),
            queued: Part::of(&lane.queued),
            waiting: Part::of(&lane.waiting),
            slow: Part::of(&lane.slow),
            breakers_open: Part::of(&lane.breakers_open),
            held: Part::of(&dispatch.held),
            held_slow: Part::of(&dispatch.held_slow),
        }
    }

    fn show(&mut self, context: &Context) {
        let totals = context.lanes.tidy();
        self.lanes.set(totals.lanes);
        self.queued.set(totals.queued);
        self.waiting.set(context.deferred.len());
        self.slow.set(totals.slow);
        self.breakers_open.set(totals.open);
        let (first, retries) = (&context.first_budget, &context.retry_budget);
        self.held.set(first.held() + retries.held());
        self.held_slow.set(first.held_slow() + retries.held_slow());
    }
}

/// Notices changed webhooks within a second, also when no event comes to say so.
pub(super) async fn registry(context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    while pause(Duration::from_secs(1), &mut stop).await {
        if let Err(error) = context.registry.poll().await {
            tracing::debug!(error = crate::chain(&error), "changes of webhooks not read");
        }
    }
}
