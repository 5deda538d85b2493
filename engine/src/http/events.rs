//! `POST /send-event` and `GET /events`.

use hyper::{Request, Response, StatusCode, body::Incoming};

use super::{
    ApiError, Connection, Gateway, body, query,
    reply::{self, Body},
};
use crate::{
    ingest::{self, Draft},
    model::{Event, EventId},
};

pub(super) async fn send(
    gateway: &Gateway,
    connection: &Connection,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let owner = gateway.owner(request.headers()).await?;
    connection.pace(owner.account).await;
    let http = &gateway.config.http;
    let body = body::read_json(request, http.body_bytes_max, http.body_timeout).await?;
    let draft = Draft::parse(&body)?;
    let (kind, payload) = (draft.kind.clone(), draft.payload.clone());
    // A full queue may hold one batch that takes its whole time before ours does.
    let patience = gateway.config.ingest.commit_timeout * 2;
    let receipt = tokio::time::timeout(patience, gateway.queue.submit(owner.account, draft))
        .await
        .unwrap_or(Err(ingest::Error::Late))
        .inspect_err(|error| connection.note(owner.account, error))?;
    let event =
        Event { id: receipt.id, account: owner.account, kind, payload, created_at: receipt.created_at };
    let mut out = Vec::with_capacity(event.payload.len() + event.kind.len() + 128);
    out.extend_from_slice(b"{\"ok\":true,\"event\":");
    event.write_json(&mut out);
    out.push(b'}');
    Ok(reply::json(StatusCode::CREATED, out.into()))
}

pub(super) async fn list(gateway: &Gateway, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let owner = gateway.manager(request.headers()).await?;
    let page = query::page(request.uri().query())?;
    let events = gateway.store.list_events(owner.account, EventId(page.before), page.limit).await?;
    let mut out = b"{\"ok\":true,\"events\":[".to_vec();
    for (i, event) in events.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        event.write_json(&mut out);
    }
    out.extend_from_slice(b"]}");
    Ok(reply::json(StatusCode::OK, out.into()))
}
