//! The private keys of a fleet of machines over SSH. Its configuration names files on this side; the server is sent
//! what is in them.

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use api::configurations::{SshHost, SshKey, SshParams, SshProxyParams};

use tunnel::{Key, KeyProblem};

use super::configure;
use super::interpolate::quoted;
use super::source::Source;
use crate::session::Session;

/// Files above this are no keys, in bytes.
const MAX_LENGTH: u64 = 64 * 1024;

/// A file that is named, and where its key is wanted.
struct Identity<'a> {
    /// The field that names it.
    field: String,
    /// Its path, as it is written there.
    file: &'a str,
    key: &'a mut Option<SshKey>,
}

/// Puts the key of each `identity_file` beside it. As in the official client, relative paths start in the current
/// directory, not where the configuration is.
pub(super) fn read_keys(session: &Session, source: &Source, ssh: &mut SshParams) -> anyhow::Result<()> {
    for Identity { field, file, key } in identities(ssh) {
        let path = configure::absolute(session, &session.directory, file);
        let read = read(&path).map_err(|failure| source.error_at(&field, failure.explain(&path, &field)))?;
        *key = Some(read);
    }
    Ok(())
}

fn identities(ssh: &mut SshParams) -> Vec<Identity<'_>> {
    let mut identities = Vec::new();
    identities.extend(identity("ssh_config", ssh.identity_file.as_deref(), &mut ssh.ssh_key));
    identities.extend(identity_of_proxy("ssh_config", &mut ssh.proxy_jump));
    for (index, host) in ssh.hosts.iter_mut().enumerate() {
        let SshHost::Params(host) = host else { continue };
        let place = format!("ssh_config.hosts[{index}]");
        identities.extend(identity(&place, host.identity_file.as_deref(), &mut host.ssh_key));
        identities.extend(identity_of_proxy(&place, &mut host.proxy_jump));
    }
    identities
}

fn identity<'a>(place: &str, file: Option<&'a str>, key: &'a mut Option<SshKey>) -> Option<Identity<'a>> {
    file.map(|file| Identity { field: format!("{place}.identity_file"), file, key })
}

fn identity_of_proxy<'a>(place: &str, proxy: &'a mut Option<SshProxyParams>) -> Option<Identity<'a>> {
    let proxy = proxy.as_mut()?;
    identity(&format!("{place}.proxy_jump"), Some(&proxy.identity_file), &mut proxy.ssh_key)
}

/// Why there is no key.
enum Failure {
    File(io::Error),
    /// It is in a form that only PuTTY reads.
    Putty,
    Key(KeyProblem),
}

fn read(path: &str) -> Result<SshKey, Failure> {
    let mut bytes = Vec::new();
    let length = File::open(path).and_then(|file| file.take(MAX_LENGTH + 1).read_to_end(&mut bytes));
    if MAX_LENGTH < length.map_err(Failure::File)? as u64 {
        return Err(Failure::Key(KeyProblem::Unreadable));
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::Key(KeyProblem::Unreadable))?;
    if text.trim_start().starts_with("PuTTY-User-Key-File") {
        return Err(Failure::Putty);
    }
    // The server reads it in the same way, so what is of no use there is refused here.
    let key = Key::parse(path, &text).map_err(|error| match error {
        tunnel::Error::Key { problem, .. } => Failure::Key(problem),
        _ => Failure::Key(KeyProblem::Unreadable),
    })?;
    let public = key.public_line().ok_or(Failure::Key(KeyProblem::Unreadable))?;
    Ok(SshKey { public, private: Some(text) })
}

impl Failure {
    /// What is wrong with the file and what to do about it. Nothing of the file itself is repeated.
    fn explain(&self, path: &str, field: &str) -> String {
        let word = quoted(&[path.to_owned()]);
        let named = format!("`{path}` (`{field}`)");
        match self {
            Failure::File(error) => {
                let why = match error.kind() {
                    ErrorKind::NotFound => {
                        "there is no such file; a relative path starts in the current directory".to_owned()
                    }
                    ErrorKind::PermissionDenied => {
                        format!("you may not; let yourself read it with `chmod u+r {word}`")
                    }
                    _ => format!("{error}; name a file with a private key"),
                };
                format!("Unable to read the SSH key at {named}: {why}")
            }
            Failure::Key(KeyProblem::Encrypted) => format!(
                "The SSH key at {named} is protected by a passphrase, which the server has nobody to ask for; take \
                 it off with `ssh-keygen -p -N '' -f {word}`, or name a key that is for these hosts only"
            ),
            Failure::Key(KeyProblem::Public) => {
                let private = path.strip_suffix(".pub").map(|path| format!(", probably `{path}`"));
                let private = private.unwrap_or_default();
                format!("Expected a private key at {named}, got a public key; name its private half{private}")
            }
            Failure::Putty => format!(
                "The SSH key at {named} is written by PuTTY; convert it with \
                 `puttygen {word} -O private-openssh -o {word}.openssh`, and name the new file"
            ),
            Failure::Key(KeyProblem::Unsupported(kind)) => format!(
                "Unsupported SSH key at {named}: its kind is {kind}; use a key of Ed25519, ECDSA or RSA, which \
                 `ssh-keygen -t ed25519` makes"
            ),
            Failure::Key(KeyProblem::Unreadable) => format!(
                "Unsupported or invalid SSH key at {named}: it holds no whole private key; see what \
                 `ssh-keygen -y -f {word}` says to it, and name another"
            ),
        }
    }
}
