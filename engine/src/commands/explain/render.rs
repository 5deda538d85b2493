//! The report as text for a terminal.

use std::fmt::Write as _;

use super::story::{Entry, Owner, Report, WebhookReport};
use crate::{commands::text, model::Timestamp};

/// Characters kept of a text that somebody else wrote.
const TEXT_MAX: usize = 160;

/// A foreign text as one short line.
pub(super) fn cleaned(text: &str) -> String {
    text::cleaned(text, TEXT_MAX)
}

/// Scheme, host and port of a URL; of what is none, nothing.
pub(super) fn origin(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    let host = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    cleaned(&format!("{scheme}://{host}"))
}

/// How far a time is from `now`, such as `in 5 s` or `3 min ago`.
pub(super) fn distance(at: Timestamp, now: Timestamp) -> String {
    let ms = at.0 - now.0;
    let size = ms.unsigned_abs();
    let text = match size {
        0..10_000 => format!("{}.{} s", size / 1000, size % 1000 / 100),
        10_000..120_000 => format!("{} s", size / 1000),
        120_000..7_200_000 => format!("{} min", size / 60_000),
        7_200_000..172_800_000 => format!("{} h", size / 3_600_000),
        _ => format!("{} days", size / 86_400_000),
    };
    if ms >= 0 { format!("in {text}") } else { format!("{text} ago") }
}

/// The whole report. Writing to a string does not fail.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    let now = report.now;
    let _ = writeln!(out, "event {}", report.event);
    let _ = writeln!(out, "  account    {}", report.account);
    let _ = writeln!(out, "  type       {}", report.kind);
    let _ = writeln!(out, "  payload    {} bytes", report.payload_bytes);
    let _ = writeln!(out, "  accepted   {} ({})", report.created_at, distance(report.created_at, now));
    let _ = writeln!(out, "  batch      {}", batch(report));
    let _ = writeln!(out, "  in Redis   {}", entry(&report.entry));
    for webhook in &report.webhooks {
        write_webhook(&mut out, webhook, now);
    }
    if report.left_out > 0 {
        let _ = writeln!(out, "\n{} more webhooks of the account are not owed it", report.left_out);
    }
    if let Some(next) = &report.next {
        let _ = writeln!(out, "\nnext: {next}");
    }
    out
}

fn batch(report: &Report) -> String {
    let Some(batch) = &report.batch else {
        return "settled: its row is gone, so only the schedule can owe anything".to_owned();
    };
    let size = format!("{} events from {}", batch.events, batch.first);
    if batch.streamed {
        return format!("{size}, streamed");
    }
    let owner = match batch.owner_state {
        Some(Owner::Beating) => "which lives",
        Some(Owner::Silent) => "which does not beat",
        Some(Owner::Gone) | None => "which is gone",
    };
    format!("{size}, not known to be streamed yet by instance {}, {owner}", batch.owner)
}

fn entry(entry: &Entry) -> String {
    match entry {
        Entry::Settled => "nothing, as nothing has to be there".to_owned(),
        Entry::Missing => "its entry is not in the stream, or not among the oldest 10,000".to_owned(),
        Entry::Unread => "in the stream, not read yet".to_owned(),
        Entry::HeldBy(consumer) => format!("in the stream, held by {}", cleaned(consumer)),
        Entry::Unknown(error) => format!("unknown: {}", cleaned(error)),
    }
}

fn write_webhook(out: &mut String, webhook: &WebhookReport, now: Timestamp) {
    let WebhookReport { id, name, url, state, owed, .. } = webhook;
    let reason = webhook.disabled_reason.as_deref().filter(|_| *state == "disabled");
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    let _ = writeln!(out, "\nwebhook {id} \"{name}\" {url}, {state}{reason}");
    let _ = writeln!(out, "  {:<11}{}", if owed.is_owed { "owed" } else { "not owed" }, owed.why);
    if webhook.breaker_open == Some(true) {
        let _ = writeln!(out, "  breaker    open: nothing is sent but probes");
    }
    if webhook.attempts_left_out > 0 {
        let _ = writeln!(out, "  attempts   {} older ones not shown", webhook.attempts_left_out);
    }
    for a in &webhook.attempts {
        let round = if a.round > 1 { format!(" of round {}", a.round) } else { String::new() };
        let code = a.response_code.map_or_else(String::new, |code| format!(", HTTP {code}"));
        let error = a.error.as_deref().map_or_else(String::new, |error| format!(": {error}"));
        let _ = writeln!(
            out,
            "  attempt {}{round}  {} ({}{code}) {}, {} ms{error}",
            a.attempt,
            a.status,
            a.reason_code,
            distance(a.created_at, now),
            a.duration_ms
        );
    }
    if let Some(row) = &webhook.scheduled {
        let _ = writeln!(
            out,
            "  scheduled  attempt {} {} ({}); {}: {}; expires {}",
            row.attempt,
            distance(row.next_at, now),
            row.next_at,
            row.reason,
            row.meaning,
            distance(row.expires_at, now)
        );
    }
    for letter in &webhook.dead_letters {
        let requeued = letter.requeued_at.map(|at| format!(", requeued {}", distance(at, now)));
        let _ = writeln!(
            out,
            "  dead       letter {} after {} attempts, {} ({}: {}){}",
            letter.id,
            letter.attempts,
            distance(letter.created_at, now),
            letter.reason_code,
            letter.reason,
            requeued.unwrap_or_default()
        );
    }
    let _ = writeln!(out, "  next: {}", webhook.next);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_read_as_people_say_them() {
        let now = Timestamp(1_000_000_000_000);
        let cases = [
            (0, "in 0.0 s"),
            (4_250, "in 4.2 s"),
            (-61_000, "61 s ago"),
            (300_000, "in 5 min"),
            (-7_200_000, "2 h ago"),
            (400_000_000, "in 4 days"),
        ];
        for (ms, text) in cases {
            assert_eq!(distance(Timestamp(now.0 + ms), now), text);
        }
    }

    #[test]
    fn of_a_url_only_the_origin_is_shown() {
        for (url, shown) in [
            ("https://user:pass@hooks.example:8443/T0/B0/token?key=secret", "https://hooks.example:8443"),
            ("http://h?key=secret", "http://h"),
            ("http://h#secret", "http://h"),
            ("nonsense", ""),
        ] {
            assert_eq!(origin(url), shown);
        }
    }
}
