//! What runs beside the roles, on a thread of its own: beats, marks, the sweep, the upkeep, and compilations that others left.

use std::time::Duration;

use tokio::sync::watch;

use super::{BEAT_PATIENCE, Common, Error};
use crate::{
    compile::Takeover,
    config::Roles,
    ingest::marks,
    recover::{
        backlog::Cap,
        depths::Depths,
        rebuild::Rebuild,
        retention::Retention,
        sweep::Sweep,
        takeover::Keeper,
        upkeep::{OldLetters, Upkeep},
    },
    retry::schedule::Policy,
    store::{Link, Store},
    stream::{self, consumer::Claims, due::Due, epoch::Epochs},
};

/// Starts all of it in the current runtime.
///
/// # Errors
/// When the Redis URL cannot be used.
pub(super) fn start(
    common: &Common,
    store: &Store,
    stream: &stream::Handle,
    roles: Roles,
    stop: &watch::Sender<bool>,
) -> Result<Vec<(&'static str, tokio::task::JoinHandle<()>)>, Error> {
    let (config, metrics) = (&common.config, &common.metrics);
    let keeper = Keeper {
        link: Link::new(store.address().clone(), BEAT_PATIENCE),
        store: store.clone(),
        stream: stream.clone(),
        me: common.instance,
        roles: roles.name(),
        dead_after_beats: config.recover.dead_after_beats,
        metrics: metrics.clone(),
    };
    let patience = Duration::from_secs(30);
    let link = || Link::new(store.address().clone(), patience);
    let epochs = Epochs::new(common.redis.commands()?, common.keys.clone(), common.identity.history);
    let rebuild = Rebuild {
        store: store.clone(),
        lock: link(),
        epochs: epochs.clone(),
        claims: Claims::new(common.redis.commands()?, common.keys.clone(), "rebuild".to_owned()),
        stream: stream.clone(),
        gate: common.gate.clone(),
        me: common.instance,
        hold: config.dispatch.hold,
        told: 0,
        opened: false,
        rebuilds: 0,
        metrics: metrics.clone(),
    };
    let sweep = Sweep {
        store: store.clone(),
        lock: link(),
        claims: Claims::new(common.redis.commands()?, common.keys.clone(), "sweep".to_owned()),
        epochs,
        due: Due::new(common.redis.commands()?, common.keys.clone(), config.retry.due_max),
        gate: common.gate.clone(),
        after: config.recover.sweep_after,
        every: config.recover.sweep_every,
        expiry: Policy::new(&config.retry, config.deliver.timeout).expiry(),
        metrics: metrics.clone(),
    };
    let upkeep = Upkeep {
        store: store.clone(),
        lock: link(),
        stream: stream.clone(),
        me: common.instance,
        every: config.recover.sweep_every,
        disable_after: config.webhooks.disable_after,
        cap: Cap::new(config.lane.backlog_max, config.retry.horizon),
        letters: OldLetters::new(config.dlq.retention),
        retention: Retention::new(config.retention.events),
        rounds: 0,
        metrics: metrics.clone(),
    };
    let takeover =
        Takeover { store: store.clone(), host: common.transforms.clone(), every: config.recover.sweep_every };
    let depths = Depths {
        store: store.clone(),
        stream: stream::depths::Depths::new(common.redis.commands()?, common.keys.clone()),
        every: config.recover.sweep_every,
        worst_max: config.metrics.worst_webhooks,
        metrics: metrics.clone(),
    };
    let every = config.ingest.mark_flush;
    Ok(vec![
        ("keeper", tokio::spawn(keeper.run(stop.subscribe()))),
        ("rebuild", tokio::spawn(rebuild.run(stop.subscribe()))),
        ("sweep", tokio::spawn(sweep.run(stop.subscribe()))),
        ("upkeep", tokio::spawn(upkeep.run(stop.subscribe()))),
        ("depths", tokio::spawn(depths.run(stop.subscribe()))),
        ("compilations", tokio::spawn(takeover.run(stop.subscribe()))),
        ("marks", tokio::spawn(marks::run(stream.clone(), link(), common.instance, every, stop.subscribe()))),
    ])
}
