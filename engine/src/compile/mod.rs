//! Compilations that outlive the request that asked for them.
//!
//! Whoever compiles an uploaded module says so in its row again and again, and writes there what came of it. A crash here loses
//! nothing: another process finds that the row was not renewed and compiles the module itself. It may happen twice; the first
//! to finish is heard.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{
    model::WebhookId,
    store::{Error, Store, modules::Claim},
    transform::{CompileError, Host, Module},
};

/// Between two renewals, and without one for how long a compilation counts as abandoned: Postgres may be away for a while.
const RENEW_EVERY: Duration = Duration::from_secs(5);
const ABANDONED_AFTER_MS: i64 = 30_000;

/// A version in the state `compiling`.
pub struct Job {
    pub store: Store,
    pub webhook: WebhookId,
    pub version: i32,
}

impl Job {
    /// Waits for a compilation and writes what comes of it, unless nobody wants to know any more. What is not the module's fault
    /// leaves the version as it is: it is tried again as one that was abandoned.
    ///
    /// # Cancel safety
    /// A dropped one leaves the version to whoever takes it over.
    pub async fn see_through(self, compilation: impl Future<Output = Result<Arc<Module>, CompileError>>) {
        let Job { store, webhook, version } = self;
        let (id, number) = (webhook, version);
        let outcome = tokio::select! {
            outcome = compilation => outcome,
            () = renew(&store, webhook, version) => return,
        };
        let written = match &outcome {
            Ok(_) => store.compiled(webhook, version, Ok(())).await,
            Err(CompileError::Rejected(rejected)) => {
                let reason = format!("{}: {}", rejected.code, rejected.message);
                store.compiled(webhook, version, Err(&reason)).await
            }
            Err(CompileError::Failed(why)) => {
                tracing::warn!(webhook = %id, version = number, why, "transform not compiled; it will be tried again");
                return;
            }
        };
        match written {
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(webhook = %id, version = number, error = crate::chain(&error), "transform compiled, but not noted");
            }
        }
    }
}

/// Ends when nobody waits for the version any more.
async fn renew(store: &Store, webhook: WebhookId, version: i32) {
    let mut ticks = tokio::time::interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match store.renew_compiling(webhook, version).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(error = crate::chain(&error), "compilation not renewed");
            }
        }
    }
}

/// Compiles what others left, one module at a time.
pub struct Takeover {
    pub store: Store,
    pub host: Arc<Host>,
    pub every: Duration,
}

impl Takeover {
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let rounds = async {
            loop {
                tokio::time::sleep(self.every).await;
                if let Err(error) = self.round().await {
                    tracing::debug!(error = crate::chain(&error), "abandoned compilations wait for Postgres");
                }
            }
        };
        tokio::select! {
            () = rounds => {}
            () = crate::stopped(&mut stop) => {}
        }
    }

    async fn round(&self) -> Result<(), Error> {
        while let Some(claim) = self.store.claim_compiling(ABANDONED_AFTER_MS).await? {
            self.compile(claim).await?;
        }
        Ok(())
    }

    async fn compile(&self, claim: Claim) -> Result<(), Error> {
        let Claim { webhook, version, sha256 } = claim;
        tracing::info!(%webhook, version, "compiling a transform that was abandoned");
        let Some(wasm) = self.store.module(&sha256).await? else {
            self.store.compiled(webhook, version, Err("its module is gone")).await?;
            return Ok(());
        };
        let job = Job { store: self.store.clone(), webhook, version };
        job.see_through(self.host.compile(wasm)).await;
        Ok(())
    }
}
