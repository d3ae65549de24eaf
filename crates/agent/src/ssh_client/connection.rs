//! The connection to a node: logged in with the gang's key, after the node has shown its own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{getegid, geteuid};
use russh::client::{self, AuthResult, Handle, Handler, Msg};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelReadHalf, ChannelWriteHalf, Disconnect, Preferred};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Arguments, FAREWELL, Node};
use crate::job::peers::KEY;

/// How long connecting and logging in may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a node is asked that hangs up before it has said anything: too many come to it at once.
const TRIES: u32 = 6;
/// How long to wait before the next try, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often a silent node is asked whether it is still there, and how often it may not answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const UNANSWERED_LIMIT: usize = 3;

/// Where to log in, and as whom.
pub(super) struct Target {
    /// The node.
    pub(super) node: Node,
    port: u16,
    user: String,
    /// Files of private keys, in the order in which they are tried.
    keys: Vec<PathBuf>,
    timeout: Duration,
}

impl Target {
    /// What the arguments want of a node. `gang_key` is the key that every node accepts.
    pub(super) fn of(node: Node, arguments: &Arguments, gang_key: &Path) -> Target {
        let own_name = || {
            let database = crate::job::Database::read();
            database.by_uid(geteuid().as_raw(), getegid().as_raw()).name
        };
        Target {
            port: arguments.port.unwrap_or(node.port),
            user: arguments.user.clone().unwrap_or_else(own_name),
            keys: arguments.identities.iter().cloned().chain([gang_key.to_owned()]).collect(),
            timeout: arguments.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            node,
        }
    }

    fn name(&self) -> String {
        format!("{} port {}", self.node.address, self.port)
    }
}

/// A connection that is logged in.
pub(super) struct Connection {
    handle: Handle<Peer>,
    name: String,
}

/// Why there is no connection.
enum Refusal {
    /// The node hung up before anything was said.
    Busy(String),
    Final(String),
}

impl Connection {
    /// Connects and logs in, or says why that cannot be.
    pub(super) async fn open(target: &Target) -> Result<Connection, String> {
        let host_key = PublicKey::from_openssh(&target.node.host_key)
            .map_err(|_| format!("the key that the node {} must show is not known", target.node.address))?;
        let keys = read_keys(&target.keys)?;
        let deadline = Instant::now() + target.timeout;
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            tries += 1;
            let late = || {
                let secs = target.timeout.as_secs();
                Refusal::Final(format!("the node {} did not answer within {secs} s", target.name()))
            };
            let opening = timeout_at(deadline, open_once(target, &host_key, &keys));
            match opening.await.unwrap_or_else(|_| Err(late())) {
                Ok(connection) => return Ok(connection),
                Err(Refusal::Busy(_)) if tries < TRIES && Instant::now() + pause < deadline => {
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(Refusal::Busy(told) | Refusal::Final(told)) => return Err(told),
            }
        }
    }

    /// Starts a command, or a shell where it is empty.
    pub(super) async fn start(&self, command: &[u8]) -> Result<(ChannelReadHalf, ChannelWriteHalf<Msg>), String> {
        let start = async {
            let channel = self.handle.channel_open_session().await?;
            if command.is_empty() {
                channel.request_shell(true).await?;
            } else {
                channel.exec(true, command).await?;
            }
            Ok(channel.split())
        };
        start.await.map_err(|error: russh::Error| format!("the node {} runs no command: {error}", self.name))
    }

    /// Ends it, once all that was said before has left.
    pub(super) async fn close(mut self) {
        let end = async {
            self.handle.disconnect(Disconnect::ByApplication, "", "").await?;
            (&mut self.handle).await
        };
        // It may be gone already.
        let _: Result<Result<(), Problem>, _> = timeout(FAREWELL, end).await;
    }
}

/// The keys that can be read. The gang's must be among them: without it nothing was set up.
fn read_keys(paths: &[PathBuf]) -> Result<Vec<Arc<PrivateKey>>, String> {
    let mut keys = Vec::new();
    for path in paths {
        // What is wrong with it is not told in the library's words: they could hold a part of the key.
        match std::fs::read_to_string(path).map(|text| russh::keys::decode_secret_key(&text, None)) {
            Ok(Ok(key)) => keys.push(Arc::new(key)),
            Err(error) if path.ends_with(KEY) => {
                return Err(format!("cannot read the gang's key `{}`: {error}", path.display()));
            }
            // As OpenSSH's client: what cannot be used is passed over.
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Ok(keys)
}

async fn open_once(
    target: &Target,
    host_key: &PublicKey,
    keys: &[Arc<PrivateKey>],
) -> Result<Connection, Refusal> {
    let name = target.name();
    let address: IpAddr = target
        .node
        .address
        .parse()
        .map_err(|_| Refusal::Final(format!("`{}` is no address of a node", target.node.address)))?;
    let stream = TcpStream::connect((address, target.port))
        .await
        .map_err(|error| Refusal::Final(format!("connect to {name}: {error}")))?;
    // Needed for no more than comfort.
    let _ = stream.set_nodelay(true);
    let config = client::Config {
        keepalive_interval: Some(KEEP_ALIVE),
        keepalive_max: UNANSWERED_LIMIT,
        // A server may have keys of other kinds as well, about which nothing is known here.
        preferred: Preferred { key: kinds_of(host_key).into(), ..Preferred::DEFAULT },
        ..client::Config::default()
    };
    let peer = Peer { host_key: host_key.clone() };
    let handle = client::connect_stream(Arc::new(config), stream, peer).await.map_err(|error| match error {
        Problem::OtherKey => Refusal::Final(format!(
            "the node {name} shows another key than its own: somebody else answers there, and was told nothing"
        )),
        Problem::Ssh(error) => {
            let told = format!("the node {name} hung up: {error}");
            let is_busy = matches!(error, russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_));
            if is_busy { Refusal::Busy(told) } else { Refusal::Final(told) }
        }
    })?;
    let mut connection = Connection { handle, name };
    connection.log_in(&target.user, keys).await.map_err(Refusal::Final)?;
    Ok(connection)
}

/// The kinds of signatures that a key makes.
fn kinds_of(key: &PublicKey) -> Vec<Algorithm> {
    match key.algorithm() {
        Algorithm::Rsa { .. } => {
            [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) }).to_vec()
        }
        kind => vec![kind],
    }
}

impl Connection {
    async fn log_in(&mut self, user: &str, keys: &[Arc<PrivateKey>]) -> Result<(), String> {
        let lost = |name: &str, error: &russh::Error| format!("the connection to the node {name} broke: {error}");
        for key in keys {
            let is_rsa = matches!(key.algorithm(), Algorithm::Rsa { .. });
            let hash = if is_rsa { Some(HashAlg::Sha512) } else { None };
            let key = PrivateKeyWithHashAlg::new(Arc::clone(key), hash);
            let result = self.handle.authenticate_publickey(user, key).await;
            if matches!(result.map_err(|error| lost(&self.name, &error))?, AuthResult::Success) {
                return Ok(());
            }
        }
        Err(format!("the node {} does not let `{user}` in with the gang's key", self.name))
    }
}

/// The other side, which must show the key that is known.
pub(super) struct Peer {
    host_key: PublicKey,
}

/// Why a connection was given up.
#[derive(Debug)]
pub(super) enum Problem {
    OtherKey,
    Ssh(russh::Error),
}

impl From<russh::Error> for Problem {
    fn from(error: russh::Error) -> Problem {
        Problem::Ssh(error)
    }
}

impl Handler for Peer {
    type Error = Problem;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Problem> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Err(Problem::OtherKey) };
        if key.key_data() == self.host_key.key_data() { Ok(true) } else { Err(Problem::OtherKey) }
    }
}
