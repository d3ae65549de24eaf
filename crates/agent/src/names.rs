//! Names of hosts, without the C library: it would load code of the image, and a static program must not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hickory_resolver::{ResolverBuilder, TokioResolver};

/// How long the name servers may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest file of hosts that is read.
const HOSTS_LIMIT: usize = 1 << 20;

/// The addresses of a host, in the order in which to try them.
pub(crate) async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    let hosts = tokio::fs::read("/etc/hosts").await.unwrap_or_default();
    let hosts = String::from_utf8_lossy(&hosts[..hosts.len().min(HOSTS_LIMIT)]).into_owned();
    let known = from_hosts(&hosts, host);
    if !known.is_empty() {
        return Ok(known);
    }
    if is_localhost(host) {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    // Read each time: the job may write to its own.
    let resolver = TokioResolver::builder_tokio().and_then(ResolverBuilder::build).map_err(io::Error::other)?;
    let found = tokio::time::timeout(TIMEOUT, resolver.lookup_ip(host)).await;
    let found = found.map_err(|_| io::Error::other("the name servers do not answer"))?;
    Ok(found.map_err(io::Error::other)?.iter().collect())
}

/// Whether a name means this machine, whoever is asked.
pub(crate) fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The addresses that a file of hosts has for a name; those of version 4 first, because everybody listens there.
fn from_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    let mut addresses: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_stand_for_themselves_and_localhost_is_here() {
        let check = async |host: &str, expected: &str| {
            let found = resolve(host).await.unwrap();
            assert_eq!(found[0].to_string(), expected, "{host}");
        };
        check("10.1.2.3", "10.1.2.3").await;
        check("[::1]", "::1").await;
        check("localhost", "127.0.0.1").await;
        check("app.LOCALHOST.", "127.0.0.1").await;
    }

    #[test]
    fn hosts_are_found_by_all_their_names() {
        let text = "# comment\n::1 Node-1\n10.0.0.7\tnode-1 alias # node-2\nbroken alias\n";
        let found = |host: &str| from_hosts(text, host).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("node-1"), ["10.0.0.7", "::1"]);
        assert_eq!(found("ALIAS."), ["10.0.0.7"]);
        assert!(found("node-2").is_empty());
    }
}
