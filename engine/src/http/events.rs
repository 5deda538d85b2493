//! `POST /send-event` and `GET /events`.

use hyper::{Request, Response, StatusCode, body::Incoming};

use super::{
    ApiError, Connection, Gateway,
    asked::Asked,
    body, query,
    reply::{self, Body},
    traces, whole,
};
use crate::{
    ingest::{self, Draft},
    model::{self, EventId},
};

pub(super) async fn send(
    gateway: &Gateway,
    connection: &Connection,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let mut traced = traces::begin(&gateway.tracer, request.headers());
    let owner = gateway.owner(request.headers()).await?;
    let asked = Asked::of(request.headers())?;
    if asked.key.is_some() {
        // Boxed, because every request carries this future and few need it.
        return Box::pin(whole::send_one(gateway, connection, request, owner.account, &asked, traced)).await;
    }
    let body = body::read_json(request, gateway.limits(owner.account)).await?;
    let draft = Draft::parse(&body.bytes)?;
    let (kind, payload) = (draft.kind.clone(), draft.payload.clone());
    // A full queue may hold one batch that takes its whole time before ours does.
    let patience = gateway.config.ingest.commit_timeout * 2;
    let trace = traces::decide(&mut traced, &gateway.tracer, 1).map(|traced| Box::new(traced.of(0)));
    let submitted = gateway.queue.submit(owner.account, draft, trace);
    let receipt = match tokio::time::timeout(patience, submitted).await {
        Ok(Ok(receipt)) => receipt,
        Ok(Err(error)) => {
            connection.refuse(owner.account, &error, &gateway.pacer).await;
            return Err(error.into());
        }
        Err(_) => return Err(ingest::Error::Late.into()),
    };
    gateway.pacer.note_accepted();
    if let Some(traced) = traced {
        traced.committed(&gateway.tracer, receipt.id, 1);
    }
    let payload = (!asked.minimal).then_some(&payload[..]);
    let mut out = Vec::with_capacity(payload.map_or(0, <[u8]>::len) + kind.len() + 128);
    out.extend_from_slice(b"{\"ok\":true,\"event\":");
    model::write_event(&mut out, receipt.id, &kind, payload, receipt.created_at);
    out.push(b'}');
    let mut response = reply::held(StatusCode::CREATED, out, body.permit);
    if asked.minimal {
        asked.tell(response.headers_mut(), false);
    }
    Ok(response)
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
