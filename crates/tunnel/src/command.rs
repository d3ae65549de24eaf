//! A command to run on a host, and what came of it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::words;
use crate::{Error, Result};

/// How long a command may take unless it says otherwise.
const TIME: Duration = Duration::from_mins(1);

/// How much a command may print unless it says otherwise.
const STDOUT: usize = 1024 * 1024;

/// With whose rights a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Privilege {
    /// Those of the user that we are logged in as.
    #[default]
    User,
    /// Those of root, by `sudo` without a password.
    Sudo,
}

/// A script for `sh`, and its limits. It runs in the user's home, whatever the login shell is and prints.
#[derive(Debug, Clone)]
pub struct Command {
    pub(crate) script: String,
    pub(crate) name: String,
    pub(crate) stdin: Bytes,
    pub(crate) privilege: Privilege,
    pub(crate) time: Duration,
    pub(crate) stdout_limit: usize,
}

impl Command {
    /// A script without input. Errors call it by its first line.
    pub fn new(script: impl Into<String>) -> Command {
        let script = script.into();
        let name = script.trim().lines().next().unwrap_or_default().chars().take(80).collect();
        Command { script, name, stdin: Bytes::new(), privilege: Privilege::User, time: TIME, stdout_limit: STDOUT }
    }

    /// A program with its arguments.
    pub fn program<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Command {
        let words: Vec<String> = words.into_iter().map(|word| words::quote(word.as_ref())).collect();
        Command::new(format!("exec {}", words.join(" ")))
    }

    /// What errors call it.
    pub fn named(self, name: impl Into<String>) -> Command {
        Command { name: name.into(), ..self }
    }

    /// What it reads. It is sent once the command runs, so that a login shell cannot swallow it.
    pub fn stdin(self, stdin: impl Into<Bytes>) -> Command {
        Command { stdin: stdin.into(), ..self }
    }

    /// With whose rights.
    pub fn privilege(self, privilege: Privilege) -> Command {
        Command { privilege, ..self }
    }

    /// How long it may take. Then it is sent `SIGTERM`, as well as that goes.
    pub fn within(self, time: Duration) -> Command {
        Command { time, ..self }
    }

    /// How many bytes it may print.
    pub fn at_most(self, stdout_limit: usize) -> Command {
        Command { stdout_limit, ..self }
    }

    /// The words for the login shell.
    pub(crate) fn envelope(&self) -> String {
        let marked = words::marked(&self.script);
        match self.privilege {
            Privilege::User => words::envelope(&marked),
            // In the language whose words `sudo_problem` knows.
            Privilege::Sudo => {
                words::envelope(&format!("exec env LC_ALL=C sudo -n sh -c {}", words::quote(&marked)))
            }
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Status {
    Exited(u32),
    /// By a signal, named without `SIG`.
    Signaled(String),
    /// The host did not say.
    #[default]
    Unknown,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Exited(code) => write!(f, "exit status {code}"),
            Status::Signaled(name) => write!(f, "SIG{name}"),
            Status::Unknown => f.write_str("no exit status"),
        }
    }
}

/// What came of a command.
#[derive(Debug, Clone)]
pub struct Output {
    /// What errors call the command.
    pub command: String,
    pub status: Status,
    pub stdout: Vec<u8>,
    /// The last 16 KiB.
    pub stderr: Vec<u8>,
}

impl Output {
    /// What it printed, if it succeeded.
    pub fn success(self) -> Result<Vec<u8>> {
        if self.status == Status::Exited(0) {
            return Ok(self.stdout);
        }
        Err(Error::CommandFailed {
            command: self.command,
            status: self.status,
            stderr: words::last_lines(&self.stderr),
        })
    }

    /// What it printed, as text without white space at its ends, if it succeeded.
    pub fn text(self) -> Result<String> {
        self.success().map(|stdout| String::from_utf8_lossy(&stdout).trim().to_owned())
    }
}
