//! Where users reach the proxy.

/// The port that clients take unless told.
const SSH_PORT: u16 = 22;

/// Where users reach the proxy: `HOST[:PORT]`, as the variable `DSTACK_SERVER_SSHPROXY_ADDRESS` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyAddress {
    /// The name or address.
    pub hostname: String,
    /// The port, if one is said.
    pub port: Option<u16>,
}

impl ProxyAddress {
    /// Reads it, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<ProxyAddress, String> {
        let wrong = || format!("`{text}` is not HOST or HOST:PORT; IPv6 addresses stand in brackets");
        let (hostname, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (hostname, rest) = rest.split_once(']').ok_or_else(wrong)?;
                let is_address = hostname.parse::<std::net::Ipv6Addr>().is_ok();
                let port = rest.strip_prefix(':');
                if !is_address || (port.is_none() && !rest.is_empty()) {
                    return Err(wrong());
                }
                (hostname, port)
            }
            None => match text.split_once(':') {
                Some((hostname, port)) => (hostname, Some(port)),
                None => (text, None),
            },
        };
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port @ 1..)) => Some(port),
            Some(_) => return Err(wrong()),
        };
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-._:".contains(letter);
        if hostname.is_empty() || hostname.starts_with('-') || !hostname.chars().all(is_plain) {
            return Err(wrong());
        }
        Ok(ProxyAddress { hostname: hostname.to_owned(), port })
    }

    /// The port that clients connect to.
    pub fn port_or_usual(&self) -> u16 {
        self.port.unwrap_or(SSH_PORT)
    }

    /// The command with which a user enters as `name`.
    pub fn command(&self, name: &str) -> Vec<String> {
        let mut words = vec!["ssh".to_owned(), format!("{name}@{}", self.hostname)];
        if self.port_or_usual() != SSH_PORT {
            words.extend(["-p".to_owned(), self.port_or_usual().to_string()]);
        }
        words
    }

    /// How links name a job behind it: `name@host[:port]`.
    pub fn authority(&self, name: &str) -> String {
        let host =
            if self.hostname.contains(':') { format!("[{}]", self.hostname) } else { self.hostname.clone() };
        match self.port_or_usual() {
            SSH_PORT => format!("{name}@{host}"),
            port => format!("{name}@{host}:{port}"),
        }
    }

    /// The name under which OpenSSH looks for the proxy's key.
    pub fn known_as(&self) -> String {
        match self.port_or_usual() {
            SSH_PORT => self.hostname.clone(),
            port => format!("[{}]:{port}", self.hostname),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let check = |text: &str, hostname: &str, port: Option<u16>| {
            assert_eq!(ProxyAddress::parse(text).unwrap(), ProxyAddress { hostname: hostname.to_owned(), port });
        };
        check("ssh.example.com", "ssh.example.com", None);
        check("ssh.example.com:2222", "ssh.example.com", Some(2222));
        check("10.0.0.1:22", "10.0.0.1", Some(22));
        check("[fd00::1]:2222", "fd00::1", Some(2222));
        check("[fd00::1]", "fd00::1", None);
        for text in
            ["", ":22", "a:", "a:0", "a:70000", "a:b", "fd00::1", "[a]:1", "[::1]2", "ssh://a", "u@a", "-a", "a b"]
        {
            assert!(ProxyAddress::parse(text).unwrap_err().contains("is not HOST or HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn the_usual_port_is_left_out() {
        let proxy = |text| ProxyAddress::parse(text).unwrap();
        assert_eq!(proxy("a:22").command("x").join(" "), "ssh x@a");
        assert_eq!(proxy("a:2222").command("x").join(" "), "ssh x@a -p 2222");
        assert_eq!(proxy("a:22").authority("x"), "x@a");
        assert_eq!(proxy("[fd00::1]:2222").authority("x"), "x@[fd00::1]:2222");
        assert_eq!((proxy("a").known_as(), proxy("a:2222").known_as()), ("a".to_owned(), "[a]:2222".to_owned()));
    }
}
