//! What comes next, from facts put together by hand.

use crate::{
    commands::explain::render,
    model::{AccountId, Own, Span, WebhookId},
};

use super::*;

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn outline() -> Outline {
    Outline {
        account: AccountId(7),
        kind: "order.paid".to_owned(),
        bytes: 42,
        created_at: Timestamp(NOW.0 - 5000),
        now: NOW,
    }
}

fn batch(streamed: bool) -> Batch {
    let span = Span { first: EventId(1024), n: 3, version: 5 };
    Batch { span, streamed, owner: 9, beat: Some(1) }
}

fn hook(state: State) -> Webhook {
    Webhook {
        id: WebhookId(1),
        account: AccountId(7),
        url: "https://hooks.example/T0/token".to_owned(),
        secret: Some("whsec_hidden".to_owned()),
        secret_before: None,
        event_types: None,
        state,
        since: 1,
        until: None,
        own: Own::default(),
        transform: None,
    }
}

fn facts(state: State, is_owed: bool) -> WebhookReport {
    WebhookReport::new(&hook(state), "shop", None, Owed { is_owed, why: "why".to_owned() })
}

fn attempt(round: i16, attempt: i16, status: &str) -> Attempt {
    Attempt {
        round,
        attempt,
        status: status.to_owned(),
        response_code: Some(500),
        reason_code: "http_status".to_owned(),
        error: Some("the endpoint refused".to_owned()),
        duration_ms: 12,
        created_at: Timestamp(NOW.0 - 2000),
    }
}

fn row(reason: &str, in_ms: i64) -> Scheduled {
    Scheduled::of(&Waiting {
        webhook: WebhookId(1),
        round: 1,
        attempt: 2,
        next_at: Timestamp(NOW.0 + in_ms),
        expires_at: Timestamp(NOW.0 + 3_600_000),
        reason: reason.to_owned(),
    })
}

fn letter(requeued: bool) -> Letter {
    Letter {
        id: 77,
        round: 1,
        attempts: 8,
        reason: "the schedule is over".to_owned(),
        reason_code: "http_status".to_owned(),
        created_at: NOW,
        requeued_at: requeued.then_some(NOW),
    }
}

fn report(batch: Option<&Batch>, owner: Option<Owner>, entry: Entry) -> Report {
    Report::new(EventId(1025), &outline(), batch, owner, entry)
}

/// What is said of one webhook.
fn next(mut report: Report, webhook: WebhookReport) -> String {
    report.add(webhook, 10, 10);
    report.webhooks.remove(0).next
}

#[test]
fn a_row_of_the_schedule_says_what_comes_next() {
    let cases = [
        (State::Active, row("retry", 4000), "attempt 2 in 4.0 s"),
        (State::Active, row("retry", -60_000), "none is running"),
        (State::Active, row("in_flight", 4000), "its answer is awaited"),
        (State::Active, row("breaker", 4000), "a probe tries"),
        (State::Active, row("backlog", 4000), "pulls it when it has room"),
        (State::Paused, row("paused", 4000), "once the webhook is resumed"),
        (State::Disabled, row("retry", 4000), "because the webhook is disabled"),
    ];
    for (state, row, text) in cases {
        let reason = row.reason.clone();
        let mut webhook = facts(state, true);
        webhook.scheduled = Some(row);
        let said = next(report(None, None, Entry::Settled), webhook);
        assert!(said.contains(text), "{reason} {said}");
    }
    let mut webhook = facts(State::Active, true);
    (webhook.scheduled, webhook.breaker_open) = (Some(row("retry", 4000)), Some(true));
    assert!(next(report(None, None, Entry::Settled), webhook).contains("the breaker is open"));
}

#[test]
fn what_ended_says_that_nothing_comes_or_how_to_bring_it_back() {
    let with = |state, attempts, letters| {
        let mut webhook = facts(state, false);
        (webhook.attempts, webhook.dead_letters) = (attempts, letters);
        next(report(None, None, Entry::Settled), webhook)
    };
    assert!(with(State::Active, vec![attempt(1, 1, "success")], vec![]).contains("delivered"));
    assert!(with(State::Active, vec![attempt(1, 1, "filtered")], vec![]).contains("dropped"));
    let dead = || vec![attempt(1, 7, "failed"), attempt(1, 8, "dead")];
    assert!(with(State::Active, dead(), vec![letter(false)]).contains("POST /dlq/77/retry"));
    assert!(with(State::Disabled, dead(), vec![letter(false)]).contains("enable the webhook"));
    assert!(with(State::Active, dead(), vec![letter(true)]).contains("requeued or removed"));
    // A later round counts, in whichever order attempts are told.
    let rounds = vec![attempt(2, 1, "success"), attempt(1, 8, "dead")];
    assert!(with(State::Active, rounds, vec![letter(true)]).contains("delivered"));
}

#[test]
fn a_batch_alone_says_who_has_to_act() {
    let (fresh, streamed) = (batch(false), batch(true));
    let of = |batch, owner, entry| next(report(Some(batch), owner, entry), facts(State::Active, true));
    assert!(of(&fresh, Some(Owner::Beating), Entry::Missing).contains("instance 9 puts"));
    assert!(of(&fresh, Some(Owner::Silent), Entry::Missing).contains("silent"));
    assert!(of(&fresh, Some(Owner::Gone), Entry::Missing).contains("gone"));
    assert!(
        of(&streamed, None, Entry::HeldBy("dispatcher-3-0".to_owned())).contains("dispatcher-3-0 has it")
    );
    assert!(of(&streamed, None, Entry::Unread).contains("none is running"));
    assert!(of(&streamed, None, Entry::Missing).contains("the sweep"));
    assert!(of(&streamed, None, Entry::Unknown("refused".to_owned())).contains("Redis has to be reachable"));
}

#[test]
fn eligibility_is_explained() {
    let webhook = hook(State::Active);
    let why = |webhook: &Webhook, kind: &str, version, later| owed(webhook, kind, version, later).why;
    assert!(owed(&webhook, "order.paid", Some(5), false).is_owed);
    assert!(why(&webhook, "order.paid", Some(0), false).contains("registered after"));
    assert!(why(&webhook, "order.paid", None, true).contains("registered after"));
    assert!(why(&webhook, "order.paid", None, false).contains("nothing is recorded"));
    assert!(why(&webhook, "eventpulse.webhook.disabled", Some(5), false).contains("the engine's own"));
    let some = Webhook { event_types: Some(vec!["invoice.*".to_owned()]), ..hook(State::Active) };
    assert!(why(&some, "order.paid", Some(5), false).contains("types do not match"));
    let gone = Webhook { until: Some(5), ..hook(State::Disabled) };
    assert!(why(&gone, "order.paid", Some(5), false).contains("disabled or deleted"));
}

#[test]
fn the_text_has_all_of_it_and_neither_secrets_nor_paths() {
    let streamed = batch(true);
    let mut report = report(Some(&streamed), None, Entry::HeldBy("dispatcher-3-0".to_owned()));
    let mut webhook = facts(State::Active, true);
    webhook.attempts = (1..=15).map(|n| attempt(1, n, "failed")).collect();
    webhook.scheduled = Some(row("retry", 4000));
    webhook.dead_letters = vec![letter(true)];
    webhook.breaker_open = Some(true);
    report.add(webhook, 12, 10);
    for _ in 0..12 {
        report.add(facts(State::Active, false), 12, 10);
    }
    report.add(facts(State::Deleted, false), 12, 10);
    report.conclude();
    let text = render::render(&report);
    for part in [
        "event 1025",
        "order.paid",
        "42 bytes",
        "(5.0 s ago)",
        "3 events from 1024, streamed",
        "held by dispatcher-3-0",
        "webhook 1 \"shop\" https://hooks.example, active",
        "breaker    open",
        "3 older ones not shown",
        "attempt 15  failed (http_status, HTTP 500)",
        "scheduled  attempt 2 in 4.0 s",
        "letter 77 after 8 attempts",
        "requeued in 0.0 s",
        "3 more webhooks",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    for hidden in ["token", "whsec_", "attempt 3 "] {
        assert!(!text.contains(hidden), "{hidden} in\n{text}");
    }
}

#[test]
fn an_event_that_concerns_nobody_says_so() {
    let mut report = report(None, None, Entry::Settled);
    report.add(facts(State::Active, false), 10, 10);
    report.conclude();
    assert!(render::render(&report).contains("next: nothing: no webhook is owed it"));
}
