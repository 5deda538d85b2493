//! Which addresses belong to the public internet, and which a deployment's lists open or close.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Targets, list::Network};

/// Whether a webhook may reach an address: deny, then allow, then what is public.
pub(super) fn permits(targets: &Targets, ip: IpAddr) -> bool {
    let is_in = |list: &[Network], ip| list.iter().any(|network| network.contains(ip));
    let denied = is_in(&targets.deny, ip) || carried(ip).is_some_and(|v4| is_in(&targets.deny, v4.into()));
    !denied && (targets.allow_private || is_public(ip) || is_in(&targets.allow, ip))
}

/// The IPv4 address that one of IPv6 stands for: a gateway on the way may turn it into that one.
fn carried(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let (high, low) = match ip.segments() {
        // Mapped, translated by NAT64, or compatible, in this order.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0, 0, high, low]
        // 6to4.
        | [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

/// Whether an address belongs to the public internet, by the IANA special-purpose registries.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, d] = ip.octets();
    !(a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b))
        // Where most clouds have their instance metadata, and next to it Azure's, which is outside of every such range.
        || (a == 169 && b == 254)
        || [a, b, c, d] == [168, 63, 129, 16]
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
    match ip.segments() {
        // Mapped, and NAT64, where a gateway would turn it into IPv4.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            carried(ip.into()).is_some_and(is_public_v4)
        }
        [0x64, 0xff9b, ..] => false,
        // 6to4 carries an IPv4 address to a relay of somebody's, and nobody has used it for a decade (RFC 7526).
        [0x2002, ..] => false,
        // For documentation.
        [0x2001, 0x0db8, ..] => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
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
            "2002:808:808::1",
            "2001::1",
            "2001:db8::1",
            "2001:db8:ffff::1",
            "3fff:fff::1",
            "100::1",
            "fec0::1",
            "5f00::1",
            "4000::1",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "fd00:ec2::254",
            "192.88.99.1",
            "198.51.100.1",
            "203.0.113.1",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1:7f00:1::",
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
            "168.63.129.17",
            "198.20.0.1",
            "223.255.255.255",
            "3fff:1000::1",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    fn targets(private: bool, allow: &str, deny: &str) -> Targets {
        Targets {
            allow_private: private,
            allow: allow.parse().unwrap(),
            deny: deny.parse().unwrap(),
            ..Targets::default()
        }
    }

    #[test]
    fn allow_opens_its_networks_only_and_deny_wins() {
        let rules = targets(false, "10.1.0.0/16,fd00:1::/32", "10.1.2.0/24,203.0.114.0/24,2606:4700::/32");
        for (ip, permitted) in [
            ("10.1.0.1", true),
            ("::ffff:10.1.0.1", true),
            ("fd00:1::1", true),
            ("10.2.0.1", false),
            ("127.0.0.1", false),
            ("fd00:2::1", false),
            ("10.1.2.3", false),
            ("::ffff:10.1.2.3", false),
            ("203.0.115.1", true),
            ("203.0.114.1", false),
            ("64:ff9b::203.0.114.1", false),
            ("64:ff9b::203.0.115.1", true),
            ("64:ff9b::10.1.0.1", false),
            ("2606:4700::1", false),
            ("2606:4701::1", true),
        ] {
            assert_eq!(permits(&rules, ip.parse().unwrap()), permitted, "{ip}");
        }
        let rules = targets(true, "127.0.0.0/8", "127.0.0.1,10.0.0.0/8");
        for (ip, permitted) in [
            ("127.0.0.2", true),
            ("192.168.1.1", true),
            ("127.0.0.1", false),
            ("::127.0.0.1", false),
            ("2002:a00:1::", false),
            ("64:ff9b::a00:1", false),
        ] {
            assert_eq!(permits(&rules, ip.parse().unwrap()), permitted, "{ip}");
        }
    }

    proptest! {
        #[test]
        fn a_mapped_address_is_judged_as_the_address(octets: [u8; 4]) {
            let v4 = Ipv4Addr::from(octets);
            prop_assert_eq!(is_public(v4.into()), is_public(v4.to_ipv6_mapped().into()));
        }
    }
}
