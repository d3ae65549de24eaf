//! The supervisor's side of the SSH server: its port, its process, and what becomes of both.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::agent::{SshListen, SshServer};
use api::ids::JobId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::control::{REPORT, Report, Word, find_segment};
use super::transport::Protocol;
use super::{FAREWELL, LAST_LOG, Orders};
use crate::job::prepare::Prepared;
use crate::sys::Credentials;
use crate::{clock, sys};

/// How long a server that failed stays down.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// How long a server may take to take its orders.
const ORDERS_TIMEOUT: Duration = Duration::from_mins(1);
/// How many ports are tried until one is free at all addresses.
const PORTS_TRIED: usize = 20;

/// Keeps a job's SSH server running.
pub(crate) struct Keeper {
    job: JobId,
    listeners: Listeners,
    orders: Arc<Orders>,
    credentials: Option<Credentials>,
    process: Option<Process>,
    restart_at: Option<Instant>,
    is_ending: bool,
    visits: u64,
}

struct Process {
    pid: Pid,
    // The server ends when this closes.
    control: UnixStream,
    said: Vec<u8>,
    is_deaf: bool,
    is_visited: bool,
}

impl Keeper {
    /// Listens, and starts the server; or says in one sentence why that cannot be.
    pub(crate) fn start(spec: &SshServer, job: JobId, prepared: &Prepared) -> Result<Keeper, String> {
        Protocol::new(spec)?;
        let told = |error| format!("the job's SSH server cannot listen on port {}: {error}", spec.port);
        let mut keeper = Keeper {
            job,
            listeners: listen(spec).map_err(told)?,
            orders: Arc::new(Orders {
                spec: spec.clone(),
                env: prepared.env.clone(),
                working_dir: prepared.working_dir.clone(),
                username: prepared.username.clone(),
            }),
            credentials: prepared.credentials.clone(),
            process: None,
            restart_at: None,
            is_ending: false,
            visits: 0,
        };
        keeper.launch().map_err(|error| format!("the job's SSH server cannot start: {error}"))?;
        Ok(keeper)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.listeners.first.local_addr().map_or(0, |address| address.port())
    }

    /// The server's process, if it runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Whether somebody is in the job.
    pub(crate) fn is_visited(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.is_visited)
    }

    /// How often somebody came while nobody was there.
    pub(crate) fn visits(&self) -> u64 {
        self.visits
    }

    /// When something is to be done.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.restart_at
    }

    /// Takes note that the server's process has ended, which it does only by failing.
    pub(crate) fn note_end(&mut self) {
        self.process = None;
        self.restart_at = (!self.is_ending).then(|| clock::monotonic() + RESTART_AFTER);
    }

    /// Starts a server that failed again, when it is time.
    pub(crate) fn restart_if_due(&mut self) {
        if self.restart_at.is_some_and(|at| at <= clock::monotonic()) {
            self.restart_at = self.launch().is_err().then(|| clock::monotonic() + RESTART_AFTER);
        }
    }

    /// What to poll for reading.
    pub(crate) fn readable(&self) -> Option<BorrowedFd<'_>> {
        let process = self.process.as_ref().filter(|process| !process.is_deaf);
        process.map(|process| process.control.as_fd())
    }

    /// Hears the server, and answers what it asks about the log in `logs`.
    pub(crate) fn answer(&mut self, logs: &Path) {
        let Some(process) = self.process.as_mut().filter(|process| !process.is_deaf) else {
            return;
        };
        let mut buffer = [0; 64];
        match recv(process.control.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => process.is_deaf = true,
            Ok(length) => process.said.extend_from_slice(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => process.is_deaf = true,
        }
        while let Some((report, rest)) = process.said.split_first_chunk::<REPORT>() {
            let report = Report::decode(*report);
            process.said = rest.to_vec();
            match report {
                Some(Report::Wants(position)) => {
                    let (word, files) = find_segment(logs, position);
                    // A server that does not get its answer has gone.
                    let _ = word.send(&process.control, &files);
                }
                Some(Report::Visited) => {
                    process.is_visited = true;
                    self.visits += 1;
                }
                Some(Report::Left) => process.is_visited = false,
                None => process.is_deaf = true,
            }
        }
    }

    /// Ends the sessions, because the job's command has ended. The log is still told.
    pub(crate) fn end_sessions(&mut self) {
        if std::mem::replace(&mut self.is_ending, true) {
            return;
        }
        if let Some(process) = &self.process {
            let _ = Word::Ending.send(&process.control, &[]);
        }
    }

    /// Ends the server once it has told the rest of the log, which is complete, or when that takes too long.
    pub(crate) fn finish(mut self, logs: &Path, end: u64) {
        let Some(pid) = self.pid() else {
            return;
        };
        if let Some(process) = &self.process {
            let _ = Word::Complete(end).send(&process.control, &[]);
        }
        let deadline = clock::monotonic() + LAST_LOG + FAREWELL;
        while let Some(socket) = self.readable() {
            let left = deadline.saturating_duration_since(clock::monotonic());
            if left.is_zero() {
                break;
            }
            let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, timeout).is_err_and(|error| error != Errno::EINTR) {
                break;
            }
            self.answer(logs);
        }
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waitpid(pid, None);
    }

    fn launch(&mut self) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("ssh")
            .env_clear()
            // It is a part of the job, and ends with it whatever happens to us.
            .env("DSTACK_JOB_ID", self.job.to_string())
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(self.listeners.first.try_clone()?)));
        sys::prepare_child(&mut command, false, self.credentials.clone());
        let child = command.spawn()?;
        let (orders, mut control) = (self.orders.clone(), ours.try_clone()?);
        let second = self.listeners.second.as_ref().map(TcpListener::try_clone).transpose()?;
        // An environment may be larger than a socket's buffer, and the supervisor waits for nobody.
        std::thread::Builder::new().name("ssh-orders".to_owned()).spawn(move || {
            // A server that does not take its orders ends, and is started again.
            let _ = orders.write(&mut control).and_then(|()| give_listener(&control, second));
        })?;
        let pid = Pid::from_raw(child.id() as i32);
        self.process = Some(Process { pid, control: ours, said: Vec::new(), is_deaf: false, is_visited: false });
        Ok(())
    }
}

/// Gives the server a second socket to listen on, once there is room for the word about it.
fn give_listener(control: &UnixStream, listener: Option<TcpListener>) -> io::Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    let mut fds = [PollFd::new(control.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::try_from(ORDERS_TIMEOUT).unwrap_or(PollTimeout::MAX))?;
    Word::Listen.send(control, &[File::from(OwnedFd::from(listener))])
}

/// Where the server listens: on one socket, or on two with the same port.
struct Listeners {
    first: TcpListener,
    second: Option<TcpListener>,
}

/// Listens on the port that is wanted, or on any other one if that is taken by another job of the host.
fn listen(spec: &SshServer) -> io::Result<Listeners> {
    match listen_on(spec, spec.port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !spec.required => {
            // A port that is free at one address may be taken at the other.
            let mut tries = (0..PORTS_TRIED).map(|_| listen_on(spec, 0));
            let is_settled = |listening: &io::Result<Listeners>| {
                !listening.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
            };
            tries.find(is_settled).unwrap_or(Err(error))
        }
        listening => listening,
    }
}

fn listen_on(spec: &SshServer, port: u16) -> io::Result<Listeners> {
    if spec.listen == SshListen::All {
        return listen_everywhere(port);
    }
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let Some(address) = spec.peer_address.filter(|address| *address != Ipv4Addr::LOCALHOST) else {
        return Ok(Listeners { first, second: None });
    };
    let port = first.local_addr()?.port();
    match TcpListener::bind((address, port)) {
        // The host is known to others by an address that it does not have itself.
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            drop(first);
            listen_everywhere(port)
        }
        second => Ok(Listeners { first, second: Some(second?) }),
    }
}

fn listen_everywhere(port: u16) -> io::Result<Listeners> {
    // One socket is for both kinds of addresses, where the machine has both.
    let first = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        listening => listening,
    };
    Ok(Listeners { first: first?, second: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(port: u16, peer_address: &str) -> SshServer {
        SshServer {
            host_key: String::new(),
            authorized_keys: Vec::new(),
            port,
            listen: SshListen::Loopback,
            peer_address: Some(peer_address.parse().unwrap()),
            required: false,
            over_host: None,
            keep_alive_secs: 30,
        }
    }

    fn port_of(listeners: &Listeners) -> u16 {
        listeners.first.local_addr().unwrap().port()
    }

    #[test]
    fn both_addresses_have_the_same_port_also_where_the_wanted_one_is_taken_at_one_of_them() {
        let peer_address = "127.201.7.9";
        let taken = TcpListener::bind((peer_address, 0)).unwrap();
        let wanted = taken.local_addr().unwrap().port();
        let moved = listen(&spec(wanted, peer_address)).unwrap();
        assert_ne!(port_of(&moved), wanted);
        let second = moved.second.as_ref().unwrap().local_addr().unwrap();
        assert_eq!((second.ip().to_string().as_str(), second.port()), (peer_address, port_of(&moved)));
        drop(taken);
        assert_eq!(port_of(&listen(&spec(wanted, peer_address)).unwrap()), wanted);
        let required = SshServer { required: true, ..spec(port_of(&moved), peer_address) };
        assert_eq!(listen(&required).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_host_without_the_address_that_others_know_listens_everywhere() {
        // An address for documentation, which no machine has.
        let listeners = listen(&spec(0, "192.0.2.1")).unwrap();
        assert!(listeners.first.local_addr().unwrap().ip().is_unspecified() && listeners.second.is_none());
        let listeners = listen(&spec(0, "127.0.0.1")).unwrap();
        assert!(listeners.first.local_addr().unwrap().ip().is_loopback() && listeners.second.is_none());
    }
}
