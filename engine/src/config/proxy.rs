//! The URL of an egress proxy, taken apart.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::value::Secret;

/// Where a proxy is and what it wants to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// A name or an address, the latter without brackets.
    pub host: String,
    pub port: u16,
    /// The value of `Proxy-Authorization`, empty without a user.
    pub authorization: Secret,
}

/// What is wrong with a proxy's URL. It never shows the URL, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid(&'static str);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Proxy {
    /// Reads `http://[user:password@]host:port`. Nothing stands for no proxy.
    ///
    /// # Errors
    /// On any other scheme, a missing port, and anything behind it.
    pub fn parse(url: &Secret) -> Result<Option<Proxy>, Invalid> {
        if url.is_empty() {
            return Ok(None);
        }
        let rest = url
            .reveal()
            .strip_prefix("http://")
            .ok_or(Invalid("must begin with http://, the only way to a proxy that is spoken"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let (host, port) = place.rsplit_once(':').ok_or(Invalid("must name the proxy's port"))?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(Invalid("has no valid port"))?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bare {
            Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if !is_host {
            return Err(Invalid("has no valid host"));
        }
        let authorization = user.map_or_else(|| Ok(Secret::default()), basic)?;
        Ok(Some(Proxy { host: bare.unwrap_or(host).to_owned(), port, authorization }))
    }
}

/// The value of a header for `user:password` as it stands in a URL.
///
/// # Errors
/// On a `%` that begins no escape.
pub fn basic(user: &str) -> Result<Secret, Invalid> {
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut credentials = decoded(user)?;
    credentials.push(b':');
    credentials.extend(decoded(password)?);
    Ok(Secret::new(format!("Basic {}", BASE64_STANDARD.encode(credentials))))
}

/// Resolves `%40` and its like.
fn decoded(text: &str) -> Result<Vec<u8>, Invalid> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(Invalid("has a `%` in its user or password that does not begin an escape")),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Option<Proxy>, Invalid> {
        Proxy::parse(&Secret::new(url))
    }

    #[test]
    fn a_url_is_taken_apart() {
        assert_eq!(parse(""), Ok(None));
        let proxy = parse("http://proxy.internal:3128/").unwrap().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.internal", 3128));
        assert!(proxy.authorization.is_empty());
        let proxy = parse("http://us%40er:p:w@[::1]:80").unwrap().unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("::1", 80));
        assert_eq!(proxy.authorization.reveal(), format!("Basic {}", BASE64_STANDARD.encode("us@er:p:w")));
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_showing_it() {
        for url in [
            "proxy:3128",
            "https://proxy:3128",
            "http://proxy",
            "http://proxy:0",
            "http://:3128",
            "http://proxy:3128/path",
            "http://a b:3128",
            "http://[proxy]:3128",
            "http://x%zz:hidden@proxy:3128",
        ] {
            let problem = parse(url).unwrap_err().to_string();
            assert!(!problem.contains("hidden"), "{problem}");
        }
    }
}
