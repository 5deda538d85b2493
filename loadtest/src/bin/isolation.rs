//! How much bad endpoints slow the healthy ones: the same load twice, without and with endpoints that hang until the
//! time-out or answer 500, or that are bad in ways of their own.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use eventpulse_loadtest::{
    cpu::resident_kib,
    generator::{self, Load},
    receiver::{Latency, Summary},
    stack::{Engine, Error, Process, Servers, client, metric, register, register_as, setting, sibling},
    wire,
};
use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, UdpSocket},
};

/// With `--together`, the second of the load in which all begin to hang.
const TURN: Duration = Duration::from_secs(15);

#[derive(Parser)]
struct Options {
    /// The engine's program.
    #[arg(long)]
    engine: PathBuf,
    #[arg(long, default_value_t = 100)]
    webhooks: usize,
    /// Of them, those that hang.
    #[arg(long, default_value_t = 10)]
    hang: usize,
    /// Of them, those that answer 500.
    #[arg(long, default_value_t = 10)]
    fail: usize,
    /// Those that hang are one account's, each with a type of its own.
    #[arg(long)]
    one_account: bool,
    /// They are healthy at first, and all begin to hang in the same second.
    #[arg(long)]
    together: bool,
    /// Further webhooks, in threes: a name that no server answers for, a TLS handshake that stalls, a reply of one byte a second.
    #[arg(long, default_value_t = 0)]
    strange: usize,
    /// Events a second, spread evenly.
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// A setting of the engine, as NAME=VALUE in its environment.
    #[arg(long = "set", value_parser = setting)]
    settings: Vec<(String, String)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let servers = Servers::start_warm().await?;
    let quiet = phase(&options, &servers, "none_bad", 0, 0).await?;
    let bad = phase(&options, &servers, "some_bad", options.hang, options.fail).await?;
    println!("p99 of the healthy: {:.2} x that with none bad", bad.p99 / quiet.p99.max(0.001));
    servers.stop()
}

async fn phase(
    options: &Options,
    servers: &Servers,
    name: &str,
    hang: usize,
    fail: usize,
) -> Result<Latency, Error> {
    let url = servers.database(name).await?;
    let redis = servers.redis.url();
    let strange = Strange::start().await?;
    let mut settings = options.settings.clone();
    settings.push(("EVENTPULSE_DELIVER__NAME_SERVERS".to_owned(), strange.names.to_string()));
    let engine = Engine::start(&options.engine, "both", &url, &redis, &settings, &servers.dir)?;
    let (receiver, receiver_url) = Process::that_says(&sibling("load-receiver")?, &[])?;
    let client = client()?;
    let (mut keys, mut kinds) = (Vec::new(), Vec::new());
    let mut shared = None;
    for n in 0..options.webhooks {
        let may_hang = n < options.hang;
        let path = match n {
            n if n < hang => "hang",
            n if (options.hang..options.hang + fail).contains(&n) => "fail?status=500",
            // The same webhooks in both phases.
            _ if may_hang => "tame",
            _ => "good",
        };
        let url = format!("{receiver_url}/hook/{path}");
        let kind =
            if may_hang && options.one_account { format!("bad{n:010}") } else { wire::KIND.to_owned() };
        let key = shared.clone().filter(|_| may_hang);
        let body = json!({ "name": "load", "url": url, "eventTypes": [kind] });
        let answer = register_as(&client, engine.gateway, key.as_deref(), &body).await?;
        let key = answer["apiKey"].as_str().map(str::to_owned).or(key).ok_or("an answer without a key")?;
        if options.one_account && may_hang {
            shared = Some(key.clone());
        }
        keys.push(key);
        kinds.push(kind);
    }
    // Bad in one phase only: in the other there is nothing that they could be.
    for n in 0..if hang + fail > 0 { options.strange } else { 0 } {
        keys.push(register(&client, engine.gateway, &strange.url(n)).await?.key);
        kinds.push(wire::KIND.to_owned());
    }
    let manner = |manner: &'static str| {
        let request = client.put(format!("{receiver_url}/manner/hang")).body(manner);
        async move { request.send().await?.error_for_status() }
    };
    if !options.together {
        manner("hang=true").await?;
    }
    let load = Load {
        target: engine.gateway,
        connections: keys.len(),
        keys,
        size: 300,
        bulk: None,
        kinds,
        rate: Some(options.rate),
        drop_when_busy: false,
        warm_up: Duration::from_secs(1),
        length: Duration::from_secs(options.seconds),
    };
    let pid = engine.process.pid();
    let memory = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(20)).await;
        resident_kib(pid)
    });
    let turn = async {
        if options.together {
            tokio::time::sleep(TURN).await;
            manner("hang=true").await?;
        }
        Ok::<_, Error>(())
    };
    let (report, turned) = tokio::join!(tokio::task::spawn_blocking(move || generator::run(load)), turn);
    let report = report??;
    turned?;
    // What is on its way to the healthy ones arrives.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ledger: Summary = client.get(format!("{receiver_url}/ledger")).send().await?.json().await?;
    let good = ledger.latency.get("good").copied().unwrap_or_default();
    let count = ledger.hooks.get("good").map_or(0, |counts| counts.unique);
    println!(
        "{name}: {} accepted; healthy: {count} delivered, p50 {} p99 {} max {} ms; memory {} KiB after 20 s, {} at the end",
        report.accepted_in_all,
        good.p50,
        good.p99,
        good.max,
        memory.await?,
        resident_kib(pid),
    );
    for name in [
        "lane_slow",
        "lane_breakers_open",
        "lane_pulled_total",
        "dispatch_held",
        "dispatch_held_slow",
        "retry_due",
    ] {
        let dispatcher = engine.dispatcher.unwrap_or(engine.gateway);
        println!("  {name} {}", metric(&client, dispatcher, &format!("eventpulse_{name}")).await?);
    }
    for calls in ["hang", "fail"] {
        println!("  calls to {calls}: {}", ledger.hooks.get(calls).map_or(0, |counts| counts.calls));
    }
    engine.process.stop();
    receiver.stop();
    Ok(good)
}

/// Endpoints that are bad below HTTP. They end with this process.
struct Strange {
    /// A name server that never answers.
    names: SocketAddr,
    /// Takes connections and says nothing.
    silent: SocketAddr,
    /// Answers with a byte a second.
    drip: SocketAddr,
}

impl Strange {
    async fn start() -> Result<Strange, Error> {
        let names = UdpSocket::bind("127.0.0.1:0").await?;
        let (silent, drip) =
            (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let strange =
            Strange { names: names.local_addr()?, silent: silent.local_addr()?, drip: drip.local_addr()? };
        tokio::spawn(async move {
            let mut question = [0; 512];
            while names.recv(&mut question).await.is_ok() {}
        });
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = silent.accept().await {
                kept.push(stream);
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = drip.accept().await {
                tokio::spawn(async move {
                    for byte in
                        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".iter().chain([b'x'; 1000].iter())
                    {
                        if stream.write_all(&[*byte]).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                });
            }
        });
        Ok(strange)
    }

    fn url(&self, n: usize) -> String {
        match n % 3 {
            0 => format!("http://never{n}.example/"),
            1 => format!("https://{}/", self.silent),
            _ => format!("http://{}/", self.drip),
        }
    }
}
