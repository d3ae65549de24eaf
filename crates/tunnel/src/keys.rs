//! Keys: those that we log in with, and those by which we know hosts again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use russh::keys::{Algorithm, Error as Unreadable, HashAlg, PrivateKey, PublicKey, decode_secret_key};

use crate::{Error, KeyProblem, Result};

/// The public key of a host. Written and read as a line of `authorized_keys`, without comment.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey(PublicKey);

impl HostKey {
    /// What people compare: `SHA256:` and a text, as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(crate) fn new(key: &PublicKey) -> HostKey {
        // Equality must not hang on a comment.
        HostKey(PublicKey::from(key.key_data().clone()))
    }

    pub(crate) fn public(&self) -> &PublicKey {
        &self.0
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_openssh().map_err(|_| fmt::Error)?.trim_end())
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({} {})", self.0.algorithm(), self.fingerprint())
    }
}

impl FromStr for HostKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<HostKey> {
        let key = PublicKey::from_openssh(text.trim());
        let unreadable = |_| Error::Key { name: "host key".to_owned(), problem: KeyProblem::Unreadable };
        key.map(|key| HostKey::new(&key)).map_err(unreadable)
    }
}

/// Something to log in with. Shows itself without any secret.
#[derive(Clone)]
pub struct Key {
    name: String,
    kind: Kind,
}

#[derive(Clone)]
pub(crate) enum Kind {
    Private(Arc<PrivateKey>),
    /// An SSH agent with any number of keys, by its socket.
    Agent(PathBuf),
}

impl Key {
    /// Reads a private key: ed25519, ECDSA or RSA, in any of the usual formats, not encrypted. Errors call it `name`.
    pub fn parse(name: impl Into<String>, text: &str) -> Result<Key> {
        let name = name.into();
        match read_private(text) {
            Ok(key) => Ok(Key { name, kind: Kind::Private(Arc::new(key)) }),
            Err(problem) => Err(Error::Key { name, problem }),
        }
    }

    /// All keys of the SSH agent that listens on a socket. It is asked when a host is to be logged in to.
    pub fn agent(socket: impl AsRef<Path>) -> Key {
        let socket = socket.as_ref().to_owned();
        Key { name: socket.display().to_string(), kind: Kind::Agent(socket) }
    }

    /// The SSH agent that `SSH_AUTH_SOCK` names, if it names one.
    pub fn agent_of_environment() -> Option<Key> {
        std::env::var_os("SSH_AUTH_SOCK")
            .filter(|path| !path.is_empty())
            .map(|path| Key::agent(PathBuf::from(path)))
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The line for `authorized_keys`. An agent has none.
    pub fn public_line(&self) -> Option<String> {
        match &self.kind {
            Kind::Private(key) => Some(HostKey::new(key.public_key()).to_string()),
            Kind::Agent(_) => None,
        }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

fn read_private(text: &str) -> std::result::Result<PrivateKey, KeyProblem> {
    // Text out of a YAML file may be indented.
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let first = lines.first().copied().unwrap_or_default();
    if ["ssh-", "ecdsa-", "sk-", "-----BEGIN PUBLIC", "-----BEGIN SSH2 PUBLIC"]
        .iter()
        .any(|it| first.starts_with(it))
    {
        return Err(KeyProblem::Public);
    }
    let says_encrypted = |line: &&str| line.contains("BEGIN ENCRYPTED") || line.ends_with("4,ENCRYPTED");
    if lines.iter().any(says_encrypted) {
        return Err(KeyProblem::Encrypted);
    }
    let key = decode_secret_key(&lines.join("\n"), None).map_err(|error| match error {
        Unreadable::KeyIsEncrypted => KeyProblem::Encrypted,
        Unreadable::UnsupportedKeyType { key_type_string, .. } => KeyProblem::Unsupported(key_type_string),
        _ => KeyProblem::Unreadable,
    })?;
    let algorithm = key.algorithm();
    match algorithm {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => Ok(key),
        other => Err(KeyProblem::Unsupported(other.to_string())),
    }
}

/// `ed25519`, `ecdsa` or `rsa`.
pub(crate) fn kind_of(key: &PublicKey) -> String {
    let algorithm = key.algorithm().to_string();
    let kinds = ["ed25519", "ecdsa", "rsa"];
    kinds.into_iter().find(|kind| algorithm.contains(kind)).map_or(algorithm, str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: KeyProblem) {
        let error = Key::parse("id", text).unwrap_err();
        assert_eq!(error, Error::Key { name: "id".to_owned(), problem: expected }, "{text}");
    }

    #[test]
    fn what_is_no_private_key_is_named() {
        check(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ",
            KeyProblem::Public,
        );
        check(
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----",
            KeyProblem::Encrypted,
        );
        check("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nAAAA", KeyProblem::Encrypted);
        check("hello", KeyProblem::Unreadable);
        check("", KeyProblem::Unreadable);
    }

    #[test]
    fn a_host_key_survives_its_text_and_loses_its_comment() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let key: HostKey = format!("{line} root@somewhere").parse().unwrap();
        assert_eq!(key.to_string(), line);
        assert_eq!(line.parse::<HostKey>().unwrap(), key);
        assert!(key.fingerprint().starts_with("SHA256:"));
    }
}
