//! Ids in paths, times, and the parameters of lists.

use super::ApiError;
use crate::model::Timestamp;

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 200;

/// A page of a list: up to `limit` items with ids below `before`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) limit: i64,
    pub(super) before: i64,
}

/// An id as it stands in a path: a decimal number from 0 to 2^63-1.
pub(super) fn id(text: &str) -> Result<i64, ApiError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| ApiError::bad("invalid_id", "the id must be a whole number"))
}

/// The time in the field `name` of a query or a body.
pub(super) fn time(name: &'static str, text: &str) -> Result<Timestamp, ApiError> {
    // A colon may stand in a query as it is or escaped.
    text.replace("%3A", ":").replace("%3a", ":").parse().map_err(|()| {
        ApiError::bad("invalid_time", format!("`{name}` must be a time such as 2026-01-31T08:00:00Z"))
    })
}

/// Reads `limit` and `before`; other parameters are left alone.
pub(super) fn page(query: Option<&str>) -> Result<Page, ApiError> {
    let mut page = Page { limit: LIMIT_DEFAULT, before: i64::MAX };
    for pair in query.unwrap_or_default().split('&') {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("limit", text) => {
                page.limit =
                    text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
                        ApiError::bad("invalid_limit", "`limit` must be a number within 1..200")
                    })?;
            }
            ("before", text) => {
                page.before = id(text).map_err(|_| {
                    ApiError::bad("invalid_before", "`before` must be an id from an earlier page")
                })?;
            }
            _ => {}
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_whole_numbers() {
        assert_eq!(id("0").unwrap(), 0);
        assert_eq!(id("9223372036854775807").unwrap(), i64::MAX);
        for text in ["", "-1", "+1", "1.0", "abc", "9223372036854775808", "1e3", " 1"] {
            assert!(id(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pages_have_bounds() {
        assert_eq!(page(None).unwrap(), Page { limit: 50, before: i64::MAX });
        assert_eq!(page(Some("before=7&limit=200&x=y")).unwrap(), Page { limit: 200, before: 7 });
        for query in ["limit=0", "limit=201", "limit=x", "limit=", "before=-1", "before=x"] {
            assert!(page(Some(query)).is_err(), "{query}");
        }
    }
}
