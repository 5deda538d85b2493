//! What is remembered of a connection from one request to the next.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{ingest, model::AccountId};

/// A refused client's next event on the same connection is not looked at before. The refusal itself is given at once
/// and asks for a second's patience; a client that has none would otherwise spend on refusals the processor time
/// that accepted events need. One connection can draw ten refusals a second in place of thousands.
const PACE: Duration = Duration::from_millis(100);

/// One connection of a client, or of a proxy with many clients behind it.
pub struct Connection {
    asked: AtomicBool,
    refused: Mutex<Option<Refused>>,
}

#[derive(Clone, Copy)]
struct Refused {
    /// None when the queue was full for everybody. A proxy's connection serves other accounts meanwhile.
    account: Option<AccountId>,
    until: Instant,
}

impl Connection {
    pub(super) fn new() -> Connection {
        Connection { asked: AtomicBool::new(false), refused: Mutex::new(None) }
    }

    /// Notes that a request has come.
    pub(super) fn ask(&self) {
        self.asked.store(true, Relaxed);
    }

    /// Ends `after` that time if no request has come by then, and else never.
    pub(super) async fn never_asked(&self, after: Duration) {
        tokio::time::sleep(after).await;
        if self.asked.load(Relaxed) {
            std::future::pending().await
        }
    }

    fn refusal(&self) -> MutexGuard<'_, Option<Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a refusal, if it is one that another request soon after would meet again.
    pub(super) fn note(&self, account: AccountId, error: &ingest::Error) {
        let account = match error {
            ingest::Error::Full => None,
            ingest::Error::Share => Some(account),
            _ => return,
        };
        *self.refusal() = Some(Refused { account, until: Instant::now() + PACE });
    }

    /// Waits until an event of `account` may be looked at, which is mostly at once.
    pub(super) async fn pace(&self, account: AccountId) {
        let refused = *self.refusal();
        if let Some(refused) = refused.filter(|r| r.account.is_none_or(|whose| whose == account)) {
            // Boxed, because every request carries this future and hardly any needs it.
            Box::pin(tokio::time::sleep_until(refused.until)).await;
            *self.refusal() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_was_refused_waits_and_only_once() {
        let connection = Connection::new();
        let start = Instant::now();
        connection.pace(AccountId(1)).await;
        connection.note(AccountId(1), &ingest::Error::Share);
        connection.pace(AccountId(2)).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        connection.pace(AccountId(1)).await;
        connection.pace(AccountId(1)).await;
        assert_eq!(start.elapsed(), PACE);
        connection.note(AccountId(1), &ingest::Error::Full);
        connection.pace(AccountId(2)).await;
        assert_eq!(start.elapsed(), PACE * 2, "a full queue is everybody's");
        connection.note(AccountId(1), &ingest::Error::Late);
        connection.pace(AccountId(1)).await;
        assert_eq!(start.elapsed(), PACE * 2, "a commit that came late says nothing of the next");
    }
}
