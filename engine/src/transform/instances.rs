//! Instances of large modules that a thread keeps for their next call: a language's runtime takes longer to begin than to run.
//!
//! Only the same version of the same webhook gets one again, and only for so long: such guests leak, and one that failed may
//! have been left in any state.

use std::time::{Duration, Instant};

use super::{Hash, engines::LIVE_MAX};
use crate::model::WebhookId;

/// After that an instance gives its memory back.
pub(super) const IDLE: Duration = Duration::from_secs(30);

pub(super) type Owner = (WebhookId, i32, Hash);

struct Kept<I> {
    owner: Owner,
    instance: I,
    calls: u32,
    used: Instant,
}

/// The last used last.
pub(super) struct Instances<I> {
    kept: Vec<Kept<I>>,
    reuse_max: u32,
}

impl<I> Instances<I> {
    pub(super) fn new(reuse_max: u32) -> Instances<I> {
        Instances { kept: Vec::new(), reuse_max }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// An instance with how often it was called.
    pub(super) fn take(&mut self, owner: &Owner) -> Option<(I, u32)> {
        let at = self.kept.iter().position(|kept| kept.owner == *owner)?;
        let kept = self.kept.remove(at);
        Some((kept.instance, kept.calls))
    }

    /// After a call that went well.
    pub(super) fn keep(&mut self, owner: Owner, instance: I, calls: u32) {
        if calls >= self.reuse_max {
            return;
        }
        if self.kept.len() >= LIVE_MAX {
            self.kept.remove(0);
        }
        self.kept.push(Kept { owner, instance, calls, used: Instant::now() });
    }

    pub(super) fn drop_idle(&mut self) {
        self.kept.retain(|kept| kept.used.elapsed() < IDLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: Hash = [7; 32];

    fn owner(webhook: i64, version: i32) -> Owner {
        (WebhookId(webhook), version, HASH)
    }

    #[test]
    fn only_the_owner_gets_an_instance_again() {
        let mut instances = Instances::new(256);
        instances.keep(owner(1, 1), "one", 3);
        for other in [owner(1, 2), owner(2, 1), (WebhookId(1), 1, [8; 32])] {
            assert_eq!(instances.take(&other), None);
        }
        assert_eq!(instances.take(&owner(1, 1)), Some(("one", 3)));
        // It is in use now.
        assert_eq!(instances.take(&owner(1, 1)), None);
    }

    #[test]
    fn an_instance_ends_after_its_last_call() {
        let mut instances = Instances::new(3);
        instances.keep(owner(1, 1), "one", 2);
        assert!(instances.take(&owner(1, 1)).is_some());
        instances.keep(owner(1, 1), "one", 3);
        assert!(instances.is_empty());
    }

    #[test]
    fn few_are_kept_and_not_for_long() {
        let mut instances = Instances::new(256);
        for webhook in 0..5 {
            instances.keep(owner(webhook, 1), webhook, 1);
        }
        assert_eq!(instances.kept.len(), LIVE_MAX);
        assert!(instances.take(&owner(0, 1)).is_none());
        assert!(instances.take(&owner(4, 1)).is_some());
        instances.kept[0].used = Instant::now().checked_sub(IDLE).expect("the machine runs longer");
        instances.drop_idle();
        assert!(instances.is_empty());
    }
}
