//! Settings that are lists: networks, ports and name servers, separated by commas.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Entries of one list: each is compared with every new connection.
const ENTRIES_MAX: usize = 1000;

/// Values separated by commas. Empty text is an empty list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(Vec<T>);

impl<T> Default for List<T> {
    fn default() -> List<T> {
        List(Vec::new())
    }
}

impl<T> std::ops::Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: FromStr<Err: fmt::Display>> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<List<T>, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let read = |entry: &str| entry.parse().map_err(|error| format!("{entry:?} {error}"));
        let list: Vec<T> = entries.map(read).collect::<Result<_, _>>()?;
        if list.len() > ENTRIES_MAX {
            return Err(format!("{} entries are more than {ENTRIES_MAX}", list.len()));
        }
        Ok(List(list))
    }
}

impl<T: fmt::Display> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, entry) in self.0.iter().enumerate() {
            write!(f, "{}{entry}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl<T: fmt::Display> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<T>, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A network in CIDR notation; an address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether an address is in it. One of IPv4 that is mapped into IPv6 is compared as IPv4, as it is called.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                host_bits(net.to_bits().into(), self.prefix + 96)
                    == host_bits(ip.to_bits().into(), self.prefix + 96)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                host_bits(net.to_bits(), self.prefix) == host_bits(ip.to_bits(), self.prefix)
            }
            _ => false,
        }
    }
}

/// What is left of an address without the bits beyond a prefix of 0 to 128.
fn host_bits(address: u128, prefix: u8) -> u128 {
    match 128 - u32::from(prefix.min(128)) {
        128 => 0,
        beyond => address >> beyond,
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Network, &'static str> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| "is no network such as 10.0.0.0/8 or fd00::/8")?;
        if address != address.to_canonical() {
            return Err("is IPv4 written as IPv6: write the IPv4 network");
        }
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= longest),
            None => Some(longest),
        };
        let prefix = prefix.ok_or("has no valid prefix length")?;
        let (bits, used) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), prefix + 96),
            IpAddr::V6(v6) => (v6.to_bits(), prefix),
        };
        // Most likely a slip, and it is not for us to guess which half is meant.
        if used < 128 && bits << used != 0 {
            return Err("has bits beyond its prefix: write the network's first address");
        }
        Ok(Network { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// One port, or from one to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(RangeInclusive<u16>);

impl Ports {
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Ports, &'static str> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse().ok().filter(|port| *port != 0);
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Ports(first..=last)),
            _ => Err("is no port such as 443, and no range such as 8000-8999"),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        for (net, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("fd00::/8", "fdff::1", "fc00::1"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("::1", "::1", "127.0.0.1"),
            ("::/0", "1::", "10.0.0.1"),
        ] {
            assert!(network(net).contains(inside.parse().unwrap()), "{net} {inside}");
            assert!(!network(net).contains(outside.parse().unwrap()), "{net} {outside}");
        }
    }

    #[test]
    fn what_is_no_network_or_port_is_named() {
        for text in
            ["10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0/8", "fd00::1/8", "::ffff:10.0.0.0/104", "x", "/8"]
        {
            let error = format!("1.1.1.1, {text}").parse::<List<Network>>().unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        for text in ["0", "65536", "9-8", "a", "1-", "-"] {
            assert!(text.parse::<List<Ports>>().unwrap_err().contains(text), "{text}");
        }
        assert!("1.1.1.1,".repeat(1001).parse::<List<Network>>().is_err());
    }

    #[test]
    fn a_list_reads_what_it_prints() {
        let networks: List<Network> = " 10.0.0.0/8, ::1 ,".parse().unwrap();
        assert_eq!(networks.to_string(), "10.0.0.0/8,::1/128");
        assert_eq!(networks.to_string().parse(), Ok(networks));
        let ports: List<Ports> = "443,8000-8002".parse().unwrap();
        assert_eq!(ports.to_string(), "443,8000-8002");
        let open = |port| ports.iter().any(|ports| ports.contains(port));
        assert_eq!([442, 443, 7999, 8000, 8002, 8003].map(open), [false, true, false, true, true, false]);
        assert_eq!("".parse(), Ok(List::<Ports>::default()));
    }
}
