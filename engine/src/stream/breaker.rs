//! What dispatchers tell each other of circuit breakers: which are open, and who is probing.

use redis::Script;

use super::{Connection, Error, Keys};
use crate::model::WebhookId;

/// A breaker is closed for all when nobody has said for so long that it is open.
const OPEN_MS: u64 = 600_000;

/// What a dispatcher that wants to probe is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is ours alone, until the lease ends.
    Probe,
    /// Another's probe is under way.
    Wait,
    /// Another's probe succeeded.
    Closed,
}

/// The breakers of one deployment, as Redis knows them. Losing it costs a few failures until they are open again.
#[derive(Clone)]
pub struct Breakers {
    connection: Connection,
    keys: Keys,
}

impl Breakers {
    pub fn new(connection: Connection, keys: Keys) -> Breakers {
        Breakers { connection, keys }
    }

    /// A breaker opened, or stays open after a probe.
    pub async fn open(&mut self, webhook: WebhookId) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.cmd("SET").arg(self.keys.breaker(webhook)).arg(1).arg("PX").arg(OPEN_MS).ignore();
        pipe.cmd("DEL").arg(self.keys.probe(webhook)).ignore();
        Ok(pipe.query_async::<()>(&mut self.connection).await?)
    }

    pub async fn close(&mut self, webhook: WebhookId) -> Result<(), Error> {
        let keys = [self.keys.breaker(webhook), self.keys.probe(webhook)];
        Ok(redis::cmd("DEL").arg(&keys).query_async::<()>(&mut self.connection).await?)
    }

    /// Asks to send the one probe there may be, for `lease_ms`.
    pub async fn turn(&mut self, webhook: WebhookId, lease_ms: i64) -> Result<Turn, Error> {
        let said: i64 = Script::new(include_str!("scripts/probe.lua"))
            .key(self.keys.breaker(webhook))
            .key(self.keys.probe(webhook))
            .arg(lease_ms)
            .invoke_async(&mut self.connection)
            .await?;
        Ok(match said {
            0 => Turn::Closed,
            1 => Turn::Probe,
            _ => Turn::Wait,
        })
    }

    /// Which of these are open, in the same order.
    pub async fn are_open(&mut self, webhooks: &[WebhookId]) -> Result<Vec<bool>, Error> {
        if webhooks.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> = webhooks.iter().map(|webhook| self.keys.breaker(*webhook)).collect();
        let found: Vec<Option<u8>> = redis::cmd("MGET").arg(keys).query_async(&mut self.connection).await?;
        Ok(found.iter().map(Option::is_some).collect())
    }
}
