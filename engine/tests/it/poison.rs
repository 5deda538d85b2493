//! An event that kills each process that touches it.

use std::sync::{
    Arc,
    atomic::{AtomicI32, Ordering::Relaxed},
};

use eventpulse::config::Roles;
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{
    App, PATIENCE, config, count, database, postgres,
    process::{Process, serve},
};

const EVENTS: i64 = 12;
const DEADLY: i64 = 5;

/// Starts a dispatcher after each that died, until every delivery has ended. Returns how many died.
async fn until_all_end(database: &str, dispatcher: &AtomicI32) -> usize {
    let db = postgres(database).await;
    let ended = "SELECT count(*) FROM delivery_attempts WHERE status IN ('success', 'dead')";
    let mut died = 0;
    loop {
        let mut command = serve(database, "--role dispatcher");
        command.env("EVENTPULSE_DISPATCH__DEAD_AFTER", "2s").env("EVENTPULSE_DISPATCH__BEAT", "200ms");
        // Leases end soon.
        command.env("EVENTPULSE_DISPATCH__MARGIN", "2s");
        command.env("EVENTPULSE_DELIVER__TIMEOUT", "1s").env("EVENTPULSE_DELIVER__CONNECT_TIMEOUT", "1s");
        // And nothing expires while processes die.
        command.env("EVENTPULSE_RETRY__SCHEDULE", "200ms,200ms,200ms,5m");
        let mut process = Process::spawn(command);
        dispatcher.store(process.id(), Relaxed);
        let all = eventually("all end or the process does", PATIENCE, async || {
            if process.has_ended() {
                return Ok(false);
            }
            let n = count(&db, ended).await;
            if n == EVENTS { Ok(true) } else { Err(format!("{n} of {EVENTS}")) }
        })
        .await;
        if all {
            return died;
        }
        died += 1;
        assert!(died < 6, "the fleet goes on dying");
    }
}

/// Delivers events of which one kills its dispatcher from an attempt on; those before fail. It ends alone, as a dead letter.
async fn one_letter(hint: &str, from: u32) {
    let database = database(hint).await;
    let gateway = App::of(config(&database), Roles::Api).await;
    let receiver = Receiver::start().await;
    // The dispatcher that sends it is gone before it has an answer.
    let dispatcher = Arc::new(AtomicI32::new(0));
    let victim = dispatcher.clone();
    receiver.script(move |request| {
        let attempt: u32 = request.headers["x-eventpulse-attempt"].to_str().unwrap().parse().unwrap();
        if attempt < from {
            return Reply::status(500);
        }
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        if body["payload"] == DEADLY
            && let Some(pid) = Pid::from_raw(victim.load(Relaxed))
        {
            // It may be dead of the same request by now.
            let _ = kill_process(pid, Signal::KILL);
            return Reply::hang();
        }
        Reply::ok()
    });
    let account = gateway.register(&receiver.url("/")).await;
    gateway.send_at_once(&account, EVENTS as usize).await;
    let died = until_all_end(&database, &dispatcher).await;
    assert!(died >= 2, "nobody died of it");
    let (_, body) = gateway.get(&account.key, "/dlq").await;
    let letters = body["dlqEntries"].as_array().expect("letters").clone();
    assert_eq!(letters.len(), 1, "{body}");
    assert_eq!(letters[0]["reasonCode"], json!("poison"), "{body}");
    gateway.stop().await;
}

#[tokio::test]
async fn an_event_that_processes_die_of_ends_alone_as_a_dead_letter() {
    one_letter("poison", 1).await;
}

#[tokio::test]
async fn a_retry_that_processes_die_of_ends_alone_as_a_dead_letter() {
    one_letter("poisonretry", 2).await;
}
