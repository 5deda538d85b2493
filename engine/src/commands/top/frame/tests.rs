//! Frames of good days and bad ones keep to their size.

use super::*;
use crate::{metrics::Metrics, model::WebhookId};

fn sample(text: &str) -> Sample {
    Sample::parse(text)
}

fn view<'a>(processes: Vec<Process<'a>>, webhooks: &'a Webhooks) -> View<'a> {
    View {
        now: Timestamp(1_700_000_000_000),
        interval: Duration::from_secs(1),
        seconds: 2.0,
        processes,
        webhooks,
    }
}

fn process<'a>(name: &str, before: &'a Sample, now: &'a Sample) -> Process<'a> {
    Process { id: None, name: name.to_owned(), state: Ok((before, now)) }
}

fn text(view: &View<'_>) -> String {
    let lines = lines(view);
    assert_eq!(lines.len(), LINES);
    for line in &lines {
        assert!(line.text.len() <= COLUMNS && line.text.is_ascii(), "{:?}", line.text);
    }
    lines.into_iter().map(|line| line.text + "\n").collect()
}

fn worst(n: i64) -> Worst {
    Worst {
        webhook: WebhookId(n),
        account: None,
        name: "a name of a webhook that is far too long \u{1b}[2J 漢".to_owned(),
        state: "disabled".to_owned(),
        attempts: 50_000,
        failed: 49_000,
        ms: Some(15_004.4),
        waiting: 10_000,
        reason: Some("out_of_files".to_owned()),
    }
}

#[test]
fn rates_times_and_depths_are_shown_of_all_processes_together() {
    let before = sample("eventpulse_ingest_events_total 100\nprocess_cpu_seconds_total 1\n");
    let now = sample(
        "eventpulse_ingest_events_total 300\nprocess_cpu_seconds_total 2\nprocess_resident_memory_bytes 44040192\n\
         eventpulse_dispatch_held 7\neventpulse_dispatch_peers 2\neventpulse_recover_redis_in_order 1\n\
         eventpulse_ingest_commit_seconds_bucket{le=\"0.001\"} 0\n\
         eventpulse_ingest_commit_seconds_bucket{le=\"0.002\"} 10\n\
         eventpulse_ingest_commit_seconds_bucket{le=\"+Inf\"} 10\n",
    );
    let webhooks = Webhooks::Unasked;
    let text =
        text(&view(vec![process("a:3000", &before, &now), process("b:3000", &before, &now)], &webhooks));
    for part in [
        "2 processes, every 1s",
        "22:13:20 UTC",
        "accepted 200/s",
        "acc/s   200",
        "held     14",
        "peers     2",
        "p50   1.5ms",
        "Redis in order",
        "a:3000                           memory    42M   cpu   50%",
        "known with DATABASE_URL only",
        "INGEST     > STREAM     > DISPATCH   > LANES      > DELIVER    > SETTLE",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn a_bad_day_fits_too() {
    let empty = sample("");
    let huge: String = STAGES
        .iter()
        .flat_map(|(_, cells)| cells)
        .filter_map(|Cell(_, show)| match show {
            Show::Time(..) => None,
            Show::Rate(name) | Show::Sum(name) | Show::Most(name) => Some(format!("{name} 9e15\n")),
        })
        .collect();
    let huge = sample(&(huge + "eventpulse_recover_redis_in_order 0\n"));
    let mut processes = vec![process(&"long".repeat(30), &empty, &huge)];
    for n in 0..5 {
        let state = Err("a reason that goes on and on until nobody reads it any more, and then some");
        processes.push(Process { id: None, name: format!("host{n}:3000"), state });
    }
    let webhooks = Webhooks::Known((0..9).map(worst).collect());
    let view = view(processes, &webhooks);
    let text = text(&view);
    for part in ["NOT IN ORDER", "and 4 more, 4 of them silent", "silent: a reason", "15.0s", "disabled"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(lines(&view).iter().any(|line| line.tone == Tone::Alarm && line.text.contains("NOT IN ORDER")));
    let failed = Webhooks::Failed("x".repeat(500));
    self::text(&super::tests::view(Vec::new(), &failed));
}

#[test]
fn numbers_and_times_are_short() {
    for (value, shown) in [
        (0.0, "0"),
        (0.26, "0.3"),
        (9.96, "10.0"),
        (1234.4, "1234"),
        (9999.7, "10.0k"),
        (12_345.0, "12.3k"),
        (999_400.0, "999k"),
        (999_600.0, "1.0M"),
        (123e6, "123M"),
        (9e18, "9999G"),
        (f64::NAN, "-"),
    ] {
        assert_eq!(number(Some(value)), shown);
        assert!(number(Some(value)).len() <= 5);
    }
    for (value, shown) in [
        (0.000_25, "250us"),
        (0.0015, "1.5ms"),
        (0.25, "250ms"),
        (2.5, "2.5s"),
        (1e9, "9999s"),
        (f64::INFINITY, "-"),
    ] {
        assert_eq!(time(Some(value)), shown);
        assert!(time(Some(value)).len() <= 5);
    }
}

/// A metric that was renamed would be a dash for ever.
#[test]
fn every_metric_that_is_shown_exists() {
    let metrics = Metrics::new();
    for (_, cells) in &STAGES {
        for Cell(name, show) in cells {
            assert!(name.len() <= 6, "{name}");
            let (Show::Rate(metric) | Show::Sum(metric) | Show::Most(metric) | Show::Time(metric, _)) = show;
            let metric = metric.split('{').next().unwrap();
            assert!(metrics.render().contains(&format!("# HELP {metric} ")), "{metric}");
        }
    }
}
