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

/// A second refusal on a connection comes no sooner after the first. The first is given at once and asks for a second's
/// patience; a client that has none would otherwise spend on refusals the processor time that accepted events need. One
/// connection can draw ten refusals a second in place of thousands. What can be accepted is never held up by it.
const PACE: Duration = Duration::from_millis(100);

/// One connection of a client, or of a proxy with many clients behind it.
pub struct Connection {
    asked: AtomicBool,
    refused: Mutex<Option<Refused>>,
}

#[derive(Clone, Copy)]
struct Refused {
    /// None when the queue was full for everybody. A proxy's connection serves other accounts as before.
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

    /// Waits until a refusal of `account` may be told, which for the first is at once.
    pub(super) async fn refuse(&self, account: AccountId, error: &ingest::Error) {
        let whose = match error {
            ingest::Error::Full => None,
            ingest::Error::Share => Some(account),
            // These took their time already.
            _ => return,
        };
        let before = *self.refusal();
        if let Some(before) = before.filter(|b| b.account.is_none_or(|other| other == account)) {
            // Boxed, because every request carries this future and hardly any needs it.
            Box::pin(tokio::time::sleep_until(before.until)).await;
        }
        *self.refusal() = Some(Refused { account: whose, until: Instant::now() + PACE });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_refusal_is_told_at_once_and_the_next_are_paced() {
        let connection = Connection::new();
        let start = Instant::now();
        connection.refuse(AccountId(1), &ingest::Error::Share).await;
        connection.refuse(AccountId(1), &ingest::Error::Late).await;
        connection.refuse(AccountId(2), &ingest::Error::Share).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "one account's refusal is not another's");
        connection.refuse(AccountId(2), &ingest::Error::Full).await;
        assert_eq!(start.elapsed(), PACE);
        connection.refuse(AccountId(1), &ingest::Error::Full).await;
        assert_eq!(start.elapsed(), PACE * 2, "a full queue is everybody's");
        tokio::time::sleep(PACE).await;
        connection.refuse(AccountId(1), &ingest::Error::Full).await;
        assert_eq!(start.elapsed(), PACE * 3, "after a while it is told at once again");
    }
}
