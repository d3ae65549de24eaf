//! A connection that is logged in, and the channels that are opened on it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::client::Msg;
use russh::{Channel, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Watcher;
use crate::stream::Stream;
use crate::{Error, HostKey, Limits, Result, Step, Target, connect};

pub(crate) type Handle = russh::client::Handle<Watcher>;

/// How long after a refusal the host is asked for a session again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// After so many refusals with no session of ours open, waiting for one to close makes no sense.
const LONELY_REFUSALS: usize = 8;

/// A connection to a host. Clones are the same connection; it closes when they and all of its streams are dropped.
///
/// All channels share one stream of bytes. A [`Stream`] that nobody reads holds up the others once a few MiB wait for
/// its reader, so read streams as they come, or give a slow reader a session of its own.
#[derive(Clone)]
pub struct Session(Arc<Connection>);

pub(crate) struct Connection {
    handle: Handle,
    address: String,
    user: String,
    host_key: HostKey,
    /// Why it ended, once it has.
    ended: watch::Receiver<Option<String>>,
    limits: Limits,
    /// The session that carries this one, if there is a jump host.
    through: Option<Session>,
    open_sessions: AtomicUsize,
    session_closed: Notify,
    /// Held by the one that waits for a session; the others wait in line behind.
    line: Mutex<()>,
}

impl Connection {
    pub(crate) fn new(
        handle: Handle,
        target: &Target,
        host_key: HostKey,
        ended: watch::Receiver<Option<String>>,
        limits: Limits,
        through: Option<Session>,
    ) -> Connection {
        Connection {
            handle,
            address: target.address(),
            user: target.user.clone(),
            host_key,
            ended,
            limits,
            through,
            open_sessions: AtomicUsize::new(0),
            session_closed: Notify::new(),
            line: Mutex::new(()),
        }
    }

    /// Opens a channel, or says why the host does not want to.
    async fn open(self: &Arc<Self>, kind: &Kind) -> std::result::Result<OpenChannel, russh::Error> {
        let (connection, kind) = (Arc::clone(self), kind.clone());
        // A task of its own, so that a channel is closed again when nobody waits for it any more.
        let opening = tokio::spawn(async move {
            let handle = &connection.handle;
            let channel = match &kind {
                Kind::Session => handle.channel_open_session().await?,
                Kind::Tcp { host, port } => {
                    handle.channel_open_direct_tcpip(host, u32::from(*port), "127.0.0.1", 0).await?
                }
                Kind::Socket { path } => handle.channel_open_direct_streamlocal(path).await?,
            };
            Ok(OpenChannel::new(channel, &kind, &connection))
        });
        opening.await.unwrap_or(Err(russh::Error::Disconnect))
    }
}

#[derive(Debug, Clone)]
enum Kind {
    Session,
    Tcp { host: String, port: u16 },
    Socket { path: String },
}

impl Session {
    /// Connects, checks the host's key, and logs in; over all jump hosts of the target.
    pub async fn connect(target: &Target, limits: &Limits) -> Result<Session> {
        connect::connect(target, limits).await
    }

    pub(crate) fn new(connection: Connection) -> Session {
        Session(Arc::new(connection))
    }

    /// The key that the host showed. Keep it and give it as [`Target::known_host`] the next time.
    pub fn host_key(&self) -> &HostKey {
        &self.0.host_key
    }

    /// The keys that the jump hosts showed, in their order.
    pub fn jump_host_keys(&self) -> Vec<HostKey> {
        let mut keys = Vec::new();
        let mut next = self.0.through.as_ref();
        while let Some(jump) = next {
            keys.push(jump.host_key().clone());
            next = jump.0.through.as_ref();
        }
        keys.reverse();
        keys
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Who is logged in.
    pub fn user(&self) -> &str {
        &self.0.user
    }

    /// Whether the connection is known to be over.
    pub fn is_closed(&self) -> bool {
        self.0.ended.borrow().is_some()
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> Error {
        let mut ended = self.0.ended.clone();
        // An error says that nobody is left to tell, which is an end too.
        let _ = ended.wait_for(Option::is_some).await;
        self.ending().unwrap_or_else(|| self.lost("it was closed"))
    }

    /// Connects to an address as the host sees it.
    pub async fn direct_tcpip(&self, host: &str, port: u16) -> Result<Stream> {
        let kind = Kind::Tcp { host: host.to_owned(), port };
        let to = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        self.forward(&kind, to).await
    }

    /// Connects to a unix socket of the host.
    pub async fn direct_streamlocal(&self, path: &str) -> Result<Stream> {
        self.forward(&Kind::Socket { path: path.to_owned() }, path.to_owned()).await
    }

    async fn forward(&self, kind: &Kind, to: String) -> Result<Stream> {
        let channel = self.in_time(self.0.open(kind)).await?;
        let address = || self.address().to_owned();
        let channel = channel.map_err(|error| match error {
            russh::Error::ChannelOpenFailure(
                ChannelOpenFailure::AdministrativelyProhibited | ChannelOpenFailure::UnknownChannelType,
            ) => Error::ForwardForbidden { address: address(), to },
            russh::Error::ChannelOpenFailure(_) => Error::ForwardFailed { address: address(), to },
            _ => self.lost("it was closed"),
        })?;
        Ok(Stream::start(self.clone(), channel, Vec::new()))
    }

    /// Opens a session channel; where the host allows few, waits until another one closes.
    pub(crate) async fn open_session(&self) -> Result<OpenChannel> {
        let patience = Instant::now() + self.0.limits.open;
        let first = self.in_time(self.0.open(&Kind::Session)).await?;
        if let Some(result) = self.unless_refused(first) {
            return result;
        }
        timeout_at(patience, self.wait_in_line()).await.unwrap_or_else(|_| Err(self.session_refused()))
    }

    async fn wait_in_line(&self) -> Result<OpenChannel> {
        let _turn = self.0.line.lock().await;
        let mut pause = FIRST_PAUSE;
        let mut lonely_refusals = 0;
        loop {
            let next = self.0.open(&Kind::Session).await;
            if let Some(result) = self.unless_refused(next) {
                return result;
            }
            let is_lonely = self.0.open_sessions.load(Ordering::Relaxed) == 0;
            lonely_refusals = if is_lonely { lonely_refusals + 1 } else { 0 };
            if LONELY_REFUSALS <= lonely_refusals {
                return Err(self.session_refused());
            }
            // The host frees a session a moment after it has closed the channel.
            tokio::select! {
                () = self.0.session_closed.notified() => pause = FIRST_PAUSE,
                () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    fn unless_refused(
        &self,
        result: std::result::Result<OpenChannel, russh::Error>,
    ) -> Option<Result<OpenChannel>> {
        match result {
            Ok(channel) => Some(Ok(channel)),
            Err(russh::Error::ChannelOpenFailure(_)) => None,
            Err(_) => Some(Err(self.lost("it was closed"))),
        }
    }

    fn session_refused(&self) -> Error {
        let open = self.0.open_sessions.load(Ordering::Relaxed);
        Error::SessionRefused { address: self.address().to_owned(), open }
    }

    async fn in_time<T>(&self, opening: impl Future<Output = T>) -> Result<T> {
        let limit = self.0.limits.open;
        let late = |_| Error::TimedOut { address: self.address().to_owned(), step: Step::OpenChannel, limit };
        tokio::time::timeout(limit, opening).await.map_err(late)
    }

    /// Why the connection is over, if it is: the cause, which may be the connection below.
    pub(crate) fn ending(&self) -> Option<Error> {
        if let Some(cause) = self.0.through.as_ref().and_then(Session::ending) {
            return Some(cause);
        }
        let reason = self.0.ended.borrow().clone()?;
        Some(Error::Lost { address: self.address().to_owned(), reason })
    }

    /// The connection is over; `reason` is for when nobody knows better.
    pub(crate) fn lost(&self, reason: &str) -> Error {
        let unknown = || Error::Lost { address: self.address().to_owned(), reason: reason.to_owned() };
        self.ending().unwrap_or_else(unknown)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}@{})", self.user(), self.address())
    }
}

/// A channel that is closed when it is dropped.
pub(crate) struct OpenChannel {
    pub(crate) read: ChannelReadHalf,
    /// There until it is dropped.
    write: Option<ChannelWriteHalf<Msg>>,
    is_session: bool,
    connection: Arc<Connection>,
}

impl OpenChannel {
    fn new(channel: Channel<Msg>, kind: &Kind, connection: &Arc<Connection>) -> OpenChannel {
        let (read, write) = channel.split();
        let is_session = matches!(kind, Kind::Session);
        if is_session {
            connection.open_sessions.fetch_add(1, Ordering::Relaxed);
        }
        OpenChannel { read, write: Some(write), is_session, connection: Arc::clone(connection) }
    }

    /// Both directions, to use at the same time.
    pub(crate) fn both(&mut self) -> (&mut ChannelReadHalf, &ChannelWriteHalf<Msg>) {
        (&mut self.read, self.write.as_ref().expect("only dropping takes it"))
    }
}

impl Drop for OpenChannel {
    fn drop(&mut self) {
        if self.is_session {
            self.connection.open_sessions.fetch_sub(1, Ordering::Relaxed);
        }
        let connection = Arc::clone(&self.connection);
        let write = self.write.take();
        let is_session = self.is_session;
        // Without a runtime the connection is gone as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Some(write) = write {
                // Fails where the connection is gone; closing twice is ignored by the library.
                let _ = write.close().await;
            }
            if is_session {
                connection.session_closed.notify_one();
            }
        });
    }
}
