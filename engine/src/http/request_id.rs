//! The id by which a request is found again: the client's own `x-request-id` where it has one, or one that is made.
//!
//! A request that succeeds and brought none gets none: its event's id names it, and the hot path makes nothing that nobody
//! asked for. Each failure has one, so that whoever reports it can name it.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

static NAME: HeaderName = HeaderName::from_static("x-request-id");

/// More than the ids of proxies have, and little enough for a line of a log.
const BYTES_MAX: usize = 128;

/// What a client called its request; none when it did not, or not well.
pub(super) struct RequestId(Option<HeaderValue>);

impl RequestId {
    /// Costs one look-up and, where there is one, a count of references.
    pub(super) fn of(headers: &HeaderMap) -> RequestId {
        RequestId(headers.get(&NAME).filter(|id| is_well_formed(id.as_bytes())).cloned())
    }

    /// Makes sure that there is one, for an answer that says that something went wrong.
    pub(super) fn or_made(&mut self) -> &HeaderValue {
        self.0.get_or_insert_with(made)
    }

    /// Says it in an answer.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        if let Some(id) = self.0 {
            headers.insert(&NAME, id);
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref().and_then(|id| id.to_str().ok()).unwrap_or("-"))
    }
}

/// Characters that mean nothing in any log, shell or query.
fn is_well_formed(id: &[u8]) -> bool {
    (1..=BYTES_MAX).contains(&id.len())
        && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(b))
}

/// One that no other process makes, as far as 64 random bits go, with a number of its own in this one.
fn made() -> HeaderValue {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Without randomness there are no keys either; then ids of several processes may be the same.
    let process = PROCESS.get_or_init(|| getrandom::u64().unwrap_or_default());
    let id = format!("{process:016x}-{}", NEXT.fetch_add(1, Relaxed));
    HeaderValue::try_from(id).expect("digits and a hyphen are a value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(id: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(NAME.clone(), HeaderValue::from_bytes(id).unwrap())])
    }

    #[test]
    fn a_clients_own_id_is_kept_when_it_is_well_formed() {
        let longest = "x".repeat(BYTES_MAX);
        for id in ["a", "3f2b8c1e-0000-4000-8000-000000000000", "Root=1-67891233:a/b+c=@~_.", &longest] {
            assert_eq!(RequestId::of(&headers(id.as_bytes())).to_string(), id);
        }
        let long = "x".repeat(BYTES_MAX + 1);
        for id in ["", "a b", "a\"b", "a\tb", "{a}", "a,b", &long, "\u{e9}"] {
            assert_eq!(RequestId::of(&headers(id.as_bytes())).to_string(), "-", "{id:?}");
        }
    }

    #[test]
    fn one_is_made_where_it_is_needed_and_never_twice() {
        let mut none = RequestId::of(&HeaderMap::new());
        let mut answer = HeaderMap::new();
        let one = none.or_made().clone();
        assert!(is_well_formed(one.as_bytes()));
        assert_eq!(none.or_made(), one);
        none.tell(&mut answer);
        assert_eq!(answer[&NAME], one);
        assert_ne!(RequestId::of(&HeaderMap::new()).or_made(), one);
        let mut kept = RequestId::of(&headers(b"mine"));
        assert_eq!(kept.or_made(), "mine");
        RequestId::of(&HeaderMap::new()).tell(&mut HeaderMap::new());
    }
}
