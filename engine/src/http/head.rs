//! How a call begins: whose key it comes with, and which of their things it names.

use hyper::HeaderMap;

use super::{ApiError, Gateway, query};
use crate::{
    model::{AccountId, Event, EventId, Webhook, WebhookId},
    store::accounts::{KeyOwner, Scope},
};

impl Gateway {
    /// Whose key a request comes with. A second key is refused rather than ignored.
    pub(super) async fn owner(&self, headers: &HeaderMap) -> Result<KeyOwner, ApiError> {
        let mut keys = headers.get_all("x-api-key").iter();
        match (keys.next(), keys.next()) {
            (Some(key), None) => Ok(self.keys.owner(key.as_bytes()).await?),
            (None, _) => Err(ApiError::unauthorized("send your API key in `x-api-key`")),
            _ => Err(ApiError::unauthorized("send one `x-api-key` only")),
        }
    }

    /// As [`owner`](Gateway::owner), for a key that may do more than send events.
    pub(super) async fn manager(&self, headers: &HeaderMap) -> Result<KeyOwner, ApiError> {
        let owner = self.owner(headers).await?;
        match owner.scope {
            Scope::Manage => Ok(owner),
            Scope::Send => Err(ApiError::forbidden("this API key may only send events")),
        }
    }

    /// The account that manages, and the id in the path. Whether that is theirs is for the statement that follows to say.
    pub(super) async fn named<T>(
        &self,
        headers: &HeaderMap,
        id: &str,
        kind: fn(i64) -> T,
    ) -> Result<(AccountId, T), ApiError> {
        let owner = self.manager(headers).await?;
        Ok((owner.account, kind(query::id(id)?)))
    }

    /// The webhook that a path names, paused and disabled ones too.
    ///
    /// # Errors
    /// 404 also when it is another account's, or deleted.
    pub(super) async fn webhook(&self, headers: &HeaderMap, id: &str) -> Result<Webhook, ApiError> {
        let (account, id) = self.named(headers, id, WebhookId).await?;
        self.store.webhook_to_call(account, id).await?.ok_or_else(|| ApiError::not_found("webhook"))
    }

    /// The event that a path names.
    ///
    /// # Errors
    /// 404 also when it is another account's.
    pub(super) async fn event(&self, headers: &HeaderMap, id: &str) -> Result<Event, ApiError> {
        let (account, id) = self.named(headers, id, EventId).await?;
        self.store.event(account, id).await?.ok_or_else(|| ApiError::not_found("event"))
    }
}
