//! `REDIS_URL`: one Redis, or the nodes of a cluster to begin with.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

/// Nodes of a cluster that a URL may name. The others are learned from these.
const NODES_MAX: usize = 32;

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum Place {
    One(ConnectionInfo),
    /// How to connect to any node, and where some of them are.
    Cluster(ConnectionInfo, Vec<ConnectionAddr>),
}

impl Place {
    /// Reads `redis://`, `rediss://` and `unix://` as the client does, and `redis+cluster://` or `rediss+cluster://`
    /// with several `host:port`, separated by commas, where those have one.
    ///
    /// # Errors
    /// Says what is wrong, to follow the setting's name, and never what stands in the URL: it may hold a password.
    pub fn parse(url: &str) -> Result<Place, &'static str> {
        let Some((scheme, rest)) = url.split_once("+cluster://") else {
            return node(url).map(Place::One);
        };
        if !matches!(scheme, "redis" | "rediss") {
            return Err("must begin with redis+cluster:// or rediss+cluster:// for a cluster");
        }
        // A password may hold what is written as a separator here, but not an unescaped one of these.
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let at = if user.is_empty() { "" } else { "@" };
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.len() > NODES_MAX || hosts.contains(&"") {
            return Err("must name 1 to 32 nodes of the cluster as host:port, separated by commas");
        }
        let of = |host: &str| node(&format!("{scheme}://{user}{at}{host}{tail}"));
        let address = |host: &&str| of(host).map(|info| info.addr().clone());
        let nodes = hosts.iter().map(address).collect::<Result<_, _>>()?;
        let info = of(hosts[0])?;
        if info.redis_settings().db() != 0 {
            return Err("must not name a database: a cluster has number 0 alone");
        }
        Ok(Place::Cluster(info, nodes))
    }
}

fn node(url: &str) -> Result<ConnectionInfo, &'static str> {
    url.into_connection_info().map_err(|_| "is no URL of a Redis: see docs/settings.md for the forms")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(url: &str) -> Vec<String> {
        match Place::parse(url).unwrap() {
            Place::One(one) => vec![one.addr().to_string()],
            Place::Cluster(_, nodes) => nodes.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_cluster_has_several_nodes_with_one_user() {
        assert_eq!(addresses("redis://h"), ["h:6379"]);
        assert_eq!(addresses("redis+cluster://a:1,b"), ["a:1", "b:6379"]);
        assert_eq!(addresses("redis+cluster://[::1]:7000,b:2/"), ["::1:7000", "b:2"]);
        let url = "rediss+cluster://me:s%40,cret@a:1,b:2?protocol=resp3";
        let Ok(Place::Cluster(info, nodes)) = Place::parse(url) else { panic!("a cluster") };
        assert_eq!(info.redis_settings().username(), Some("me"));
        assert_eq!(info.redis_settings().password(), Some("s@,cret"));
        assert!(matches!(nodes[..], [ConnectionAddr::TcpTls { .. }, ConnectionAddr::TcpTls { .. }]));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "redis+cluster://",
            "redis+cluster://a,,b",
            "redis+cluster://u:hidden@a:1,b:x",
            "redis+cluster://a/3",
            "http+cluster://a",
            "http://u:hidden@a",
        ] {
            let problem = Place::parse(url).unwrap_err();
            assert!(!problem.contains("hidden"), "{url}: {problem}");
        }
    }
}
