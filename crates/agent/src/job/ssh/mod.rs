//! The job's SSH server: through it people, their tools, and the other nodes of a gang enter the job.
//!
//! It is a process of its own, a child of the supervisor, and runs as the job's user: whatever it opens or starts for a
//! client, it does with that user's rights. What comes from the network is never read by the supervisor, which may be
//! root and is the parent of everything. The supervisor listens (`keeper`), so that a server that fails is started
//! again on the same port; it hands over its orders, with the private key, through a socket.
//!
//! Each process waits for its own children only: this one for its sessions, the supervisor for this one and for
//! whatever lost its parent.

mod agent_socket;
mod control;
mod forward;
mod keeper;
mod log_socket;
mod pty;
mod session;
mod sftp;
mod shell;
mod transport;
mod visits;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use api::agent::SshServer;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::control::{Reporter, Word};
pub(crate) use self::keeper::Keeper;
use self::log_socket::{Log, Segment};
pub(crate) use self::sftp::run as run_sftp;
use self::transport::Protocol;
use self::visits::Visits;
use crate::job::account::Database;

/// The longest orders: mostly the job's environment.
const ORDERS_LIMIT: usize = 64 << 20;
/// How many threads carry bytes.
const THREADS_LIMIT: usize = 4;
/// How long those who follow the log may take to get its end.
pub(super) const LAST_LOG: Duration = Duration::from_secs(2);
/// How long clients may take to hear of the end.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long what still runs in the server may take to notice that it ends.
const LAST_WORK: Duration = Duration::from_millis(500);

/// What the supervisor tells the server. It holds secrets, so it goes through a socket only.
#[derive(Serialize, Deserialize)]
struct Orders {
    /// Who may enter, and the key that proves whose server this is.
    spec: SshServer,
    /// The environment of the job's command.
    env: BTreeMap<String, String>,
    /// Where that starts.
    working_dir: String,
    /// Whom it runs as.
    username: String,
}

impl Orders {
    /// Writes them, with their length before them.
    fn write(&self, mut writer: impl Write) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        writer.write_all(&length.to_be_bytes())?;
        writer.write_all(&bytes)
    }

    fn read(mut reader: impl Read) -> io::Result<Orders> {
        let mut length = [0; 4];
        reader.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > ORDERS_LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes)?;
        // What is wrong with it is not told: it holds secrets.
        serde_json::from_slice(&bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

/// The server: what all of its clients share.
struct Server {
    orders: Orders,
    /// The home of the job's user.
    home: PathBuf,
    shell_of_user: Option<String>,
    /// Cancelled when the job ends.
    ended: CancellationToken,
    /// Programs that run, by the groups that they lead.
    groups: Mutex<HashSet<Pid>>,
    /// Conversations with clients.
    clients: TaskTracker,
    /// Which of them are users that are in.
    visits: Visits,
    /// The job's log, and those who follow it.
    log: Log,
    followers: TaskTracker,
    /// The job's command has ended, so nothing new is started.
    is_ending: AtomicBool,
}

impl Server {
    fn new(orders: Orders, log: Log) -> Server {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let home = orders.env.get("HOME").filter(|home| home.starts_with('/'));
        Server {
            home: PathBuf::from(home.map_or("/", String::as_str)),
            shell_of_user: Database::read().by_uid(uid, gid).shell,
            ended: CancellationToken::new(),
            groups: Mutex::default(),
            clients: TaskTracker::new(),
            visits: Visits::default(),
            log,
            followers: TaskTracker::new(),
            is_ending: AtomicBool::new(false),
            orders,
        }
    }

    fn groups(&self) -> MutexGuard<'_, HashSet<Pid>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shell of sessions, if there is one at all. Looked for each time: a job may install one.
    fn shell(&self) -> Option<PathBuf> {
        let own = self.orders.env.get("SHELL").map(String::as_str);
        shell::find(own, self.shell_of_user.as_deref(), shell::is_program)
    }

    /// Hangs up whoever is in the job, and lets nobody start anything new.
    fn end_sessions(&self) {
        self.is_ending.store(true, Ordering::Release);
        for group in self.groups().iter() {
            let _ = killpg(*group, Signal::SIGHUP);
        }
    }

    /// Where sessions start. A job may remove its own directory.
    fn start_dir(&self) -> &Path {
        let own = Path::new(&self.orders.working_dir);
        [own, &self.home].into_iter().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
    }

    /// A path that a client names.
    fn path(&self, path: &str) -> PathBuf {
        self.start_dir().join(path)
    }
}

/// Runs the server until the supervisor ends it. Standard input is the socket to the supervisor, standard output the
/// socket that listens.
pub(crate) fn run() -> anyhow::Result<()> {
    // Whoever else runs as this user may neither read the private key in our memory nor trace us.
    nix::sys::prctl::set_dumpable(false).context("protect the server's memory")?;
    // The job's end is told through the socket, signals to all of the job's processes are for its programs.
    let ignored: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    ignored.thread_block()?;
    let mut control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let listener = TcpListener::from(io::stdout().as_fd().try_clone_to_owned()?);
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null").ok();
    if let Some(nothing) = nothing {
        nix::unistd::dup2_stdin(&nothing)?;
        nix::unistd::dup2_stdout(&nothing)?;
    }
    let orders = Orders::read(&mut control).context("read the SSH server's orders")?;
    let protocol = Protocol::new(&orders.spec).map_err(anyhow::Error::msg)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_LIMIT);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(serve(orders, protocol, control, listener))?;
    runtime.shutdown_timeout(LAST_WORK);
    Ok(())
}

async fn serve(orders: Orders, protocol: Protocol, control: UnixStream, listener: TcpListener) -> io::Result<()> {
    control.set_nonblocking(true)?;
    // One end for questions, the same for answers: files come beside the bytes, which halves know nothing of.
    let reporter = Reporter::new(tokio::net::UnixStream::from_std(control.try_clone()?)?.into_split().1);
    let control = tokio::net::UnixStream::from_std(control)?;
    let (answers, answered) = mpsc::channel(1);
    let (complete, completed) = watch::channel(None);
    let server = Arc::new(Server::new(orders, Log::new(reporter.clone(), answered, completed)));
    let protocol = Arc::new(protocol);
    let listen = |listener: TcpListener| -> io::Result<_> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        Ok(tokio::spawn(transport::serve(server.clone(), protocol.clone(), listener)))
    };
    let mut conversations = vec![listen(listener)?];
    tokio::spawn(server.visits.clone().tell(reporter));
    while let Some(Some((word, files))) = server.ended.run_until_cancelled(log_socket::hear(&control)).await {
        match word {
            Word::Segment(start) => {
                let mut files = files.into_iter();
                let segment = files.next().map(|file| Segment { start, file, index: files.next() });
                let _ = answers.try_send(segment);
            }
            Word::Nothing => {
                let _ = answers.try_send(None);
            }
            Word::Listen => {
                let listener = files.into_iter().next().map(|file| TcpListener::from(OwnedFd::from(file)));
                conversations.extend(listener.and_then(|listener| listen(listener).ok()));
            }
            Word::Ending => server.end_sessions(),
            Word::Complete(end) => {
                complete.send_replace(Some(end));
                server.followers.close();
                let server = server.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(LAST_LOG, server.followers.wait()).await;
                    server.ended.cancel();
                });
            }
        }
    }
    server.ended.cancel();
    server.end_sessions();
    for listening in conversations {
        let _ = listening.await;
    }
    // What the job's programs do from now on is the supervisor's business; clients are told.
    server.clients.close();
    let _ = tokio::time::timeout(FAREWELL, server.clients.wait()).await;
    Ok(())
}
