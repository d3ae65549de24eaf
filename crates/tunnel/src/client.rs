//! The SSH library's side: its settings, and what it tells us while a connection lives.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use russh::client::{Config, DisconnectReason, Handler};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKeyOrCertificate};
use russh::{Preferred, SshId, cipher};
use tokio::sync::watch;

use crate::error::io_words;
use crate::{HostKey, Limits};

/// How many messages of a channel wait for their reader before the whole connection waits. The library opens the
/// window again before anybody has read, so this bounds what a slow reader costs: 32 KiB each.
const WAITING_MESSAGES: usize = 64;

/// How often a silent host is asked before it is given up.
const QUESTIONS: u32 = 3;

pub(crate) fn config(limits: &Limits, known: Option<&HostKey>) -> Arc<Config> {
    let preferred = Preferred {
        key: Cow::Owned(host_key_algorithms(known)),
        // Processors have instructions for the first one.
        cipher: Cow::Borrowed(&[
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
            cipher::AES_192_CTR,
            cipher::AES_128_CTR,
        ]),
        ..Preferred::DEFAULT
    };
    Arc::new(Config {
        client_id: SshId::Standard(Cow::Borrowed("SSH-2.0-dstack")),
        window_size: limits.window_bytes,
        channel_buffer_size: WAITING_MESSAGES,
        preferred,
        // Questions find out when nothing arrives; this, when not even they can be written.
        inactivity_timeout: Some(limits.dead_after),
        keepalive_interval: Some(limits.dead_after / QUESTIONS),
        keepalive_max: QUESTIONS as usize - 1,
        nodelay: true,
        ..Config::default()
    })
}

/// A host has several keys, and shows the one of the first kind that we ask for. Asking for the kind that we know
/// first keeps a host the same that got more keys. Nothing with SHA-1.
fn host_key_algorithms(known: Option<&HostKey>) -> Vec<Algorithm> {
    let mut algorithms = vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    if let Some(known) = known {
        let kind = known.public().algorithm();
        let is_rsa = matches!(kind, Algorithm::Rsa { .. });
        let is_known = |other: &Algorithm| *other == kind || (is_rsa && matches!(other, Algorithm::Rsa { .. }));
        algorithms.sort_by_key(|algorithm| !is_known(algorithm));
    }
    algorithms
}

/// What one connection tells.
#[derive(Debug)]
pub(crate) struct Watcher {
    known: Option<HostKey>,
    seen: Arc<OnceLock<HostKey>>,
    ended: watch::Sender<Option<String>>,
}

impl Watcher {
    /// The watcher, the key that it will have seen, and why the connection will have ended.
    pub(crate) fn new(
        known: Option<HostKey>,
    ) -> (Watcher, Arc<OnceLock<HostKey>>, watch::Receiver<Option<String>>) {
        let seen = Arc::new(OnceLock::new());
        let (ended, why) = watch::channel(None);
        (Watcher { known, seen: Arc::clone(&seen), ended }, seen, why)
    }

    fn end(&self, reason: String) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(reason);
            is_first
        });
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end("it was closed".to_owned());
    }
}

/// What the host opens towards us is declined by dropping it: nothing of it was asked for.
impl Handler for Watcher {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        let seen = HostKey::new(key);
        let is_right = self.known.as_ref().is_none_or(|known| *known == seen);
        // The key is checked once for each connection, so nothing is there yet.
        let _ = self.seen.set(seen);
        Ok(is_right)
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                self.end(format!("the host ended it: {}", info.message.trim()));
                Ok(())
            }
            DisconnectReason::Error(error) => {
                self.end(ending_words(&error));
                Err(error)
            }
        }
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: russh::Channel<russh::client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: russh::client::ChannelOpenHandle,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: russh::Channel<russh::client::Msg>,
        _: &str,
        _: russh::client::ChannelOpenHandle,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: russh::Channel<russh::client::Msg>,
        _: russh::client::ChannelOpenHandle,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: russh::Channel<russh::client::Msg>,
        _: russh::client::ChannelOpenHandle,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: russh::Channel<russh::client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: russh::client::ChannelOpenHandle,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: russh::Channel<russh::client::Msg>,
        _: &str,
        _: russh::client::ChannelOpenHandle,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: russh::Channel<russh::client::Msg>,
        _: &str,
        _: u32,
        _: russh::client::ChannelOpenHandle,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}

/// Why a connection ended, in words.
pub(crate) fn ending_words(error: &russh::Error) -> String {
    match error {
        russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout => {
            "the host does not answer any more".into()
        }
        russh::Error::Disconnect | russh::Error::HUP | russh::Error::SendError | russh::Error::RecvError => {
            "it was closed by the other side".into()
        }
        russh::Error::IO(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "it was closed by the other side".into()
        }
        russh::Error::IO(error) => io_words(error),
        other => other.to_string(),
    }
}
