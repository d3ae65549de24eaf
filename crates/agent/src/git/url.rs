//! Where a repository is.

use std::fmt;

use percent_encoding::percent_decode_str;

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
    /// As a program on another machine.
    Ssh,
}

/// An address of a repository. It prints without its password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: Scheme,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    /// In lower case; an address of version 6 stands without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// With its first slash, as it is written.
    pub(super) path: String,
}

impl Url {
    /// Reads `scheme://[user[:password]@]host[:port]/path`, or `[user@]host:path`.
    pub(super) fn parse(text: &str) -> Result<Url, String> {
        let refused = || format!("`{}` is not an address of a Git repository", without_password(text));
        if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            return Err(refused());
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return parse_short(text).ok_or_else(refused);
        };
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "https" => (Scheme::Https, 443),
            "http" => (Scheme::Http, 80),
            "ssh" | "git+ssh" | "ssh+git" => (Scheme::Ssh, 22),
            _ => {
                let told = without_password(text);
                return Err(format!("`{told}`: repositories are reached by https, http or ssh only"));
            }
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let (login, place) =
            authority.rsplit_once('@').map_or((None, authority), |(login, place)| (Some(login), place));
        let (host, port) = split_port(place).ok_or_else(refused)?;
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, password)) => (unescape(user), unescape(password)),
            None => (String::new(), String::new()),
        };
        let set = |text: String| (!text.is_empty()).then_some(text);
        let port = port.unwrap_or(default_port);
        let path = path.to_owned();
        Ok(Url { scheme, user: set(user), password: set(password), host: host.to_ascii_lowercase(), port, path })
    }

    /// The address that a `.gitmodules` file of this repository means: an own one, or a path from here.
    pub(super) fn join(&self, text: &str) -> Result<Url, String> {
        if !(text.starts_with("./") || text.starts_with("../") || text == ".." || text == ".") {
            return Url::parse(text);
        }
        let mut parts: Vec<&str> = self.path.split('/').filter(|part| !part.is_empty()).collect();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    let too_far = || format!("the submodule's address `{text}` leads out of `{self}`");
                    parts.pop().ok_or_else(too_far)?;
                }
                part => parts.push(part),
            }
        }
        Ok(Url { path: format!("/{}", parts.join("/")), ..self.clone() })
    }

    /// The same path over HTTPS.
    pub(super) fn over_https(&self) -> Url {
        Url { scheme: Scheme::Https, user: None, password: None, port: 443, ..self.clone() }
    }

    /// The same path over SSH.
    pub(super) fn over_ssh(&self) -> Url {
        Url { scheme: Scheme::Ssh, user: None, password: None, port: 22, ..self.clone() }
    }

    /// What stands in the configuration of a clone: secrets are left out.
    pub(super) fn public(&self) -> String {
        let user = if self.scheme == Scheme::Ssh { self.user.clone() } else { None };
        Url { user, password: None, ..self.clone() }.to_string()
    }

    /// Scheme, host and port.
    pub(super) fn origin(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Ssh => "ssh",
        };
        format!("{scheme}://{}", self.authority())
    }

    /// Host and port, as HTTP writes them.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default_port = match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
            Scheme::Ssh => 22,
        };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }
}

/// `[user@]host:path`, as `scp` writes it.
fn parse_short(text: &str) -> Option<Url> {
    let (place, path) = text.split_once(':')?;
    let (user, host) = place.rsplit_once('@').map_or((None, place), |(user, host)| (Some(user), host));
    if host.is_empty() || host.contains('/') || path.is_empty() {
        return None;
    }
    // Relative to the home of the user there, which a leading `~` says as well.
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some(Url {
        scheme: Scheme::Ssh,
        user: user.filter(|user| !user.is_empty()).map(str::to_owned),
        password: None,
        host: host.to_ascii_lowercase(),
        port: 22,
        path,
    })
}

fn split_port(place: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = place.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None if rest.is_empty() => None,
            None => return None,
        };
        return (!host.is_empty()).then_some((host, port));
    }
    let (host, port) = match place.split_once(':') {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (place, None),
    };
    (!host.is_empty()).then_some((host, port))
}

fn unescape(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The text as it may be told: whatever could be a password is left out.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.chars().filter(|character| !character.is_control()).collect();
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    format!("{scheme}://{place}{path}").chars().filter(|character| !character.is_control()).collect()
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.user.as_ref().filter(|_| self.scheme == Scheme::Ssh) {
            Some(user) => write!(f, "ssh://{user}@{}{}", self.authority(), self.path),
            None => write!(f, "{}{}", self.origin(), self.path),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_told_without_their_passwords() {
        let check =
            |text: &str, expected: &str| assert_eq!(Url::parse(text).unwrap().to_string(), expected, "{text}");
        check("https://Host.example/a/b.git", "https://host.example/a/b.git");
        check("https://me:secret@host:444/a", "https://host:444/a");
        check("http://host:80/a", "http://host/a");
        check("ssh://git@host:2222/a/b", "ssh://git@host:2222/a/b");
        check("git@host:a/b.git", "ssh://git@host/a/b.git");
        check("https://[::1]:8080/a", "https://[::1]:8080/a");
    }

    #[test]
    fn what_is_no_address_is_refused_without_telling_a_password() {
        let check = |text: &str| {
            let refused = Url::parse(text).unwrap_err();
            assert!(!refused.contains("secret"), "{refused}");
        };
        check("file:///etc");
        check("ftp://me:secret@host/a");
        check("https://me:secret@host:port/a");
        check("/a/b");
        check("a b@host:c");
    }

    #[test]
    fn a_login_may_be_escaped() {
        let url = Url::parse("https://me%40there:p%2Fw@host/a").unwrap();
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me@there"), Some("p/w")));
    }

    #[test]
    fn relative_addresses_begin_at_the_repository() {
        let base = Url::parse("https://host/org/main.git").unwrap();
        let check =
            |text: &str, expected: &str| assert_eq!(base.join(text).unwrap().to_string(), expected, "{text}");
        check("../lib.git", "https://host/org/lib.git");
        check("./lib", "https://host/org/main.git/lib");
        check("../../other/lib", "https://host/other/lib");
        check("git@elsewhere:lib", "ssh://git@elsewhere/lib");
        assert!(base.join("../../../lib").is_err());
    }
}
