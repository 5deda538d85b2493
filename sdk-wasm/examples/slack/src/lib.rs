//! Turns an order into a message for a chat: the whole body, as Slack's incoming webhooks want it.

use eventpulse_transform::{Body, Context, Payload, Result, export};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Order<'a> {
    #[serde(rename = "orderId", default)]
    id: Option<&'a str>,
    #[serde(default)]
    amount: Option<f64>,
}

fn transform(context: &Context, payload: Payload) -> Result {
    let order: Order = payload.json()?;
    let mut text = format!("*{}*", escaped(context.event_type()));
    if let Some(id) = order.id {
        text.push_str(&format!(" order `{}`", escaped(id)));
    }
    if let Some(amount) = order.amount {
        let currency = context.config("currency").unwrap_or("EUR");
        text.push_str(&format!(", {amount:.2} {}", escaped(currency)));
    }
    let body = Body::json(&json!({ "text": text }))?;
    Ok(body.header("x-event-id", context.event_id()).into())
}

export!(transform);

/// Slack reads these three characters as its own.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use eventpulse_transform::Outcome;

    use super::*;

    #[test]
    fn an_order_becomes_a_message() {
        let context = Context::new("order.paid").with_event_id("1024").with_config("currency", "USD");
        let outcome = transform(&context, Payload::from(r#"{"orderId":"<A&7>","amount":99.9}"#)).unwrap();
        let text = r#"{"text":"*order.paid* order `&lt;A&amp;7&gt;`, 99.90 USD"}"#;
        let expected = Body::new("application/json", text).header("x-event-id", "1024");
        assert_eq!(outcome, Outcome::Body(expected));
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let outcome = transform(&Context::new("order.paid"), Payload::from("{}")).unwrap();
        let Outcome::Body(body) = outcome else { panic!("{outcome:?}") };
        assert_eq!(body.bytes(), br#"{"text":"*order.paid*"}"#);
    }
}
