//! A transform's settings, checked one by one: each error names its field.

use serde_json::{Map, Value};

use super::super::ApiError;

/// Names and values of one version, and their bytes together.
const ENTRIES_MAX: usize = 64;
const BYTES_MAX: usize = 16 << 10;

/// Reads `config`, as names and values in turn, and `onError`.
///
/// # Errors
/// For what is no JSON object, an unknown field, and a field that is not as it must be.
pub(super) fn read(bytes: &[u8]) -> Result<(Option<Vec<String>>, Option<&'static str>), ApiError> {
    let fields: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad("invalid_json", format!("send a JSON object: {error}")))?;
    let (mut new_config, mut new_on_error) = (None, None);
    for (name, value) in fields {
        match name.as_str() {
            "config" => new_config = Some(config(value)?),
            "onError" => new_on_error = Some(on_error(&value)?),
            _ => {
                let message = format!("`{name}` is not a setting of a transform: `config` and `onError` are");
                return Err(ApiError::bad("unknown_field", message));
            }
        }
    }
    Ok((new_config, new_on_error))
}

/// Names and values in turn; null is none.
pub(super) fn config(value: Value) -> Result<Vec<String>, ApiError> {
    let wrong = |message: String| Err(ApiError::bad("invalid_config", message));
    let fields = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(fields) if fields.len() <= ENTRIES_MAX => fields,
        _ => {
            return wrong(format!("`config` must be an object of at most {ENTRIES_MAX} names and strings"));
        }
    };
    let mut flat = Vec::with_capacity(fields.len() * 2);
    for (name, value) in fields {
        let Value::String(value) = value else {
            return wrong(format!("the value of `{name}` in `config` must be a string"));
        };
        if name.contains('\0') || value.contains('\0') {
            return wrong(format!("`{}` in `config` holds a NUL", name.replace('\0', "\\0")));
        }
        flat.extend([name, value]);
    }
    if flat.iter().map(String::len).sum::<usize>() > BYTES_MAX {
        return wrong(format!("`config` must be at most {BYTES_MAX} bytes of names and values together"));
    }
    Ok(flat)
}

fn on_error(value: &Value) -> Result<&'static str, ApiError> {
    match value.as_str() {
        Some("retry") => Ok("retry"),
        Some("original") => Ok("original"),
        Some("drop") => Ok("drop"),
        _ if value.is_null() => Ok("retry"),
        _ => Err(ApiError::bad("invalid_on_error", "`onError` must be `retry`, `original` or `drop`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_in_their_order() {
        let (config, on_error) =
            read(br#"{"onError":"drop","config":{"z":"1","a":"","\u00e9":"2"}}"#).unwrap();
        assert_eq!(config.unwrap(), ["z", "1", "a", "", "é", "2"]);
        assert_eq!(on_error, Some("drop"));
        assert_eq!(read(b"{}").unwrap(), (None, None));
        assert_eq!(read(br#"{"onError":null,"config":null}"#).unwrap(), (Some(Vec::new()), Some("retry")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many: Map<String, Value> = (0..65).map(|n| (n.to_string(), "".into())).collect();
        let many = serde_json::json!({ "config": many }).to_string();
        let long = serde_json::json!({ "config": { "a": "x".repeat(BYTES_MAX) } }).to_string();
        for (body, code, says) in [
            ("[]", "invalid_json", "object"),
            ("{", "invalid_json", "object"),
            (r#"{"colour":1}"#, "unknown_field", "`colour`"),
            (r#"{"config":[]}"#, "invalid_config", "`config`"),
            (r#"{"config":{"a":1}}"#, "invalid_config", "`a`"),
            (r#"{"config":{"a":null}}"#, "invalid_config", "`a`"),
            (r#"{"config":{"a":"\u0000"}}"#, "invalid_config", "NUL"),
            (r#"{"config":{"a\u0000":""}}"#, "invalid_config", "NUL"),
            (&many, "invalid_config", "64"),
            (&long, "invalid_config", "16384"),
            (r#"{"onError":"stop"}"#, "invalid_on_error", "`onError`"),
            (r#"{"onError":1}"#, "invalid_on_error", "`onError`"),
        ] {
            let error = format!("{:?}", read(body.as_bytes()).unwrap_err());
            assert!(error.contains(code) && error.contains(says), "{body}: {error}");
        }
        let exact = serde_json::json!({ "config": { "a": "x".repeat(BYTES_MAX - 1) } }).to_string();
        assert!(read(exact.as_bytes()).is_ok());
    }
}
