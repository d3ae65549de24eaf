//! What the user's SSH configuration says about a host, as far as repositories need it.

/// The settings of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostConfig {
    /// The host's real name.
    pub(super) hostname: Option<String>,
    /// Who logs in.
    pub(super) user: Option<String>,
    /// The port.
    pub(super) port: Option<u16>,
    /// Private keys, as they are written.
    pub(super) identity_files: Vec<String>,
}

/// The settings of `host` in the text of a configuration; of several values the first one counts.
pub(super) fn lookup(text: &str, host: &str) -> HostConfig {
    let mut found = HostConfig::default();
    let mut applies = true;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let end = line.find(|character: char| character.is_whitespace() || character == '=').unwrap_or(line.len());
        let (key, value) = line.split_at(end);
        let value =
            value.trim_start_matches(|character: char| character.is_whitespace() || character == '=').trim();
        let key = key.to_ascii_lowercase();
        match key.as_str() {
            "host" => applies = matches_host(value, host),
            // Its conditions may be about anything.
            "match" => applies = value.eq_ignore_ascii_case("all"),
            _ if !applies => {}
            "hostname" => drop(found.hostname.get_or_insert_with(|| unquoted(value).replace("%h", host))),
            "user" => drop(found.user.get_or_insert_with(|| unquoted(value).to_owned())),
            "port" => found.port = found.port.or_else(|| value.parse().ok()),
            "identityfile" => found.identity_files.push(unquoted(value).to_owned()),
            _ => {}
        }
    }
    found
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

fn matches_host(patterns: &str, host: &str) -> bool {
    let mut is_match = false;
    for pattern in patterns.split_whitespace().map(unquoted) {
        match pattern.strip_prefix('!') {
            Some(excluded) if matches_glob(excluded.as_bytes(), host.as_bytes()) => return false,
            Some(_) => {}
            None => is_match |= matches_glob(pattern.as_bytes(), host.as_bytes()),
        }
    }
    is_match
}

fn matches_glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches_glob(rest, text) || text.split_first().is_some_and(|(_, text)| matches_glob(pattern, text))
        }
        (Some((b'?', pattern)), Some((_, text))) => matches_glob(pattern, text),
        (Some((one, pattern)), Some((other, text))) => {
            one.eq_ignore_ascii_case(other) && matches_glob(pattern, text)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_counts_and_keys_add_up() {
        let text = "# mine\nHost gh *.corp !bad.corp\n  HostName github.com\n  User=git\n  IdentityFile ~/.ssh/one\n\
                    Host *\n  User nobody\n  Port 2222\n  IdentityFile \"~/.ssh/two\"\nMatch exec x\n  Port 1\n";
        let found = lookup(text, "gh");
        assert_eq!(found.hostname.as_deref(), Some("github.com"));
        assert_eq!((found.user.as_deref(), found.port), (Some("git"), Some(2222)));
        assert_eq!(found.identity_files, ["~/.ssh/one", "~/.ssh/two"]);
        assert_eq!(lookup(text, "bad.corp").user.as_deref(), Some("nobody"));
        assert_eq!(lookup(text, "a.corp").hostname.as_deref(), Some("github.com"));
    }
}
