//! Sets and renames fields of the payload. What is to be done are the webhook's settings, in their order: `set.channel` = `shop`
//! sets a text, and `rename.customer` = `buyer` moves a field.

use eventpulse_transform::{Context, Outcome, Payload, Result, export, log};
use serde_json::{Map, Value};

fn transform(context: &Context, payload: Payload) -> Result {
    let mut fields: Map<String, Value> = payload.json()?;
    for (name, value) in context.configs() {
        if let Some(field) = name.strip_prefix("set.") {
            fields.insert(field.to_owned(), value.into());
        } else if let Some(field) = name.strip_prefix("rename.") {
            match fields.remove(field) {
                Some(moved) => {
                    fields.insert(value.to_owned(), moved);
                }
                None => log::debug(format_args!("there is no `{field}` to rename")),
            }
        }
    }
    Ok(Outcome::json(&fields)?)
}

export!(transform);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_set_and_renamed() {
        let context = Context::new("order.paid")
            .with_config("set.channel", "shop")
            .with_config("rename.customer", "buyer")
            .with_config("rename.none", "nothing")
            .with_config("other", "ignored");
        let payload = Payload::from(r#"{"amount":99.99,"customer":{"id":7},"channel":1}"#);
        let outcome = transform(&context, payload).unwrap();
        assert_eq!(outcome, Outcome::payload(r#"{"amount":99.99,"buyer":{"id":7},"channel":"shop"}"#));
    }

    #[test]
    fn a_payload_without_fields_is_an_error() {
        assert!(transform(&Context::new("order.paid"), Payload::from("[1]")).is_err());
    }
}
