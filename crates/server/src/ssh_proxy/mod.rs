//! The SSH proxy: users whose clients know nothing of this server's WebSocket enter jobs through it, with OpenSSH
//! alone. No key of theirs need be on any host, and no machine need be reached but this server.
//!
//! A user names the job and shows a key of the run's owner. The proxy ends their SSH here, enters the job's own SSH
//! server through its agent with a key of its own, and joins each channel of the user to one of the job: the job's
//! server decides on everything that is asked for.

mod address;
mod entry;
mod gate;
mod guest;
mod relay;

pub use address::ProxyAddress;
pub use entry::upstream_id;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey};
use russh::server::Config;
use russh::{Disconnect, MethodKind, MethodSet, Preferred, SshId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::gate::{Gate, Gated};
use self::guest::Guest;
use self::relay::Gates;
use crate::deps::Deps;
use crate::sealing::Sealer;

/// How many users may be connected, how many of them may still have to show their key, and how many of those may come
/// from one address.
const CONNECTIONS_LIMIT: usize = 1024;
const STRANGERS_LIMIT: usize = 256;
const STRANGERS_OF_ONE_ADDRESS: usize = 32;
/// How long a user may take to show a key.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How many keys a user may try.
const LOGIN_ATTEMPTS: usize = 10;
/// How long each refusal takes at least, so that its time tells nothing.
const REJECTION_TIME: Duration = Duration::from_millis(300);
/// After how much silence a user is asked whether they are still there, and how many questions may stay unanswered.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const UNANSWERED_LIMIT: usize = 3;
/// How many bytes of a channel may be on their way.
const WINDOW: u32 = 2 << 20;
/// How long users may take to hear of the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// What all connections share.
struct Proxy {
    deps: Deps,
    config: Arc<Config>,
    connections: Arc<AtomicUsize>,
    strangers: Arc<Strangers>,
    /// Bytes that wait in this server.
    waiting: Arc<AtomicUsize>,
    shutdown: CancellationToken,
}

/// The key that the proxy shows, as a line of `known_hosts`.
pub fn known_hosts_line(sealer: &Sealer, address: &ProxyAddress) -> String {
    let public = sealer.proxy_host_key().public;
    let key: Vec<&str> = public.split_whitespace().take(2).collect();
    format!("{} {}", address.known_as(), key.join(" "))
}

/// Answers users until the server ends.
pub async fn serve(deps: Deps, listener: TcpListener, shutdown: CancellationToken) {
    let config = match config(&deps.sealer) {
        Ok(config) => Arc::new(config),
        Err(error) => return tracing::error!("the SSH proxy does not start: {error}"),
    };
    let proxy = Arc::new(Proxy {
        deps,
        config,
        connections: Arc::default(),
        strangers: Arc::default(),
        waiting: Arc::default(),
        shutdown: shutdown.clone(),
    });
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            // For instance too many open files; a connection that ends makes room.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(connected) = Counted::one_of(&proxy.connections, CONNECTIONS_LIMIT) else { continue };
        let Some(stranger) = proxy.strangers.come(remote.ip()) else { continue };
        let proxy = proxy.clone();
        tokio::spawn(async move {
            converse(&proxy, stream, remote, stranger).await;
            drop(connected);
        });
    }
}

fn config(sealer: &Sealer) -> Result<Config, String> {
    let key = PrivateKey::from_openssh(&sealer.proxy_host_key().private);
    // What is wrong with it is not told: the text could hold a part of the key.
    let key = key.map_err(|_| "its host key cannot be understood".to_owned())?;
    // Signatures with SHA-1 prove nothing any more.
    let is_good = |algorithm: &&Algorithm| !matches!(algorithm, Algorithm::Rsa { hash: None });
    let keys: Vec<Algorithm> = Preferred::DEFAULT.key.iter().filter(is_good).cloned().collect();
    Ok(Config {
        server_id: SshId::Standard("SSH-2.0-dstack".into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        window_size: WINDOW,
        max_auth_attempts: LOGIN_ATTEMPTS,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEP_ALIVE),
        keepalive_max: UNANSWERED_LIMIT,
        preferred: Preferred { key: keys.into(), ..Preferred::DEFAULT },
        ..Config::default()
    })
}

async fn converse(proxy: &Proxy, stream: TcpStream, remote: SocketAddr, stranger: Stranger) {
    // Without it there is only less comfort.
    let _ = stream.set_nodelay(true);
    let gate = || Arc::new(Gate::new(proxy.waiting.clone()));
    let gates = Gates { near: gate(), far: gate() };
    let known = Arc::new(Notify::new());
    // Whatever ends this conversation, the library's parts of it end too.
    let (cut, far_ended) = (CancellationToken::new(), CancellationToken::new());
    let _cut_with_us = (cut.clone().drop_guard(), far_ended.clone().drop_guard());
    let guest = Guest::new(proxy.deps.clone(), gates.clone(), known.clone(), far_ended.clone());
    let stream = Gated::new(stream, gates.near.clone(), cut);
    let conversation = async {
        let Ok(mut running) = russh::server::run_stream(proxy.config.clone(), stream, guest).await else { return };
        let told = tokio::select! {
            _ = &mut running => return,
            () = far_ended.cancelled() => "The job has ended, or its machine does not answer any more",
            () = proxy.shutdown.cancelled() => "The server ends",
        };
        let _ = running.handle().disconnect(Disconnect::ByApplication, told.to_owned(), String::new()).await;
        let _ = tokio::time::timeout(FAREWELL, running).await;
    };
    let login = async {
        let in_time = tokio::time::timeout(LOGIN_TIMEOUT, known.notified()).await.is_ok();
        drop(stranger);
        if in_time {
            std::future::pending::<()>().await;
        }
        tracing::debug!("{remote} did not log in to the SSH proxy in time");
    };
    tokio::select! {
        () = conversation => {}
        () = login => {}
    }
}

/// One of those that a limit counts.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_of(count: &Arc<AtomicUsize>, limit: usize) -> Option<Counted> {
        let is_too_many = count.fetch_add(1, Ordering::AcqRel) >= limit;
        let counted = Counted(count.clone());
        (!is_too_many).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Those who have yet to show a key, by where they come from.
#[derive(Debug, Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

impl Strangers {
    /// Counts one more, if there is room for them.
    fn come(self: &Arc<Self>, from: IpAddr) -> Option<Stranger> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = all.get(&from).copied().unwrap_or_default();
        if of_address >= STRANGERS_OF_ONE_ADDRESS || all.values().sum::<usize>() >= STRANGERS_LIMIT {
            return None;
        }
        all.insert(from, of_address + 1);
        Some(Stranger { all: self.clone(), from })
    }
}

#[derive(Debug)]
struct Stranger {
    all: Arc<Strangers>,
    from: IpAddr,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ids;

    #[test]
    fn strangers_are_limited_by_their_address_and_in_all() {
        let all = Arc::new(Strangers::default());
        let address = |number: u8| IpAddr::from([10, 0, 0, number]);
        let crowd: Vec<Stranger> = (0..STRANGERS_OF_ONE_ADDRESS).map(|_| all.come(address(1)).unwrap()).collect();
        assert!(all.come(address(1)).is_none());
        drop(crowd);
        assert!(all.0.lock().unwrap().is_empty());
        let crowd: Vec<Stranger> = (0..=u8::MAX).map(|number| all.come(address(number)).unwrap()).collect();
        assert_eq!(crowd.len(), STRANGERS_LIMIT);
        assert!(all.come(IpAddr::from([10, 0, 1, 0])).is_none());
    }

    #[test]
    fn a_limit_counts_those_who_are_there() {
        let count = Arc::new(AtomicUsize::new(0));
        let first = Counted::one_of(&count, 1).unwrap();
        assert!(Counted::one_of(&count, 1).is_none());
        drop(first);
        assert!(Counted::one_of(&count, 1).is_some());
    }

    #[test]
    fn the_proxy_shows_one_key_for_good() {
        let sealer = Sealer::ephemeral(&Ids::seeded(1));
        let address = ProxyAddress::parse("ssh.example.com:2222").unwrap();
        let line = known_hosts_line(&sealer, &address);
        assert!(line.starts_with("[ssh.example.com]:2222 ssh-ed25519 AAAA"), "{line}");
        assert_eq!(line, known_hosts_line(&sealer, &address));
        assert_eq!(line.split(' ').count(), 3);
        assert!(config(&sealer).is_ok());
    }
}
