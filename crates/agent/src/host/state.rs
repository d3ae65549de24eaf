//! What the whole host agent shares: its options, its owner, its tasks, its GPUs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use api::agent::{
    AgentError, AgentErrorCode, Cloud, Hello, HelloRequest, HostInfo, HostNews, PROTOCOL_VERSION, TaskSpec,
    TaskState,
};
use api::ids::{InstanceId, JobId, ServerId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::discover::{self, Roots};
use crate::host::authorized_keys::Ways;
use crate::host::blobs;
use crate::host::container::Engine;
use crate::host::gpus::GpuPool;
use crate::host::task::TaskHandle;
use crate::{clock, disk};

/// How many forgotten tasks are remembered as such.
const TOMBSTONES_LIMIT: usize = 4096;

/// Whether to use the machine's container engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DockerMode {
    /// Use it if it answers.
    Auto,
    /// Never use it.
    Off,
}

/// How the host agent was started.
#[derive(Debug, Clone)]
pub(crate) struct HostOptions {
    /// Where it keeps its state.
    pub(crate) home: PathBuf,
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// The instance that the server knows this host as.
    pub(crate) instance_id: Option<InstanceId>,
    /// The address that peers use.
    pub(crate) address: Option<String>,
    /// The cloud whose machine the host is, if it may be asked.
    pub(crate) cloud: Option<Cloud>,
    /// Where the machine's own files begin.
    pub(crate) roots: Roots,
    /// Its share of the machine's CPUs.
    pub(crate) cpus: Option<u32>,
    /// Its share of the machine's memory.
    pub(crate) memory_bytes: Option<u64>,
    /// Its share of the machine's GPUs; unset: all.
    pub(crate) gpus: Option<Vec<String>>,
    /// Whether it uses the container engine.
    pub(crate) docker: DockerMode,
    /// After how long without work and connections it exits.
    pub(crate) idle_exit: Option<Duration>,
    /// How many unacknowledged log bytes of one task may lie on the disk.
    pub(crate) log_cap_bytes: u64,
}

/// Who owns this agent: kept in `agent.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    server_id: Option<ServerId>,
    epoch: u64,
}

/// The host agent's shared state.
#[derive(Debug)]
pub(crate) struct Host {
    /// How it was started.
    pub(crate) options: HostOptions,
    /// This boot of the host.
    pub(crate) boot_id: String,
    /// The whole machine, as it was when the agent started.
    machine: HostInfo,
    /// What of it may have changed since then.
    pub(crate) news: watch::Sender<HostNews>,
    /// The GPUs that it hands out.
    pub(crate) gpus: GpuPool,
    /// The container engine.
    pub(crate) engine: Engine,
    /// The tasks; never locked across an await.
    tasks: Mutex<BTreeMap<JobId, Arc<TaskHandle>>>,
    /// The ways over this host to its jobs.
    pub(crate) ways: Ways,
    /// Grows whenever a task changes or goes.
    pub(crate) changes: watch::Sender<u64>,
    /// How many connections are open.
    pub(crate) connections: watch::Sender<usize>,
    /// The agent was asked to exit.
    pub(crate) shutdown: watch::Sender<bool>,
    owner: Mutex<Owner>,
    binary_sha256: OnceLock<String>,
}

impl Host {
    /// The state as the files in the home tell it, without tasks.
    pub(crate) fn open(options: HostOptions, machine: HostInfo) -> anyhow::Result<Host> {
        let owner = match std::fs::read(options.home.join("agent.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Owner::default(),
            Err(error) => return Err(error.into()),
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        for dir in ["tasks", "blobs", "forgotten"] {
            disk::create_private_dir(&options.home.join(dir))?;
        }
        let gpus = GpuPool::of_share(&machine.gpus, options.gpus.as_deref());
        Ok(Host {
            boot_id,
            gpus,
            engine: Engine::new(options.docker == DockerMode::Auto),
            news: watch::Sender::new(HostNews {
                fabric: machine.fabric.clone(),
                cloud: machine.cloud.clone(),
                ..HostNews::default()
            }),
            machine,
            tasks: Mutex::default(),
            ways: Ways::default(),
            changes: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            shutdown: watch::Sender::new(false),
            owner: Mutex::new(owner),
            binary_sha256: OnceLock::new(),
            options,
        })
    }

    /// Where the tasks' folders are.
    pub(crate) fn tasks_dir(&self) -> PathBuf {
        self.options.home.join("tasks")
    }

    /// Where lies what could not be removed.
    pub(crate) fn aside_dir(&self) -> PathBuf {
        self.options.home.join("aside")
    }

    /// Where blobs are, by their SHA-256.
    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.options.home.join("blobs")
    }

    /// All tasks.
    pub(crate) fn tasks(&self) -> Vec<Arc<TaskHandle>> {
        self.lock_tasks().values().cloned().collect()
    }

    /// One task.
    pub(crate) fn task(&self, id: JobId) -> Result<Arc<TaskHandle>, AgentError> {
        self.lock_tasks()
            .get(&id)
            .cloned()
            .ok_or_else(|| refuse(AgentErrorCode::UnknownTask, format!("there is no task {id}")))
    }

    /// The task of this identifier; if there is none, the one that `create` makes.
    pub(crate) fn task_or(&self, id: JobId, create: impl FnOnce() -> Arc<TaskHandle>) -> Arc<TaskHandle> {
        self.lock_tasks().entry(id).or_insert_with(create).clone()
    }

    /// Drops a task from the list and tells who listens. A newer task of the same identifier stays.
    pub(crate) fn drop_task(&self, task: &Arc<TaskHandle>) {
        let mut tasks = self.lock_tasks();
        if tasks.get(&task.id).is_some_and(|listed| Arc::ptr_eq(listed, task)) {
            tasks.remove(&task.id);
        }
        drop(tasks);
        self.note_change();
    }

    /// Tells who listens that something changed; answers the number of the change.
    pub(crate) fn note_change(&self) -> u64 {
        let mut number = 0;
        self.changes.send_modify(|last| {
            *last += 1;
            number = *last;
        });
        number
    }

    /// The state of every task.
    pub(crate) fn snapshot(&self) -> Vec<TaskState> {
        self.tasks().iter().filter_map(|task| task.snapshot()).collect()
    }

    /// Whether a task is not at its end.
    pub(crate) fn is_busy(&self) -> bool {
        self.tasks().iter().any(|task| !task.is_sealed())
    }

    /// Refuses a caller that is older than one already seen; remembers a newer one first.
    pub(crate) fn check_epoch(&self, epoch: u64) -> Result<(), AgentError> {
        let mut owner = self.lock_owner();
        if epoch < owner.epoch {
            let message = format!("epoch {epoch} is older than {}", owner.epoch);
            return Err(refuse(AgentErrorCode::Fenced, message));
        }
        if epoch > owner.epoch {
            self.save_owner(&Owner { epoch, ..owner.clone() })?;
            owner.epoch = epoch;
        }
        Ok(())
    }

    /// Answers a server's first words, and becomes its agent if it is nobody's yet.
    pub(crate) fn hello(&self, request: &HelloRequest, host: HostInfo) -> Result<Hello, AgentError> {
        if request.protocol != PROTOCOL_VERSION {
            let message = format!("protocol {} is not spoken here", request.protocol);
            return Err(refuse(AgentErrorCode::InvalidRequest, message));
        }
        self.claim(request.server_id)?;
        self.check_epoch(request.epoch)?;
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            binary_sha256: self.binary_sha256().to_owned(),
            instance_id: self.options.instance_id,
            boot_id: self.boot_id.clone(),
            now: clock::now(),
            host,
            tasks: self.snapshot(),
        })
    }

    fn claim(&self, server: ServerId) -> Result<(), AgentError> {
        let mut owner = self.lock_owner();
        match owner.server_id {
            Some(known) if known == server => Ok(()),
            Some(known) => {
                let message = format!("this agent belongs to the server {known}");
                Err(refuse(AgentErrorCode::OtherServer, message))
            }
            None => {
                let claimed = Owner { server_id: Some(server), ..owner.clone() };
                self.save_owner(&claimed)?;
                *owner = claimed;
                Ok(())
            }
        }
    }

    fn save_owner(&self, owner: &Owner) -> Result<(), AgentError> {
        let bytes = serde_json::to_vec(owner).unwrap_or_default();
        disk::write_atomically(&self.options.home.join("agent.json"), &bytes)
            .map_err(|error| refuse(AgentErrorCode::Internal, format!("cannot keep the owner's epoch: {error}")))
    }

    /// This agent's share of the machine.
    pub(crate) fn share(&self) -> HostInfo {
        let mut info = self.machine.clone();
        info.learn(self.news.borrow().clone());
        info.cpus = self.options.cpus.unwrap_or(info.cpus);
        info.memory_bytes = self.options.memory_bytes.unwrap_or(info.memory_bytes);
        info.gpus = self.gpus.gpus().to_vec();
        if let Some(address) = &self.options.address {
            info.internal_ip = Some(address.clone());
        }
        info
    }

    /// This agent's share of the machine, with its container engine.
    pub(crate) async fn info(&self) -> HostInfo {
        let mut info = self.share();
        discover::add_engine(&mut info, self.engine.info().await);
        info
    }

    /// A copy of this program that no upgrade touches, for containers.
    pub(crate) fn install_binary(&self) -> std::io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let dir = self.options.home.join("bin").join(self.binary_sha256());
        let binary = dir.join("dstack-agent");
        if binary.exists() {
            return Ok(binary);
        }
        disk::create_private_dir(&dir)?;
        let new = dir.join(format!("new-{}", clock::unix_micros()));
        std::fs::copy("/proc/self/exe", &new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, &binary)?;
        Ok(binary)
    }

    /// The machine's memory; zero where it cannot be read.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.machine.memory_bytes
    }

    /// The newest CUDA version that the machine can run, and its driver's.
    pub(crate) fn cuda(&self) -> (Option<&str>, Option<&str>) {
        (self.machine.cuda_version.as_deref(), self.machine.gpu_driver.as_deref())
    }

    /// Variables that make only these GPUs visible to a process.
    pub(crate) fn gpu_env(&self, granted: &[String]) -> Vec<(String, String)> {
        let mut env = Vec::new();
        let has = |vendor: &str| self.machine.gpus.iter().any(|gpu| gpu.vendor == vendor);
        let chosen = |vendor: &str| {
            let gpus = self.machine.gpus.iter();
            gpus.filter(|gpu| gpu.vendor == vendor && granted.contains(&gpu.uuid)).collect::<Vec<_>>()
        };
        // A driver that showed nothing to us may show all to the job. AMD's runtime heeds this variable as well.
        let is_limited = self.options.gpus.is_some() && !has("amd");
        if has("nvidia") || is_limited {
            // An empty list hides all of them.
            let uuids: Vec<&str> = chosen("nvidia").iter().map(|gpu| gpu.uuid.as_str()).collect();
            env.push(("CUDA_VISIBLE_DEVICES".to_owned(), uuids.join(",")));
        }
        if has("amd") {
            let indexes: Vec<String> = chosen("amd").iter().map(|gpu| gpu.index.to_string()).collect();
            env.push(("ROCR_VISIBLE_DEVICES".to_owned(), indexes.join(",")));
        }
        env
    }

    /// The SHA-256 of this program.
    pub(crate) fn binary_sha256(&self) -> &str {
        self.binary_sha256.get_or_init(|| {
            let mut hasher = Sha256::new();
            let copied =
                std::fs::File::open("/proc/self/exe").and_then(|mut file| std::io::copy(&mut file, &mut hasher));
            copied.map(|_| hex::encode(hasher.finalize())).unwrap_or_default()
        })
    }

    /// The generation that a task had when it was forgotten.
    pub(crate) fn tombstone(&self, id: JobId) -> Option<u64> {
        let path = self.options.home.join("forgotten").join(id.to_string());
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    /// Remembers that a task was forgotten, so that a late order cannot run it again.
    pub(crate) fn bury(&self, id: JobId, generation: u64) -> std::io::Result<()> {
        let dir = self.options.home.join("forgotten");
        disk::write_atomically(&dir.join(id.to_string()), generation.to_string().as_bytes())
    }

    /// Forgets the oldest of the forgotten when they are many.
    pub(crate) fn prune_tombstones(&self) {
        let Ok(entries) = std::fs::read_dir(self.options.home.join("forgotten")) else {
            return;
        };
        let mut files: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort();
        for (_, path) in files.iter().take(files.len().saturating_sub(TOMBSTONES_LIMIT)) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether a blob that the spec needs is missing, and which.
    pub(crate) fn missing_blob(&self, spec: &TaskSpec) -> Option<String> {
        blobs::of_spec(spec).find(|blob| !self.blobs_dir().join(blob).exists()).cloned()
    }

    fn lock_tasks(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<TaskHandle>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Host {
    /// A host with these GPUs, by vendor and UUID, and this share of them.
    pub(crate) fn for_tests(home: &std::path::Path, gpus: &[(&str, &str)], share: Option<&[&str]>) -> Host {
        let gpu = |(index, (vendor, uuid)): (usize, &(&str, &str))| api::agent::HostGpu {
            vendor: (*vendor).to_owned(),
            name: "H100".to_owned(),
            memory_mib: 81_559,
            index: index as u32,
            uuid: (*uuid).to_owned(),
            pci: None,
            numa_node: None,
        };
        let gpus = gpus.iter().enumerate().map(gpu).collect();
        let machine = HostInfo { gpus, memory_bytes: 2 << 40, ..HostInfo::default() };
        let options = HostOptions {
            home: home.to_owned(),
            socket: home.join("agent.sock"),
            instance_id: None,
            address: None,
            cloud: None,
            roots: Roots::default(),
            cpus: None,
            memory_bytes: None,
            gpus: share.map(|share| share.iter().map(|uuid| (*uuid).to_owned()).collect()),
            docker: DockerMode::Off,
            idle_exit: None,
            log_cap_bytes: 1 << 30,
        };
        Host::open(options, machine).unwrap()
    }
}

/// A refusal.
pub(crate) fn refuse(code: AgentErrorCode, message: impl Into<String>) -> AgentError {
    AgentError { code, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_agent_hides_what_it_has_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let check = |gpus: &[(&str, &str)], share: Option<&[&str]>, granted: &str, expected: &[(&str, &str)]| {
            let env = Host::for_tests(dir.path(), gpus, share).gpu_env(&[granted.to_owned()]);
            let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
            assert_eq!(env, expected);
        };
        let nvidia = [("nvidia", "GPU-0"), ("nvidia", "GPU-1")];
        check(&nvidia, None, "GPU-1", &[("CUDA_VISIBLE_DEVICES", "GPU-1")]);
        check(&nvidia, None, "none", &[("CUDA_VISIBLE_DEVICES", "")]);
        check(&[], None, "none", &[]);
        check(&[], Some(&[]), "none", &[("CUDA_VISIBLE_DEVICES", "")]);
        check(&[], Some(&["GPU-0"]), "none", &[("CUDA_VISIBLE_DEVICES", "")]);
        check(&[("amd", "renderD128")], Some(&["renderD128"]), "renderD128", &[("ROCR_VISIBLE_DEVICES", "0")]);
    }

    #[tokio::test]
    async fn a_task_that_ends_late_does_not_drop_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(Host::for_tests(dir.path(), &[], None));
        let id = JobId(uuid::Uuid::nil());
        let spawn = || crate::host::task::spawn_new(&host, id);
        let first = host.task_or(id, spawn);
        host.drop_task(&first);
        let second = host.task_or(id, spawn);
        host.drop_task(&first);
        assert!(host.task(id).is_ok_and(|task| Arc::ptr_eq(&task, &second)));
        host.drop_task(&second);
        assert!(host.task(id).is_err());
    }
}
