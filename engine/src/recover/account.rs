//! Which batches may have deliveries that are neither final nor known not to be owed: by counting, which is a tenth of the cost of
//! comparing and nearly always enough.

use std::collections::{HashMap, HashSet};

use crate::{
    model::{AccountId, Span, Webhook},
    store::{Error, Store},
};

/// What counting found.
pub(super) struct Counted {
    /// Batches whose deliveries have to be looked at one by one.
    pub open: Vec<Span>,
    /// Of the accounts that have events in any of the batches.
    pub webhooks: HashMap<AccountId, Vec<Webhook>>,
}

impl Counted {
    /// Those that an account's event of this type is owed to, in a batch of this version.
    pub(super) fn owed(
        &self,
        account: AccountId,
        kind: &str,
        version: i64,
    ) -> impl Iterator<Item = &Webhook> {
        let theirs = self.webhooks.get(&account).map_or(&[][..], Vec::as_slice);
        theirs.iter().filter(move |webhook| webhook.eligible(kind, version))
    }
}

/// Compares the number of ended deliveries with the number of owed ones.
pub(super) async fn count(store: &Store, spans: &[Span]) -> Result<Counted, Error> {
    let mut counted = Counted { open: Vec::new(), webhooks: HashMap::new() };
    if spans.is_empty() {
        return Ok(counted);
    }
    let kinds = store.kinds_of(spans).await?;
    let finals = store.count_final(spans).await?;
    let accounts: Vec<AccountId> =
        kinds.iter().map(|k| k.account).collect::<HashSet<_>>().into_iter().collect();
    for webhook in store.webhooks_of(&accounts).await? {
        counted.webhooks.entry(webhook.account).or_default().push(webhook);
    }
    // After the webhooks, so that none is newer than its account's version.
    let versions = store.versions_of(&accounts).await?;
    for span in spans {
        let (mut expected, mut changed) = (0, false);
        for group in kinds.iter().filter(|k| k.first == span.first) {
            changed |= versions.get(&group.account).is_some_and(|version| *version > span.version);
            let owed = counted.owed(group.account, &group.kind, span.version).count();
            expected += group.events * i64::try_from(owed).unwrap_or(i64::MAX);
        }
        // Where webhooks changed since, an outcome that is not expected any more would stand for one that is missing.
        if changed || finals.get(&span.first).copied().unwrap_or(0) != expected {
            counted.open.push(*span);
        }
    }
    Ok(counted)
}
