//! The host of transforms by itself: modules compiled by the real binary, called within limits, and every way to misbehave.

mod calls;
mod compiling;
mod threads;

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use eventpulse::{
    config,
    metrics::Metrics,
    model::{AccountId, Event, EventId, Timestamp, WebhookId},
    transform::{Called, CompileError, Host, Input, Kind, Module, Outcome, Rejected},
};

/// A host with a cache of its own, which goes with it.
struct Hosted {
    host: Host,
    metrics: Arc<Metrics>,
    settings: config::Transform,
}

impl Hosted {
    fn new(name: &str) -> Hosted {
        Hosted::with(name, |_| {})
    }

    fn with(name: &str, change: impl FnOnce(&mut config::Transform)) -> Hosted {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("transform-host-{}-{name}", std::process::id()));
        let mut settings = config::Transform {
            compiler: Some(env!("CARGO_BIN_EXE_eventpulse").into()),
            cache_folder: folder.to_str().expect("a name in UTF-8").to_owned(),
            ..config::Transform::default()
        };
        change(&mut settings);
        let metrics = Arc::new(Metrics::new());
        let host = Host::new(&settings, metrics.clone()).expect("there is a host");
        Hosted { host, metrics, settings }
    }

    async fn compile(&self, wasm: Vec<u8>) -> Arc<Module> {
        self.host.compile(Bytes::from(wasm)).await.expect("the module compiles")
    }

    async fn refused(&self, wasm: Vec<u8>) -> Rejected {
        match self.host.compile(Bytes::from(wasm)).await {
            Err(CompileError::Rejected(rejected)) => rejected,
            Err(error) => panic!("not the module's fault: {error}"),
            Ok(_) => panic!("it was taken"),
        }
    }

    async fn call(&self, module: &Arc<Module>, payload: &str) -> Called {
        self.host.call(module, input(1, payload)).await
    }

    /// A guest's only call.
    async fn run(&self, wasm: Vec<u8>) -> Called {
        let module = self.compile(wasm).await;
        self.call(&module, PAYLOAD).await
    }

    /// A metric's value, by its name and labels.
    fn count(&self, metric: &str) -> f64 {
        let text = self.metrics.render();
        let line = text.lines().find(|line| line.starts_with(metric) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().expect("a number"))
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.settings.cache_folder);
    }
}

const PAYLOAD: &str = r#"{"amount":1299,"currency":"EUR","note":"ünïcode"}"#;

fn input(id: i64, payload: &str) -> Input {
    of_webhook(WebhookId(3), id, payload)
}

fn of_webhook(webhook: WebhookId, id: i64, payload: &str) -> Input {
    let event = Event {
        id: EventId(id),
        account: AccountId(1),
        kind: "order.created".into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        created_at: Timestamp(1_700_000_000_123),
        trace: None,
    };
    Input { event: Arc::new(event), webhook, version: 1, config: Arc::default() }
}

fn kind(called: &Called) -> Kind {
    called.result.as_ref().expect_err("the call fails").kind
}

fn payload(called: &Called) -> &str {
    match called.result.as_ref().expect("the call succeeds") {
        Outcome::Payload(bytes) => std::str::from_utf8(bytes).expect("text"),
        other => panic!("not a payload but {other:?}"),
    }
}
