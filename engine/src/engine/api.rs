//! The gateway's role: its parts, and the order in which they end.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use super::{Common, Error, Ready, STREAM_PATIENCE, address, front};
use crate::{
    http,
    ingest::{
        Batcher, Bounds, Commits, Counter, Queue, Room,
        keys::{Form, Keys},
    },
    retry::schedule::Policy,
    store::Store,
    stream::{self, Producer, breaker::Breakers, consumer::Claims, due::Due},
};

/// Large bodies parsed at a time, beside the thread that serves.
const PARSERS: usize = 2;

/// Server, key look-ups, batcher, producer.
pub(super) struct Api {
    pub(super) common: Common,
    pub(super) stream: stream::Handle,
    pub(super) producer: Producer,
}

impl Api {
    pub(super) async fn run(self, stop: watch::Receiver<bool>, ready: Ready) -> Result<(), Error> {
        let Api { common, stream, producer } = self;
        let (config, metrics) = (&common.config, &common.metrics);
        let (server, beside) = front::open(&common).await?;
        let store = common.store();
        // The first request should not pay for the first connection.
        store.ping().await?;
        // Connections of their own: slow lists of one tenant must not turn others' keys into refusals.
        let lookups = Store::at(common.address.clone(), 2);
        lookups.ping().await?;
        let form = Form::new(&common.identity.key_secret);
        let (keys, lookup) = Keys::new(form, lookups, config.ingest.keys_max, metrics.clone());
        let bounds = Bounds {
            events_max: config.ingest.queue_events_max,
            bytes_max: config.ingest.queue_bytes_max,
            standing_events_max: config.ingest.standing_events_max,
        };
        let queue = Queue::new(bounds, metrics.clone());
        let commits = Commits {
            address: store.address().clone(),
            stream,
            ring: common.ring.clone(),
            owner: common.instance,
            timeout: config.ingest.commit_timeout,
            metrics: metrics.clone(),
        };
        let batcher = Batcher {
            queue: queue.clone(),
            commits: commits.clone(),
            commits_max: config.ingest.commits_max,
            stagger: config.ingest.commit_stagger,
            batch_events_max: config.ingest.batch_events_max,
            batch_bytes_max: config.ingest.batch_bytes_max,
            metrics: metrics.clone(),
        };
        let (counter, carriers) = Counter::open(config, &commits);
        let gateway = http::Gateway {
            config: config.clone(),
            store,
            keys,
            queue: queue.clone(),
            counter: counter.clone(),
            pacer: http::Pacer::default(),
            room: Room::new(config.http.held_bytes_max, metrics.clone()),
            parsers: Semaphore::new(PARSERS),
            due: Due::new(common.redis.commands()?, common.keys.clone(), config.retry.due_max),
            claims: Claims::new(common.redis.commands()?, common.keys.clone(), "api".to_owned()),
            breakers: Breakers::new(common.redis.commands()?, common.keys.clone()),
            tests: http::TestCalls::new(config, metrics.clone())?,
            transforms: common.transforms.clone(),
            uploads: http::Turns::uploads(metrics),
            dry_runs: http::Turns::dry_runs(metrics),
            readiness: common.readiness("api-gateway", false)?,
            policy: Policy::new(&config.retry, config.deliver.timeout),
            tracer: common.tracer.clone(),
            metrics: metrics.clone(),
        };
        let later = watch::Sender::new(false);
        let lookup = tokio::spawn(lookup.run(later.subscribe()));
        let batcher = tokio::spawn(batcher.run());
        let [small, bulk] = carriers.map(|carrier| tokio::spawn(carrier.run()));
        let producer =
            tokio::spawn(producer.run(common.redis.commands()?, later.subscribe(), STREAM_PATIENCE));
        let _ = ready.send((address(&server, config.http.port)?, beside.address()));
        let beside = tokio::spawn(beside.run(later.subscribe()));
        server.run(Arc::new(gateway), stop).await;
        // In this order nothing that was accepted is left behind: commits first, then their entries.
        queue.close();
        counter.close();
        for commits in [batcher, small, bulk] {
            let _ = commits.await;
        }
        later.send_replace(true);
        let _ = producer.await;
        let _ = lookup.await;
        let _ = beside.await;
        Ok(())
    }
}
