//! How each fault is injected, and healed: a function returns when the cause is gone, and what it caused may go on.

mod clock;
mod postgres;
mod process;
mod receiver;
mod redis;
mod wire;

use crate::{fault::Fault, rng::Rng, site::Site};

pub(crate) async fn inject(fault: Fault, site: &mut Site, rng: &mut Rng) {
    match fault {
        Fault::GatewayKilled => process::killed(site, rng.below(2)).await,
        Fault::DispatcherKilled => process::killed(site, 2 + rng.below(2)).await,
        Fault::GatewayStopped => process::stopped(site, rng.below(2)).await,
        Fault::DispatcherStopped => process::stopped(site, 2 + rng.below(2)).await,
        Fault::DiesCommitted => process::gateway_dies(site, "committed", rng.between(1, 40)).await,
        Fault::DiesAnswered => process::gateway_dies(site, "answered", rng.between(1, 40)).await,
        Fault::DiesStreamed => process::gateway_dies(site, "streamed", rng.between(1, 40)).await,
        Fault::DiesReplied => process::dispatcher_dies(site, "replied", rng.between(1, 200)).await,
        Fault::DiesRecorded => process::dispatcher_dies(site, "recorded", rng.between(1, 20)).await,
        Fault::DiesLeased => process::dispatcher_dies(site, "leased", rng.between(1, 4)).await,
        Fault::StopsLeased => process::stops_leased(site, rng.between(1, 4)).await,
        Fault::RollingRestart => process::rolling_restart(site).await,
        Fault::ClockAhead => clock::wrong(site, 3600).await,
        Fault::ClockBehind => clock::wrong(site, -3600).await,
        Fault::RedisRestart => redis::restarted(site, true).await,
        Fault::RedisLost => redis::restarted(site, false).await,
        Fault::RedisWiped => redis::wiped(site, 1).await,
        Fault::RedisWipedThrice => redis::wiped(site, 3).await,
        Fault::RedisStalled => redis::stalled(site, rng.between(1500, 5000)).await,
        Fault::RedisFull => redis::full(site).await,
        Fault::PostgresRestart => postgres::restarted(site).await,
        Fault::PostgresCrash => postgres::crashed(site).await,
        Fault::PostgresStalled => postgres::stalled(site, rng.between(1500, 5000)).await,
        Fault::PostgresFull => postgres::full(site).await,
        Fault::PostgresRestored => postgres::restored(site).await,
        Fault::Cut => wire::cut(site, rng.between(2, 6)).await,
        Fault::ReceiverResets => receiver::in_mood(site, crate::world::Mood::Resetting).await,
        Fault::ReceiverHangs => receiver::in_mood(site, crate::world::Mood::Hanging).await,
        Fault::Poison => process::poison(site).await,
    }
}
