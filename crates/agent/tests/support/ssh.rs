//! A job with an SSH server, and OpenSSH's own programs to enter it with.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use api::agent::*;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Agent, DEADLINE, process};

/// How long a transfer may take on a busy machine.
pub const LONG: std::time::Duration = DEADLINE.saturating_mul(4);

/// Whether OpenSSH's programs are here; says so where they are not.
pub fn is_available() -> bool {
    let is_set = std::env::var_os("DSTACK_TEST_SSH").is_some();
    if !is_set {
        eprintln!("SKIPPED: set DSTACK_TEST_SSH where OpenSSH's client and rsync are installed");
    }
    is_set
}

/// A running job that can be entered.
pub struct Entrance {
    pub agent: Agent,
    pub spec: TaskSpec,
    /// Files of the client's side.
    pub dir: TempDir,
    pub port: u16,
}

/// Makes a pair of keys at `path`, and answers the private and the public one.
pub async fn make_key(path: &std::path::Path, kind: &str) -> (String, String) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-N", "", "-C", "test", "-t", kind, "-f"]).arg(path);
    assert!(keygen.status().await.unwrap().success());
    let public = path.with_extension("pub");
    (std::fs::read_to_string(path).unwrap(), std::fs::read_to_string(public).unwrap())
}

/// A port that nobody has.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What was printed on standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What was printed on standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Entrance {
    /// A job that waits to be entered.
    pub async fn open() -> Entrance {
        Entrance::open_with(|_| {}).await
    }

    /// One whose task was changed before.
    pub async fn open_with(change: impl FnOnce(&mut TaskSpec)) -> Entrance {
        Entrance::open_in(Vec::new(), change).await
    }

    /// One on a host whose agent is run by another program.
    pub async fn open_in(wrapper: Vec<String>, change: impl FnOnce(&mut TaskSpec)) -> Entrance {
        let dir = tempfile::Builder::new().prefix("ssh").tempdir().unwrap();
        let (host_key, host_public) = make_key(&dir.path().join("host"), "ed25519").await;
        let (_, user_public) = make_key(&dir.path().join("user"), "ed25519").await;
        let port = free_port();
        std::fs::write(dir.path().join("known"), format!("[127.0.0.1]:{port} {host_public}")).unwrap();
        let mut spec = process(&["/bin/sleep", "1000000"]);
        spec.ssh = Some(SshServer {
            host_key,
            authorized_keys: vec![user_public],
            port,
            listen: SshListen::Loopback,
            peer_address: None,
            required: false,
            keep_alive_secs: 30,
            over_host: None,
        });
        change(&mut spec);
        let mut agent = Agent::new(&[]);
        if !wrapper.is_empty() {
            agent.kill();
            agent.wrapper = wrapper;
            agent.wrapper.push(super::binary().display().to_string());
            agent.start();
        }
        agent.put(&spec).await;
        let is_up = |state: &TaskState| state.phase >= TaskPhase::Ready;
        agent.wait_for(&spec, "up", is_up).await;
        Entrance { agent, spec, dir, port }
    }

    /// A file of the client's side.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The options that every program of OpenSSH understands.
    pub fn options(&self) -> Vec<String> {
        let known = format!("UserKnownHostsFile={}", self.path("known").display());
        let identity = format!("IdentityFile={}", self.path("user").display());
        let options = ["StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "ConnectTimeout=60", &known, &identity];
        let pairs = options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]);
        ["-F".to_owned(), "none".to_owned()].into_iter().chain(pairs).collect()
    }

    /// A program of OpenSSH with those options; the port has another letter for each.
    pub fn client(&self, program: &str, port_option: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options()).args(["-o", "BatchMode=yes", port_option, &self.port.to_string()]);
        // What the one who runs the tests has is not for them.
        command.env_remove("SSH_AUTH_SOCK").env_remove("SSH_ASKPASS").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// `ssh` with some arguments before the host, and the command after it.
    pub fn ssh(&self, options: &[&str], command: &[&str]) -> Command {
        let mut ssh = self.client("ssh", "-p");
        ssh.args(options).arg("root@127.0.0.1").args(command);
        ssh
    }

    /// Runs a command in the job.
    pub async fn run(&self, command: &str) -> Output {
        finish(self.ssh(&[], &[command])).await
    }

    /// Runs `sftp` with a script.
    pub async fn sftp(&self, options: &[&str], script: &str) -> Output {
        let batch = self.path("batch");
        std::fs::write(&batch, script).unwrap();
        let mut sftp = self.client("sftp", "-P");
        sftp.args(options).arg("-b").arg(batch).arg("root@127.0.0.1");
        finish(sftp).await
    }

    /// Where the job's command runs, which is where sessions begin.
    pub async fn work(&mut self) -> PathBuf {
        let id = self.spec.id;
        PathBuf::from(self.agent.state(id).await.unwrap().resolved.working_dir.unwrap())
    }

    /// Ends the job and waits until nothing of it is left.
    pub async fn close(mut self) {
        self.agent.stop(&self.spec, 0).await;
        self.agent.wait_sealed(&self.spec).await;
    }
}

/// Runs a program to its end.
pub async fn finish(mut command: Command) -> Output {
    let what = format!("{:?}", command.as_std());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = timeout(LONG, command.output()).await;
    output.unwrap_or_else(|_| panic!("{what} does not end")).unwrap()
}

/// Bytes that no program has reason to treat as text, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The SHA-256 of bytes, in hex.
pub fn hash(bytes: impl AsRef<[u8]>) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// Ends with the test.
pub struct Background(pub tokio::process::Child);

impl Background {
    pub fn start(mut command: Command) -> Background {
        Background(command.kill_on_drop(true).spawn().unwrap())
    }
}

/// Whether a program can be found.
pub fn is_installed(program: impl AsRef<OsStr>) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program.as_ref()).is_file()))
}
