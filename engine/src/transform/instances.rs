//! Instances of large modules that a thread keeps for their next call: a language's runtime takes longer to begin than to run.
//!
//! Only the same version of the same webhook gets one again, and only for so long: such guests leak, and one that failed may
//! have been left in any state.

use std::time::{Duration, Instant};

use super::{Hash, abi::Instance, engines::LIVE_MAX};
use crate::model::WebhookId;

/// After that an instance gives its memory back.
pub(super) const IDLE: Duration = Duration::from_secs(30);

pub(super) type Owner = (WebhookId, i32, Hash);

struct Kept {
    owner: Owner,
    instance: Instance,
    calls: u32,
    used: Instant,
}

/// The last used last.
pub(super) struct Instances {
    kept: Vec<Kept>,
    reuse_max: u32,
}

impl Instances {
    pub(super) fn new(reuse_max: u32) -> Instances {
        Instances { kept: Vec::new(), reuse_max }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// An instance with how often it was called.
    pub(super) fn take(&mut self, owner: &Owner) -> Option<(Instance, u32)> {
        let at = self.kept.iter().position(|kept| kept.owner == *owner)?;
        let kept = self.kept.remove(at);
        Some((kept.instance, kept.calls))
    }

    /// After a call that went well.
    pub(super) fn keep(&mut self, owner: Owner, instance: Instance, calls: u32) {
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
