//! What goes wrong, told apart as far as a caller can act differently, in words for whoever owns the host.

use std::fmt;
use std::time::Duration;

use crate::Status;

pub type Result<T> = std::result::Result<T, Error>;

/// Why something over SSH did not work. Its words can be shown to users as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("cannot find the address of `{host}`: {reason}")]
    Resolve { host: String, reason: String },

    #[error("`{address}` refuses the connection: nothing listens there, or a firewall rejects it")]
    Refused { address: String },

    #[error("cannot reach `{address}`: {reason}")]
    Unreachable { address: String, reason: String },

    #[error("`{address}` did not {step} within {}", Seconds(*limit))]
    TimedOut { address: String, step: Step, limit: Duration },

    /// Something answers that is no SSH server, or one that we have nothing in common with.
    #[error("`{address}` does not speak SSH with us: {reason}")]
    Protocol { address: String, reason: String },

    /// It hung up before we could log in.
    #[error(
        "`{address}` closed the connection before the login: {reason}. It may take no more connections now \
         (`MaxStartups`), block this address, or be no SSH server"
    )]
    HungUp { address: String, reason: String },

    #[error(
        "the host key of `{address}` has changed: it was {known} and is {seen} now. If the host was not set up anew, \
         somebody else may be answering in its place"
    )]
    HostKeyChanged { address: String, known: String, seen: String },

    #[error("the key `{name}` {problem}")]
    Key { name: String, problem: KeyProblem },

    #[error("the SSH agent at `{socket}` {reason}")]
    Agent { socket: String, reason: String },

    /// `tried` and `accepts` are lists in words; they are empty if there were no keys, or the host accepts nothing.
    #[error("{}", NoKeyWords { address, user, tried, accepts })]
    NoKeyAccepted { address: String, user: String, tried: String, accepts: String },

    #[error(
        "the jump host `{jump}` does not let us through to `{to}`: its SSH server or the key forbids forwarding \
         (`AllowTcpForwarding`, `PermitOpen`, `restrict`)"
    )]
    JumpForbidden { jump: String, to: String },

    #[error("the jump host `{jump}` cannot connect to `{to}`")]
    JumpFailed { jump: String, to: String },

    #[error("`{address}` opens no more sessions on this connection ({open} are open; see `MaxSessions` there)")]
    SessionRefused { address: String, open: usize },

    #[error("`{address}` forbids forwarding to `{to}` (`AllowTcpForwarding`, `PermitOpen`, `restrict`)")]
    ForwardForbidden { address: String, to: String },

    #[error("`{address}` cannot connect to `{to}`")]
    ForwardFailed { address: String, to: String },

    #[error("the connection to `{address}` is lost: {reason}")]
    Lost { address: String, reason: String },

    /// `stderr` is the last lines.
    #[error("`{command}` failed with {status}{}", Tail(stderr))]
    CommandFailed { command: String, status: Status, stderr: String },

    #[error("`{command}` did not end within {}", Seconds(*limit))]
    CommandTimedOut { command: String, limit: Duration },

    #[error("`{command}` printed more than {limit} bytes")]
    OutputTooLong { command: String, limit: usize },

    /// The login shell never came to our command: it is none, waits for something, or a forced command stands in.
    #[error("the login shell of `{user}` on `{address}` does not run commands{}", Tail(said))]
    ShellRefused { address: String, user: String, said: String },

    #[error("`sudo` for `{user}` on `{address}` {problem}")]
    Sudo { address: String, user: String, problem: SudoProblem },

    #[error("the disk of `{address}` is full: `{path}` needs {bytes} bytes")]
    DiskFull { address: String, path: String, bytes: u64 },

    #[error("cannot write `{path}` on `{address}`: {reason}")]
    Push { address: String, path: String, reason: String },

    /// It answers, but not with what we asked for.
    #[error("`{address}` gives an answer that makes no sense: {reason}")]
    Answer { address: String, reason: String },
}

impl Error {
    /// Whether the same again may work without anybody changing anything.
    pub fn may_pass(&self) -> bool {
        match self {
            Error::Resolve { .. }
            | Error::Refused { .. }
            | Error::Unreachable { .. }
            | Error::TimedOut { .. }
            | Error::HungUp { .. }
            | Error::JumpFailed { .. }
            | Error::SessionRefused { .. }
            | Error::ForwardFailed { .. }
            | Error::Lost { .. }
            | Error::CommandFailed { .. }
            | Error::CommandTimedOut { .. } => true,
            Error::Protocol { .. }
            | Error::HostKeyChanged { .. }
            | Error::Key { .. }
            | Error::Agent { .. }
            | Error::NoKeyAccepted { .. }
            | Error::JumpForbidden { .. }
            | Error::ForwardForbidden { .. }
            | Error::OutputTooLong { .. }
            | Error::ShellRefused { .. }
            | Error::Sudo { .. }
            | Error::DiskFull { .. }
            | Error::Push { .. }
            | Error::Answer { .. } => false,
        }
    }
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Resolve,
    Connect,
    Handshake,
    LogIn,
    OpenChannel,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Resolve => "give its address",
            Step::Connect => "answer",
            Step::Handshake => "finish the SSH handshake",
            Step::LogIn => "let us log in",
            Step::OpenChannel => "open a channel",
        })
    }
}

/// Why a key is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyProblem {
    Encrypted,
    /// It is the public half.
    Public,
    /// It is of this kind.
    Unsupported(String),
    Unreadable,
}

impl fmt::Display for KeyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyProblem::Encrypted => f.write_str(
                "is encrypted with a passphrase: give one without (`ssh-keygen -p` removes it from a copy), or use \
                 an SSH agent",
            ),
            KeyProblem::Public => f.write_str("is a public key: the private one is needed"),
            KeyProblem::Unsupported(kind) => {
                write!(f, "is of the kind `{kind}`, which cannot be used: take ed25519, ECDSA or RSA")
            }
            KeyProblem::Unreadable => f.write_str("cannot be read as an SSH key"),
        }
    }
}

/// Why a command does not get the rights of root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SudoProblem {
    Missing,
    NeedsPassword,
    NotAllowed,
    NeedsTerminal,
    /// Its own words.
    Other(String),
}

impl fmt::Display for SudoProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SudoProblem::Missing => f.write_str("is not installed: install it, or log in as root"),
            SudoProblem::NeedsPassword => {
                f.write_str("asks for a password: allow it without one (`NOPASSWD: ALL` in `/etc/sudoers.d`)")
            }
            SudoProblem::NotAllowed => f.write_str("is not allowed: name the user in `/etc/sudoers.d`"),
            SudoProblem::NeedsTerminal => f.write_str("needs a terminal: remove `requiretty` from its settings"),
            SudoProblem::Other(words) => write!(f, "fails: {words}"),
        }
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_millis() as f64 / 1000.0)
    }
}

struct Tail<'a>(&'a str);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

struct NoKeyWords<'a> {
    address: &'a str,
    user: &'a str,
    tried: &'a str,
    accepts: &'a str,
}

impl fmt::Display for NoKeyWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoKeyWords { address, user, tried, accepts } = self;
        if tried.is_empty() {
            write!(f, "there is no key to log in to `{address}` as `{user}` with")?;
        } else {
            write!(f, "`{address}` does not let `{user}` in: tried {tried}")?;
        }
        if accepts.is_empty() { Ok(()) } else { write!(f, " (it accepts {accepts})") }
    }
}

/// The words of an error of the system, without its number.
pub(crate) fn io_words(error: &std::io::Error) -> String {
    let words = error.to_string();
    let short = words.split(" (os error").next().unwrap_or(&words);
    // Systems begin these words with a capital, and we put them into sentences.
    let mut letters = short.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
