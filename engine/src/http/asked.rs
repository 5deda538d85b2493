//! What a producer asks for by headers beside its events.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use super::ApiError;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static PREFER: HeaderName = HeaderName::from_static("prefer");
static PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

const KEY_BYTES_MAX: usize = 255;

/// What of it a request has. Nearly all have nothing, and cost two look-ups.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) key: Option<HeaderValue>,
    /// `Prefer: return=minimal` (RFC 7240): the answer comes without payloads.
    pub(super) minimal: bool,
}

impl Asked {
    pub(super) fn of(headers: &HeaderMap) -> Result<Asked, ApiError> {
        let key = match headers.get(&IDEMPOTENCY_KEY) {
            None => None,
            Some(key) => Some(checked(key, headers)?),
        };
        Ok(Asked { key, minimal: headers.contains_key(&PREFER) && minimal(headers) })
    }

    /// Says in the answer what was done of what was asked.
    pub(super) fn tell(&self, headers: &mut HeaderMap, replayed: bool) {
        if replayed {
            headers.insert(&REPLAYED, HeaderValue::from_static("true"));
        }
        if self.minimal {
            headers.insert(&PREFERENCE_APPLIED, HeaderValue::from_static("return=minimal"));
        }
    }
}

fn checked(key: &HeaderValue, headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    let bytes = key.as_bytes();
    if headers.get_all(&IDEMPOTENCY_KEY).iter().count() > 1 {
        return Err(ApiError::bad("invalid_idempotency_key", "send one `Idempotency-Key` only"));
    }
    if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX || !bytes.iter().all(u8::is_ascii_graphic) {
        let message = "`Idempotency-Key` must be 1 to 255 visible ASCII characters";
        return Err(ApiError::bad("invalid_idempotency_key", message));
    }
    Ok(key.clone())
}

/// Of preferences with one name the first counts, and those we do not know are passed over, as RFC 7240 has it.
fn minimal(headers: &HeaderMap) -> bool {
    let values = headers.get_all(&PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split(',')).filter_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("return").then_some(value.trim().trim_matches('"'))
    });
    preferences.next().is_some_and(|value| value.eq_ignore_ascii_case("minimal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_preference_is_read_as_the_standard_has_it() {
        for prefer in [
            "return=minimal",
            "Return = \"Minimal\"",
            "respond-async, wait=10, return=minimal;x=y",
            "return=minimal, return=representation",
        ] {
            assert!(Asked::of(&headers(&[("prefer", prefer)])).unwrap().minimal, "{prefer}");
        }
        for prefer in ["return=representation, return=minimal", "return", "minimal", "x=return=minimal", ""] {
            assert!(!Asked::of(&headers(&[("prefer", prefer)])).unwrap().minimal, "{prefer}");
        }
        let two = headers(&[("prefer", "wait=1"), ("prefer", "return=minimal")]);
        assert!(Asked::of(&two).unwrap().minimal);
    }

    #[test]
    fn a_key_is_visible_ascii_and_alone() {
        for key in ["a", "3f2b8c1e-0000-4000-8000-000000000000", "~!\"#"] {
            let asked = Asked::of(&headers(&[("idempotency-key", key)])).unwrap();
            assert_eq!(asked.key.unwrap(), key);
        }
        for key in ["", "a b", "a\tb", "\u{e9}", &*"x".repeat(256).leak()] {
            let mut map = HeaderMap::new();
            map.insert("idempotency-key", HeaderValue::from_bytes(key.as_bytes()).unwrap());
            assert!(Asked::of(&map).is_err(), "{key:?}");
        }
        assert!(Asked::of(&headers(&[("idempotency-key", "a"), ("idempotency-key", "a")])).is_err());
        assert!(Asked::of(&HeaderMap::new()).unwrap().key.is_none());
    }
}
