//! Connections that clients carry through us: to where they ask for, and from where they ask us to listen.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::transport::{Lane, Offer, Opener, Output};
use super::{Server, log_socket};
use crate::names;

/// How long it may take to reach one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what a client left behind may take to be delivered.
const LINGER: Duration = Duration::from_mins(1);
/// How many places one client may have us listen at.
const LISTENERS_LIMIT: usize = 64;

/// Both directions of a connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a client wants to be connected to.
#[derive(Debug)]
pub(super) enum Target {
    /// A port of a host.
    Tcp {
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket in the job's file system.
    Unix {
        /// Its path.
        path: String,
    },
}

impl Target {
    /// Connects to it as the job's user, whose process we are.
    pub(super) async fn connect(&self, server: &Arc<Server>) -> io::Result<Box<dyn Stream>> {
        match self {
            Target::Unix { path } => Ok(Box::new(UnixStream::connect(server.path(path)).await?)),
            Target::Tcp { host, port } => {
                if let Some(stream) = log_socket::connect(server, host, *port) {
                    return Ok(Box::new(stream));
                }
                Ok(Box::new(connect_tcp(host, *port).await?))
            }
        }
    }
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in names::resolve(host).await? {
        let connecting = TcpStream::connect(SocketAddr::new(address, port));
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

/// Carries bytes both ways until both have ended.
pub(super) async fn carry(lane: Lane, stream: impl AsyncRead + AsyncWrite) {
    let Lane { inlet, outlet } = lane;
    let (reader, writer) = tokio::io::split(stream);
    let (reader, writer) = (std::pin::pin!(reader), std::pin::pin!(writer));
    let out = async {
        outlet.pump(Output::Standard, reader).await;
        outlet.finish().await;
    };
    let both = async { tokio::join!(inlet.pump(writer), out) };
    // A client that is gone may have left bytes that are still to be delivered.
    let too_late = async {
        inlet.closed().cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        _ = both => {}
        () = too_late => {}
    }
    outlet.close().await;
}

/// Where we listen for one client. All of it ends with this.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    tcp: HashMap<(String, u16), CancellationToken>,
    unix: HashMap<String, CancellationToken>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for listening in self.tcp.values().chain(self.unix.values()) {
            listening.cancel();
        }
    }
}

impl Listeners {
    fn has_room(&self) -> bool {
        self.tcp.len() + self.unix.len() < LISTENERS_LIMIT
    }

    /// Listens on a port of the loopback interface, whatever address is asked for: what a client forwards is for the
    /// job, not for its network. Port 0 is any that is free. Answers the port.
    pub(super) async fn listen_tcp(&mut self, address: &str, port: u16, opener: Opener) -> Option<u16> {
        if !self.has_room() {
            return None;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let port = listener.local_addr().ok()?.port();
        // A machine need not have both.
        let other = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await.ok();
        let listening = opener.ended().child_token();
        self.tcp.insert((address.to_owned(), port), listening.clone());
        for listener in std::iter::once(listener).chain(other) {
            let (opener, address) = (opener.clone(), address.to_owned());
            let answer = async move {
                while let Ok((stream, origin)) = accept_tcp(&listener).await {
                    let _ = stream.set_nodelay(true);
                    let offer = Offer::Tcp { address: address.clone(), port, origin };
                    tokio::spawn(offer_stream(opener.clone(), offer, stream));
                }
            };
            tokio::spawn(listening.clone().run_until_cancelled_owned(answer));
        }
        Some(port)
    }

    /// Listens no more.
    pub(super) fn stop_tcp(&mut self, address: &str, port: u16) -> bool {
        let listening = self.tcp.remove(&(address.to_owned(), port));
        listening.inspect(CancellationToken::cancel).is_some()
    }

    /// Listens on a socket in the job's file system. What is already there is never replaced.
    pub(super) fn listen_unix(&mut self, path: &str, opener: Opener) -> bool {
        if !self.has_room() {
            return false;
        }
        let Ok(socket) = PrivateSocket::bind(&opener.path(path)) else {
            return false;
        };
        let listening = opener.ended().child_token();
        self.unix.insert(path.to_owned(), listening.clone());
        let path = path.to_owned();
        let answer = async move {
            while let Ok(stream) = socket.accept().await {
                tokio::spawn(offer_stream(opener.clone(), Offer::Unix { path: path.clone() }, stream));
            }
        };
        tokio::spawn(listening.run_until_cancelled_owned(answer));
        true
    }

    /// Listens no more.
    pub(super) fn stop_unix(&mut self, path: &str) -> bool {
        self.unix.remove(path).inspect(CancellationToken::cancel).is_some()
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    insist(|| listener.accept()).await
}

/// Accepts connections over errors that pass, for instance too many open files.
async fn insist<T, F: Future<Output = io::Result<T>>>(mut accept: impl FnMut() -> F) -> io::Result<T> {
    const TRIES: u32 = 100;
    for _ in 1..TRIES {
        match accept().await {
            Ok(accepted) => return Ok(accepted),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    accept().await
}

/// Hands a connection to the client, if it wants it.
pub(super) async fn offer_stream(opener: Opener, offer: Offer, stream: impl AsyncRead + AsyncWrite) {
    if let Some(lane) = opener.open(offer).await {
        carry(lane, stream).await;
    }
}

/// A socket that only the job's user may connect to, and that is gone with this.
#[derive(Debug)]
pub(super) struct PrivateSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl PrivateSocket {
    /// Makes it, where nothing is yet.
    pub(super) fn bind(path: &Path) -> io::Result<PrivateSocket> {
        let listener = UnixListener::bind(path)?;
        let socket = PrivateSocket { listener, path: path.to_owned() };
        // Already nobody else may write to it, unless the process has an unusual mask.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(socket)
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(insist(|| self.listener.accept()).await?.0)
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
