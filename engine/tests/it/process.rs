//! The binary itself: its commands, its exit codes, its signals.

use std::{
    collections::HashSet,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use eventpulse_testkit::{Receiver, eventually};
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{
    App, PATIENCE, config, count, database, postgres,
    process::{self, Process},
};

fn run(command: &mut std::process::Command) -> (Option<i32>, String) {
    let output = command.output().expect("the binary runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_refused_before_anything_is_opened() {
    let (code, text) = run(&mut process::command("serve"));
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("DATABASE_URL") && text.contains("REDIS_URL"), "{text}");

    let mut open = process::serve("postgres://127.0.0.1:1/none", "");
    let (code, text) = run(open.env("EVENTPULSE_HTTP__LISTEN", "0.0.0.0"));
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("REGISTRATION_TOKEN") && text.contains("OPEN_REGISTRATION"), "{text}");

    let (code, text) = run(process::command("serve").env("EVENTPULSE_RETRY__SHEDULE", "1s").env("PORT", "x"));
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("EVENTPULSE_RETRY__SHEDULE") && text.contains("PORT"), "{text}");

    for line in ["migrate", "reconcile", "explain 1"] {
        let (code, text) = run(&mut process::command(line));
        assert_eq!((code, text.trim()), (Some(64), "DATABASE_URL is not set"), "{line}");
    }
    let (code, text) = run(process::command("reconcile").env("DATABASE_URL", "postgres://127.0.0.1:1/none"));
    assert_eq!((code, text.trim()), (Some(64), "REDIS_URL is not set"));
}

#[tokio::test]
async fn the_configuration_can_be_checked_and_shown() {
    let mut command = process::command("serve --check-config");
    command
        .env("DATABASE_URL", "postgres://u:hidden@127.0.0.1:1/d?schema=x")
        .env("REDIS_URL", "redis://127.0.0.1:1");
    assert_eq!(run(&mut command).0, Some(0));
    let mut command = process::command("--dump-config --port 3999");
    let (code, text) = run(command.env("DATABASE_URL", "postgres://u:hidden@127.0.0.1:1/d"));
    assert_eq!(code, Some(0));
    assert!(text.contains("port = 3999") && text.contains("***") && !text.contains("hidden"), "{text}");
}

#[tokio::test]
async fn dot_env_is_read_and_the_environment_wins() {
    let dir = temp("dotenv");
    std::fs::write(
        dir.join(".env"),
        "PORT=3501 # the gateway\nDISPATCHER_PORT=4501\nREDIS_URL=\"redis://x\"\n",
    )
    .unwrap();
    let mut command = process::command("--dump-config");
    let (_, text) = run(command.current_dir(&dir).env("PORT", "3502"));
    assert!(text.contains("port = 3502") && text.contains("dispatcher_port = 4501"), "{text}");
    // With the dispatcher alone PORT is its port.
    let mut command = process::command("serve --role dispatcher --dump-config");
    let (_, text) = run(command.env("PORT", "4777"));
    assert!(text.contains("dispatcher_port = 4777"), "{text}");
}

#[tokio::test]
async fn an_unmigrated_database_is_named_and_migrate_mends_it() {
    let url = eventpulse_testkit::database("migrate").await;
    let (code, text) = run(&mut process::serve(&url, ""));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("eventpulse migrate"), "{text}");
    // Two at once: one migrates, the other finds it done.
    let migrate = || {
        let mut command = process::command("migrate");
        command.env("DATABASE_URL", format!("{url}?schema=public&connection_limit=3"));
        Process::spawn(command)
    };
    let (mut one, mut two) = (migrate(), migrate());
    assert!(one.exit().await.success() && two.exit().await.success(), "{}{}", one.output(), two.output());
    let serve = Process::spawn(process::serve(&url, ""));
    serve.ready().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let url = database("port").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for flag in ["--port", "--dispatcher-port"] {
        let mut command = process::command(&format!("serve {flag} {port}"));
        let other = if flag == "--port" { "DISPATCHER_PORT" } else { "PORT" };
        command
            .env("DATABASE_URL", &url)
            .env("REDIS_URL", eventpulse_testkit::stack().redis_url())
            .env(other, "0");
        let (code, text) = run(&mut command);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(&format!("port {port}")), "{text}");
    }
}

#[tokio::test]
async fn healthcheck_tells_a_running_process_from_none() {
    let url = database("healthcheck").await;
    let serve = Process::spawn(process::serve(&url, "--role api"));
    let base = serve.ready().await;
    let port = base.rsplit(':').next().unwrap().to_owned();
    let (code, text) = run(process::command("healthcheck --role api").env("PORT", &port));
    assert_eq!(code, Some(0), "{text}");
    serve.kill();
    let (code, _) = run(process::command("healthcheck --role api").env("PORT", &port));
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn sigterm_under_load_ends_cleanly_with_nothing_lost_or_repeated() {
    let app = App::of(config(&database("sigterm").await), eventpulse::config::Roles::Api).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let mut first = Process::spawn(process::serve(&app.database, ""));
    let base = first.ready().await;
    let sender = |n: usize| {
        let (client, url, key) = (app.client.clone(), format!("{base}/send-event"), account.key.clone());
        tokio::spawn(async move {
            let mut ids = Vec::new();
            let body = json!({ "type": "t", "payload": n });
            // Until the process refuses or is gone; what had no answer was not promised.
            while let Ok(response) = client.post(&url).header("x-api-key", &key).json(&body).send().await {
                if response.status() != 201 {
                    break;
                }
                let Ok(body) = response.json::<serde_json::Value>().await else { break };
                ids.push(body["event"]["id"].as_i64().unwrap());
            }
            ids
        })
    };
    let senders: Vec<_> = (0..16).map(sender).collect();
    eventually("load", PATIENCE, async || {
        if receiver.count() > 500 { Ok(()) } else { Err(receiver.count().to_string()) }
    })
    .await;
    first.signal(Signal::TERM);
    let status = first.exit().await;
    assert!(status.success(), "{status}: {}", first.output());
    let mut promised = HashSet::new();
    for sender in senders {
        promised.extend(sender.await.unwrap());
    }
    // The next process finishes what is left.
    let second = Process::spawn(process::serve(&app.database, "--role dispatcher"));
    second.ready().await;
    eventually("everything promised arrives", PATIENCE, async || {
        let got: HashSet<i64> = receiver
            .requests()
            .iter()
            .map(|r| r.headers["x-eventpulse-event-id"].to_str().unwrap().parse().unwrap())
            .collect();
        let missing = promised.difference(&got).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} missing", promised.len())) }
    })
    .await;
    let db = postgres(&app.database).await;
    let stored = count(&db, "SELECT count(*) FROM events").await;
    assert_eq!(receiver.count() as i64, stored, "each stored event was sent once");
    assert_eq!(count(&db, "SELECT count(*) FROM batches WHERE state = 0").await, 0);
    app.stop().await;
}

/// A directory under the system's temporary one, made anew.
fn temp(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("eventpulse-process-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn dev(dir: &Path, more: &str) -> Process {
    Process::spawn(process::command(&format!(
        "dev --data-dir {} --port 0 --dispatcher-port 0 {more}",
        dir.display()
    )))
}

fn curl_key(output: &str) -> String {
    output
        .split("x-api-key: ")
        .nth(1)
        .and_then(|rest| rest.split('\'').next())
        .expect("a curl line")
        .to_owned()
}

#[tokio::test]
async fn dev_makes_a_verified_round_trip_and_survives_its_own_death() {
    let dir = temp("dev");
    let first = dev(&dir, "");
    let output = first.says("Ctrl-C stops").await;
    assert!(output.contains("signature verified"), "{output}");
    let account = dir.join("demo.json");
    assert_eq!(std::fs::metadata(&account).unwrap().permissions().mode() & 0o777, 0o600);
    // Killed outright, the second start finds nothing in its way and the same account.
    first.kill();
    let mut second = dev(&dir, "");
    let again = second.says("Ctrl-C stops").await;
    assert_eq!(curl_key(&again), curl_key(&output));
    let pids: Vec<u32> = ["postgres/data/postmaster.pid", "redis/pid"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(dir.join(file)).ok()?.lines().next()?.trim().parse().ok())
        .collect();
    assert!(!pids.is_empty(), "no pid file was found");
    second.signal(Signal::INT);
    let status = second.exit().await;
    assert!(status.success(), "{status}: {}", second.output());
    for pid in pids {
        assert!(!eventpulse_testkit::alive(pid), "{pid} is still there");
    }
    // A reset starts over; without the demo there is no account.
    let third = dev(&dir, "--reset --no-demo");
    third.says("Ctrl-C stops").await;
    assert!(!account.exists());
    third.signal(Signal::TERM);
    let mut third = third;
    assert!(third.exit().await.success());
    let _ = std::fs::remove_dir_all(&dir);
}
