//! What connections are pooled by.

use std::hash::{Hash, Hasher};

use hyper::{Uri, http::uri::Authority};

/// Scheme, host and port. Hosts are compared without regard to case, and a port that is not written is the scheme's.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) https: bool,
    pub(super) authority: Authority,
    pub(super) port: u16,
}

impl Origin {
    pub(super) fn of(uri: &Uri) -> Option<Origin> {
        let authority = uri.authority()?.clone();
        let https = uri.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Origin { https, authority, port })
    }

    /// The host as a resolver or a certificate names it: an IPv6 address has no brackets.
    pub(super) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Origin) -> bool {
        self.https == other.https
            && self.port == other.port
            && self.authority.host().eq_ignore_ascii_case(other.authority.host())
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.https.hash(state);
        self.port.hash(state);
        for byte in self.authority.host().bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
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
