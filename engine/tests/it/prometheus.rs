//! A real Prometheus scrapes a running engine: what `monitoring/` asks for is there, and alerts fire for the faults they are about.

mod queries;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use eventpulse::config::{Config, Roles, value::Secret};
use eventpulse_testkit::{
    Prometheus, Receiver, eventually, private_redis,
    proxy::{Mode, TcpProxy},
    receiver::Reply,
    scratch, stack,
};
use serde_json::{Value, json};

use crate::harness::{App, PATIENCE, config, database, swept_soon};

/// Webhooks that fail in the test of alerts.
const WEBHOOKS: usize = 16;

/// Scrapes every second, and alerts wait for no time.
struct Watch {
    server: Prometheus,
    client: reqwest::Client,
}

impl Watch {
    async fn over(app: &App) -> Watch {
        let folder = scratch("monitoring");
        let rules =
            fs::read_to_string(queries::monitoring().join("rules/eventpulse.yml")).expect("the rules");
        fs::write(folder.join("rules.yml"), hurried(&rules)).expect("written");
        let address = app.engine.dispatcher.expect("a dispatcher listens");
        let configuration = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{}]\n\
             scrape_configs: [{{ job_name: eventpulse, static_configs: [{{ targets: [\"{address}\"] }}] }}]\n",
            folder.join("rules.yml").display()
        );
        fs::write(folder.join("prometheus.yml"), configuration).expect("written");
        let start = move || Prometheus::start(&folder, &folder.join("prometheus.yml"));
        let server = tokio::task::spawn_blocking(start).await.expect("no panic");
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        let watch = Watch { server, client };
        eventually("two scrapes", PATIENCE, async || {
            let scrapes = watch.query("count_over_time(up{job=\"eventpulse\"}[1h]) > 1").await?;
            if scrapes.is_empty() { Err("fewer".to_owned()) } else { Ok(()) }
        })
        .await;
        watch
    }

    /// What a query gives now.
    async fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/query", self.server.url())).expect("a URL");
        url.query_pairs_mut().append_pair("query", query);
        let answer = self.client.get(url).send().await.map_err(|error| error.to_string())?;
        let answer: Value = answer.json().await.map_err(|error| error.to_string())?;
        if answer["status"] != "success" {
            return Err(format!("{query}: {}", answer["error"]));
        }
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// The names of the alerts that fire now.
    async fn firing(&self) -> BTreeSet<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}").await.expect("alerts");
        alerts.iter().map(|a| a["metric"]["alertname"].as_str().expect("a name").to_owned()).collect()
    }

    /// Waits until an alert fires, doing something in the meantime.
    async fn fires(&self, alert: &str, mut meanwhile: impl AsyncFnMut()) {
        eventually(&format!("{alert} fires"), PATIENCE * 2, async || {
            meanwhile().await;
            let firing = self.firing().await;
            if firing.contains(alert) { Ok(()) } else { Err(format!("only {firing:?}")) }
        })
        .await;
    }
}

/// The rules as they are, but that no alert waits until its condition has held for a while.
fn hurried(rules: &str) -> String {
    let lines = rules.lines().filter(|line| !line.trim_start().starts_with("for: "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The base names of all metrics that an engine shows.
fn shown(app: &App) -> BTreeSet<String> {
    let text = app.engine.metrics.render();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut names = BTreeSet::new();
    for (name, kind) in types.filter_map(|rest| rest.split_once(' ')) {
        names.insert(name.to_owned());
        if kind == "histogram" {
            names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        }
    }
    names
}

/// On a Postgres behind a proxy, and with a Redis.
async fn behind_a_proxy(hint: &str, redis: String) -> (Config, TcpProxy) {
    let direct = database(hint).await;
    let postgres = format!("127.0.0.1:{}", stack().postgres.lock().expect("no panic").port());
    let proxy = TcpProxy::start(postgres.parse().expect("an address")).await;
    let mut config = config(&direct.replace(&postgres, &proxy.addr().to_string()));
    config.redis_url = Secret::new(redis);
    config.ingest.commit_timeout = Duration::from_millis(400);
    swept_soon(&mut config);
    (config, proxy)
}

async fn wipe(redis: String) {
    let client = redis::Client::open(redis).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let () = redis::cmd("FLUSHALL").query_async(&mut connection).await.expect("wiped");
}

#[tokio::test]
async fn every_query_is_understood_and_names_metrics_that_are_there() {
    let app = App::start("queries").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    app.send_at_once(&account, 20).await;
    let watch = Watch::over(&app).await;
    let recorded = queries::recorded();
    let shown = shown(&app);
    let all = queries::all();
    assert!(all.len() > 100, "{} queries were found", all.len());
    for (place, query) in &all {
        for name in queries::names(query) {
            let known = shown.contains(&name) || recorded.contains(&name) || name == "up";
            assert!(known, "{place} asks for {name}, which nobody shows:\n{query}");
        }
        if let Err(error) = watch.query(query).await {
            panic!("{place} is not understood: {error}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn the_dashboards_graphs_have_data() {
    let app = App::start("graphs").await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    let watch = Watch::over(&app).await;
    eventually("every graph has something to show", PATIENCE * 2, async || {
        app.send_at_once(&account, 20).await;
        let mut empty = Vec::new();
        for (place, query) in queries::dashboard() {
            // Without a bound of Redis's memory there is none to show; no name is looked up and no module called here, and no
            // webhook does badly.
            let idle = ["redis_memory_max", "deliver_dns_seconds", "transform_seconds", "worst_webhook"];
            if idle.iter().any(|name| query.contains(name)) {
                continue;
            }
            if watch.query(&query).await?.is_empty() {
                empty.push(place);
            }
        }
        if empty.is_empty() { Ok(()) } else { Err(format!("nothing in {empty:?}")) }
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn the_right_alert_fires_for_each_fault() {
    let redis = private_redis().await;
    let (config, proxy) = behind_a_proxy("alerts", redis.url()).await;
    let app = App::of(config, Roles::Both).await;
    let receiver = Receiver::start().await;
    let account = app.register(&receiver.url("/")).await;
    // The circuit breaker of one webhook would keep it from failing a hundred times.
    for n in 1..WEBHOOKS {
        let body = json!({ "name": "more", "url": receiver.url(&format!("/{n}")) });
        let request = app.client.post(app.url("/register-webhook")).header("x-api-key", &account.key);
        assert_eq!(request.json(&body).send().await.expect("an answer").status(), 201);
    }
    let watch = Watch::over(&app).await;
    app.send_at_once(&account, 1).await;
    eventually("all is quiet", PATIENCE, async || {
        let (sent, firing) = (receiver.count(), watch.firing().await);
        if sent == WEBHOOKS && firing.is_empty() { Ok(()) } else { Err(format!("{sent} sent, {firing:?}")) }
    })
    .await;

    receiver.script(|_| Reply::status(500));
    watch
        .fires("EventPulseDeliveryBudgetBurnsFast", async || drop(app.send_at_once(&account, 5).await))
        .await;
    receiver.script(|_| Reply::ok());
    let firing = watch.firing().await;
    assert!(!firing.contains("EventPulseIngestUnavailable") && !firing.contains("EventPulseRedisRebuilt"));

    wipe(redis.url()).await;
    watch.fires("EventPulseRedisRebuilt", async || {}).await;
    assert!(!watch.firing().await.contains("EventPulseIngestUnavailable"));

    proxy.set(Mode::Stall).await;
    let body = json!({ "type": "t", "payload": 1 }).to_string();
    let refused = async || {
        let (status, _) = app.try_send(&account.key, &body).await;
        assert_eq!(status, 503);
    };
    watch.fires("EventPulseIngestUnavailable", refused).await;
    proxy.set(Mode::Pass).await;
    proxy.cut_all().await;
    app.stop().await;
}

/// Each alert has its section, and each section of that chapter its alert.
#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let rules = fs::read_to_string(queries::monitoring().join("rules/eventpulse.yml")).expect("the rules");
    let after = |line: &str, word: &str| line.trim().strip_prefix(word).map(|rest| rest.trim().to_owned());
    let alerts: Vec<String> = rules.lines().filter_map(|line| after(line, "- alert:")).collect();
    let links: Vec<String> = rules.lines().filter_map(|line| after(line, "runbook_url:")).collect();
    let wanted: Vec<String> =
        alerts.iter().map(|a| format!("docs/operations.md#{}", a.to_lowercase())).collect();
    assert_eq!(links, wanted);
    let operations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let operations = fs::read_to_string(operations).expect("the runbook");
    let sections = operations.lines().filter_map(|line| after(line, "### EventPulse"));
    let sections: BTreeSet<String> = sections.map(|name| format!("EventPulse{name}")).collect();
    assert_eq!(sections, alerts.into_iter().collect());
}
