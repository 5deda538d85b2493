//! Settings of Postgres and Redis under which a promise would be a lie. A start refuses them, unless it was told otherwise.

use crate::{
    store::{self, Store},
    stream::{self, Redis},
};

/// Why a start was refused: one sentence for each setting.
///
/// # Errors
/// When Postgres cannot be asked.
pub(super) async fn objections(store: &Store, redis: &Redis) -> Result<Vec<String>, store::Error> {
    let mut found: Vec<String> = Vec::new();
    let settings = store.durability().await?;
    let mut must = |name: &str, value: &str, good: bool, why: &str| {
        if !good {
            found.push(format!("Postgres has {name} = {value}: {why}"));
        }
    };
    let committed = "what was committed, and answered with 201, can be lost in a crash";
    must("fsync", &settings.fsync, settings.fsync == "on", committed);
    must("synchronous_commit", &settings.synchronous_commit, settings.synchronous_commit != "off", committed);
    let text = "payloads are UTF-8 and would be stored as something else";
    must("server_encoding", &settings.encoding, settings.encoding == "UTF8", text);
    // An absent Redis is looked at by nobody; it is only an index, and a rebuild costs time and no event.
    match redis.eviction().await {
        Ok(Some(policy)) => found.push(format!(
            "Redis has maxmemory-policy = {policy}: it would throw streams away to make room, and rebuild them for ever"
        )),
        Ok(None) | Err(stream::Error::Silent) => {}
        Err(error) => tracing::debug!(error = crate::chain(&error), "Redis not asked for its settings"),
    }
    Ok(found)
}
