//! One frame, made of what was seen. Pure: always [`LINES`] lines of at most [`COLUMNS`] ASCII characters.

use std::time::Duration;

use super::prometheus::{Sample, growth, quantile};
use crate::{commands::text::fitted, model::Timestamp, store::worst::Worst};

pub(super) const LINES: usize = 24;
pub(super) const COLUMNS: usize = 80;

/// Webhooks and processes there is room for.
pub(super) const WEBHOOKS: usize = 5;
const PROCESSES: usize = 3;

/// Columns of one stage, with a space behind it.
const STAGE: usize = 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Head,
    Alarm,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// A process with what it said before and now, or why it said nothing.
pub(super) struct Process<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) name: String,
    pub(super) state: Result<(&'a Sample, &'a Sample), &'a str>,
}

pub(super) enum Webhooks {
    /// There is no `DATABASE_URL`.
    Unasked,
    Failed(String),
    Known(Vec<Worst>),
}

pub(super) struct View<'a> {
    pub(super) now: Timestamp,
    pub(super) interval: Duration,
    /// Between the two samples.
    pub(super) seconds: f64,
    pub(super) processes: Vec<Process<'a>>,
    pub(super) webhooks: &'a Webhooks,
}

/// The stages in the order in which an event comes by, each with six numbers.
const STAGES: [(&str, [Cell; 6]); 6] = [
    (
        "INGEST",
        [
            Cell("acc/s", Show::Rate("eventpulse_ingest_events_total")),
            Cell("ref/s", Show::Rate("eventpulse_ingest_refused_total")),
            Cell("queue", Show::Sum("eventpulse_ingest_queue_events")),
            Cell("conns", Show::Sum("eventpulse_http_connections")),
            Cell("p50", Show::Time("eventpulse_ingest_commit_seconds", 0.5)),
            Cell("p99", Show::Time("eventpulse_ingest_commit_seconds", 0.99)),
        ],
    ),
    (
        "STREAM",
        [
            Cell("add/s", Show::Rate("eventpulse_stream_entries_total")),
            Cell("fail/s", Show::Rate("eventpulse_stream_send_failures_total")),
            Cell("unsent", Show::Sum("eventpulse_stream_unsent_batches")),
            Cell("spill", Show::Rate("eventpulse_stream_spilled_total")),
            Cell("p50", Show::Time("eventpulse_stream_send_seconds", 0.5)),
            Cell("p99", Show::Time("eventpulse_stream_send_seconds", 0.99)),
        ],
    ),
    (
        "DISPATCH",
        [
            Cell("read/s", Show::Rate("eventpulse_dispatch_entries_total")),
            Cell("full/s", Show::Rate("eventpulse_dispatch_held_full_total")),
            Cell("held", Show::Sum("eventpulse_dispatch_held")),
            Cell("slow", Show::Sum("eventpulse_dispatch_held_slow")),
            Cell("peers", Show::Most("eventpulse_dispatch_peers")),
            Cell("nobody", Show::Rate("eventpulse_dispatch_unmatched_total")),
        ],
    ),
    (
        "LANES",
        [
            Cell("lanes", Show::Sum("eventpulse_lane_open")),
            Cell("park/s", Show::Rate("eventpulse_lane_parked_total")),
            Cell("queued", Show::Sum("eventpulse_lane_queued")),
            Cell("defer", Show::Sum("eventpulse_lane_deferred")),
            Cell("slow", Show::Sum("eventpulse_lane_slow")),
            Cell("broken", Show::Sum("eventpulse_lane_breakers_open")),
        ],
    ),
    (
        "DELIVER",
        [
            Cell("ok/s", Show::Rate(DELIVERED)),
            Cell("fail/s", Show::Rate(RETRIED)),
            Cell("dead/s", Show::Rate(DEAD)),
            Cell("flight", Show::Sum("eventpulse_deliver_in_flight")),
            Cell("p50", Show::Time("eventpulse_deliver_seconds", 0.5)),
            Cell("p99", Show::Time("eventpulse_deliver_seconds", 0.99)),
        ],
    ),
    (
        "SETTLE",
        [
            Cell("rec/s", Show::Rate("eventpulse_settle_records_total")),
            Cell("fail/s", Show::Rate("eventpulse_settle_failures_total")),
            Cell("ack/s", Show::Rate("eventpulse_settle_acked_total")),
            Cell("due", Show::Most("eventpulse_retry_due")),
            Cell("p50", Show::Time("eventpulse_settle_commit_seconds", 0.5)),
            Cell("p99", Show::Time("eventpulse_settle_commit_seconds", 0.99)),
        ],
    ),
];

const DELIVERED: &str = "eventpulse_deliver_attempts_total{outcome=\"delivered\"}";
const RETRIED: &str = "eventpulse_deliver_attempts_total{outcome=\"retry\"}";
const DEAD: &str = "eventpulse_deliver_attempts_total{outcome=\"dead\"}";

/// As Prometheus's own libraries call them.
const MEMORY: &str = "process_resident_memory_bytes";
const CPU: &str = "process_cpu_seconds_total";

/// One number of a stage, with a name of at most six letters.
struct Cell(&'static str, Show);

/// What of a metric is shown.
#[derive(Clone, Copy)]
enum Show {
    /// Growth a second over all processes.
    Rate(&'static str),
    /// Over all processes.
    Sum(&'static str),
    /// Of what each process says of the whole deployment, the most.
    Most(&'static str),
    /// A quantile of a histogram in seconds.
    Time(&'static str, f64),
}

/// The frame.
pub(super) fn lines(view: &View<'_>) -> Vec<Line> {
    let mut lines = vec![title(view), summary(view), plain(String::new())];
    lines.extend(stages(view));
    lines.push(plain(String::new()));
    lines.extend([waiting(view), recover(view), transforms(view)]);
    lines.extend(processes(view));
    lines.push(plain(String::new()));
    lines.extend(webhooks(view.webhooks));
    for line in &mut lines {
        line.text = fitted(&line.text, COLUMNS).trim_end().to_owned();
    }
    lines.resize(LINES, plain(String::new()));
    lines
}

fn plain(text: String) -> Line {
    Line { tone: Tone::Plain, text }
}

fn alarm_if(is_alarming: bool, text: String) -> Line {
    Line { tone: if is_alarming { Tone::Alarm } else { Tone::Plain }, text }
}

impl<'a> View<'a> {
    fn samples(&self) -> Vec<(&'a Sample, &'a Sample)> {
        self.processes.iter().filter_map(|process| process.state.ok()).collect()
    }

    fn value(&self, show: Show) -> Option<f64> {
        let samples = self.samples();
        let of = |sample: &Sample, name: &str| sample.get(name).or_else(|| sample.sum(name));
        match show {
            Show::Rate(name) => {
                let grown =
                    samples.iter().filter_map(|(before, now)| growth(of(before, name), of(now, name)));
                grown.reduce(|a, b| a + b).map(|sum| sum / self.seconds.max(0.001))
            }
            Show::Sum(name) => samples.iter().filter_map(|(_, now)| of(now, name)).reduce(|a, b| a + b),
            Show::Most(name) => samples.iter().filter_map(|(_, now)| of(now, name)).reduce(f64::max),
            Show::Time(name, part) => quantile(&samples, name, part),
        }
    }

    fn show(&self, show: Show) -> String {
        let value = self.value(show);
        match show {
            Show::Time(..) => time(value),
            _ => number(value),
        }
    }
}

fn title(view: &View<'_>) -> Line {
    let clock = view.now.to_string();
    let clock = clock.get(11..19).unwrap_or_default();
    let every = humantime::format_duration(view.interval);
    let processes = match view.processes.len() {
        1 => "1 process".to_owned(),
        n => format!("{n} processes"),
    };
    let left = format!("eventpulse top   {processes}, every {every}   Ctrl-C ends");
    Line { tone: Tone::Head, text: format!("{left:<68}{clock} UTC") }
}

fn summary(view: &View<'_>) -> Line {
    let failed = [RETRIED, DEAD].map(|name| view.value(Show::Rate(name)));
    let failed = failed.into_iter().flatten().reduce(|a, b| a + b);
    let refused = view.value(Show::Rate("eventpulse_ingest_refused_total"));
    let rate = |name, value| format!("{name} {}/s", number(value));
    let parts = [
        rate("accepted", view.value(Show::Rate("eventpulse_ingest_events_total"))),
        rate("delivered", view.value(Show::Rate(DELIVERED))),
        rate("failed", failed),
        rate("refused", refused),
    ];
    alarm_if(refused.unwrap_or(0.0) > 0.0, parts.join("    "))
}

fn stages(view: &View<'_>) -> Vec<Line> {
    let last = STAGES.len() - 1;
    let arrow = |at| if at == last { "" } else { ">" };
    let head =
        STAGES.iter().enumerate().map(|(at, (name, _))| format!("{name:<11}{:<2}", arrow(at))).collect();
    let mut lines = vec![Line { tone: Tone::Head, text: head }];
    for row in 0..STAGES[0].1.len() {
        let cell = |(_, cells): &(&str, [Cell; 6])| {
            let Cell(name, show) = &cells[row];
            format!("{name:<6}{:>5}{:<2$}", view.show(*show), "", STAGE - 11)
        };
        lines.push(plain(STAGES.iter().map(cell).collect()));
    }
    lines
}

/// A name and its numbers, such as `waiting    due 3  owed 1`.
fn row(name: &str, parts: &[(&str, String)]) -> String {
    let parts: Vec<String> = parts.iter().map(|(name, value)| format!("{name} {value}")).collect();
    format!("{name:<11}{}", parts.join("   "))
}

fn waiting(view: &View<'_>) -> Line {
    let shelved = Show::Rate("eventpulse_lane_shelved_total");
    plain(row(
        "waiting",
        &[
            ("batches owed", view.show(Show::Most("eventpulse_sweep_batches_owed"))),
            ("due soon", view.show(Show::Most("eventpulse_retry_due"))),
            ("shelved/s", view.show(shelved)),
            ("letters/s", view.show(Show::Rate("eventpulse_dlq_entries_total"))),
        ],
    ))
}

fn recover(view: &View<'_>) -> Line {
    let in_order = view
        .samples()
        .iter()
        .filter_map(|(_, now)| now.get("eventpulse_recover_redis_in_order"))
        .reduce(f64::min);
    let index = match in_order {
        None => "unknown",
        Some(1.0) => "in order",
        Some(_) => "NOT IN ORDER",
    };
    let text = row(
        "recover",
        &[
            ("Redis", index.to_owned()),
            ("rebuilt", view.show(Show::Sum("eventpulse_recover_rebuilds_total"))),
            ("taken over", view.show(Show::Sum("eventpulse_recover_taken_over_total"))),
            ("missing", view.show(Show::Sum("eventpulse_sweep_missing_total"))),
            ("repeats", view.show(Show::Sum("eventpulse_deliver_repeats_total"))),
        ],
    );
    alarm_if(in_order.is_some_and(|is| is < 1.0), text)
}

fn transforms(view: &View<'_>) -> Line {
    plain(row(
        "transforms",
        &[
            ("calls/s", view.show(Show::Rate("eventpulse_transform_calls_total"))),
            ("fail/s", view.show(Show::Rate("eventpulse_transform_failures_total"))),
            ("p50", view.show(Show::Time("eventpulse_transform_seconds", 0.5))),
            ("p99", view.show(Show::Time("eventpulse_transform_seconds", 0.99))),
            ("waiting", view.show(Show::Sum("eventpulse_transform_waiting"))),
            ("modules", view.show(Show::Sum("eventpulse_transform_modules"))),
        ],
    ))
}

fn processes(view: &View<'_>) -> Vec<Line> {
    let all = view.processes.len();
    // The last line says how many there is no room for.
    let shown = if all > PROCESSES { PROCESSES - 1 } else { all };
    let mut lines: Vec<Line> =
        view.processes[..shown].iter().map(|process| one(process, view.seconds)).collect();
    if all > shown {
        let silent = view.processes[shown..].iter().filter(|process| process.state.is_err()).count();
        let text = format!("           and {} more, {silent} of them silent", all - shown);
        lines.push(alarm_if(silent > 0, text));
    }
    lines.resize(PROCESSES, plain(String::new()));
    lines
}

fn one(process: &Process<'_>, seconds: f64) -> Line {
    let name = fitted(&process.name, 32);
    match process.state {
        Err(error) => alarm_if(true, format!("process    {name} silent: {error}")),
        Ok((before, now)) => {
            let busy = growth(before.get(CPU), now.get(CPU)).map(|grown| grown / seconds.max(0.001) * 100.0);
            let cpu = busy.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.0}%"));
            plain(format!("process    {name} memory {:>6}   cpu {cpu:>5}", bytes(now.get(MEMORY))))
        }
    }
}

fn webhooks(webhooks: &Webhooks) -> Vec<Line> {
    let head = "WORST WEBHOOKS               STATE     FAILED    OF   MEAN  WAITING  WHY";
    let mut lines = vec![Line { tone: Tone::Head, text: head.to_owned() }];
    match webhooks {
        Webhooks::Unasked => lines.push(plain("known with DATABASE_URL only".to_owned())),
        Webhooks::Failed(error) => lines.push(alarm_if(true, format!("not known: {error}"))),
        Webhooks::Known(worst) if worst.is_empty() => {
            lines.push(plain("none: nothing failed of late, and nothing waits".to_owned()));
        }
        Webhooks::Known(worst) => lines.extend(worst.iter().take(WEBHOOKS).map(|worst| {
            let name = fitted(&format!("{} {}", worst.webhook, worst.name), 28);
            let mean = time(worst.ms.map(|ms| ms / 1000.0));
            let (failed, tried) = (number(Some(worst.failed as f64)), number(Some(worst.attempts as f64)));
            let waiting = number(Some(worst.waiting as f64));
            let why = worst.reason.as_deref().unwrap_or("-");
            plain(format!("{name} {:<9}{failed:>6} {tried:>5} {mean:>6} {waiting:>8}  {why}", worst.state))
        })),
    }
    lines
}

/// In at most five characters.
fn number(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return "-".to_owned() };
    match value {
        v if v == v.trunc() && v.abs() < 10_000.0 => format!("{v:.0}"),
        v if v.abs() < 10.0 => format!("{v:.1}"),
        v if v.abs() < 9_999.5 => format!("{v:.0}"),
        v if v.abs() < 99_950.0 => format!("{:.1}k", v / 1e3),
        v if v.abs() < 999_500.0 => format!("{:.0}k", v / 1e3),
        v if v.abs() < 99.95e6 => format!("{:.1}M", v / 1e6),
        v if v.abs() < 999.5e6 => format!("{:.0}M", v / 1e6),
        _ => format!("{:.0}G", (value / 1e9).clamp(-999.0, 9999.0)),
    }
}

/// Seconds in at most five characters.
fn time(seconds: Option<f64>) -> String {
    match seconds.filter(|seconds| seconds.is_finite()) {
        None => "-".to_owned(),
        Some(s) if s < 0.000_999_5 => format!("{:.0}us", s * 1e6),
        Some(s) if s < 0.009_95 => format!("{:.1}ms", s * 1e3),
        Some(s) if s < 0.999_5 => format!("{:.0}ms", s * 1e3),
        Some(s) if s < 99.95 => format!("{s:.1}s"),
        Some(s) => format!("{:.0}s", s.min(9999.0)),
    }
}

fn bytes(value: Option<f64>) -> String {
    match value.filter(|bytes| bytes.is_finite()) {
        None => "-".to_owned(),
        Some(bytes) if bytes < 1_073_741_824.0 => format!("{:.0}M", bytes / 1_048_576.0),
        Some(bytes) => format!("{:.1}G", bytes / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests;
