//! The dispatcher's role: workers that share the ring of recent commits, the metrics and nothing else. Each has a thread, its
//! own connections, and its own name in the consumer group, just as dispatchers of other processes do.

use std::{net::SocketAddr, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{oneshot, watch};

use super::{Common, Error, Ready, address, bind, thread};
use crate::{config::Config, dispatch, http, stream};

type Ended = oneshot::Receiver<Result<(), Error>>;

/// Runs until `stop`. The first worker is on this thread, with the role's server.
pub(super) async fn run(
    common: Common,
    stream: stream::Handle,
    stop: watch::Receiver<bool>,
    ready: Ready,
) -> Result<(), Error> {
    let metrics = common.metrics.clone();
    let port = common.config.http.dispatcher_port;
    let place = SocketAddr::new(common.config.http.listen, port);
    let server = bind(&common.config.http, place, metrics::Gauge::noop(), common.stopping.clone())?;
    let readiness = common.readiness("dispatcher-worker", true)?;
    let workers = common.config.dispatch.workers();
    let config = Arc::new(share(&common.config, workers));
    let mut others = FuturesUnordered::new();
    for worker in 1..workers {
        let parts = parts(&common, &config, &stream, worker)?;
        let stop = stop.clone();
        others.push(thread("dispatcher", move || other(parts, stop))?);
    }
    let first = dispatch::Dispatcher::start(parts(&common, &config, &stream, 0)?, stop.clone())?;
    let _ = ready.send((address(&server, port)?, None));
    let fault = tokio::select! {
        biased;
        () = server.run(Arc::new(http::Dispatcher { readiness, metrics }), stop) => None,
        error = fault(&mut others) => Some(error),
    };
    if let Some(error) = fault {
        return Err(error);
    }
    first.drain().await;
    while let Some(ended) = others.next().await {
        ended.unwrap_or(Err(Error::Ended("dispatcher")))?;
    }
    Ok(())
}

/// Each worker's part of what one process may hold.
fn share(config: &Config, workers: usize) -> Config {
    let mut config = config.clone();
    for bound in [
        &mut config.dispatch.held_max,
        &mut config.dispatch.held_bytes_max,
        &mut config.dispatch.retries_held_max,
        &mut config.lane.queue_max,
        &mut config.lane.deferred_max,
        &mut config.deliver.idle_max,
    ] {
        *bound = bound.div_ceil(workers);
    }
    config
}

fn parts(
    common: &Common,
    config: &Arc<Config>,
    stream: &stream::Handle,
    worker: usize,
) -> Result<dispatch::Parts, Error> {
    Ok(dispatch::Parts {
        config: config.clone(),
        store: common.store(),
        redis: common.redis.clone(),
        keys: common.keys.clone(),
        gate: common.gate.clone(),
        stream: stream.clone(),
        instance: common.instance,
        worker,
        ring: common.ring.clone(),
        transforms: common.transforms.clone(),
        tracer: common.tracer.clone(),
        metrics: common.metrics.clone(),
    })
}

async fn other(parts: dispatch::Parts, mut stop: watch::Receiver<bool>) -> Result<(), Error> {
    let dispatcher = dispatch::Dispatcher::start(parts, stop.clone())?;
    crate::stopped(&mut stop).await;
    dispatcher.drain().await;
    Ok(())
}

/// Ends when a worker does although nobody told it to.
async fn fault(others: &mut FuturesUnordered<Ended>) -> Error {
    match others.next().await {
        Some(ended) => {
            ended.unwrap_or(Err(Error::Ended("dispatcher"))).err().unwrap_or(Error::Ended("dispatcher"))
        }
        None => std::future::pending().await,
    }
}
