//! Where to connect to, and what may take how long.

use std::fmt;
use std::time::Duration;

use crate::{HostKey, Key};

/// A host to connect to, and the way there.
#[derive(Debug, Clone)]
pub struct Target {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    /// Who to log in as.
    pub user: String,
    /// Tried in this order.
    pub keys: Vec<Key>,
    /// The only key that the host may show. On first contact there is none, and any is taken: keep what
    /// [`crate::Session::host_key`] says.
    pub known_host: Option<HostKey>,
    /// The hosts in between, the first one to connect to first. Each may have jumps of its own before it.
    pub jumps: Vec<Target>,
}

impl Target {
    /// A host on the usual port that is reached directly and was never seen.
    pub fn new(host: impl Into<String>, user: impl Into<String>, keys: Vec<Key>) -> Target {
        Target { host: host.into(), port: 22, user: user.into(), keys, known_host: None, jumps: Vec::new() }
    }

    /// Host and port, as people write them.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// All hosts that are connected to on the way, this one last.
    pub(crate) fn hops(&self) -> Vec<&Target> {
        let mut hops: Vec<&Target> = self.jumps.iter().flat_map(Target::hops).collect();
        hops.push(self);
        hops
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.address())
    }
}

/// What may take how long, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From nothing to logged in, over all jumps.
    pub connect: Duration,
    /// How long a host may be silent before the connection is given up. It is asked three times in this time.
    pub dead_after: Duration,
    /// How long opening a channel may take. This includes waiting for another to close where the host allows few.
    pub open: Duration,
    /// How many bytes of one channel may be on their way to us.
    pub window_bytes: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(15),
            dead_after: Duration::from_secs(15),
            open: Duration::from_secs(15),
            window_bytes: 2 * 1024 * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_of_jumps_come_first() {
        let mut first = Target::new("first", "a", Vec::new());
        first.jumps.push(Target::new("before", "a", Vec::new()));
        let mut last = Target::new("last", "a", Vec::new());
        last.jumps = vec![first, Target::new("second", "a", Vec::new())];
        let hops: Vec<_> = last.hops().into_iter().map(|hop| hop.host.as_str()).collect();
        assert_eq!(hops, ["before", "first", "second", "last"]);
    }

    #[test]
    fn addresses_are_written_as_people_do() {
        assert_eq!(Target::new("gpu-1", "ubuntu", Vec::new()).to_string(), "ubuntu@gpu-1:22");
        assert_eq!(Target::new("fd00::7", "ubuntu", Vec::new()).address(), "[fd00::7]:22");
    }
}
