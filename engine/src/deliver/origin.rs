//! What connections are pooled by.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::LazyLock,
};

use hyper::{Uri, http::uri::Authority};

/// One for all, so that equal origins have equal hashes. It is keyed: accounts choose the names of their hosts.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Scheme, host and port. Hosts are compared without regard to case, and a port that is not written is the scheme's.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) https: bool,
    pub(super) authority: Authority,
    pub(super) port: u16,
    /// Of all that makes it: one origin is looked up several times for each of its requests.
    hash: u64,
}

impl Origin {
    pub(super) fn of(uri: &Uri) -> Option<Origin> {
        let authority = uri.authority()?.clone();
        let https = uri.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let hash = HASHER.hash_one((https, port, authority.host().to_ascii_lowercase()));
        Some(Origin { https, authority, port, hash })
    }

    /// The host as a resolver or a certificate names it: an IPv6 address has no brackets.
    pub(super) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Origin) -> bool {
        self.hash == other.hash
            && self.https == other.https
            && self.port == other.port
            && self.authority.host().eq_ignore_ascii_case(other.authority.host())
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(uri: &str) -> Origin {
        Origin::of(&uri.parse().unwrap()).unwrap()
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("http://a.example/x"), origin("http://A.example:80/y"));
        assert_eq!(origin("https://a.example"), origin("https://a.example:443"));
        assert_ne!(origin("http://a.example:443"), origin("https://a.example"));
        assert_ne!(origin("http://a.example"), origin("http://b.example"));
        assert_eq!(origin("http://[::1]:1/").host(), "::1");
    }
}
