//! Starting agents on this machine, and starting them again when they are needed and gone.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::machines::{Machines, Record, cannot, lock_file, make_private_dir, open_private};
use super::{processes, sockets};
use crate::keys::invalid;
use crate::{ContainerNetwork, Error, ErrorKind, Result};

/// How long an agent may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// How often we look whether it listens.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// An agent that has lived this long and does not listen never will: somebody removed its socket.
const DEAF_AGE: Duration = Duration::from_secs(30);

/// Seconds without task and connection after which an agent ends; it is started again when it is needed.
const IDLE_EXIT_SECS: u32 = 60;

/// How long the agent's program may take to remove what is left in the container engine, and how often we look.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(30);
const CLEAN_INTERVAL: Duration = Duration::from_millis(20);

/// The log is put aside when it is longer than this, in bytes.
const LOG_LIMIT: u64 = 1 << 20;

/// How many lines of the log an error quotes, and of how many bytes at its end.
const QUOTED_LINES: usize = 5;
const QUOTED_BYTES: usize = 2048;

/// How agents are started.
#[derive(Debug)]
pub(super) struct Agents {
    /// The agent's program.
    pub(super) binary: PathBuf,
    pub(super) machines: Machines,
}

impl Agents {
    /// Starts the agent of a new machine and does not wait for it. If that fails, [`Agents::reach`] tries again.
    pub(super) fn start_early(&self, record: &Record) {
        let started = self.try_lock(record).and_then(|lock| match lock {
            Some(_lock) => self.start(record).map(|_exit| ()),
            None => Ok(()),
        });
        if let Err(error) = started {
            let machine = self.machines.folder(&record.key);
            tracing::warn!(machine = %machine.display(), %error, "cannot start the agent yet");
        }
    }

    /// The socket of a machine's agent, which listens. Starts the agent if none does.
    pub(super) async fn reach(&self, record: &Record) -> Result<PathBuf> {
        let deadline = Instant::now() + START_TIMEOUT;
        // One at a time: the others wait here until it listens.
        let _lock = loop {
            let lock = match self.try_lock(record) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone(record)),
                Err(error) => return Err(cannot("lock", &self.machines.folder(&record.key), &error)),
            };
            if !self.machines.is_wanted(&record.key) {
                return Err(gone(record));
            }
            if listens(&record.socket).await {
                return Ok(record.socket.clone());
            }
            match lock {
                Some(lock) => break lock,
                None if Instant::now() < deadline => sleep(LOOK_INTERVAL).await,
                None => return Err(self.silent(record, "it does not listen")),
            }
        };
        self.start_and_wait(record, deadline).await
    }

    async fn start_and_wait(&self, record: &Record, deadline: Instant) -> Result<PathBuf> {
        let exit = if self.lives(record) {
            None
        } else {
            let started = self.start(record);
            let folder = self.machines.folder(&record.key);
            Some(started.map_err(|error| cannot("start the agent in", &folder, &error))?)
        };
        let listening = async {
            while !listens(&record.socket).await {
                sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            () = listening => Ok(record.socket.clone()),
            status = failed(exit) => Err(self.silent(record, &format!("it ended with {status}"))),
            () = tokio::time::sleep_until(deadline) => {
                let waited = format!("it does not listen after {} s", START_TIMEOUT.as_secs());
                Err(self.silent(record, &waited))
            }
        }
    }

    /// Whether an agent runs that may still come to listen.
    fn lives(&self, record: &Record) -> bool {
        let mut lives = false;
        for pid in processes::agents(&self.machines.agent_home(&record.key)) {
            match processes::age(pid) {
                Some(age) if DEAF_AGE < age => processes::kill_now(pid),
                Some(_) => lives = true,
                None => {}
            }
        }
        lives
    }

    /// Waits for the right to start or end a machine's agent, so that nobody starts it while it is ended.
    pub(super) fn lock(&self, record: &Record) -> io::Result<Flock<fs::File>> {
        lock_file(&self.lock_path(record), FlockArg::LockExclusive)
    }

    fn try_lock(&self, record: &Record) -> io::Result<Option<Flock<fs::File>>> {
        match lock_file(&self.lock_path(record), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the containers of a machine whose agent is gone for good, and those that earlier machines left behind
    /// while no engine answered. The error says that one of the machine's may still run, with its GPUs. Blocks.
    pub(super) fn remove_containers(&self, record: &Record) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("remove-containers").arg("--home").arg(self.machines.agent_home(&record.key));
        command.arg("--homes-below").arg(self.machines.all());
        let machine = self.machines.folder(&record.key);
        let left = finish(&mut command).map_err(|error| cannot("end the containers of", &machine, &error))?;
        if !left.is_empty() {
            tracing::warn!(machine = %machine.display(), "cannot remove the machine's containers yet: {left}");
        }
        Ok(())
    }

    /// Removes the network of this server's containers. Blocks.
    pub(super) fn remove_network(&self, network: &ContainerNetwork) {
        let mut command = Command::new(&self.binary);
        command.arg("remove-network").arg("--name").arg(&network.name);
        if let Err(error) = finish(&mut command) {
            tracing::warn!(network = network.name, %error, "cannot remove the containers' network");
        }
    }

    fn lock_path(&self, record: &Record) -> PathBuf {
        self.machines.folder(&record.key).join("start.lock")
    }

    fn log_path(&self, record: &Record) -> PathBuf {
        self.machines.folder(&record.key).join("agent.log")
    }

    /// Starts an agent that outlives this process. The answer tells how it ends.
    fn start(&self, record: &Record) -> io::Result<oneshot::Receiver<ExitStatus>> {
        let home = self.machines.agent_home(&record.key);
        make_private_dir(&home)?;
        sockets::prepare_parent(&record.socket).map_err(io::Error::other)?;
        let log_path = self.log_path(record);
        if fs::metadata(&log_path).is_ok_and(|log| LOG_LIMIT < log.len()) {
            fs::rename(&log_path, log_path.with_extension("log.1"))?;
        }
        let log = open_private(&log_path)?;
        let mut command = Command::new(&self.binary);
        command
            .args(arguments(record, &home))
            .current_dir(self.machines.folder(&record.key))
            // Not the server's group: what the terminal sends to the server is not for the agent.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // The server's own settings hold its secrets.
        for (name, _) in std::env::vars_os() {
            let bytes = name.as_encoded_bytes();
            if bytes.starts_with(b"DSTACK_") && !bytes.starts_with(b"DSTACK_AGENT_") {
                command.env_remove(name);
            }
        }
        let mut child = command.spawn()?;
        let (ended, exit) = oneshot::channel();
        // Somebody must wait for it, or it stays as a zombie.
        std::thread::Builder::new().name("agent-wait".to_owned()).spawn(move || {
            if let Ok(status) = child.wait() {
                // Usually nobody listens any more.
                let _ = ended.send(status);
            }
        })?;
        Ok(exit)
    }

    fn silent(&self, record: &Record, what: &str) -> Error {
        let machine = self.machines.folder(&record.key);
        let log = last_lines(&self.log_path(record));
        let log = if log.is_empty() { "its log is empty".to_owned() } else { format!("its log ends with: {log}") };
        let message = format!("the agent of `{}` does not answer: {what}; {log}", machine.display());
        Error::new(ErrorKind::Unavailable, message)
    }
}

/// Runs a program to its end, or to ours, and answers its complaints.
fn finish(command: &mut Command) -> io::Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + CLEAN_TIMEOUT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::park_timeout(CLEAN_INTERVAL),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other(format!("no answer in {} s", CLEAN_TIMEOUT.as_secs())));
            }
        }
    };
    let mut words = String::new();
    // What can be read of its complaint is all there is.
    let _ = child.stderr.take().map(|mut stderr| io::Read::read_to_string(&mut stderr, &mut words));
    let words = words.trim();
    if status.success() { Ok(words.to_owned()) } else { Err(io::Error::other(format!("{status}: {words}"))) }
}

fn arguments(record: &Record, home: &Path) -> Vec<std::ffi::OsString> {
    let gpus =
        if record.share.gpu_uuids.is_empty() { "none".to_owned() } else { record.share.gpu_uuids.join(",") };
    vec![
        "host".into(),
        "--home".into(),
        home.into(),
        "--socket".into(),
        (&record.socket).into(),
        "--address".into(),
        (&record.address).into(),
        "--cpus".into(),
        record.share.cpus.to_string().into(),
        "--memory-bytes".into(),
        (record.share.memory_mib << 20).to_string().into(),
        "--gpus".into(),
        gpus.into(),
        "--idle-exit-secs".into(),
        IDLE_EXIT_SECS.to_string().into(),
    ]
}

async fn listens(socket: &Path) -> bool {
    // A full backlog would make us wait.
    let deadline = Instant::now() + START_TIMEOUT;
    matches!(timeout_at(deadline, UnixStream::connect(socket)).await, Ok(Ok(_)))
}

/// Waits until the process fails. One that succeeds has handed over to another, and one that is not ours to wait
/// for tells nothing.
async fn failed(exit: Option<oneshot::Receiver<ExitStatus>>) -> ExitStatus {
    if let Some(exit) = exit
        && let Ok(status) = exit.await
        && !status.success()
    {
        return status;
    }
    std::future::pending().await
}

fn gone(record: &Record) -> Error {
    let key = &record.key;
    invalid(format!("machine {} of launch `{}` was given back", key.index, key.launch_id))
}

fn last_lines(path: &Path) -> String {
    let log = fs::read(path).unwrap_or_default();
    let end = String::from_utf8_lossy(&log[log.len().saturating_sub(QUOTED_BYTES)..]).into_owned();
    let lines: Vec<&str> = end.lines().rev().filter(|line| !line.trim().is_empty()).take(QUOTED_LINES).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
