//! The agent's unit of work: one container, or one group of processes, that runs one job.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{JobId, RunId};

/// Everything the agent needs to run one job. It never asks for more.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The job's submission. A second spec with the same id and generation changes nothing.
    pub id: JobId,
    /// Grows when the server replaces the spec; an older one is refused.
    pub generation: u64,
    /// The job's name, for people and for the container's name.
    pub job_name: String,
    /// The run that the job belongs to.
    pub run_id: RunId,
    /// The run's name.
    pub run_name: String,
    /// The project's name.
    pub project_name: String,
    /// How the job runs.
    pub runtime: Runtime,
    /// The command and its arguments. Empty: the image's own entry point and command.
    pub argv: Vec<String>,
    /// The job's own environment, literal, secrets already put in. It wins over `DSTACK_*`.
    pub env: BTreeMap<String, String>,
    /// The node's place among its peers.
    pub cluster: ClusterInfo,
    /// The share of the host that the job may use.
    pub share: HostShare,
    /// `uid[:gid]` or `name[:group]`; unset: the image's user, or the agent's own for processes.
    pub user: Option<String>,
    /// The directory where the command starts; unset: the image's, or the task's own for processes.
    pub working_dir: Option<String>,
    /// The Python version of a virtual environment to make before the command, for instance `3.12`.
    pub python: Option<String>,
    /// Where uploaded code goes, and which.
    pub code: Option<CodeDelivery>,
    /// Uploaded files and where they go.
    pub files: Vec<FileDelivery>,
    /// The repository's identifier, for `DSTACK_REPO_ID`.
    pub repo_id: Option<String>,
    /// Longest run time in seconds, counted from the start of the command.
    pub max_duration_secs: Option<u64>,
    /// Grace between the polite signal and the kill, in seconds, where the agent stops the job itself.
    pub stop_grace_secs: u64,
    /// The job may start as soon as it is ready. Otherwise it waits for `go`.
    pub released: bool,
    /// The SSH server of the job; unset: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshServer>,
    /// The job does not end with its command, but stays for people to work in until it is stopped; unset: it ends. Such a
    /// job needs no command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stay: Option<Stay>,
    /// How the nodes of the gang enter each other; unset: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangAccess>,
}

// Environment values and registry passwords are secrets; only their names may be printed.
impl std::fmt::Debug for TaskSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskSpec")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .field("job_name", &self.job_name)
            .field("runtime", &self.runtime)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("cluster", &self.cluster)
            .field("released", &self.released)
            .field("ssh", &self.ssh)
            .field("gang", &self.gang)
            .finish_non_exhaustive()
    }
}

/// How the nodes of a gang enter each other's SSH servers, at the addresses in [`ClusterInfo`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GangAccess {
    /// The gang's private key in OpenSSH's text form. The server of every node accepts its public half.
    pub private_key: String,
    /// The public keys that the nodes' servers show, by rank: an algorithm and a key, as in `known_hosts`.
    pub host_keys: Vec<String>,
    /// The ports of the nodes' servers by rank, where they are known before `go`. 0: that node has no server.
    #[serde(default)]
    pub ports: Vec<u16>,
}

// The private key may not be printed.
impl std::fmt::Debug for GangAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GangAccess")
            .field("host_keys", &self.host_keys)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// How a job goes on after its command has ended well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    /// What is written to the log then. `$DSTACK_WORKING_DIR` in it stands for the job's directory.
    pub greeting: String,
}

/// The port at which a job's SSH server listens, as the job sees it. Clients of the original look for it there.
pub const SSH_PORT: u16 = 10022;

/// The SSH server of a job, through which its user enters it. It is up from before `go` until the job ends.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshServer {
    /// The server's private key in OpenSSH's text form; each job has its own.
    pub host_key: String,
    /// Public keys that may enter, as lines of an `authorized_keys` file without options.
    pub authorized_keys: Vec<String>,
    /// The port, as the job sees it.
    pub port: u16,
    /// The addresses that it listens on.
    pub listen: SshListen,
    /// The address at which the gang's other nodes enter, beside those of [`SshListen::Loopback`]. Where the host has
    /// no such address, because it lies behind a translation of addresses, the server listens on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<std::net::IpAddr>,
    /// The job ends where the server cannot listen; otherwise it runs without one, with a warning.
    #[serde(default)]
    pub required: bool,
    /// After this many seconds of silence a client is asked whether it is still there.
    #[serde(default = "SshServer::default_keep_alive_secs")]
    pub keep_alive_secs: u32,
    /// The way over the host, for clients that have nothing but OpenSSH; unset: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_host: Option<WayOverHost>,
}

/// Lets clients go on from the host's own SSH server to the job's, and nowhere else, while the job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayOverHost {
    /// Whom clients log in to the host as.
    pub user: String,
    /// The public keys that may, each as OpenSSH writes it.
    pub keys: Vec<String>,
}

impl SshServer {
    /// How long a client may be silent, where the spec does not say.
    pub fn default_keep_alive_secs() -> u32 {
        30
    }
}

// The private key may not be printed.
impl std::fmt::Debug for SshServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshServer")
            .field("authorized_keys", &self.authorized_keys)
            .field("port", &self.port)
            .field("listen", &self.listen)
            .field("peer_address", &self.peer_address)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// The addresses that a job's SSH server listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SshListen {
    /// Those of the loopback interface only, for a job on the host's own network.
    Loopback,
    /// All addresses, for a container on a bridge, or where peers enter each other.
    All,
}

/// How a task runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// As a group of plain processes on the host.
    Process,
    /// In a container of the host's Docker engine.
    Docker(Box<ContainerSpec>),
}

/// What is particular to a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The image's reference.
    pub image: String,
    /// Credentials for the image's registry.
    pub registry_auth: Option<RegistryAuth>,
    /// All capabilities and devices of the host.
    pub privileged: bool,
    /// Size of `/dev/shm` in bytes; unset: half of the task's memory if it has several GPUs, or else the engine's
    /// default.
    pub shm_size_bytes: Option<u64>,
    /// The network the container joins.
    pub network: ContainerNetwork,
    /// Directories of the host inside the container.
    pub mounts: Vec<InstanceMount>,
    /// Device nodes of the host that the container sees, beside those of its GPUs.
    pub devices: Vec<String>,
    /// `HOME` inside the container, unless the user's entry in its passwd says otherwise.
    pub home_dir: Option<String>,
}

/// The network of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerNetwork {
    /// The host's own.
    Host,
    /// The engine's default bridge.
    Bridge,
    /// A user-defined bridge network, made if it is missing, and the container's address on it.
    Named {
        /// The network's name.
        name: String,
        /// The network's subnet in CIDR notation.
        subnet: String,
        /// The container's address; unset: any that is free.
        #[serde(default)]
        address: Option<String>,
    },
}

/// A registry's user and password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAuth {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A directory of the host inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceMount {
    /// Where it is on the host. It is made if it is missing.
    pub instance_path: String,
    /// Where it is in the container.
    pub path: String,
}

/// The node's place among its peers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// This node's rank, from 0.
    pub node_rank: u32,
    /// The addresses of all nodes by rank.
    pub node_ips: Vec<String>,
    /// The GPUs of each node by rank.
    pub gpus_per_node: Vec<u32>,
}

/// The share of a host that a job may use. Unset means all that the agent has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostShare {
    /// The GPUs by UUID; unset: all of them.
    pub gpu_uuids: Option<Vec<String>>,
    /// How many GPUs the agent picks, where the server does not name them.
    pub gpu_count: Option<u32>,
    /// CPUs.
    pub cpus: Option<f64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// A job's code: uploaded, or cloned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeDelivery {
    /// The blob's SHA-256 in hex; unset: nothing was uploaded. It is an archive, or with `git` the changes that were
    /// not committed.
    pub blob_sha256: Option<String>,
    /// Where the code goes.
    pub repo_dir: String,
    /// What happens when that directory is not empty.
    pub skip_if_exists: bool,
    /// The Git repository to clone there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitRepo>,
}

/// A Git repository, its commit, and how to read it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitRepo {
    /// Where it is: `https://`, `http://`, `ssh://`, or `user@host:path`.
    pub url: String,
    /// The token or password for HTTP.
    pub token: Option<String>,
    /// The private key for SSH, in its text form and without a passphrase.
    pub private_key: Option<String>,
    /// The branch; unset: the repository's default one.
    pub branch: Option<String>,
    /// The commit; unset: the branch's last one.
    pub hash: Option<String>,
    /// Every branch is fetched, not just that one.
    #[serde(default)]
    pub all_branches: bool,
    /// `user.name` of the commits that are made in the job.
    pub user_name: Option<String>,
    /// `user.email` of those.
    pub user_email: Option<String>,
}

// The token and the key may not be printed, nor the URL, which may hold a password.
impl std::fmt::Debug for GitRepo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GitRepo")
            .field("branch", &self.branch)
            .field("hash", &self.hash)
            .field("all_branches", &self.all_branches)
            .finish_non_exhaustive()
    }
}

/// Uploaded files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDelivery {
    /// The SHA-256 of the tar archive, in hex.
    pub blob_sha256: String,
    /// The path where the archive's only root goes; relative to the working directory.
    pub path: String,
}

/// An order about one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOrder {
    /// The generation that the order is for.
    pub generation: u64,
}

/// The order to start a task's command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoOrder {
    /// The generation that the order is for.
    pub generation: u64,
    /// The ports of the SSH servers of the gang's nodes by rank, as the other nodes reach them; 0: that node has none.
    /// Empty where there is no gang. All nodes are ready by now, so all ports are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_ports: Vec<u16>,
}

/// The order to end a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// The generation that the order is for.
    pub generation: u64,
    /// Seconds between the polite signals and the kill; 0 kills at once. A repeated order may only shorten it.
    pub grace_secs: u64,
}

/// The server has the log up to an offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAck {
    /// The first byte that the server does not have.
    pub offset: u64,
}

/// Where a task is in its life. Each step is journaled before its side effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskPhase {
    /// The spec is on disk.
    Accepted,
    /// Directories, files and GPUs are being taken.
    Preparing,
    /// The image is being pulled.
    Pulling,
    /// All is there; the command waits for `go`.
    Ready,
    /// The command runs.
    Running,
    /// The command was told to end.
    Stopping,
    /// The command ended; its log may still be read.
    Exited,
    /// The log is complete and nothing of the task runs.
    Sealed,
}

impl TaskPhase {
    /// Whether the command has started, now or in the past.
    pub fn has_started(self) -> bool {
        self >= TaskPhase::Running
    }
}

/// A task as the agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskState {
    /// The job's submission.
    pub id: JobId,
    /// The generation of its spec.
    pub generation: u64,
    /// Where it is in its life.
    pub phase: TaskPhase,
    /// How far the image is, while it is pulled.
    pub pull: Option<PullProgress>,
    /// When the command started.
    pub started_at: Option<Timestamp>,
    /// How the command ended.
    pub exit: Option<TaskExit>,
    /// The log's length in bytes so far; final once sealed.
    pub log_end: u64,
    /// What was found out while preparing.
    pub resolved: Resolved,
    /// What the user should know, for instance a limit that the host forbids.
    pub warnings: Vec<String>,
    /// For how long nobody has been in a job that stays, in milliseconds at the moment when this was said: no clock of
    /// the host's need be right. Unset: somebody is in it, or nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unvisited_millis: Option<u64>,
}

/// Facts that only the host could find out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resolved {
    /// The directory where the command started.
    pub working_dir: Option<String>,
    /// The user that the command runs as.
    pub username: Option<String>,
    /// Host ports by container port, where the network maps them.
    pub ports: BTreeMap<u16, u16>,
    /// The job shares the host's network, so that its ports are the host's.
    pub on_host_network: bool,
    /// The container's identifier.
    pub container_id: Option<String>,
    /// The GPUs by UUID.
    pub gpu_uuids: Vec<String>,
}

/// How far an image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Bytes downloaded so far.
    pub downloaded_bytes: u64,
    /// Bytes extracted so far.
    pub extracted_bytes: u64,
    /// Bytes of all layers whose size is known.
    pub total_bytes: u64,
    /// Every layer has said its size.
    pub is_total_bytes_final: bool,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskExit {
    /// Why it ended.
    pub reason: ExitReason,
    /// The exit status: 0..=255, or 128 + the signal's number.
    pub exit_status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel ended it for want of memory.
    pub oom_killed: bool,
    /// What happened, for people.
    pub message: Option<String>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Why a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The command exited with status 0.
    Done,
    /// The command exited with another status or by a signal.
    Failed,
    /// It was told to stop.
    Stopped,
    /// It ran longer than `max_duration`.
    MaxDurationExceeded,
    /// The image could not be pulled or the container not be made.
    CreatingContainerError,
    /// Something of ours failed: files, user, directory, or the supervisor itself.
    ExecutorError,
    /// A port was taken.
    PortsBindingFailed,
    /// The host rebooted, or its container engine ended the container.
    HostInterrupted,
}
