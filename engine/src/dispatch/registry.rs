//! Which webhooks an account has, in memory. An entry says which configuration its insert saw; a registry that
//! knows an older one catches up before it fans out, so a webhook registered just before is never missed.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use crate::{
    deliver::Target,
    model::{AccountId, Webhook, WebhookId},
    store::{Error, Store},
};

/// Accounts kept; the least recently used go first.
const ACCOUNTS_MAX: NonZeroUsize = NonZeroUsize::new(20_000).unwrap();

/// The webhooks of one account.
pub(super) type Webhooks = Arc<Vec<Arc<Target>>>;

/// A cache of accounts that is never older than the version it names.
pub struct Registry {
    store: Store,
    inner: Mutex<Inner>,
    /// One catch-up at a time; the others wait for its result.
    catching_up: tokio::sync::Mutex<()>,
}

struct Inner {
    version: i64,
    accounts: LruCache<AccountId, Webhooks>,
}

impl Registry {
    pub fn new(store: Store) -> Registry {
        Registry {
            store,
            inner: Mutex::new(Inner { version: 0, accounts: LruCache::new(ACCOUNTS_MAX) }),
            catching_up: tokio::sync::Mutex::new(()),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what changed, so that the registry knows at least `version`.
    pub async fn catch_up(&self, version: i64) -> Result<(), Error> {
        if self.inner().version >= version {
            return Ok(());
        }
        let _one = self.catching_up.lock().await;
        let known = self.inner().version;
        if known >= version {
            return Ok(());
        }
        self.refresh(known).await
    }

    /// Forgets what changed since the last look, whatever that was.
    pub async fn poll(&self) -> Result<(), Error> {
        let _one = self.catching_up.lock().await;
        let known = self.inner().version;
        self.refresh(known).await
    }

    async fn refresh(&self, known: i64) -> Result<(), Error> {
        // Nothing is cached before the first look, so nothing can be stale.
        let since = if known == 0 { i64::MAX } else { known };
        let (now, changed) = self.store.changed_accounts(since).await?;
        let mut inner = self.inner();
        for account in changed {
            inner.accounts.pop(&account);
        }
        inner.version = inner.version.max(now);
        Ok(())
    }

    /// The webhooks of these accounts, in the same order. Unknown accounts have none.
    pub(super) async fn webhooks(&self, accounts: &[AccountId]) -> Result<Vec<Webhooks>, Error> {
        let mut found: Vec<Option<Webhooks>> = {
            let mut inner = self.inner();
            accounts.iter().map(|a| inner.accounts.get(a).cloned()).collect()
        };
        let missing: Vec<AccountId> =
            accounts.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(a, _)| *a).collect();
        if !missing.is_empty() {
            let loaded = self.load(&missing).await?;
            for (account, slot) in accounts.iter().zip(&mut found) {
                if slot.is_none() {
                    *slot = loaded.iter().find(|(a, _)| a == account).map(|(_, w)| w.clone());
                }
            }
        }
        Ok(found.into_iter().map(Option::unwrap_or_default).collect())
    }

    async fn load(&self, accounts: &[AccountId]) -> Result<Vec<(AccountId, Webhooks)>, Error> {
        // A change that commits while we read has a higher version than ours, and is seen at the next look.
        let before = self.inner().version;
        let mut rows = self.store.webhooks_of(accounts).await?;
        let mut loaded = Vec::with_capacity(accounts.len());
        for account in accounts {
            let theirs = rows.extract_if(.., |w| w.account == *account);
            let theirs = theirs.inspect(tell_of_secret);
            let targets: Vec<Arc<Target>> = theirs.filter_map(Target::new).map(Arc::new).collect();
            loaded.push((*account, Arc::new(targets)));
        }
        let mut inner = self.inner();
        // If somebody caught up meanwhile, what we read may be what it just forgot; and before the first look
        // nothing would ever make us forget.
        if before != 0 && inner.version == before {
            for (account, webhooks) in &loaded {
                inner.accounts.put(*account, webhooks.clone());
            }
        }
        Ok(loaded)
    }

    /// One webhook of an account.
    pub async fn webhook(&self, account: AccountId, id: WebhookId) -> Result<Option<Arc<Target>>, Error> {
        let webhooks = self.webhooks(&[account]).await?;
        Ok(webhooks[0].iter().find(|t| t.webhook.id == id).cloned())
    }
}

/// Says once for each time a webhook is loaded what its failed attempts cannot say to an operator.
fn tell_of_secret(webhook: &Webhook) {
    if webhook.secret.is_none() {
        let webhook = webhook.id;
        crate::logs::error_seldom!(%webhook, "secret not readable, deliveries fail: EVENTPULSE_SECRETS_KEY lacks its key");
    }
}
