//! The names of our keys.

use crate::model::WebhookId;

/// The one shard of a deployment.
pub const SHARD: u32 = 0;

/// A key in the slot of the shard, which nobody writes: to ask where the slot is.
pub(super) fn any() -> String {
    format!("eventpulse:{{{SHARD}}}")
}

/// The keys of one shard of one deployment.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The stream of batches.
    pub events: String,
    /// The near window of the schedule: a sorted set of `event:webhook`, by the server's time in ms.
    pub due: String,
    /// Consumers by the time of their last beat.
    pub alive: String,
    /// Whether all of these are in order.
    pub epoch: String,
    /// The highest block of event ids that was handed out.
    pub highest: String,
    /// Of members of `due`, how often they were leased since their last outcome.
    pub leased: String,
    /// Events in hand alone, by their batch, and retries in hand alone.
    pub suspects: String,
    lanes: String,
}

impl Keys {
    pub fn new(engine: &str, shard: u32) -> Keys {
        let key = |what| format!("eventpulse:{engine}:{{{shard}}}:{what}");
        Keys {
            events: key("events"),
            due: key("due"),
            alive: key("alive"),
            epoch: key("epoch"),
            highest: key("highest"),
            leased: key("leased"),
            suspects: key("suspects"),
            lanes: key("lane"),
        }
    }

    /// There while a webhook's circuit breaker is open.
    pub fn breaker(&self, webhook: WebhookId) -> String {
        format!("{}:{webhook}:breaker", self.lanes)
    }

    /// There while somebody probes its endpoint.
    pub fn probe(&self, webhook: WebhookId) -> String {
        format!("{}:{webhook}:probe", self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_one_hash_tag() {
        let keys = Keys::new("ab12", 3);
        assert_eq!(keys.events, "eventpulse:ab12:{3}:events");
        assert_ne!(keys.due, Keys::new("cd34", 3).due);
    }
}
