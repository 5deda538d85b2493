//! `PUT /webhooks/:id/transform`: a new module.

use std::time::Duration;

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use sha2::{Digest, Sha256};

use super::{
    super::{
        ApiError, Gateway,
        body::{self, media_type},
        reply::Body,
    },
    answer_version,
};
use crate::{
    compile::Job,
    store::versions::Upload,
    transform::{CompileError, Hash},
};

/// How long a request waits for its module to be compiled. Most are by then, and their author is told at once what is wrong.
pub(super) const WAIT: Duration = Duration::from_secs(3);

/// Modules from this size on are hashed on a thread beside: 32 MiB take up to a tenth of a second.
const ASIDE_MIN: usize = 256 << 10;

fn needs_wasm(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) {
        Some(kind) if media_type(kind) == b"application/wasm" => Ok(()),
        _ => Err(ApiError::media_type("send the module's bytes with `Content-Type: application/wasm`")),
    }
}

/// Nothing is written before the module is compiled or has taken longer than the request waits, so what is refused at once
/// leaves no trace.
pub(super) async fn upload(
    gateway: &Gateway,
    request: &mut Request<Incoming>,
    id: &str,
) -> Result<Response<Body>, ApiError> {
    let webhook = gateway.webhook(request.headers(), id).await?;
    let (account, webhook) = (webhook.account, webhook.id);
    needs_wasm(request.headers())?;
    let turn = gateway.uploads.turn(account)?;
    let settings = &gateway.config.transform;
    let limits = body::Limits { max: settings.module_bytes_max, ..gateway.limits(account) };
    let body::Body { bytes: wasm, permit } = body::read(request, limits).await?;
    if wasm.is_empty() {
        return Err(ApiError::bad("empty_body", "send the module's bytes"));
    }
    let sha256 = hash(gateway, &wasm).await?;
    let store = &gateway.store;
    if let Some(same) = store.same_upload(webhook, &sha256).await? {
        return answer_version(gateway, account, webhook, same, StatusCode::OK).await;
    }
    let mut compilation = {
        let (host, wasm) = (gateway.transforms.clone(), wasm.clone());
        Box::pin(async move { host.compile(wasm).await })
    };
    let ready = match tokio::time::timeout(WAIT, &mut compilation).await {
        Ok(Ok(_)) => true,
        Ok(Err(CompileError::Rejected(rejected))) => return Err(rejected.into()),
        Ok(Err(CompileError::Failed(why))) => {
            crate::logs::warn_seldom!(%webhook, why, "transform not compiled");
            return Err(ApiError::compiler_unavailable());
        }
        Err(_) => false,
    };
    store.keep_module(&sha256, &wasm).await?;
    let upload = Upload {
        sha256: &sha256,
        size: i32::try_from(wasm.len()).unwrap_or(i32::MAX),
        ready,
        versions_max: settings.versions_max,
    };
    let added = store.add_version(account, webhook, &upload).await??;
    if added.is_new && !ready {
        let job = Job { store: store.clone(), webhook, version: added.version };
        tokio::spawn(async move {
            // Its place and its bytes are taken until the module is compiled.
            let _held = (turn, permit);
            job.see_through(compilation).await;
        });
    }
    let status = if added.is_new { StatusCode::CREATED } else { StatusCode::OK };
    answer_version(gateway, account, webhook, added.version, status).await
}

async fn hash(gateway: &Gateway, wasm: &bytes::Bytes) -> Result<Hash, ApiError> {
    if wasm.len() < ASIDE_MIN {
        return Ok(Sha256::digest(wasm).into());
    }
    let _slot = gateway.parsers.acquire().await.map_err(|_| ApiError::unavailable())?;
    let wasm = wasm.clone();
    let hashed = tokio::task::spawn_blocking(move || Sha256::digest(&wasm).into()).await;
    hashed.map_err(|_| ApiError::unavailable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wasm_is_taken_for_a_module() {
        let is_taken = |kind: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            needs_wasm(&headers).is_ok()
        };
        assert!(is_taken(Some("application/wasm")) && is_taken(Some("Application/Wasm; x=y")));
        for kind in [None, Some(""), Some("application/json"), Some("application/octet-stream")] {
            assert!(!is_taken(kind), "{kind:?}");
        }
    }
}
