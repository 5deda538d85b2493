//! Takes personal data out of a payload, at any depth: fields with telling names, e-mail addresses and card numbers in text.
//! The webhook's setting `fields` names further fields, separated by commas.

use eventpulse_transform::{Context, Outcome, Payload, Result, export, log};
use serde_json::Value;

const HIDDEN: &str = "***";

/// Parts of names, without case, whose values never leave.
const NAMES: &[&str] =
    &["email", "phone", "password", "secret", "ssn", "iban", "cardnumber", "card_number", "cvc", "cvv"];

fn transform(context: &Context, payload: Payload) -> Result {
    let mut value: Value = payload.json()?;
    let further: Vec<String> = context
        .config("fields")
        .into_iter()
        .flat_map(|names| names.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    let hidden = redact(&mut value, &further);
    // What was clean goes out byte for byte.
    if hidden == 0 {
        return Ok(Outcome::unchanged());
    }
    log::info(format_args!("{hidden} values hidden"));
    Ok(Outcome::json(&value)?)
}

export!(transform);

/// Hides what must not leave, and counts it. As deep as JSON may be nested, which is 128 levels.
fn redact(value: &mut Value, further: &[String]) -> usize {
    match value {
        Value::Object(fields) => {
            let mut hidden = 0;
            for (name, value) in fields {
                hidden += if private(name, further) { hide(value) } else { redact(value, further) };
            }
            hidden
        }
        Value::Array(items) => items.iter_mut().map(|item| redact(item, further)).sum(),
        Value::String(text) if has_email(text) || has_card(text) => hide(value),
        Value::Number(number) if has_card(&number.to_string()) => hide(value),
        _ => 0,
    }
}

fn hide(value: &mut Value) -> usize {
    if value.is_null() {
        return 0;
    }
    *value = HIDDEN.into();
    1
}

fn private(name: &str, further: &[String]) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|part| name.contains(part)) || further.contains(&name)
}

/// A word with one `@` that has something before it and a name with a dot after it.
fn has_email(text: &str) -> bool {
    text.split(|c: char| c.is_whitespace() || "<>(),;:\"'".contains(c)).any(|word| {
        match word.split_once('@') {
            Some((user, host)) => {
                let host = host.trim_end_matches('.');
                !user.is_empty() && !host.contains('@') && host.find('.').is_some_and(|dot| dot > 0)
            }
            None => false,
        }
    })
}

/// 13 to 19 digits, with blanks or dashes between, whose check digit is right.
fn has_card(text: &str) -> bool {
    let mut digits: Vec<u8> = Vec::new();
    // The one at the end closes the last number.
    for byte in text.bytes().chain([0]) {
        match byte {
            b'0'..=b'9' => digits.push(byte - b'0'),
            b' ' | b'-' if !digits.is_empty() => {}
            _ => {
                if (13..=19).contains(&digits.len()) && luhn(&digits) {
                    return true;
                }
                digits.clear();
            }
        }
    }
    false
}

/// The check digit of card numbers: every second digit from the right counts twice.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let doubled = u32::from(*digit) << (place % 2);
            if doubled > 9 { doubled - 9 } else { doubled }
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(context: Context, payload: &str) -> String {
        match transform(&context, Payload::from(payload)).unwrap() {
            Outcome::Payload(json) => String::from_utf8(json).unwrap(),
            Outcome::Unchanged => payload.to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn telling_names_are_hidden_at_any_depth() {
        let context = Context::new("user.created").with_config("fields", "nickname, Street");
        let payload =
            r#"{"a":[{"Email":"x","nickName":"y"}],"cardNumber":1,"city":"z","phone":null,"street":["s"]}"#;
        let expected = r#"{"a":[{"Email":"***","nickName":"***"}],"cardNumber":"***","city":"z","phone":null,"street":"***"}"#;
        assert_eq!(call(context, payload), expected);
    }

    #[test]
    fn addresses_and_cards_in_text_are_hidden() {
        for text in [
            "write to ann@example.org.",
            "<ann@example.org>",
            "4111 1111 1111 1111",
            "card 4111-1111-1111-1111!",
        ] {
            let payload = format!(r#"{{"note":"{text}"}}"#);
            assert_eq!(call(Context::new("a"), &payload), r#"{"note":"***"}"#, "{text}");
        }
        assert_eq!(call(Context::new("a"), r#"{"n":4111111111111111}"#), r#"{"n":"***"}"#);
    }

    #[test]
    fn what_is_clean_is_not_touched() {
        for text in [
            r#"{ "note" : "at 5 @ the gate", "price": 1.50 }"#,
            r#"{"order":"4111111111111112"}"#,
            r#"{"at":"@home","host":"user@localhost","time":1700000000000}"#,
        ] {
            let outcome = transform(&Context::new("a"), Payload::from(text)).unwrap();
            assert_eq!(outcome, Outcome::unchanged(), "{text}");
        }
    }
}
