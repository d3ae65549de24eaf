//! Git over SSH: one program on the other machine, asked again and again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, AuthResult, Handler};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::time::timeout;

use super::dial::{Dialer, SILENCE, Stream};
use super::error::Error;
use super::url::Url;
use crate::shell::quote;

/// How long logging in may take.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Who logs in where the address does not say.
const USER: &str = "git";

/// The program on the other machine. The connection ends with it.
pub(super) struct Program {
    handle: client::Handle<Peer>,
    /// What it prints.
    pub(super) output: Output,
    input: ChannelWriteHalf<client::Msg>,
}

impl Program {
    /// Logs in and starts the program that gives out a repository.
    pub(super) async fn start(dialer: &mut Dialer, url: &Url, key: &str, home: &Path) -> Result<Program, Error> {
        let key = russh::keys::decode_secret_key(key, None)
            .map_err(|error| Error::Other(format!("its private key cannot be read: {error}")))?;
        let stream = dialer.connect(url).await?;
        let peer = Peer { host: url.host.clone(), port: url.port, known: known_hosts(home) };
        let connecting = log_in(stream, peer, url, key);
        let handle =
            timeout(LOGIN_TIMEOUT, connecting).await.map_err(|_| Error::Stalled(LOGIN_TIMEOUT.as_secs()))??;
        let channel = handle.channel_open_session().await.map_err(|error| lost(url, &error))?;
        // Servers that do not know of it speak the older language.
        channel.set_env(false, "GIT_PROTOCOL", "version=2").await.map_err(|error| lost(url, &error))?;
        let command = format!("git-upload-pack {}", quote(path_of(url)));
        channel.exec(true, command).await.map_err(|error| lost(url, &error))?;
        let (read, input) = channel.split();
        let output = Output { read, complaint: String::new(), has_failed: false };
        Ok(Program { handle, output, input })
    }

    /// Writes to the program.
    pub(super) async fn write(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        self.input
            .data_bytes(bytes)
            .await
            .map_err(|error| Error::Unreachable(format!("the connection broke: {error}")))
    }

    /// Ends the connection.
    pub(super) async fn end(self) {
        // It may be gone already.
        let _ = self.handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
    }
}

/// What a program prints, in pieces.
pub(super) struct Output {
    read: ChannelReadHalf,
    complaint: String,
    has_failed: bool,
}

impl Output {
    /// The next piece. None: there is no more.
    pub(super) async fn next(&mut self) -> Result<Option<bytes::Bytes>, Error> {
        loop {
            let message =
                timeout(SILENCE, self.read.wait()).await.map_err(|_| Error::Stalled(SILENCE.as_secs()))?;
            match message {
                Some(ChannelMsg::Data { data }) => return Ok(Some(data)),
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    let room = 1024_usize.saturating_sub(self.complaint.len());
                    self.complaint.extend(String::from_utf8_lossy(&data).chars().take(room));
                }
                // What it says about that may come later.
                Some(ChannelMsg::ExitStatus { exit_status }) => self.has_failed |= exit_status != 0,
                Some(ChannelMsg::Failure) => {
                    return Err(Error::Refused("it runs no `git-upload-pack`".to_owned()));
                }
                Some(_) => {}
                None if self.complaint.is_empty() && !self.has_failed => return Ok(None),
                None => return Err(self.failure()),
            }
        }
    }

    fn failure(&self) -> Error {
        let text: Vec<&str> = self.complaint.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let text = text.join(" ");
        let says = |words: &[&str]| words.iter().any(|word| text.to_ascii_lowercase().contains(word));
        if says(&["not found", "does not appear to be a git repository", "no such", "does not exist"]) {
            return Error::NotFound;
        }
        if says(&["permission denied", "access denied", "not authorized", "forbidden"]) {
            return Error::Unauthorized;
        }
        Error::Refused(if text.is_empty() { "its program failed".to_owned() } else { text })
    }
}

async fn log_in(
    stream: Box<dyn Stream>,
    peer: Peer,
    url: &Url,
    key: PrivateKey,
) -> Result<client::Handle<Peer>, Error> {
    let config = client::Config { keepalive_interval: Some(Duration::from_secs(30)), ..client::Config::default() };
    let connecting = client::connect_stream(Arc::new(config), stream, peer).await;
    let mut handle = connecting.map_err(|error| match error {
        PeerError::Own(error) => error,
        PeerError::Ssh(error) => lost(url, &error),
    })?;
    let user = url.user.as_deref().unwrap_or(USER);
    let key = Arc::new(key);
    let hashes: Vec<Option<HashAlg>> = if matches!(key.algorithm(), Algorithm::Rsa { .. }) {
        match handle.best_supported_rsa_hash().await.map_err(|error| lost(url, &error))? {
            Some(Some(HashAlg::Sha256)) => vec![Some(HashAlg::Sha256)],
            _ => vec![Some(HashAlg::Sha512), Some(HashAlg::Sha256)],
        }
    } else {
        vec![None]
    };
    for hash in hashes {
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&key), hash);
        let result = handle.authenticate_publickey(user, key).await.map_err(|error| lost(url, &error))?;
        if matches!(result, AuthResult::Success) {
            return Ok(handle);
        }
    }
    Err(Error::Unauthorized)
}

fn lost(url: &Url, error: &russh::Error) -> Error {
    Error::Unreachable(format!("the SSH connection to `{}` broke: {error}", url.authority()))
}

/// The path on the other machine: one that begins with `~` is relative to a home there.
fn path_of(url: &Url) -> &str {
    if url.path.starts_with("/~") { &url.path[1..] } else { &url.path }
}

fn known_hosts(home: &Path) -> Vec<PathBuf> {
    vec![home.join(".ssh/known_hosts"), PathBuf::from("/etc/ssh/ssh_known_hosts")]
}

/// The other side. A job begins on a machine that has met nobody, so any key is taken from a host that nobody in the
/// image knows; from one that is known there, only the known key.
pub(super) struct Peer {
    host: String,
    port: u16,
    known: Vec<PathBuf>,
}

/// Why a connection was given up.
#[derive(Debug)]
pub(super) enum PeerError {
    Own(Error),
    Ssh(russh::Error),
}

impl From<russh::Error> for PeerError {
    fn from(error: russh::Error) -> PeerError {
        PeerError::Ssh(error)
    }
}

impl Handler for Peer {
    type Error = PeerError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, PeerError> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        let is_other = |path: &PathBuf| {
            let checked = russh::keys::check_known_hosts_path(&self.host, self.port, key, path);
            matches!(checked, Err(russh::keys::Error::KeyChanged { .. }))
        };
        match self.known.iter().find(|path| is_other(path)) {
            None => Ok(true),
            Some(path) => Err(PeerError::Own(Error::Unreachable(format!(
                "the host `{}` shows another key than the one in `{}`",
                self.host,
                path.display()
            )))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_and_homes_stay_relative() {
        let path = |text: &str| quote(path_of(&Url::parse(text).unwrap()));
        assert_eq!(path("ssh://h/~me/it's.git"), r"'~me/it'\''s.git'");
        assert_eq!(path("git@h:org/a.git"), "'/org/a.git'");
    }
}
