//! The agents as a simulated server sees them: connections that break, orders that are lost, news that comes late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api::agent::{AgentError, DockerInfo, GoOrder, HostInfo, Interruption, TaskPhase, TaskSpec, TaskState};
use api::ids::{InstanceId, JobId};
use async_trait::async_trait;
use backends::MachineKey;
use backends::fake::FakeCloud;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use server::agents::{Agents, BlobBytes, BlobSeen, HostSeen, OrderError, Route, TaskSeen};
use server::clock::Clock;
use server::logs::LogStore;

use crate::drive::Control;
use crate::hosts::Hosts;
use crate::trace::Trace;
use crate::world::Outside;

/// The connections of one server. They die with it; the hosts live on.
#[derive(Debug)]
pub(crate) struct SimAgents {
    hosts: Arc<Mutex<Hosts>>,
    cloud: FakeCloud,
    control: Arc<Control>,
    clock: Clock,
    trace: Trace,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    connections: BTreeMap<InstanceId, Connection>,
    rng: StdRng,
}

#[derive(Debug)]
struct Connection {
    machine: MachineKey,
    connected: bool,
    /// When it broke, or was first tried.
    since: Timestamp,
    /// The tasks as the agent last told them.
    view: BTreeMap<JobId, TaskState>,
    /// What its cloud says of its end, as the agent last told it.
    interruption: Option<Interruption>,
}

/// Whose rows fall due because of what an agent told.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) instances: Vec<InstanceId>,
    pub(crate) jobs: Vec<JobId>,
}

/// What becomes of an order.
enum Fate {
    Arrives,
    LostBefore,
    LostAfter,
}

impl SimAgents {
    pub(crate) fn new(outside: &Outside, seed: u64) -> SimAgents {
        let rng = StdRng::seed_from_u64(seed ^ 0xa6e7);
        SimAgents {
            hosts: outside.hosts.clone(),
            cloud: outside.cloud.clone(),
            control: outside.control.clone(),
            clock: outside.clock.clone(),
            trace: outside.trace.clone(),
            state: Mutex::new(State { connections: BTreeMap::new(), rng }),
        }
    }

    /// The instances that a connection is kept for, and whether it stands.
    pub(crate) fn kept(&self) -> Vec<(InstanceId, MachineKey, bool)> {
        let state = self.state.lock().unwrap();
        state.connections.iter().map(|(id, kept)| (*id, kept.machine.clone(), kept.connected)).collect()
    }

    fn is_up(&self, machine: &MachineKey) -> bool {
        self.cloud.is_running(machine) && self.hosts.lock().unwrap().answers(machine, self.clock.now())
    }

    /// Makes the connections that can be made, and breaks those whose other end is gone.
    pub(crate) fn connect(&self, news: &mut News) {
        for (instance, machine, was_connected) in self.kept() {
            let is_up = self.is_up(&machine);
            if is_up == was_connected {
                continue;
            }
            let (tasks, interruption) = {
                let hosts = self.hosts.lock().unwrap();
                (hosts.tasks(&machine), hosts.interruption(&machine))
            };
            let mut state = self.state.lock().unwrap();
            let Some(connection) = state.connections.get_mut(&instance) else { continue };
            connection.connected = is_up;
            if is_up {
                connection.view = tasks;
                connection.interruption = interruption;
            }
            connection.since = self.clock.now();
            news.instances.push(instance);
        }
    }

    /// A connection breaks, and is made again by the next [`SimAgents::connect`].
    pub(crate) fn disconnect(&self, instance: InstanceId, news: &mut News) {
        let mut state = self.state.lock().unwrap();
        let Some(connection) = state.connections.get_mut(&instance).filter(|kept| kept.connected) else { return };
        connection.connected = false;
        connection.since = self.clock.now();
        news.instances.push(instance);
    }

    /// An agent tells what is new, and sends logs: all there is, or a part.
    pub(crate) fn hear(&self, instance: InstanceId, logs: &LogStore, whole: bool, news: &mut News) {
        let mut state = self.state.lock().unwrap();
        let Some(connection) = state.connections.get_mut(&instance).filter(|kept| kept.connected) else { return };
        let hosts = self.hosts.lock().unwrap();
        let tasks = hosts.tasks(&connection.machine);
        for (id, task) in &tasks {
            let is_new = connection.view.get(id).is_none_or(|known| known != task);
            if is_new {
                news.jobs.push(*id);
            }
            if task.phase.has_started() && self.take_log(&hosts, logs, task, whole) {
                news.jobs.push(*id);
            }
        }
        connection.view = tasks;
        let interruption = hosts.interruption(&connection.machine);
        if connection.interruption != interruption {
            connection.interruption = interruption;
            news.instances.push(instance);
        }
    }

    /// Takes what is new of a task's log; true: that was the end of it.
    fn take_log(&self, hosts: &Hosts, logs: &LogStore, task: &TaskState, whole: bool) -> bool {
        let end = logs.end(task.id);
        if end.complete {
            return false;
        }
        let log = hosts.book.get(&task.id).map(|record| record.log.as_slice()).unwrap_or_default();
        let rest = &log[(end.length as usize).min(log.len())..task.log_end as usize];
        let part = if whole { rest } else { &rest[..rest.len() / 2] };
        let now = self.clock.now().as_microsecond();
        if !part.is_empty() {
            logs.append(task.id, end.length, now, part).unwrap();
        }
        let complete = whole && task.phase == TaskPhase::Sealed;
        if complete {
            logs.complete(task.id, now).unwrap();
        }
        complete
    }

    /// Whether an order arrives, and the machine that it goes to.
    fn send(&self, instance: InstanceId) -> Result<(MachineKey, Fate), OrderError> {
        let lost = |message: &str| Err(OrderError::Unreachable(message.to_owned()));
        if self.control.has_crashed() {
            return lost("the server has crashed");
        }
        let crashes = self.control.crashes_at_order();
        let mut state = self.state.lock().unwrap();
        let State { connections, rng } = &mut *state;
        let Some(connection) = connections.get(&instance).filter(|kept| kept.connected) else {
            return lost("there is no connection");
        };
        let machine = connection.machine.clone();
        let chance = if crashes { 0.5 } else { 0.06 };
        let has_faults = crashes || self.control.has_chaos();
        let fate = if has_faults && rng.random_bool(chance) {
            self.trace.mark(if crashes {
                "crash after an order's effect"
            } else {
                "order: lost after its effect"
            });
            Fate::LostAfter
        } else if has_faults && (crashes || rng.random_bool(chance)) {
            self.trace.mark(if crashes {
                "crash before an order's effect"
            } else {
                "order: lost before its effect"
            });
            Fate::LostBefore
        } else {
            Fate::Arrives
        };
        drop(state);
        if !self.is_up(&machine) {
            return lost("the machine is gone");
        }
        Ok((machine, fate))
    }

    fn order<T>(
        &self,
        instance: InstanceId,
        effect: impl FnOnce(&mut Hosts, &MachineKey, Timestamp) -> Result<T, AgentError>,
    ) -> Result<T, OrderError> {
        let (machine, fate) = self.send(instance)?;
        let lost = || OrderError::Unreachable("the order or its answer was lost".to_owned());
        if matches!(fate, Fate::LostBefore) {
            return Err(lost());
        }
        let answer = effect(&mut self.hosts.lock().unwrap(), &machine, self.clock.now());
        if matches!(fate, Fate::LostAfter) {
            return Err(lost());
        }
        answer.map_err(OrderError::Refused)
    }

    fn learn(&self, instance: InstanceId, task: TaskState) {
        let mut state = self.state.lock().unwrap();
        if let Some(connection) = state.connections.get_mut(&instance) {
            connection.view.insert(task.id, task);
        }
    }
}

#[async_trait]
impl Agents for SimAgents {
    fn is_kept(&self, instance: InstanceId) -> bool {
        self.state.lock().unwrap().connections.contains_key(&instance)
    }

    fn keep(&self, instance: InstanceId, route: Route) {
        let Route::Machine(_, machine, _) = route else { panic!("there are no such hosts here") };
        let since = self.clock.now();
        let mut state = self.state.lock().unwrap();
        let connection = || Connection {
            machine: machine.key,
            connected: false,
            since,
            view: BTreeMap::new(),
            interruption: None,
        };
        state.connections.entry(instance).or_insert_with(connection);
    }

    fn drop_connection(&self, instance: InstanceId) {
        self.state.lock().unwrap().connections.remove(&instance);
    }

    fn host(&self, instance: InstanceId) -> HostSeen {
        match self.state.lock().unwrap().connections.get(&instance) {
            None => HostSeen::Unknown { since: None, error: None, is_final: false },
            Some(Connection { connected: false, since, .. }) => {
                HostSeen::Unknown { since: Some(*since), error: Some("no answer".to_owned()), is_final: false }
            }
            Some(connection) => HostSeen::Connected(Box::new(HostInfo {
                interruption: connection.interruption.clone(),
                docker: Some(DockerInfo {
                    version: "29".to_owned(),
                    cgroup_version: "2".to_owned(),
                    live_restore: true,
                    runtimes: vec![],
                    ..DockerInfo::default()
                }),
                ..HostInfo::default()
            })),
        }
    }

    fn task(&self, instance: InstanceId, job: JobId) -> TaskSeen {
        match self.state.lock().unwrap().connections.get(&instance).filter(|kept| kept.connected) {
            None => TaskSeen::Unknown,
            Some(connection) => match connection.view.get(&job) {
                None => TaskSeen::Absent,
                Some(task) => TaskSeen::Known(Box::new(task.clone())),
            },
        }
    }

    fn tasks(&self, instance: InstanceId) -> Option<Vec<TaskState>> {
        let state = self.state.lock().unwrap();
        let connection = state.connections.get(&instance).filter(|kept| kept.connected)?;
        Some(connection.view.values().cloned().collect())
    }

    async fn put(&self, instance: InstanceId, spec: &TaskSpec) -> Result<TaskState, OrderError> {
        let task = self.order(instance, |hosts, machine, now| Ok(hosts.put(machine, spec, now)))?;
        self.learn(instance, task.clone());
        Ok(task)
    }

    async fn go(&self, instance: InstanceId, job: JobId, _order: &GoOrder) -> Result<(), OrderError> {
        let task = self.order(instance, |hosts, machine, now| hosts.go(machine, job, now))?;
        self.learn(instance, task);
        Ok(())
    }

    async fn stop(
        &self,
        instance: InstanceId,
        job: JobId,
        _generation: u64,
        grace_secs: u64,
    ) -> Result<(), OrderError> {
        let task = self.order(instance, |hosts, machine, now| hosts.stop(machine, job, grace_secs, now))?;
        self.learn(instance, task);
        Ok(())
    }

    async fn forget(&self, instance: InstanceId, job: JobId, _generation: u64) -> Result<(), OrderError> {
        self.order(instance, |hosts, machine, _| hosts.forget(machine, job))
    }

    async fn blob(&self, _instance: InstanceId, _sha256: &str) -> Result<BlobSeen, OrderError> {
        Ok(BlobSeen::Here)
    }

    fn send_blob(&self, _instance: InstanceId, _job: JobId, _sha256: &str, _bytes: BlobBytes) {}

    async fn shutdown(&self, _instance: InstanceId) -> Result<(), OrderError> {
        Ok(())
    }
}
