//! The supervisor's side of the SSH server: its port, its process, and what becomes of both.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::agent::{SshListen, SshServer};
use api::ids::JobId;
use nix::unistd::Pid;

use super::Orders;
use super::transport::Protocol;
use crate::job::prepare::Prepared;
use crate::sys::Credentials;
use crate::{clock, sys};

/// How long a server that failed stays down.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Keeps a job's SSH server running.
pub(crate) struct Keeper {
    job: JobId,
    listener: TcpListener,
    orders: Arc<Orders>,
    credentials: Option<Credentials>,
    process: Option<Process>,
    restart_at: Option<Instant>,
}

struct Process {
    pid: Pid,
    // The server ends when this closes.
    _control: UnixStream,
}

impl Keeper {
    /// Listens, and starts the server; or says in one sentence why that cannot be.
    pub(crate) fn start(spec: &SshServer, job: JobId, prepared: &Prepared) -> Result<Keeper, String> {
        Protocol::new(spec)?;
        let told = |error| format!("the job's SSH server cannot listen on port {}: {error}", spec.port);
        let mut keeper = Keeper {
            job,
            listener: listen(spec).map_err(told)?,
            orders: Arc::new(Orders {
                spec: spec.clone(),
                env: prepared.env.clone(),
                working_dir: prepared.working_dir.clone(),
                username: prepared.username.clone(),
            }),
            credentials: prepared.credentials.clone(),
            process: None,
            restart_at: None,
        };
        keeper.launch().map_err(|error| format!("the job's SSH server cannot start: {error}"))?;
        Ok(keeper)
    }

    /// The server's process, if it runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// When something is to be done.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.restart_at
    }

    /// Takes note that the server's process has ended, which it does only by failing.
    pub(crate) fn note_end(&mut self) {
        self.process = None;
        self.restart_at = Some(clock::monotonic() + RESTART_AFTER);
    }

    /// Starts a server that failed again, when it is time.
    pub(crate) fn restart_if_due(&mut self) {
        if self.restart_at.is_some_and(|at| at <= clock::monotonic()) {
            self.restart_at = self.launch().is_err().then(|| clock::monotonic() + RESTART_AFTER);
        }
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
            .stdout(Stdio::from(OwnedFd::from(self.listener.try_clone()?)));
        sys::prepare_child(&mut command, false, self.credentials.clone());
        let child = command.spawn()?;
        let (orders, mut control) = (self.orders.clone(), ours.try_clone()?);
        // An environment may be larger than a socket's buffer, and the supervisor waits for nobody.
        std::thread::Builder::new().name("ssh-orders".to_owned()).spawn(move || {
            // A server that does not take its orders ends, and is started again.
            let _ = orders.write(&mut control);
        })?;
        self.process = Some(Process { pid: Pid::from_raw(child.id() as i32), _control: ours });
        Ok(())
    }
}

fn listen(spec: &SshServer) -> io::Result<TcpListener> {
    let at = |address: std::net::IpAddr| TcpListener::bind(SocketAddr::new(address, spec.port));
    match spec.listen {
        SshListen::Loopback => at(Ipv4Addr::LOCALHOST.into()),
        // One socket is for both kinds of addresses, where the machine has both.
        SshListen::All => match at(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => at(Ipv4Addr::UNSPECIFIED.into()),
            listening => listening,
        },
    }
}
