//! Addresses of repositories, as people write them and as servers get them.

use sha2::{Digest, Sha256};

use super::ssh_config::HostConfig;

/// The digits of identifiers.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// How many digits tell repositories of one name apart.
const ID_DIGITS: usize = 8;

/// An address, which can be written for HTTP and for SSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepoUrl {
    /// Not encrypted: only what was written so.
    is_plain: bool,
    ssh_user: Option<String>,
    /// The host, which the SSH configuration may have another name for.
    pub(super) host: String,
    /// The host as it is written.
    pub(super) original_host: String,
    http_port: Option<u16>,
    ssh_port: Option<u16>,
    path: String,
}

impl RepoUrl {
    /// Reads an address; `config` is what the SSH configuration says about a host.
    pub(crate) fn parse(text: &str, config: impl Fn(&str) -> HostConfig) -> Result<RepoUrl, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let short = text.split_once(':').filter(|(place, path)| is_place(place) && !path.is_empty());
            let (place, path) = short.ok_or_else(|| format!("Could not parse git URL {text}"))?;
            return RepoUrl::parse(&format!("ssh://{place}/{path}"), config);
        };
        let scheme = scheme.to_ascii_lowercase();
        let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let (user, place) =
            authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().map_err(|_| format!("Could not parse git URL {text}"))?;
                (host, Some(port))
            }
            _ => (place, None),
        };
        if host.is_empty() {
            return Err(format!("Could not parse git URL {text}"));
        }
        let host = host.to_ascii_lowercase();
        let own = config(&host);
        let path = path.split(['?', '#']).next().unwrap_or_default().to_owned();
        match scheme.as_str() {
            "https" | "http" => {
                let is_plain = scheme == "http";
                let usual = if is_plain { 80 } else { 443 };
                Ok(RepoUrl {
                    is_plain,
                    ssh_user: own.user,
                    original_host: host.clone(),
                    host,
                    http_port: port.filter(|port| *port != usual),
                    ssh_port: own.port,
                    path,
                })
            }
            "ssh" => Ok(RepoUrl {
                is_plain: false,
                ssh_user: user.map(|user| user.split(':').next().unwrap_or(user).to_owned()).or(own.user),
                host: own.hostname.map_or_else(|| host.clone(), |name| name.to_ascii_lowercase()),
                original_host: host,
                http_port: None,
                ssh_port: port.or(own.port),
                path,
            }),
            _ => Err(format!("Unsupported URL scheme {scheme}")),
        }
    }

    /// The address for HTTP.
    pub(super) fn as_http(&self) -> String {
        let scheme = if self.is_plain { "http" } else { "https" };
        let port = self.http_port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{}{port}{}", self.host, self.path)
    }

    /// The address for SSH.
    pub(super) fn as_ssh(&self) -> String {
        let user = self.ssh_user.as_deref().unwrap_or("git");
        let port = self.ssh_port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("ssh://{user}@{}{port}{}", self.host, self.path)
    }

    fn clean_path(&self) -> &str {
        let path = self.path.trim_end_matches('/');
        path.strip_suffix(".git").unwrap_or(path)
    }

    /// The repository's name.
    pub(super) fn name(&self) -> String {
        let name = self.clean_path().rsplit('/').next().filter(|name| !name.is_empty());
        name.unwrap_or("unknown").to_owned()
    }

    /// The identifier that every client makes for this repository.
    pub(super) fn id(&self) -> String {
        let hash = Sha256::digest(format!("{}{}", self.host, self.clean_path()));
        format!("{}-{}", self.name(), &base36(&hash)[..ID_DIGITS])
    }
}

/// `user@host`, which tells a short address from a path.
fn is_place(text: &str) -> bool {
    text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()) && !text.contains('/')
}

/// A number whose least byte comes first, in as many digits as bytes: the low ones.
fn base36(bytes: &[u8]) -> String {
    let mut number: Vec<u8> = bytes.iter().rev().copied().collect();
    let mut digits = vec![b'0'; bytes.len()];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        *digit = DIGITS[rest as usize];
    }
    String::from_utf8_lossy(&digits).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RepoUrl {
        RepoUrl::parse(text, |_| HostConfig::default()).unwrap()
    }

    #[test]
    fn addresses_are_written_for_both_protocols() {
        let check = |text: &str, http: &str, ssh: &str| {
            let url = url(text);
            assert_eq!((url.as_http().as_str(), url.as_ssh().as_str()), (http, ssh), "{text}");
        };
        check("https://GitHub.com:443/o/r.git", "https://github.com/o/r.git", "ssh://git@github.com/o/r.git");
        check("git@h:o/r", "https://h/o/r", "ssh://git@h/o/r");
        check("ssh://me@h:2222/r", "https://h/r", "ssh://me@h:2222/r");
        check("http://127.0.0.1:8080/r", "http://127.0.0.1:8080/r", "ssh://git@127.0.0.1/r");
    }

    #[test]
    fn the_ssh_configuration_names_hosts() {
        let config = |_: &str| HostConfig {
            hostname: Some("Real.example".to_owned()),
            user: Some("me".to_owned()),
            port: Some(7),
            ..HostConfig::default()
        };
        let url = RepoUrl::parse("ssh://alias/o/r", config).unwrap();
        assert_eq!(url.as_ssh(), "ssh://me@real.example:7/o/r");
        assert_eq!(url.original_host, "alias");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [".", "/a/b", "file:///a", "C:/a", "a:b", "https:///a", "host/x@y:z"] {
            assert!(RepoUrl::parse(text, |_| HostConfig::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn identifiers_are_those_of_other_clients() {
        // Made by the original from the same addresses.
        assert_eq!(url("https://github.com/dstackai/dstack-examples").id(), IDS[0]);
        assert_eq!(url("git@github.com:dstackai/dstack-examples.git").id(), IDS[0]);
        assert_eq!(url("https://example.com/").id(), IDS[1]);
    }

    const IDS: [&str; 2] = ["dstack-examples-2aut8wsk", "unknown-mfeylsop"];
}
