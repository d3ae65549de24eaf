//! The protocol: the only part of the server that knows the library that speaks it.
//!
//! The library hands on what a client asks for; here that becomes lanes, sessions and forwardings.

mod gate;
mod handler;
mod lane;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::agent::SshServer;
use nix::sys::socket::{setsockopt, sockopt};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Config, Handle};
use russh::{ChannelId, MethodKind, MethodSet, Preferred, SshId};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::gate::{Gate, Gated};
use self::handler::Peer;
pub(super) use self::lane::{Exit, Inlet, Lane, Outlet, Output};
use super::agent_socket::AgentSocket;
use super::{FAREWELL, Server};

/// How many clients may be connected, and how many of them may still have to show their key.
const CONNECTIONS_LIMIT: usize = 256;
const STRANGERS_LIMIT: usize = 64;
/// How long a client may take to show its key.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How many keys a client may try. Agents of people with many keys try them all.
const LOGIN_ATTEMPTS: usize = 20;
/// How long each wrong key takes.
const REJECTION_TIME: Duration = Duration::from_millis(20);
/// How many questions whether it is still there a client may leave without an answer.
const UNANSWERED_LIMIT: u32 = 3;
/// How many bytes of a channel may be on their way.
const WINDOW: u32 = 2 << 20;
/// How many messages may wait for the connection's own task.
const EVENTS: usize = 32;

/// What the library is told, the same for all clients.
pub(super) struct Protocol {
    config: Arc<Config>,
    authorized: Vec<PublicKey>,
    stall_timeout: Duration,
}

impl Protocol {
    /// Understands the keys, or says which of them cannot be. Authorised keys that cannot be understood are left out,
    /// because the library may not know all kinds of keys that people have.
    pub(super) fn new(spec: &SshServer) -> Result<Protocol, String> {
        let key = PrivateKey::from_openssh(&spec.host_key);
        // What is wrong with it is not told: the text could hold a part of the key.
        let key = key.map_err(|_| "the SSH server's host key cannot be understood".to_owned())?;
        let authorized = spec.authorized_keys.iter().filter_map(|line| PublicKey::from_openssh(line.trim()).ok());
        let keep_alive = Duration::from_secs(u64::from(spec.keep_alive_secs.max(1)));
        let keys: Vec<Algorithm> = Preferred::DEFAULT
            .key
            .iter()
            // Signatures with SHA-1 prove nothing any more.
            .filter(|algorithm| !matches!(algorithm, Algorithm::Rsa { hash: None }))
            .cloned()
            .collect();
        let config = Config {
            server_id: SshId::Standard("SSH-2.0-dstack".into()),
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: REJECTION_TIME,
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![key],
            window_size: WINDOW,
            event_buffer_size: EVENTS,
            max_auth_attempts: LOGIN_ATTEMPTS,
            inactivity_timeout: None,
            keepalive_interval: Some(keep_alive),
            keepalive_max: UNANSWERED_LIMIT as usize,
            preferred: Preferred { key: keys.into(), ..Preferred::DEFAULT },
            ..Config::default()
        };
        let authorized = authorized.collect();
        Ok(Protocol { config: Arc::new(config), authorized, stall_timeout: keep_alive * (UNANSWERED_LIMIT + 1) })
    }

    fn is_authorized(&self, key: &PublicKey) -> bool {
        self.authorized.iter().any(|known| known.key_data() == key.key_data())
    }
}

/// One client.
pub(super) struct Connection {
    pub(super) server: Arc<Server>,
    /// Where the client is, and where it found us.
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    /// Cancelled when the client is gone.
    pub(super) ended: CancellationToken,
    /// The client's own agent, once a session has asked for it.
    pub(super) agent: Mutex<Option<AgentSocket>>,
    gate: Arc<Gate>,
    inlets: Mutex<HashMap<ChannelId, Arc<Inlet>>>,
}

impl Connection {
    fn inlets(&self) -> MutexGuard<'_, HashMap<ChannelId, Arc<Inlet>>> {
        self.inlets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inlet of a channel, which whoever needs it first makes.
    fn inlet(&self, channel: ChannelId) -> Arc<Inlet> {
        let new = || Arc::new(Inlet::new(self.gate.clone(), self.ended.child_token()));
        self.inlets().entry(channel).or_insert_with(new).clone()
    }
}

/// Asks a client for channels of ours.
#[derive(Clone)]
pub(super) struct Opener {
    connection: Arc<Connection>,
    handle: Handle,
}

/// What a channel of ours is for.
#[derive(Debug, Clone)]
pub(super) enum Offer {
    /// Somebody connected to a port that the client asked for.
    Tcp {
        /// The address that the client asked for.
        address: String,
        /// The port.
        port: u16,
        /// Who connected.
        origin: SocketAddr,
    },
    /// Somebody connected to a socket that the client asked for.
    Unix {
        /// The socket's path.
        path: String,
    },
    /// Somebody asks the client's agent.
    Agent,
}

impl Opener {
    /// Opens a channel, if the client agrees.
    pub(super) async fn open(&self, offer: Offer) -> Option<Lane> {
        let handle = &self.handle;
        let opened = match offer {
            Offer::Tcp { address, port, origin } => {
                let (from, from_port) = (origin.ip().to_string(), u32::from(origin.port()));
                handle.channel_open_forwarded_tcpip(address, u32::from(port), from, from_port).await
            }
            Offer::Unix { path } => handle.channel_open_forwarded_streamlocal(path).await,
            Offer::Agent => handle.channel_open_agent().await,
        };
        let (_, half) = opened.ok()?.split();
        let inlet = self.connection.inlet(half.id());
        let outlet = Outlet::new(half, handle.clone(), &inlet);
        Some(Lane { inlet, outlet })
    }

    /// A path that the client names.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.connection.server.path(path)
    }

    /// Ends when the client is gone.
    pub(super) fn ended(&self) -> &CancellationToken {
        &self.connection.ended
    }
}

/// Answers clients until the server ends.
pub(super) async fn serve(server: Arc<Server>, protocol: Arc<Protocol>, listener: TcpListener) {
    let connections = Arc::new(AtomicUsize::new(0));
    let strangers = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            () = server.ended.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            // For instance too many open files; a connection that ends makes room.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let is_too_many = connections.load(Ordering::Acquire) >= CONNECTIONS_LIMIT
            || strangers.load(Ordering::Acquire) >= STRANGERS_LIMIT;
        if is_too_many {
            continue;
        }
        let counted = (Counted::new(&connections), Counted::new(&strangers));
        server.clients.spawn(converse(server.clone(), protocol.clone(), stream, remote, counted));
    }
}

async fn converse(
    server: Arc<Server>,
    protocol: Arc<Protocol>,
    stream: TcpStream,
    remote: SocketAddr,
    (_connected, stranger): (Counted, Counted),
) {
    let Ok(local) = stream.local_addr() else {
        return;
    };
    // Neither is needed for more than comfort.
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &(protocol.stall_timeout.as_millis() as u32));
    let connection = Arc::new(Connection {
        ended: server.ended.child_token(),
        server,
        remote,
        local,
        agent: Mutex::default(),
        gate: Arc::default(),
        inlets: Mutex::default(),
    });
    let _ends_with_us = connection.ended.clone().drop_guard();
    let known = Arc::new(tokio::sync::Notify::new());
    let peer = Peer::new(connection.clone(), protocol.clone(), known.clone());
    // Whatever ends this conversation, the library's part of it ends too.
    let cut = CancellationToken::new();
    let _cut_with_us = cut.clone().drop_guard();
    let stream = Gated::new(stream, connection.gate.clone(), cut);
    let conversation = async {
        let Ok(mut running) = russh::server::run_stream(protocol.config.clone(), stream, peer).await else {
            return;
        };
        tokio::select! {
            _ = &mut running => return,
            () = connection.server.ended.cancelled() => {}
        }
        let reason = russh::Disconnect::ByApplication;
        let _ = running.handle().disconnect(reason, "the job has ended".to_owned(), String::new()).await;
        let _ = tokio::time::timeout(FAREWELL, running).await;
    };
    let login = async {
        let in_time = tokio::time::timeout(LOGIN_TIMEOUT, known.notified()).await.is_ok();
        drop(stranger);
        if in_time {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = conversation => {}
        () = login => {}
    }
}

/// One of those that a limit counts.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::AcqRel);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
