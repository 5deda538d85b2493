//! Postgres that restarts, crashes, stalls, has no room, or is set back.

use std::{path::Path, process::Command, time::Duration};

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

/// A copy of the files, more events, and the copy in their place. What was accepted between the two is gone, and nobody is
/// to blame; everything else holds.
pub(super) async fn restored(site: &mut Site) {
    let data = site.place.dir.join("postgres/data");
    let backup = site.place.dir.join("backup");
    site.postgres.kill().expect("killed");
    let from = site.ledger().accepted().len();
    copy(&data, &backup);
    site.postgres.restart().expect("restarted");
    site.rest(Duration::from_secs(4)).await;
    site.postgres.kill().expect("killed");
    // Answers that are on their way were promised too.
    site.rest(Duration::from_secs(1)).await;
    std::fs::remove_dir_all(&data).expect("removed");
    std::fs::rename(&backup, &data).expect("put in its place");
    let until = site.ledger().accepted().len();
    site.forgiven.push(from..until);
    site.postgres.restart().expect("restarted");
}

/// With owners and modes, because Postgres may run as somebody else.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "cp ended with {status}");
}
