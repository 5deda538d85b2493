//! What is remembered of a connection from one request to the next.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::pacer::Pacer;
use crate::{ingest, model::AccountId};

/// A second refusal on a connection comes no sooner after the first. The first is given at once and asks for a second's
/// patience; a client that has none would otherwise spend on refusals the processor time that accepted events need. One
/// connection can draw ten refusals a second in place of thousands. What can be accepted is never held up by it.
const PACE: Duration = Duration::from_millis(100);

/// And no later than that, however many there are: what a refusal asks for in `Retry-After`.
const PACE_MAX: Duration = Duration::from_secs(1);

/// One connection of a client, or of a proxy with many clients behind it.
pub struct Connection {
    asked: AtomicBool,
    refused: Mutex<Option<Refused>>,
}

#[derive(Clone, Copy)]
struct Refused {
    /// None when the queue was full for everybody. A proxy's connection serves other accounts as before.
    account: Option<AccountId>,
    at: Instant,
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

    /// Waits until a refusal of `account` may be told, which for the first is at once. The others are told one after the other, so
    /// that all of them together are a part of what is accepted.
    pub(super) async fn refuse(&self, account: AccountId, error: &ingest::Error, pacer: &Pacer) {
        let whose = match error {
            ingest::Error::Full => None,
            ingest::Error::Share => Some(account),
            // These took their time already.
            _ => return,
        };
        let before = *self.refusal();
        let before = before.filter(|b| b.account.is_none_or(|other| other == account));
        if let Some(Refused { at, .. }) = before.filter(|b| b.at.elapsed() < PACE_MAX) {
            // Boxed, because every request carries this future and hardly any needs it.
            Box::pin(async {
                tokio::time::sleep_until(at + PACE).await;
                tokio::time::sleep_until(pacer.turn(at + PACE_MAX)).await;
            })
            .await;
        }
        *self.refusal() = Some(Refused { account: whose, at: Instant::now() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_refusal_is_told_at_once_and_the_next_are_paced() {
        let (connection, pacer) = (Connection::new(), Pacer::default());
        let start = Instant::now();
        connection.refuse(AccountId(1), &ingest::Error::Share, &pacer).await;
        connection.refuse(AccountId(1), &ingest::Error::Late, &pacer).await;
        connection.refuse(AccountId(2), &ingest::Error::Share, &pacer).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "one account's refusal is not another's");
        connection.refuse(AccountId(2), &ingest::Error::Full, &pacer).await;
        assert_eq!(start.elapsed(), PACE);
        connection.refuse(AccountId(1), &ingest::Error::Full, &pacer).await;
        assert_eq!(start.elapsed(), PACE * 2, "a full queue is everybody's");
        tokio::time::sleep(PACE).await;
        connection.refuse(AccountId(1), &ingest::Error::Full, &pacer).await;
        assert_eq!(start.elapsed(), PACE * 3, "after a while it is told at once again");
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_do_not_wait_wait_for_each_other_and_a_second_at_most() {
        let pacer = Pacer::default();
        let start = Instant::now();
        let connections: Vec<Connection> = (0..3000).map(|_| Connection::new()).collect();
        let refuse = async |connection: &Connection| {
            connection.refuse(AccountId(1), &ingest::Error::Full, &pacer).await;
            start.elapsed()
        };
        let all = || futures_util::future::join_all(connections.iter().map(refuse));
        assert!(all().await.iter().all(|at| at.is_zero()), "the first of each");
        let mut told = all().await;
        told.sort_unstable();
        assert_eq!(told[0], PACE);
        assert_eq!(told.iter().filter(|at| **at < PACE_MAX).count(), 900, "a thousand a second");
        assert_eq!(told[2999], PACE_MAX);
    }
}
