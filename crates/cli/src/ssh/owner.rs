//! Who made an entry of the SSH configuration: a process, which may have been killed since.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// The variable that tells `dstack ssh-proxy` for whom it works.
pub(crate) const VARIABLE: &str = "DSTACK_ATTACHED_BY";

/// A process on a machine; homes may be shared between machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pid: i32,
    host: String,
}

impl Owner {
    /// This process.
    pub(crate) fn of_process() -> Owner {
        Owner { pid: std::process::id().cast_signed(), host: host() }
    }

    /// Reads what [`Owner`] prints.
    pub(crate) fn parse(text: &str) -> Option<Owner> {
        let (pid, host) = text.split_once('@')?;
        Some(Owner { pid: pid.parse().ok().filter(|pid| 0 < *pid)?, host: host.to_owned() })
    }

    /// Whether the process is gone for sure. Of other machines nothing is known.
    pub(crate) fn is_gone(&self) -> bool {
        self.host == host() && kill(Pid::from_raw(self.pid), None) == Err(Errno::ESRCH)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.pid, self.host)
    }
}

fn host() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    name.split_whitespace().collect()
}
