//! Where webhooks may point (P7): which URLs are taken at registration, and which addresses a connection
//! may go to after the name was resolved. The address that was checked is the address that is called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::Uri;

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
    #[error("`url` points to a private or local address, which this deployment does not allow")]
    Private,
}

/// Checks a URL as far as it can be without resolving its host.
pub fn check_url(url: &str, allow_private: bool) -> Result<Uri, Refused> {
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
    if host.is_empty()
        || url.contains('#')
        || port == ":"
        || (!port.is_empty() && authority.port_u16().is_none_or(|p| p == 0))
    {
        return Err(Refused::NotHttp);
    }
    if !allow_private && is_private_host(host) {
        return Err(Refused::Private);
    }
    Ok(uri)
}

/// Whether a host is written as an address that may not be called, or is a name for one.
pub(super) fn is_private_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return !is_public(ip);
    }
    let name = bare.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        // Resolvers take 0x7f.1, 2130706433 and 017700000001 for addresses. A last label of digits only, or
        // in hex, is no name of the public DNS.
        || name.rsplit('.').next().is_some_and(is_number)
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x");
    match hex {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// Whether an address belongs to the public internet, by the IANA special-purpose registries.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 192 && b == 168)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || a >= 224)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // ::, ::1, and IPv4 in its deprecated and its mapped form.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => s[5] == 0xffff && embedded(high, low),
        // NAT64, where a gateway would turn it into IPv4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, ..] => false,
        // 6to4 carries an IPv4 address too.
        [0x2002, high, low, ..] => embedded(high, low),
        [0x2001, 0x0db8, ..] => false,
        // 2001::/23: Teredo, ORCHID and other protocol assignments.
        [0x2001, second, ..] if second < 0x200 => false,
        // Only 2000::/3 is global unicast: not unique local, link local, multicast or anything unassigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for ip in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "100::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "64:ff9b::808:808",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn urls_are_checked_before_anything_is_resolved() {
        assert!(check_url("https://example.com/hook?x=1", false).is_ok());
        assert!(check_url("http://example.com:8080/", false).is_ok());
        assert!(check_url("http://127.0.0.1:9/", true).is_ok());
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
        ];
        for (url, refused) in cases {
            assert_eq!(check_url(url, false), Err(refused), "{url}");
        }
        let long = format!("http://example.com/{}", "x".repeat(2048));
        assert_eq!(check_url(&long, false), Err(Refused::TooLong));
    }

    proptest! {
        #[test]
        fn a_mapped_address_is_judged_as_the_address(octets: [u8; 4]) {
            let v4 = Ipv4Addr::from(octets);
            prop_assert_eq!(is_public(v4.into()), is_public(v4.to_ipv6_mapped().into()));
        }
    }
}
