//! Lets large orders through. The webhook's setting `min` says what is large; without it all of them are.

use eventpulse_transform::{Context, Outcome, Payload, Result, export};
use serde::Deserialize;

/// What is needed of the payload; everything else in it is passed over.
#[derive(Deserialize)]
struct Order {
    amount: f64,
}

fn transform(context: &Context, payload: Payload) -> Result {
    let min: f64 = context.config_as("min")?.unwrap_or(0.0);
    let order: Order = payload.json()?;
    if order.amount < min {
        return Ok(Outcome::drop(format!("amount {} is below {min}", order.amount)));
    }
    Ok(Outcome::unchanged())
}

export!(transform);

#[cfg(test)]
mod tests {
    use super::*;

    fn call(min: &str, payload: &str) -> Result {
        transform(&Context::new("order.paid").with_config("min", min), Payload::from(payload))
    }

    #[test]
    fn large_orders_pass() {
        assert_eq!(call("100", r#"{"id":"A-7","amount":100}"#).unwrap(), Outcome::unchanged());
    }

    #[test]
    fn without_a_setting_all_pass() {
        let outcome = transform(&Context::new("order.paid"), Payload::from(r#"{"amount":1}"#));
        assert_eq!(outcome.unwrap(), Outcome::unchanged());
    }

    #[test]
    fn small_orders_are_dropped() {
        let outcome = call("100", r#"{"id":"A-8","amount":99.99}"#).unwrap();
        assert_eq!(outcome, Outcome::drop("amount 99.99 is below 100"));
    }

    #[test]
    fn what_is_no_order_is_an_error() {
        let error = call("100", r#"{"id":"A-9"}"#).unwrap_err().to_string();
        assert!(error.contains("missing field `amount`"), "{error}");
        let error = call("much", "{}").unwrap_err().to_string();
        assert_eq!(error, "config `min`, which is `much`: invalid float literal");
    }
}
