//! Tells Postgres which webhooks fail and which succeed, once a second for all lanes together. What it says is the whole of
//! what this process saw since the last time, so nothing follows from when a lane is made or forgotten.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::Context;
use crate::{lane::Health, model::WebhookId, store::Error};

/// Between two reports. Those who disable wait for several of them.
const EVERY: Duration = Duration::from_secs(1);

/// Webhooks of one statement.
const PAGE: usize = 1000;

pub(super) async fn run(context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = crate::stopped(&mut stop) => return,
        }
        tell(&context).await;
    }
}

/// One report. What Postgres does not take is told the next time.
pub(super) async fn tell(context: &Context) {
    let mut told: Vec<(WebhookId, Health)> = context
        .lanes
        .all()
        .iter()
        .map(|(webhook, lane)| (*webhook, lane.take_health()))
        .filter(|(_, health)| *health != Health::default())
        .collect();
    if context.config.webhooks.disable_after.is_zero() {
        return;
    }
    // In one order, so that processes which write the same rows wait for each other and never in a ring.
    told.sort_unstable_by_key(|(webhook, _)| *webhook);
    for page in told.chunks(PAGE) {
        if let Err(error) = tell_page(context, page).await {
            tracing::debug!(error = crate::chain(&error), "who fails is told later");
            page.iter().for_each(|(webhook, health)| context.lanes.of(*webhook).put_back_health(*health));
        }
    }
}

async fn tell_page(context: &Context, page: &[(WebhookId, Health)]) -> Result<(), Error> {
    let those = |is: fn(&Health) -> bool| -> Vec<WebhookId> {
        page.iter().filter(|(_, health)| is(health)).map(|(webhook, _)| *webhook).collect()
    };
    // Successes first: where both came, the failure came after.
    let succeeded = those(|health| health.succeeded);
    if !succeeded.is_empty() {
        context.store.note_succeeded(&succeeded).await?;
    }
    let failing = those(|health| health.failing);
    if !failing.is_empty() {
        let after = context.config.webhooks.disable_after;
        let after_ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
        context.store.note_failed(&failing, after_ms).await?;
    }
    Ok(())
}
