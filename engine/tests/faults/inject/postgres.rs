//! Postgres that restarts, crashes, stalls, or has no room.

use std::time::Duration;

use eventpulse_testkit::proxy::Mode;

use crate::site::Site;

pub(super) async fn restarted(site: &mut Site) {
    site.postgres.restart().expect("restarted");
}

pub(super) async fn crashed(site: &mut Site) {
    site.postgres.kill().expect("killed");
    site.rest(Duration::from_secs(1)).await;
    site.postgres.restart().expect("restarted");
}

pub(super) async fn stalled(site: &mut Site, ms: u64) {
    site.postgres_proxy.set(Mode::Stall).await;
    site.rest(Duration::from_millis(ms)).await;
    site.postgres_proxy.set(Mode::Pass).await;
}

/// A trigger says what Postgres says when its disk is full: first of events, then of outcomes.
pub(super) async fn full(site: &mut Site) {
    let database = site.database().await;
    let function = "CREATE OR REPLACE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$";
    database.batch_execute(function).await.expect("a function");
    for table in ["events", "delivery_attempts"] {
        let trigger = format!(
            "CREATE TRIGGER disk_full BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION disk_full()"
        );
        database.batch_execute(&trigger).await.expect("a trigger");
        site.rest(Duration::from_secs(2)).await;
        database.batch_execute(&format!("DROP TRIGGER disk_full ON {table}")).await.expect("dropped");
    }
}
