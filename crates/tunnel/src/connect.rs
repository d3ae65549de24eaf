//! The way to a host: its address, the jump hosts, the handshake and the login, under one deadline.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::client::{Watcher, config, ending_words};
use crate::error::io_words;
use crate::login::log_in;
use crate::session::{Connection, Handle, Session};
use crate::{Error, HostKey, Limits, Result, Step, Target};

/// Connects to a target over all of its jump hosts.
pub(crate) async fn connect(target: &Target, limits: &Limits) -> Result<Session> {
    let deadline = Instant::now() + limits.connect;
    let mut session = None;
    for hop in target.hops() {
        let attempt = Attempt { hop, limits, deadline };
        session = Some(attempt.run(session).await?);
    }
    Ok(session.expect("the target itself is its last hop"))
}

/// One host on the way.
pub(crate) struct Attempt<'a> {
    pub(crate) hop: &'a Target,
    limits: &'a Limits,
    deadline: Instant,
}

/// What a handshake leaves: the library's handle, the host's key, and why the connection will have ended.
type Entered = (Handle, HostKey, watch::Receiver<Option<String>>);

impl Attempt<'_> {
    async fn run(&self, through: Option<Session>) -> Result<Session> {
        let result = self.enter(through.as_ref()).await;
        let (handle, host_key, ended) = result.map_err(|error| prefer_cause(error, through.as_ref()))?;
        Ok(Session::new(Connection::new(handle, self.hop, host_key, ended, self.limits.clone(), through)))
    }

    async fn enter(&self, through: Option<&Session>) -> Result<Entered> {
        let (mut handle, host_key, ended) = match through {
            None => self.handshake(self.dial().await?).await?,
            Some(jump) => {
                let opening = jump.direct_tcpip(&self.hop.host, self.hop.port);
                let stream = self.in_time(Step::Connect, opening).await?;
                self.handshake(stream.map_err(|error| self.jump_error(jump, error))?).await?
            }
        };
        self.in_time(Step::LogIn, log_in(&mut handle, self.hop, &ended)).await??;
        Ok((handle, host_key, ended))
    }

    fn address(&self) -> String {
        self.hop.address()
    }

    async fn in_time<T>(&self, step: Step, work: impl Future<Output = T>) -> Result<T> {
        let late = |_| Error::TimedOut { address: self.address(), step, limit: self.limits.connect };
        timeout_at(self.deadline, work).await.map_err(late)
    }

    async fn dial(&self) -> Result<TcpStream> {
        let lookup = tokio::net::lookup_host((self.hop.host.as_str(), self.hop.port));
        let unknown = |reason: String| Error::Resolve { host: self.hop.host.clone(), reason };
        let found = self.in_time(Step::Resolve, lookup).await?;
        let addresses: Vec<SocketAddr> = found.map_err(|error| unknown(lookup_words(&error)))?.collect();
        let mut last = unknown("it has none".to_owned());
        for (index, address) in addresses.iter().enumerate() {
            // One address that swallows packets must not take the time of all others.
            let share = self.deadline.saturating_duration_since(Instant::now()) / (addresses.len() - index) as u32;
            match self.dial_one(*address, share).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_one(&self, address: SocketAddr, share: Duration) -> Result<TcpStream> {
        let late = Error::TimedOut { address: self.address(), step: Step::Connect, limit: self.limits.connect };
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Err(_) => Err(late),
            Ok(Ok(stream)) => {
                // It is only slower where this fails.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => Err(match error.kind() {
                ErrorKind::ConnectionRefused => Error::Refused { address: self.address() },
                ErrorKind::TimedOut => late,
                _ => Error::Unreachable { address: self.address(), reason: io_words(&error) },
            }),
        }
    }

    async fn handshake(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Entered> {
        let known = self.hop.known_host.as_ref();
        let (watcher, seen, ended) = Watcher::new(known.cloned());
        let connecting = russh::client::connect_stream(config(self.limits, known), stream, watcher);
        match self.in_time(Step::Handshake, connecting).await? {
            Ok(handle) => {
                let host_key = seen.get().expect("a handshake ends with the host's key").clone();
                Ok((handle, host_key, ended))
            }
            Err(error) => Err(self.handshake_error(&error, &seen)),
        }
    }

    fn handshake_error(&self, error: &russh::Error, seen: &Arc<OnceLock<HostKey>>) -> Error {
        let address = self.address();
        match (error, &self.hop.known_host, seen.get()) {
            (russh::Error::UnknownKey, Some(known), Some(seen)) => {
                Error::HostKeyChanged { address, known: known.fingerprint(), seen: seen.fingerprint() }
            }
            (russh::Error::IO(_) | russh::Error::Disconnect | russh::Error::HUP, ..) => {
                Error::HungUp { address, reason: ending_words(error) }
            }
            (russh::Error::InactivityTimeout, ..) => {
                Error::TimedOut { address, step: Step::Handshake, limit: self.limits.dead_after }
            }
            (russh::Error::Version, ..) => Error::Protocol { address, reason: "it is something else".to_owned() },
            (error, ..) => Error::Protocol { address, reason: error.to_string() },
        }
    }

    /// What it means for the way that a jump host opens no channel.
    fn jump_error(&self, jump: &Session, error: Error) -> Error {
        let (jump, to) = (jump.address().to_owned(), self.address());
        match error {
            Error::ForwardForbidden { .. } => Error::JumpForbidden { jump, to },
            Error::ForwardFailed { .. } => Error::JumpFailed { jump, to },
            Error::TimedOut { .. } => {
                Error::TimedOut { address: to, step: Step::Connect, limit: self.limits.connect }
            }
            other => other,
        }
    }
}

/// A connection that broke because the one below it broke says why that one did.
fn prefer_cause(error: Error, through: Option<&Session>) -> Error {
    match (&error, through.and_then(Session::ending)) {
        (Error::Lost { .. } | Error::HungUp { .. }, Some(cause)) => cause,
        _ => error,
    }
}

fn lookup_words(error: &std::io::Error) -> String {
    // The system's words name the function that failed, which says nothing to anybody.
    let words = io_words(error);
    words.rsplit(": ").next().unwrap_or_default().to_lowercase()
}
