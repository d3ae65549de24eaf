//! The truth about machines: the tasks that their agents run, whatever the server knows of it.

use std::collections::BTreeMap;

use api::agent::{
    AgentError, AgentErrorCode, Cloud, ExitReason, Interruption, Resolved, TaskExit, TaskPhase, TaskSpec,
    TaskState,
};
use api::ids::{JobId, RunId};
use backends::MachineKey;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// All machines, by whose agent is asked.
#[derive(Debug)]
pub(crate) struct Hosts {
    hosts: BTreeMap<MachineKey, Host>,
    /// What ever happened to each task.
    pub(crate) book: BTreeMap<JobId, Record>,
    /// No command ends by itself.
    pub(crate) all_run_for_ever: bool,
    rng: StdRng,
}

#[derive(Debug, Default)]
struct Host {
    tasks: BTreeMap<JobId, Task>,
    /// Nobody reaches it before this.
    offline_until: Option<Timestamp>,
    /// Its cloud has said that it takes it back.
    interruption: Option<Interruption>,
}

/// What happened to a task, on all machines together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    pub(crate) run: Option<RunId>,
    /// Where its spec arrived.
    pub(crate) machines: Vec<MachineKey>,
    pub(crate) ready_at: Option<Timestamp>,
    /// When its command started; more than once only if its machine lost its memory before.
    pub(crate) starts: Vec<Timestamp>,
    /// When its command failed without being told to end.
    pub(crate) failed_at: Option<Timestamp>,
    /// Everything that its command wrote.
    pub(crate) log: Vec<u8>,
    /// Its machine vanished or lost its memory, so its log may be lost.
    pub(crate) lost: bool,
}

#[derive(Debug, Clone)]
struct Task {
    state: TaskState,
    released: bool,
    /// When the next phase begins, unless it waits for an order.
    next_at: Timestamp,
    fate: Fate,
    /// It was told to end.
    stopped: bool,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Succeeds,
    Fails,
    RunsForEver,
    CannotBeMade,
}

fn seconds(rng: &mut StdRng, from: f64, to: f64) -> SignedDuration {
    // Microseconds, because that is what the server keeps; two ends at the same time are next to impossible.
    SignedDuration::from_micros((rng.random_range(from..to) * 1e6) as i64)
}

impl Hosts {
    pub(crate) fn new(seed: u64) -> Hosts {
        Hosts {
            hosts: BTreeMap::new(),
            book: BTreeMap::new(),
            all_run_for_ever: false,
            rng: StdRng::seed_from_u64(seed ^ 0x4057),
        }
    }

    /// Whether a machine's agent can be reached.
    pub(crate) fn answers(&self, machine: &MachineKey, now: Timestamp) -> bool {
        let host = self.hosts.get(machine);
        host.and_then(|host| host.offline_until).is_none_or(|until| until <= now)
    }

    pub(crate) fn go_offline(&mut self, machine: &MachineKey, until: Timestamp) {
        self.hosts.entry(machine.clone()).or_default().offline_until = Some(until);
    }

    pub(crate) fn everybody_online(&mut self) {
        for host in self.hosts.values_mut() {
            host.offline_until = None;
        }
    }

    /// A machine's cloud says that it takes it back; it does so then.
    pub(crate) fn take_back(&mut self, machine: &MachineKey, at: Timestamp) {
        let interruption = Interruption { cloud: Cloud::Ec2, action: "terminate".to_owned(), at: Some(at) };
        self.hosts.entry(machine.clone()).or_default().interruption.get_or_insert(interruption);
    }

    /// What a machine's cloud says of its end.
    pub(crate) fn interruption(&self, machine: &MachineKey) -> Option<Interruption> {
        self.hosts.get(machine)?.interruption.clone()
    }

    /// The machines whose cloud has taken them back by now.
    pub(crate) fn taken_back(&self, now: Timestamp) -> Vec<MachineKey> {
        let is_over =
            |host: &Host| host.interruption.as_ref().and_then(|notice| notice.at).is_some_and(|at| at <= now);
        self.hosts.iter().filter(|(_, host)| is_over(host)).map(|(machine, _)| machine.clone()).collect()
    }

    /// Every task that a machine's agent knows.
    pub(crate) fn tasks(&self, machine: &MachineKey) -> BTreeMap<JobId, TaskState> {
        let tasks = self.hosts.get(machine).into_iter().flat_map(|host| &host.tasks);
        tasks.map(|(id, task)| (*id, task.state.clone())).collect()
    }

    /// The tasks that any agent still knows.
    pub(crate) fn all_tasks(&self) -> Vec<(MachineKey, JobId, TaskPhase)> {
        let hosts = self.hosts.iter();
        hosts
            .flat_map(|(key, host)| host.tasks.iter().map(|(id, task)| (key.clone(), *id, task.state.phase)))
            .collect()
    }

    /// A machine is gone, with all that ran on it.
    pub(crate) fn vanish(&mut self, machine: &MachineKey) {
        let Some(host) = self.hosts.remove(machine) else { return };
        for id in host.tasks.keys() {
            self.book.entry(*id).or_default().lost = true;
        }
    }

    /// An agent loses its memory and all that it ran. Those that its server knew of must not run again.
    pub(crate) fn wipe(&mut self, machine: &MachineKey, known: impl Fn(JobId) -> bool) -> usize {
        let tasks = self.hosts.get_mut(machine).map(|host| std::mem::take(&mut host.tasks)).unwrap_or_default();
        for id in tasks.keys() {
            let record = self.book.entry(*id).or_default();
            record.lost = true;
            if !known(*id) {
                record.starts.clear();
                record.machines.clear();
            }
        }
        tasks.len()
    }

    /// When something happens next by itself.
    pub(crate) fn next_at(&self) -> Option<Timestamp> {
        let tasks = self.hosts.values().flat_map(|host| host.tasks.values());
        tasks.filter(|task| task.moves_by_itself()).map(|task| task.next_at).min()
    }

    /// Lets everything happen that is due.
    pub(crate) fn pass_time(&mut self, now: Timestamp) {
        let mut failed = vec![];
        for host in self.hosts.values_mut() {
            for (id, task) in &mut host.tasks {
                let record = self.book.entry(*id).or_default();
                let failed_before = record.failed_at.is_some();
                while task.moves_by_itself() && task.next_at <= now {
                    task.step(record, &mut self.rng);
                }
                failed.extend(record.failed_at.filter(|_| !failed_before).map(|at| (record.run, *id, at)));
            }
        }
        for (run, id, at) in failed {
            self.fail_peers(run, id, at);
        }
    }

    /// A node that fails often takes its peers with it: they lose the connection, and fail a moment later.
    fn fail_peers(&mut self, run: Option<RunId>, failed: JobId, at: Timestamp) {
        for host in self.hosts.values_mut() {
            for (id, task) in &mut host.tasks {
                let is_peer = *id != failed && self.book.get(id).is_some_and(|record| record.run == run);
                let runs = task.state.phase == TaskPhase::Running && !task.stopped && at < task.next_at;
                if is_peer && runs && self.rng.random_bool(0.8) {
                    task.fate = Fate::Fails;
                    task.next_at = at + seconds(&mut self.rng, 0.1, 5.0);
                }
            }
        }
    }

    pub(crate) fn put(&mut self, machine: &MachineKey, spec: &TaskSpec, now: Timestamp) -> TaskState {
        let rng = &mut self.rng;
        let host = self.hosts.entry(machine.clone()).or_default();
        if let Some(task) = host.tasks.get(&spec.id) {
            return task.state.clone();
        }
        let record = self.book.entry(spec.id).or_default();
        record.run = Some(spec.run_id);
        record.machines.push(machine.clone());
        let fate = match rng.random_range(0..100) {
            0..58 => Fate::Succeeds,
            58..82 => Fate::Fails,
            82..97 => Fate::RunsForEver,
            _ => Fate::CannotBeMade,
        };
        let fate = if self.all_run_for_ever { Fate::RunsForEver } else { fate };
        let state = TaskState {
            id: spec.id,
            generation: spec.generation,
            phase: TaskPhase::Accepted,
            pull: None,
            started_at: None,
            exit: None,
            log_end: 0,
            resolved: Resolved::default(),
            warnings: vec![],
            unvisited_millis: None,
        };
        let next_at = now + seconds(rng, 0.01, 0.5);
        host.tasks.insert(
            spec.id,
            Task { state: state.clone(), released: spec.released, next_at, fate, stopped: false },
        );
        state
    }

    pub(crate) fn go(
        &mut self,
        machine: &MachineKey,
        job: JobId,
        now: Timestamp,
    ) -> Result<TaskState, AgentError> {
        let task = self.task(machine, job)?;
        task.released = true;
        if task.state.phase == TaskPhase::Ready {
            task.next_at = now;
        }
        let state = task.state.clone();
        self.pass_time(now);
        Ok(self.tasks(machine).remove(&job).unwrap_or(state))
    }

    pub(crate) fn stop(
        &mut self,
        machine: &MachineKey,
        job: JobId,
        grace_secs: u64,
        now: Timestamp,
    ) -> Result<TaskState, AgentError> {
        let grace = seconds(&mut self.rng, 0.01, (grace_secs.min(3600) as f64).max(0.1));
        let task = self.task(machine, job)?;
        let over = matches!(task.state.phase, TaskPhase::Exited | TaskPhase::Sealed);
        if !over {
            let ends_at = now + grace;
            task.next_at = if task.stopped { task.next_at.min(ends_at) } else { ends_at };
            task.stopped = true;
            task.state.phase = TaskPhase::Stopping;
        }
        Ok(task.state.clone())
    }

    pub(crate) fn forget(&mut self, machine: &MachineKey, job: JobId) -> Result<(), AgentError> {
        let sealed = match self.task(machine, job) {
            Ok(task) => task.state.phase == TaskPhase::Sealed,
            Err(_) => return Ok(()),
        };
        if !sealed {
            let message = "the task is not sealed".to_owned();
            return Err(AgentError { code: AgentErrorCode::WrongPhase, message });
        }
        if let Some(host) = self.hosts.get_mut(machine) {
            host.tasks.remove(&job);
        }
        Ok(())
    }

    fn task(&mut self, machine: &MachineKey, job: JobId) -> Result<&mut Task, AgentError> {
        let task = self.hosts.get_mut(machine).and_then(|host| host.tasks.get_mut(&job));
        let message = "the agent does not know the task".to_owned();
        task.ok_or(AgentError { code: AgentErrorCode::UnknownTask, message })
    }
}

impl Task {
    fn moves_by_itself(&self) -> bool {
        match self.state.phase {
            TaskPhase::Ready => self.released,
            TaskPhase::Running => self.stopped || !matches!(self.fate, Fate::RunsForEver),
            TaskPhase::Sealed => false,
            TaskPhase::Accepted
            | TaskPhase::Preparing
            | TaskPhase::Pulling
            | TaskPhase::Stopping
            | TaskPhase::Exited => true,
        }
    }

    fn step(&mut self, record: &mut Record, rng: &mut StdRng) {
        let at = self.next_at;
        match self.state.phase {
            TaskPhase::Accepted => self.begin(TaskPhase::Preparing, seconds(rng, 0.01, 0.5)),
            TaskPhase::Preparing => self.begin(TaskPhase::Pulling, seconds(rng, 0.1, 20.0)),
            TaskPhase::Pulling if matches!(self.fate, Fate::CannotBeMade) => {
                record.failed_at = Some(at);
                self.exit(ExitReason::CreatingContainerError, 1, rng);
            }
            TaskPhase::Pulling => {
                record.ready_at = record.ready_at.or(Some(at));
                self.begin(TaskPhase::Ready, SignedDuration::ZERO);
            }
            TaskPhase::Ready => {
                record.starts.push(at);
                self.state.started_at = Some(at);
                self.write(record, "started");
                self.begin(TaskPhase::Running, seconds(rng, 0.1, 60.0));
            }
            TaskPhase::Running | TaskPhase::Stopping if self.stopped => {
                self.write(record, "stopped");
                self.exit(ExitReason::Stopped, 143, rng);
            }
            TaskPhase::Running | TaskPhase::Stopping => {
                self.write(record, "ended");
                if matches!(self.fate, Fate::Fails) {
                    record.failed_at = Some(at);
                    self.exit(ExitReason::Failed, 1, rng);
                } else {
                    self.exit(ExitReason::Done, 0, rng);
                }
            }
            TaskPhase::Exited => self.begin(TaskPhase::Sealed, SignedDuration::ZERO),
            TaskPhase::Sealed => {}
        }
    }

    fn begin(&mut self, phase: TaskPhase, lasts: SignedDuration) {
        self.state.phase = phase;
        self.next_at += lasts;
    }

    fn exit(&mut self, reason: ExitReason, exit_status: i32, rng: &mut StdRng) {
        self.state.exit = Some(TaskExit {
            reason,
            exit_status: Some(exit_status),
            signal: None,
            oom_killed: false,
            message: None,
            finished_at: self.next_at,
        });
        self.begin(TaskPhase::Exited, seconds(rng, 0.01, 2.0));
    }

    fn write(&mut self, record: &mut Record, what: &str) {
        record.log.extend(format!("{} {what}\n", self.state.id).bytes());
        self.state.log_end = record.log.len() as u64;
    }
}
