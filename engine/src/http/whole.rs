//! Requests that are accepted whole: `POST /send-events`, and `POST /send-event` with an `Idempotency-Key`.

use std::sync::Arc;

use hyper::{Request, Response, StatusCode, body::Incoming};

use super::{
    ApiError, Connection, Gateway,
    answer::{self, Answer},
    asked::Asked,
    body::{self, Body as Read},
    reply::{self, Body},
    traces,
};
use crate::{
    ingest::{self, Load, Most, Receipts},
    model::AccountId,
    trace,
};

/// None for a request that has no trace.
type Traced = Option<Box<trace::Request>>;

/// Bodies from this size on are read on a thread beside: parsing and hashing 16 MiB takes tens of milliseconds, for
/// which no other request would be answered.
const ASIDE_MIN: usize = 256 << 10;

/// `POST /send-event` with a key.
pub(super) async fn send_one(
    gateway: &Gateway,
    connection: &Connection,
    request: &mut Request<Incoming>,
    account: AccountId,
    asked: &Asked,
    traced: Traced,
) -> Result<Response<Body>, ApiError> {
    body::needs_json(request.headers())?;
    let read = body::read(request, gateway.limits(account)).await?;
    let (load, receipts) = submit(gateway, connection, account, (asked, traced), read, |read| {
        Load::one(read.bytes, read.permit)
    })
    .await?;
    let replayed = receipts.replayed;
    Ok(created(answer::single(load, &receipts, asked.minimal), asked, replayed))
}

/// `POST /send-events`.
pub(super) async fn send_many(
    gateway: &Gateway,
    connection: &Connection,
    request: &mut Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let traced = traces::begin(&gateway.tracer, request.headers());
    let owner = gateway.owner(request.headers()).await?;
    let asked = Asked::of(request.headers())?;
    let format = body::format(request.headers())?;
    let config = &gateway.config;
    let most = Most { events: config.ingest.bulk_events_max, payload_bytes: config.http.body_bytes_max };
    let limits = body::Limits { max: config.ingest.bulk_bytes_max, ..gateway.limits(owner.account) };
    let read = body::read(request, limits).await?;
    let parse = move |read: Read| Load::many(read.bytes, read.permit, format, most);
    let (load, receipts) = submit(gateway, connection, owner.account, (&asked, traced), read, parse).await?;
    let replayed = receipts.replayed;
    Ok(created(Answer::body(load, receipts, asked.minimal), &asked, replayed))
}

fn created(body: Body, asked: &Asked, replayed: bool) -> Response<Body> {
    let mut response = reply::with(StatusCode::CREATED, body);
    asked.tell(response.headers_mut(), replayed);
    response
}

async fn submit(
    gateway: &Gateway,
    connection: &Connection,
    account: AccountId,
    (asked, mut traced): (&Asked, Traced),
    read: Read,
    parse: impl FnOnce(Read) -> Result<Load, ingest::Invalid> + Send + 'static,
) -> Result<(Arc<Load>, Receipts), ApiError> {
    let key = asked.key.clone();
    let aside = read.bytes.len() >= ASIDE_MIN;
    let parse = move || {
        let load = parse(read)?;
        let key = key.map(|key| ingest::key(key.as_bytes(), &load));
        Ok::<_, ingest::Invalid>((Arc::new(load), key))
    };
    let (load, key) = if aside {
        // A few at a time: more would only take the processor from those who commit and deliver.
        let _slot = gateway.parsers.acquire().await.map_err(|_| ApiError::unavailable())?;
        tokio::task::spawn_blocking(parse).await.map_err(|_| ApiError::unavailable())??
    } else {
        parse()?
    };
    // A full queue may hold one transaction that takes its whole time before ours does.
    let patience = gateway.config.ingest.commit_timeout * 2;
    let trace = traces::decide(&mut traced, &gateway.tracer, load.len());
    let submitted = gateway.counter.submit(account, load.clone(), key, trace);
    let receipts = match tokio::time::timeout(patience, submitted).await {
        Ok(Ok(receipts)) => receipts,
        Ok(Err(error)) => {
            connection.refuse(account, &error, &gateway.pacer).await;
            return Err(error.into());
        }
        Err(_) => return Err(ingest::Error::Late.into()),
    };
    gateway.pacer.note_accepted();
    // What was sent before belongs to the trace of that request.
    if let Some(traced) = traced
        && !receipts.replayed
    {
        traced.committed(&gateway.tracer, receipts.id(0), load.len());
    }
    Ok((load, receipts))
}
