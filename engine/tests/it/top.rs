//! `eventpulse top`, the real binary, beside an engine at work.

use std::{
    io::Read,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use eventpulse::config::Roles;
use eventpulse_testkit::{Receiver, eventually, receiver::Reply};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::harness::{App, PATIENCE, config, database, process, swept_soon};

/// Runs it; gives whether it succeeded, and what it said.
async fn top(database: &str, arguments: &str) -> (bool, String) {
    let mut command = process::command(&format!("top {arguments}"));
    command.env("DATABASE_URL", database);
    let output =
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("text"))
}

fn fits(frame: &str) {
    assert_eq!(frame.lines().count(), 24, "{frame}");
    assert!(frame.lines().all(|line| line.len() <= 80 && line.is_ascii()), "{frame}");
    assert!(!frame.contains('\u{1b}'), "no escape for a pipe: {frame:?}");
}

#[tokio::test]
async fn top_shows_an_engine_under_load_in_one_frame() {
    let app = Arc::new(App::with("top", swept_soon).await);
    let receiver = Receiver::start().await;
    receiver.script(|r| if r.path.starts_with("/fail") { Reply::status(500) } else { Reply::ok() });
    let good = app.register(&receiver.url("/ok")).await;
    let body = json!({ "name": "flaky endpoint", "url": receiver.url("/fail"), "retry": { "schedule": ["1h"] }, "eventTypes": ["bad"] });
    let request = app.client.post(app.url("/register-webhook")).header("x-api-key", &good.key).json(&body);
    assert_eq!(request.send().await.expect("an answer").status(), 201);
    let over = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..4)
        .map(|n| {
            let (app, key, over) = (app.clone(), good.key.clone(), over.clone());
            tokio::spawn(async move {
                while !over.load(Relaxed) {
                    app.send(&key, if n == 0 { "bad" } else { "good" }, json!(n)).await;
                }
            })
        })
        .collect();
    eventually("load", PATIENCE, async || match receiver.count() {
        0..200 => Err(receiver.count().to_string()),
        _ => Ok(()),
    })
    .await;
    let dispatcher = app.engine.dispatcher.expect("both roles");
    let arguments = format!("--once --interval 2s --url {} --url http://{dispatcher}", app.base);
    let (success, frame) = top(&app.database, &arguments).await;
    over.store(true, Relaxed);
    for sender in senders {
        sender.await.expect("no panic");
    }
    assert!(success, "{frame}");
    fits(&frame);
    // Kept for docs/top.md.
    println!("{frame}");
    let rate = |name: &str| -> f64 {
        let rest = frame.split(&format!("{name} ")).nth(1).unwrap_or_else(|| panic!("{name} in {frame}"));
        rest.split("/s").next().expect("text").parse().expect("a number")
    };
    assert!(rate("accepted") > 0.0 && rate("delivered") > 0.0, "{frame}");
    for part in ["1 process,", "Redis in order", "flaky endpoint", &format!("{dispatcher}")] {
        assert!(frame.contains(part), "{part} in\n{frame}");
    }
    let Ok(app) = Arc::try_unwrap(app) else { panic!("the senders are gone") };
    app.stop().await;
}

#[tokio::test]
async fn top_does_with_one_role_and_without_postgres() {
    let mut settings = config(&database("top-api").await);
    settings.http.connections_max = 16;
    let gateway = App::of(settings, Roles::Api).await;
    let arguments = format!("--once --interval 100ms --url {} --url http://127.0.0.1:1", gateway.base);
    let (success, frame) = top("", &arguments).await;
    assert!(success, "{frame}");
    fits(&frame);
    for part in ["2 processes", "127.0.0.1:1", "silent: ", "known with DATABASE_URL only"] {
        assert!(frame.contains(part), "{part} in\n{frame}");
    }
    gateway.stop().await;
    let (success, text) = top("", "--once --interval 100ms --url http://127.0.0.1:1").await;
    assert!(!success && text.contains("none of these processes answers: 127.0.0.1:1"), "{text}");
    let (success, text) = top("", "--once --interval 1ms").await;
    assert!(!success && text.contains("100ms"), "{text}");
}

/// The process that another started in place of a shell.
fn child_of(parent: u32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

/// All that a program writes to a terminal, until nobody has it open any more.
fn watch(mut terminal: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let seen = Arc::new(Mutex::new(String::new()));
    let writes = seen.clone();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = terminal.read(&mut piece) {
            writes.lock().expect("no panic").push_str(&String::from_utf8_lossy(&piece[..n]));
        }
    });
    seen
}

#[tokio::test]
async fn a_signal_gives_the_terminal_back() {
    let gateway = App::of(config(&database("top-terminal").await), Roles::Api).await;
    for signal in [Signal::INT, Signal::TERM] {
        // It gives the program a terminal, hands on what comes out of it, and ends as the program does.
        let program = env!("CARGO_BIN_EXE_eventpulse");
        let line = format!("exec {program} top --interval 100ms --url {}", gateway.base);
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
        command.env_remove("DATABASE_URL").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("script, of util-linux, runs");
        let seen = watch(child.stdout.take().expect("a pipe"));
        let has = |part: &'static str| {
            let seen = seen.clone();
            eventually(part, PATIENCE, async move || {
                let seen = seen.lock().expect("no panic").clone();
                if seen.contains(part) { Ok(seen) } else { Err(seen) }
            })
        };
        let frame = has("WORST WEBHOOKS").await;
        assert!(
            frame.starts_with("\u{1b}[?1049h\u{1b}[?25l"),
            "a screen of its own, without cursor: {frame:?}"
        );
        assert!(frame.contains("\u{1b}[1;1H") && frame.contains("1 process, every 100ms"), "{frame:?}");
        kill_process(child_of(child.id()).expect("it runs"), signal).expect("it is there");
        let status = tokio::task::spawn_blocking(move || child.wait()).await.expect("no panic");
        assert_eq!(status.expect("a status").code(), Some(0));
        let all = has("\u{1b}[?1049l").await;
        assert!(all.ends_with("\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l"), "cursor and screen are back: {all:?}");
    }
    gateway.stop().await;
}
