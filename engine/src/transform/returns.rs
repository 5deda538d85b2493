//! The way back from the threads that run modules to the one that waits for them. Each wake of another thread is a system call, and
//! calls take microseconds: so what is ready comes many at a time, and one task of the waiting thread hands it out.

use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::Called;

/// Outcomes that come together.
const BUNDLE_MAX: usize = 16;

/// Bundles on the way. When they are as many, outcomes go one by one, as without this.
const BUNDLES_MAX: usize = 64;

type Done = (oneshot::Sender<Called>, Called);

/// Hands outcomes out in the runtime in which it was started.
#[derive(Clone)]
pub struct Returns(mpsc::Sender<Vec<Done>>);

impl Returns {
    /// Its task ends with the last copy of this.
    pub fn start() -> Returns {
        let (sender, mut receiver) = mpsc::channel(BUNDLES_MAX);
        tokio::spawn(async move {
            while let Some(bundle) = receiver.recv().await {
                hand_out(bundle);
            }
        });
        Returns(sender)
    }
}

fn hand_out(bundle: Vec<Done>) {
    for (reply, called) in bundle {
        // Who waited may have gone.
        let _ = reply.send(called);
    }
}

/// Where the outcome of one call goes.
pub(super) struct Reply {
    pub(super) to: oneshot::Sender<Called>,
    /// None for one who wants it at once.
    pub(super) by: Option<Returns>,
}

impl Reply {
    /// Whether nobody waits for it any more.
    pub(super) fn is_closed(&self) -> bool {
        self.to.is_closed()
    }
}

/// What a thread has made ready and not sent yet. Dropped, it is sent.
#[derive(Default)]
pub(super) struct Ready {
    by: Option<Returns>,
    bundle: Vec<Done>,
}

impl Ready {
    pub(super) fn is_full(&self) -> bool {
        self.bundle.len() >= BUNDLE_MAX
    }

    pub(super) fn push(&mut self, reply: Reply, called: Called) {
        let Some(by) = reply.by else {
            let _ = reply.to.send(called);
            return;
        };
        if self.by.as_ref().is_some_and(|before| !before.0.same_channel(&by.0)) {
            self.send();
        }
        self.by = Some(by);
        self.bundle.push((reply.to, called));
    }

    pub(super) fn send(&mut self) {
        let bundle = std::mem::take(&mut self.bundle);
        if let Some(by) = self.by.take()
            && let Err(TrySendError::Full(bundle) | TrySendError::Closed(bundle)) = by.0.try_send(bundle)
        {
            hand_out(bundle);
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.send();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn called(memory: usize) -> Called {
        let result = Ok(super::super::Outcome::Unchanged);
        Called { result, log: Vec::new(), cpu: Duration::ZERO, memory }
    }

    #[tokio::test]
    async fn each_outcome_goes_to_who_waits_for_it() {
        let (first, second) = (Returns::start(), Returns::start());
        let mut ready = Ready::default();
        let mut waiting = Vec::new();
        for n in 0..40 {
            let (to, outcome) = oneshot::channel();
            let by = [None, Some(first.clone()), Some(second.clone())][n / 3 % 3].clone();
            ready.push(Reply { to, by }, called(n));
            waiting.push(outcome);
        }
        drop(ready);
        for (n, outcome) in waiting.into_iter().enumerate() {
            assert_eq!(outcome.await.unwrap().memory, n);
        }
    }

    #[tokio::test]
    async fn more_than_can_be_on_the_way_get_through() {
        let returns = Returns::start();
        let mut ready = Ready::default();
        let mut waiting = Vec::new();
        // The task has no turn before the first await.
        for n in 0..2 * BUNDLES_MAX {
            let (to, outcome) = oneshot::channel();
            ready.push(Reply { to, by: Some(returns.clone()) }, called(n));
            ready.send();
            waiting.push(outcome);
        }
        for (n, outcome) in waiting.into_iter().enumerate() {
            assert_eq!(outcome.await.unwrap().memory, n);
        }
    }

    #[tokio::test]
    async fn they_wait_for_each_other_until_there_are_many() {
        let returns = Returns::start();
        let mut ready = Ready::default();
        for n in 0..BUNDLE_MAX {
            assert!(!ready.is_full());
            ready.push(Reply { to: oneshot::channel().0, by: Some(returns.clone()) }, called(n));
        }
        assert!(ready.is_full());
        ready.send();
        assert!(!ready.is_full());
    }
}
