//! The one label that is not from a closed set: which webhooks are the worst, where `metrics.worst_webhooks` asks for it.
//!
//! Written by hand, because the recorder never forgets a label: who is not among the worst any more is gone with the next look.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

/// What is said of one webhook, of the newest events and the beginning of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Webhook {
    pub id: i64,
    pub failed: f64,
    pub waiting: f64,
    /// The mean time of an attempt in seconds; none without any.
    pub seconds: Option<f64>,
}

/// The worst webhooks as they were seen last. Its bound is that of who sets it.
#[derive(Default)]
pub struct Worst(Mutex<Vec<Webhook>>);

type Value = fn(&Webhook) -> Option<f64>;

const GAUGES: [(&str, &str, Value); 3] = [
    (
        "eventpulse_worst_webhook_failed_attempts",
        "Failed attempts of one of the worst webhooks, of the newest 1,000 events.",
        |w| Some(w.failed),
    ),
    (
        "eventpulse_worst_webhook_waiting_deliveries",
        "Deliveries of one of the worst webhooks among the first 10,000 of the schedule.",
        |w| Some(w.waiting),
    ),
    (
        "eventpulse_worst_webhook_attempt_seconds",
        "Mean time of an attempt of one of the worst webhooks, of the newest 1,000 events.",
        |w| w.seconds,
    ),
];

impl Worst {
    /// Takes the place of all that was said before.
    pub fn set(&self, webhooks: Vec<Webhook>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = webhooks;
    }

    /// Appends them in the Prometheus text format; nothing but names while there are none.
    pub(super) fn render(&self, out: &mut String) {
        let webhooks = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, value) in GAUGES {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (id, value) in webhooks.iter().filter_map(|w| Some((w.id, value(w)?))) {
                let _ = writeln!(out, "{name}{{webhook=\"{id}\"}} {value}");
            }
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_among_the_worst_any_more_is_gone() {
        let worst = Worst::default();
        let shown = || {
            let mut text = String::new();
            worst.render(&mut text);
            text
        };
        assert_eq!(shown().matches("# TYPE").count(), 3);
        let webhook = |id| Webhook { id, failed: 3.0, waiting: 0.0, seconds: (id == 7).then_some(0.5) };
        worst.set(vec![webhook(7), webhook(8)]);
        assert!(shown().contains("eventpulse_worst_webhook_failed_attempts{webhook=\"8\"} 3\n"));
        assert_eq!(shown().matches("_attempt_seconds{").count(), 1, "no time is not zero");
        worst.set(vec![webhook(7)]);
        assert!(shown().contains("{webhook=\"7\"}") && !shown().contains("{webhook=\"8\"}"));
    }
}
