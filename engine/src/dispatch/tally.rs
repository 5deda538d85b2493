//! What came of the calls of transforms since Postgres was last told, and how many failed in a row.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::Context;
use crate::{
    model::WebhookId,
    store::transforms::Counts,
    transform::{Called, Outcome},
};

/// Between two reports.
const EVERY: Duration = Duration::from_secs(2);

/// Versions of one statement.
const PAGE: usize = 1000;

#[derive(Default)]
pub(super) struct Tally {
    inner: Mutex<HashMap<(WebhookId, i32), Entry>>,
}

#[derive(Default)]
struct Entry {
    counts: Counts,
    failures: u32,
}

impl Tally {
    fn inner(&self) -> MutexGuard<'_, HashMap<(WebhookId, i32), Entry>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call, and returns how many have failed in a row.
    pub(super) fn note(&self, webhook: WebhookId, version: i32, called: &Called) -> u32 {
        let mut inner = self.inner();
        let Entry { counts, failures } = inner.entry((webhook, version)).or_default();
        counts.calls += 1;
        counts.cpu_us += i64::try_from(called.cpu.as_micros()).unwrap_or(i64::MAX);
        match &called.result {
            Ok(Outcome::Unchanged) => {}
            Ok(Outcome::Payload(_) | Outcome::Body(_)) => counts.changed += 1,
            Ok(Outcome::Drop(_)) => counts.dropped += 1,
            Err(_) => {
                counts.failed += 1;
                *failures = failures.saturating_add(1);
                return *failures;
            }
        }
        *failures = 0;
        0
    }

    /// Counts a version's failures from the beginning.
    pub(super) fn forgive(&self, webhook: WebhookId, version: i32) {
        if let Some(entry) = self.inner().get_mut(&(webhook, version)) {
            entry.failures = 0;
        }
    }

    /// What came since the last time, in one order, so that processes which write the same rows wait for each other and never
    /// in a ring. A version without calls since is forgotten, unless its last call failed.
    fn take(&self) -> Vec<(WebhookId, i32, Counts)> {
        let mut inner = self.inner();
        inner.retain(|_, entry| entry.counts.calls > 0 || entry.failures > 0);
        let mut taken: Vec<_> = inner
            .iter_mut()
            .filter(|(_, entry)| entry.counts.calls > 0)
            .map(|((webhook, version), entry)| (*webhook, *version, std::mem::take(&mut entry.counts)))
            .collect();
        taken.sort_unstable_by_key(|(webhook, version, _)| (*webhook, *version));
        taken
    }

    fn put_back(&self, untold: &[(WebhookId, i32, Counts)]) {
        let mut inner = self.inner();
        for (webhook, version, counts) in untold {
            inner.entry((*webhook, *version)).or_default().counts.add(counts);
        }
    }
}

/// Reports until stopped.
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
    for page in context.transforms.tally.take().chunks(PAGE) {
        if let Err(error) = context.store.add_transform_counts(page).await {
            tracing::debug!(error = crate::chain(&error), "calls of transforms are told later");
            context.transforms.tally.put_back(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::{Failure, Kind};

    fn called(result: Result<Outcome, Failure>) -> Called {
        Called { result, log: Vec::new(), cpu: Duration::from_micros(7), memory: 0 }
    }

    #[test]
    fn failures_count_in_a_row_and_calls_until_they_are_told() {
        let (tally, webhook) = (Tally::default(), WebhookId(1));
        let failure = || Failure { kind: Kind::Error, message: String::new() };
        assert_eq!(tally.note(webhook, 1, &called(Err(failure()))), 1);
        assert_eq!(tally.note(webhook, 1, &called(Err(failure()))), 2);
        assert_eq!(tally.note(webhook, 2, &called(Err(failure()))), 1, "each version by itself");
        assert_eq!(tally.note(webhook, 1, &called(Ok(Outcome::Unchanged))), 0);
        assert_eq!(tally.note(webhook, 1, &called(Ok(Outcome::Drop(String::new())))), 0);
        let told = tally.take();
        let Counts { calls, changed, dropped, failed, cpu_us } = told[0].2;
        assert_eq!((calls, changed, dropped, failed, cpu_us), (4, 0, 1, 2, 28));
        tally.put_back(&told);
        assert_eq!(tally.take().len(), 2);
        assert!(tally.take().is_empty());
        assert_eq!(tally.note(webhook, 2, &called(Err(failure()))), 2, "what fails is remembered");
    }
}
