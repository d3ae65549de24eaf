//! What OpenSSH's client reads: lines for `known_hosts`, and a marked part of a configuration.

use std::fmt::Write;
use std::path::Path;

use super::Node;

/// The lines around our part of a configuration.
const BEGIN: &str = "# >>> dstack: the nodes of this run; this part is made anew by every run";
const END: &str = "# <<< dstack";

/// Where OpenSSH's client finds SSH servers unless it is told otherwise.
const USUAL_PORT: u16 = 22;

/// The nodes' host keys.
pub(super) fn known_hosts(nodes: &[Node]) -> String {
    let mut text = String::new();
    for Node { address, port, host_key } in nodes {
        let _ = match *port {
            USUAL_PORT => writeln!(text, "{address} {host_key}"),
            port => writeln!(text, "[{address}]:{port} {host_key}"),
        };
    }
    text
}

/// A configuration with our part in front. What is first counts, so nothing that follows changes what we say about the
/// nodes; and our part ends by speaking of all hosts again, so it changes nothing of what follows.
pub(super) fn with_nodes(text: &str, nodes: &[Node], key: &str, known_hosts: &Path) -> String {
    let mut config = format!("{BEGIN}\n");
    for Node { address, port, .. } in nodes {
        let _ = write!(
            config,
            "Host {address}\n    Port {port}\n    IdentityFile {key}\n    IdentitiesOnly yes\n    \
             UserKnownHostsFile {}\n    StrictHostKeyChecking yes\n",
            known_hosts.display()
        );
    }
    let _ = writeln!(config, "Host *\n{END}");
    config.push_str(&without_nodes(text));
    config
}

/// A configuration without our part. Where its end was taken away, nobody knows how far it goes, and it stays.
fn without_nodes(text: &str) -> String {
    let Some((before, rest)) = text.split_once(&format!("{BEGIN}\n")) else { return text.to_owned() };
    match rest.split_once(&format!("{END}\n")) {
        Some((_, after)) => format!("{before}{after}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(address: &str, port: u16) -> Node {
        Node { address: address.to_owned(), port, host_key: "ssh-ed25519 AAAA".to_owned() }
    }

    fn config(text: &str, nodes: &[Node]) -> String {
        with_nodes(text, nodes, "~/.ssh/dstack_job", Path::new("/dstack/peers/nodes/known_hosts"))
    }

    #[test]
    fn host_keys_are_kept_with_their_ports() {
        let text = known_hosts(&[node("10.0.0.1", 10022), node("fd00::1", 40_000), node("10.0.0.2", 22)]);
        let expected = "[10.0.0.1]:10022 ssh-ed25519 AAAA\n[fd00::1]:40000 ssh-ed25519 AAAA\n\
                        10.0.0.2 ssh-ed25519 AAAA\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_a_user_has_configured_stays_as_it_is() {
        for text in ["", "User ann\nHost *\n  Port 7\n", "Host x\n  Port 1"] {
            let first = config(text, &[node("10.0.0.1", 10022), node("10.0.0.2", 4)]);
            assert!(first.starts_with(BEGIN) && first.ends_with(text), "{first}");
            // It is replaced, and not added again.
            let second = config(&first, &[node("10.0.0.9", 10022)]);
            assert!(second.ends_with(text) && !second.contains("10.0.0.1\n"), "{second}");
            assert_eq!(second.matches(BEGIN).count(), 1);
            assert_eq!(without_nodes(&second), text);
        }
    }

    #[test]
    fn a_part_whose_end_is_gone_stays() {
        let text = format!("{BEGIN}\nHost 10.0.0.1\n  Port 1\nHost mine\n");
        assert_eq!(without_nodes(&text), text);
        assert!(config(&text, &[node("10.0.0.1", 2)]).ends_with(&text));
    }
}
