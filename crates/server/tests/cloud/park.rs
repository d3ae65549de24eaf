//! The machines of the simulated EC2, and the agents on them as a server sees them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::{
    AgentError, AgentErrorCode, Cloud, CloudMachine, DockerInfo, EFA_DRIVER, ExitReason, Fabric, GoOrder, HostGpu,
    HostInfo, Interruption, KernelModule, Resolved, TaskExit, TaskPhase, TaskSpec, TaskState, UverbsDevice,
};
use api::ids::{InstanceId, JobId};
use async_trait::async_trait;
use ec2sim::{MachineEvent, Machines};
use server::agents::{Agents, BlobBytes, BlobSeen, HostSeen, OrderError, Route, TaskSeen};
use server::clock::Clock;
use server::logs::LogStore;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

/// How soon somebody looks again for the way to a machine.
const AGAIN: Duration = Duration::from_millis(100);

/// What the server's loops hear: whose rows fall due.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News {
    Instance(InstanceId),
    Job(JobId),
}

/// All machines. They outlive servers.
#[derive(Debug, Default)]
pub(crate) struct Park {
    machines: Mutex<HashMap<String, Machine>>,
    /// Machines that are launched now never answer.
    is_silent: AtomicBool,
    listener: Mutex<Option<Listener>>,
}

#[derive(Debug, Clone, Default)]
struct Machine {
    instance_type: String,
    efa: u32,
    is_up: bool,
    /// Its agent does not answer.
    is_deaf: bool,
    interruption: Option<Interruption>,
    tasks: HashMap<JobId, TaskState>,
}

/// The server that is told of news, with the instances that it keeps connections for.
#[derive(Debug)]
struct Listener {
    kept: HashMap<InstanceId, String>,
    /// Those to which it looks for a way. They end with the server.
    looking: HashMap<InstanceId, AbortHandle>,
    lookers: JoinSet<()>,
    news: UnboundedSender<News>,
}

impl Park {
    /// From now on this server is told, and keeps no connection yet.
    pub(crate) fn listen(&self, news: UnboundedSender<News>) {
        *self.listener.lock().unwrap() =
            Some(Listener { kept: HashMap::new(), looking: HashMap::new(), lookers: JoinSet::new(), news });
    }

    fn change(&self, provider_id: &str, change: impl FnOnce(&mut Machine)) {
        change(self.machines.lock().unwrap().entry(provider_id.to_owned()).or_default());
        let listener = self.listener.lock().unwrap();
        let Some(listener) = listener.as_ref() else { return };
        for (instance, _) in listener.kept.iter().filter(|(_, id)| *id == provider_id) {
            let _ = listener.news.send(News::Instance(*instance));
        }
    }

    /// Whether machines that are launched from now on never answer.
    pub(crate) fn silence(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::Relaxed);
    }

    /// The agent of a machine does not answer any more.
    pub(crate) fn deafen(&self, provider_id: &str) {
        self.change(provider_id, |machine| machine.is_deaf = true);
    }

    /// The tasks on a machine come to their end.
    pub(crate) fn finish_tasks(&self, provider_id: &str) {
        self.change(provider_id, |machine| {
            machine.tasks.values_mut().for_each(|task| task.phase = TaskPhase::Sealed);
        });
    }

    fn tell(&self, news: News) {
        if let Some(listener) = self.listener.lock().unwrap().as_ref() {
            let _ = listener.news.send(news);
        }
    }

    fn provider_id(&self, instance: InstanceId) -> Option<String> {
        self.listener.lock().unwrap().as_ref()?.kept.get(&instance).cloned()
    }

    /// The machine of an instance, if its agent can be reached.
    fn reached<T>(&self, instance: InstanceId, ask: impl FnOnce(&str, &mut Machine) -> T) -> Option<T> {
        let id = self.provider_id(instance)?;
        let mut machines = self.machines.lock().unwrap();
        let machine = machines.get_mut(&id).filter(|machine| machine.is_up && !machine.is_deaf)?;
        Some(ask(&id, machine))
    }
}

impl Machines for Park {
    fn happened(&self, event: &MachineEvent) {
        match event {
            MachineEvent::Launched(launched) => {
                let efa = launched.interfaces.iter().filter(|one| one.interface_type != "interface").count();
                self.change(&launched.instance_id, |machine| {
                    machine.instance_type.clone_from(&launched.instance_type);
                    machine.efa = efa as u32;
                    machine.is_deaf = self.is_silent.load(Ordering::Relaxed);
                });
            }
            MachineEvent::Running { instance_id } => self.change(instance_id, |machine| machine.is_up = true),
            MachineEvent::SpotNotice { instance_id, ends_at } => {
                let at = Some(*ends_at);
                let interruption = Interruption { cloud: Cloud::Ec2, action: "terminate".to_owned(), at };
                self.change(instance_id, |machine| machine.interruption = Some(interruption));
            }
            MachineEvent::Ending { instance_id } | MachineEvent::Ended { instance_id } => {
                self.change(instance_id, |machine| machine.is_up = false);
            }
            MachineEvent::Addressed { .. } => {}
        }
    }
}

/// What a machine's agent tells of it.
fn info(provider_id: &str, machine: &Machine) -> HostInfo {
    let gpu = |index: u32| HostGpu {
        vendor: "nvidia".to_owned(),
        name: "H100".to_owned(),
        memory_mib: 80 * 1024,
        index,
        uuid: format!("GPU-{provider_id}-{index}"),
        pci: None,
        numa_node: None,
    };
    let uverbs = |number: u32| UverbsDevice {
        name: format!("uverbs{number}"),
        driver: EFA_DRIVER.to_owned(),
        has_node: true,
        ..UverbsDevice::default()
    };
    HostInfo {
        cpus: 192,
        memory_bytes: 2048 << 30,
        disk_available_bytes: 1 << 40,
        gpus: if machine.instance_type.starts_with('p') { (0..8).map(gpu).collect() } else { vec![] },
        docker: Some(DockerInfo {
            version: "29".to_owned(),
            cgroup_version: "2".to_owned(),
            live_restore: true,
            runtimes: vec!["nvidia".to_owned()],
            ..DockerInfo::default()
        }),
        fabric: Fabric {
            uverbs: (0..machine.efa).map(uverbs).collect(),
            efa_module: Some(KernelModule { version: Some("2.12.1g".to_owned()) }),
            memlock_bytes: Some(u64::MAX),
            ..Fabric::default()
        },
        cloud: Some(CloudMachine {
            cloud: Cloud::Ec2,
            instance_id: provider_id.to_owned(),
            instance_type: Some(machine.instance_type.clone()),
            zone: None,
        }),
        interruption: machine.interruption.clone(),
        ..HostInfo::default()
    }
}

/// The agents as one server sees them. Orders take no time and are never lost.
#[derive(Debug)]
pub(crate) struct ParkAgents {
    pub(crate) park: Arc<Park>,
    pub(crate) logs: Arc<LogStore>,
    pub(crate) clock: Clock,
}

impl ParkAgents {
    fn move_task(
        &self,
        instance: InstanceId,
        job: JobId,
        change: impl FnOnce(&mut TaskState),
    ) -> Result<TaskState, OrderError> {
        let moved = self.park.reached(instance, |_, machine| {
            let task = machine.tasks.get_mut(&job)?;
            change(task);
            Some(task.clone())
        });
        let gone = || OrderError::Unreachable("the machine does not answer".to_owned());
        let unknown = || AgentError { code: AgentErrorCode::UnknownTask, message: "no such task".to_owned() };
        let task = moved.ok_or_else(gone)?.ok_or_else(|| OrderError::Refused(unknown()))?;
        self.park.tell(News::Job(job));
        Ok(task)
    }
}

#[async_trait]
impl Agents for ParkAgents {
    fn is_kept(&self, instance: InstanceId) -> bool {
        let listener = self.park.listener.lock().unwrap();
        listener
            .as_ref()
            .is_some_and(|one| one.kept.contains_key(&instance) || one.looking.contains_key(&instance))
    }

    fn keep(&self, instance: InstanceId, route: Route) {
        let Route::Machine(backend, machine, _) = route else { panic!("there are no such hosts here") };
        let mut listener = self.park.listener.lock().unwrap();
        let Some(listener) = listener.as_mut().filter(|one| !one.looking.contains_key(&instance)) else { return };
        let park = self.park.clone();
        // As real connections it asks how the machine is reached, until it is told.
        let looker = listener.lookers.spawn(async move {
            while backend.agent_access(&machine).await.is_err() {
                sleep(AGAIN).await;
            }
            if let Some(listener) = park.listener.lock().unwrap().as_mut() {
                listener.looking.remove(&instance);
                listener.kept.insert(instance, machine.provider_id);
                let _ = listener.news.send(News::Instance(instance));
            }
        });
        listener.looking.insert(instance, looker);
    }

    fn drop_connection(&self, instance: InstanceId) {
        if let Some(listener) = self.park.listener.lock().unwrap().as_mut() {
            listener.kept.remove(&instance);
            if let Some(looker) = listener.looking.remove(&instance) {
                looker.abort();
            }
        }
    }

    async fn visit(&self, route: Route) -> anyhow::Result<Option<Vec<TaskState>>> {
        let Route::Machine(_, machine, access) = route else { panic!("there are no such hosts here") };
        assert!(access.is_some(), "nobody logs in without a key");
        let machines = self.park.machines.lock().unwrap();
        let up = machines.get(&machine.provider_id).filter(|machine| machine.is_up && !machine.is_deaf);
        let tasks = up.map(|machine| machine.tasks.values().cloned().collect::<Vec<_>>());
        tasks
            .map(|tasks| Some(tasks).filter(|tasks| !tasks.is_empty()))
            .ok_or_else(|| anyhow::anyhow!("no answer"))
    }

    fn host(&self, instance: InstanceId) -> HostSeen {
        let info = self.park.reached(instance, |id, machine| info(id, machine));
        let unknown = HostSeen::Unknown { since: None, error: Some("no answer".to_owned()), is_final: false };
        info.map_or(unknown, |info| HostSeen::Connected(Box::new(info)))
    }

    fn task(&self, instance: InstanceId, job: JobId) -> TaskSeen {
        match self.park.reached(instance, |_, machine| machine.tasks.get(&job).cloned()) {
            None => TaskSeen::Unknown,
            Some(None) => TaskSeen::Absent,
            Some(Some(task)) => TaskSeen::Known(Box::new(task)),
        }
    }

    fn tasks(&self, instance: InstanceId) -> Option<Vec<TaskState>> {
        self.park.reached(instance, |_, machine| machine.tasks.values().cloned().collect())
    }

    async fn put(&self, instance: InstanceId, spec: &TaskSpec) -> Result<TaskState, OrderError> {
        let phase = if spec.released { TaskPhase::Running } else { TaskPhase::Ready };
        let state = TaskState {
            id: spec.id,
            generation: spec.generation,
            phase,
            pull: None,
            started_at: None,
            exit: None,
            log_end: 0,
            resolved: Resolved::default(),
            warnings: vec![],
            unvisited_millis: None,
        };
        let put = self.park.reached(instance, |_, machine| machine.tasks.entry(spec.id).or_insert(state).clone());
        self.park.tell(News::Job(spec.id));
        put.ok_or_else(|| OrderError::Unreachable("the machine does not answer".to_owned()))
    }

    async fn go(&self, instance: InstanceId, job: JobId, _order: &GoOrder) -> Result<(), OrderError> {
        self.move_task(instance, job, |task| {
            if task.phase == TaskPhase::Ready {
                task.phase = TaskPhase::Running;
            }
        })
        .map(drop)
    }

    async fn stop(
        &self,
        instance: InstanceId,
        job: JobId,
        _generation: u64,
        _grace_secs: u64,
    ) -> Result<(), OrderError> {
        let now = self.clock.now();
        self.logs.complete(job, now.as_microsecond()).unwrap();
        self.move_task(instance, job, |task| {
            task.phase = TaskPhase::Sealed;
            task.exit.get_or_insert(TaskExit {
                reason: ExitReason::Stopped,
                exit_status: None,
                signal: None,
                oom_killed: false,
                message: None,
                finished_at: now,
            });
        })
        .map(drop)
    }

    async fn forget(&self, instance: InstanceId, job: JobId, _generation: u64) -> Result<(), OrderError> {
        self.park.reached(instance, |_, machine| machine.tasks.remove(&job));
        Ok(())
    }

    async fn blob(&self, _instance: InstanceId, _sha256: &str) -> Result<BlobSeen, OrderError> {
        Ok(BlobSeen::Here)
    }

    fn send_blob(&self, _instance: InstanceId, _job: JobId, _sha256: &str, _bytes: BlobBytes) {}

    async fn shutdown(&self, _instance: InstanceId) -> Result<(), OrderError> {
        Ok(())
    }
}
