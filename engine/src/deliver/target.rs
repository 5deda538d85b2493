//! Where webhooks may point (P7): which URLs are taken at registration, and which addresses a connection
//! may go to after the name was resolved. The address that was checked is the address that is called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::Uri;

use super::address::permits;
use crate::config::Targets;

/// Bytes of a webhook's URL.
const URL_BYTES_MAX: usize = 2048;

/// Why a URL is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("`url` must be an absolute http or https URL")]
    NotHttp,
    #[error("`url` must be at most {URL_BYTES_MAX} bytes")]
    TooLong,
    #[error("`url` must not hold a user name or password; use a secret path or the signature instead")]
    UserInfo,
    #[error("`url` points to a private or local address, or to one that this deployment does not allow")]
    Private,
    #[error("`url` has a port that this deployment does not allow")]
    Port,
}

/// Checks a URL as far as it can be without resolving its host.
///
/// # Errors
/// Says what is wrong with it, in words for its owner.
pub fn check_url(url: &str, targets: &Targets) -> Result<Uri, Refused> {
    if url.len() > URL_BYTES_MAX {
        return Err(Refused::TooLong);
    }
    let uri: Uri = url.parse().map_err(|_| Refused::NotHttp)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(Refused::NotHttp);
    }
    let authority = uri.authority().ok_or(Refused::NotHttp)?;
    if authority.as_str().contains('@') {
        return Err(Refused::UserInfo);
    }
    let host = authority.host();
    let port = authority.as_str().strip_prefix(host).unwrap_or_default();
    if !is_host(host)
        || url.contains('#')
        || port == ":"
        || (!port.is_empty() && authority.port_u16().is_none_or(|p| p == 0))
    {
        return Err(Refused::NotHttp);
    }
    if is_refused_host(targets, host) {
        return Err(Refused::Private);
    }
    let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    if !is_open(targets, authority.port_u16().unwrap_or(usual)) {
        return Err(Refused::Port);
    }
    Ok(uri)
}

/// Whether a host is written as an address that may not be called, or is a name for one. What is no address and no
/// name is for nobody to call.
pub(super) fn is_refused_host(targets: &Targets, host: &str) -> bool {
    let Ok(ip) = bare(host).parse::<IpAddr>() else {
        let name = bare(host).to_ascii_lowercase();
        let local = name == "localhost" || name.ends_with(".localhost");
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return local && !loopback.into_iter().any(|ip| permits(targets, ip))
            // Resolvers take 0x7f.1, 2130706433 and 017700000001 for addresses. A last label of digits only, or
            // in hex, is no name of the public DNS.
            || !targets.allow_private && name.rsplit('.').next().is_some_and(is_number);
    };
    !permits(targets, ip)
}

/// Whether webhooks may reach a port.
pub(super) fn is_open(targets: &Targets, port: u16) -> bool {
    targets.ports.is_empty() || targets.ports.iter().any(|ports| ports.contains(port))
}

/// A host without brackets, and without the dot that ends an absolute name.
fn bare(host: &str) -> &str {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether a host is an address, or made of what names are made of.
fn is_host(host: &str) -> bool {
    if host.starts_with('[') {
        return bare(host).parse::<Ipv6Addr>().is_ok() && host.ends_with(']');
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    host.len() <= 254 && bare(host).split('.').all(is_label)
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x");
    match hex {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_before_anything_is_resolved() {
        let any = Targets { allow_private: true, ..Targets::default() };
        for url in [
            "https://example.com/hook?x=1",
            "http://example.com:8080/",
            "https://a_b.example./",
            "http://8.8.8.8./",
        ] {
            assert!(check_url(url, &Targets::default()).is_ok(), "{url}");
        }
        for url in ["http://127.0.0.1:9/", "http://localhost/", "http://[::1]/"] {
            assert!(check_url(url, &any).is_ok(), "{url}");
        }
        let cases = [
            ("ftp://example.com/", Refused::NotHttp),
            ("example.com/x", Refused::NotHttp),
            ("/x", Refused::NotHttp),
            ("", Refused::NotHttp),
            ("https://", Refused::NotHttp),
            ("http://example.com:0/", Refused::NotHttp),
            ("http://example.com:99999/", Refused::NotHttp),
            ("http://exa mple.com/", Refused::NotHttp),
            ("http://user:pw@example.com/", Refused::UserInfo),
            ("http://user@example.com/", Refused::UserInfo),
            ("http://127.0.0.1/", Refused::Private),
            ("http://[::1]/", Refused::Private),
            ("http://localhost/", Refused::Private),
            ("http://a.LOCALHOST./", Refused::Private),
            ("http://2130706433/", Refused::Private),
            ("http://0x7f.1/", Refused::Private),
            ("http://017700000001/", Refused::Private),
            ("http://0177.0.0.1/", Refused::Private),
            ("http://0X7F.1/", Refused::Private),
            ("http://127.1/", Refused::Private),
            ("http://127.0.0.1./", Refused::Private),
            ("http://[::ffff:10.0.0.1]/", Refused::Private),
            ("http://[::10.0.0.1]/", Refused::Private),
            ("http://[64:ff9b:1::808:808]/", Refused::Private),
            ("http://[2002:7f00:1::]/", Refused::Private),
            ("http://[fe80::1%25eth0]/", Refused::NotHttp),
            ("http://[127.0.0.1]/", Refused::NotHttp),
            ("http://127.0.0.1../", Refused::NotHttp),
            ("http://a..example/", Refused::NotHttp),
            ("http://.example/", Refused::NotHttp),
            ("http://127.0.0.1%2e/", Refused::NotHttp),
            ("http://exam!ple.com/", Refused::NotHttp),
        ];
        for (url, refused) in cases {
            assert_eq!(check_url(url, &Targets::default()), Err(refused), "{url}");
        }
        let long = format!("http://example.com/{}", "x".repeat(2048));
        assert_eq!(check_url(&long, &Targets::default()), Err(Refused::TooLong));
    }

    #[test]
    fn lists_open_and_close_what_is_written_out() {
        let targets = Targets {
            allow: "10.1.0.0/16,127.0.0.1".parse().unwrap(),
            deny: "10.1.2.0/24,192.0.3.0/24".parse().unwrap(),
            ports: "80,443,8000-8999".parse().unwrap(),
            ..Targets::default()
        };
        for (url, expected) in [
            ("http://10.1.0.1/", None),
            ("https://10.1.0.1/", None),
            ("http://localhost:8000/", None),
            ("http://10.1.2.1/", Some(Refused::Private)),
            ("http://10.2.0.1/", Some(Refused::Private)),
            ("http://192.0.3.1/", Some(Refused::Private)),
            ("http://[::ffff:192.0.3.1]/", Some(Refused::Private)),
            ("http://2130706433/", Some(Refused::Private)),
            ("https://example.com:8999/", None),
            ("https://example.com:22/", Some(Refused::Port)),
            ("http://example.com:9000/", Some(Refused::Port)),
        ] {
            assert_eq!(check_url(url, &targets).err(), expected, "{url}");
        }
        let all = Targets { allow_private: true, deny: "127.0.0.0/8".parse().unwrap(), ..Targets::default() };
        assert_eq!(check_url("http://127.0.0.1/", &all), Err(Refused::Private));
        assert!(
            check_url("http://localhost/", &all).is_ok(),
            "it may be ::1, which the connection is to find out"
        );
    }
}
