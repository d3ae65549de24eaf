//! What is known about a task, as the sum of its journal's lines.

use api::agent::{
    ContainerNetwork, PullProgress, Resolved, Runtime, TaskExit, TaskPhase, TaskSpec, TaskState, WayOverHost,
};
use api::ids::JobId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many warnings a task may have: some come from its supervisor, and in a container that is not to be trusted.
pub(crate) const WARNINGS_LIMIT: usize = 50;

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// When it was written.
    pub(crate) at: Timestamp,
    /// The boot of the host in which it was written.
    pub(crate) boot: String,
    /// What was about to happen, or was learned.
    pub(crate) entry: Entry,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// The spec lies in the task's folder.
    Accepted(Accepted),
    /// Directories and GPUs are about to be taken.
    Preparing,
    /// These GPUs are the task's.
    Gpus(Vec<String>),
    /// The image is about to be pulled.
    Pulling,
    /// All is there.
    Ready(Resolved),
    /// The gang's nodes have their SSH servers at these ports, by rank.
    PeerPorts(Vec<u16>),
    /// The task need not wait for `go` any more.
    Released,
    /// The command is about to start. It may have started.
    Running,
    /// The command has started.
    Started(Timestamp),
    /// The command is about to be told to end.
    Stopping(Stopping),
    /// The command ended, or never will start.
    Exited(TaskExit),
    /// The log is complete.
    Sealed(u64),
    /// The user should know this.
    Warning(String),
    /// A newer owner's generation; an older one's orders are void.
    Generation(u64),
    /// Everything of the task is about to be removed.
    Forgotten,
}

/// What a spec says that is needed after the spec, which holds secrets, is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    /// The task.
    pub(crate) id: JobId,
    /// The generation of its spec.
    pub(crate) generation: u64,
    /// The job's name.
    pub(crate) job_name: String,
    /// It runs in a container.
    pub(crate) container: bool,
    /// It does not wait for `go`.
    pub(crate) released: bool,
    /// The port of its SSH server as it sees it, if it has one.
    #[serde(default)]
    pub(crate) ssh_port: Option<u16>,
    /// That is a port of the host too: it shares the host's network.
    #[serde(default)]
    pub(crate) on_host_network: bool,
    /// Who may go over the host to it.
    #[serde(default)]
    pub(crate) over_host: Option<WayOverHost>,
}

impl Accepted {
    /// What to keep of a spec.
    pub(crate) fn of(spec: &TaskSpec) -> Accepted {
        Accepted {
            id: spec.id,
            generation: spec.generation,
            job_name: spec.job_name.clone(),
            container: matches!(spec.runtime, Runtime::Docker(_)),
            released: spec.released,
            ssh_port: spec.ssh.as_ref().map(|ssh| ssh.port),
            on_host_network: match &spec.runtime {
                Runtime::Process => true,
                Runtime::Docker(container) => container.network == ContainerNetwork::Host,
            },
            over_host: spec.ssh.as_ref().and_then(|ssh| ssh.over_host.clone()),
        }
    }
}

/// An order to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stopping {
    /// When what is left is killed.
    pub(crate) kill_at: Timestamp,
}

/// A task as its journal tells it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// What the spec said.
    pub(crate) accepted: Accepted,
    /// What the server sees.
    pub(crate) state: TaskState,
    /// It does not wait for `go`.
    pub(crate) released: bool,
    /// The ports of the SSH servers of its gang's nodes, by rank, once they are known.
    pub(crate) peer_ports: Vec<u16>,
    /// It was told to end.
    pub(crate) stopping: Option<Stopping>,
    /// It is about to be removed.
    pub(crate) forgotten: bool,
    /// The boot in which the last step was made.
    pub(crate) boot: String,
}

impl Record {
    /// A task that was just accepted.
    pub(crate) fn new(accepted: Accepted, boot: String) -> Record {
        let state = TaskState {
            id: accepted.id,
            generation: accepted.generation,
            phase: TaskPhase::Accepted,
            pull: None,
            started_at: None,
            exit: None,
            log_end: 0,
            resolved: Resolved::default(),
            warnings: Vec::new(),
            unvisited_millis: None,
        };
        let released = accepted.released;
        Record { accepted, state, released, peer_ports: Vec::new(), stopping: None, forgotten: false, boot }
    }

    /// The task that these lines tell of. None: it was never accepted.
    pub(crate) fn replay(lines: &[Line]) -> Option<Record> {
        let mut record = None;
        for line in lines {
            match (&line.entry, &mut record) {
                (Entry::Accepted(accepted), _) => {
                    record = Some(Record::new(accepted.clone(), line.boot.clone()));
                }
                (_, Some(record)) => record.apply(line),
                (_, None) => return None,
            }
        }
        record
    }

    /// Adds what a line says. A line never takes the task back, except that `Accepted` begins anew.
    pub(crate) fn apply(&mut self, line: &Line) {
        self.boot.clone_from(&line.boot);
        match &line.entry {
            Entry::Accepted(accepted) => *self = Record::new(accepted.clone(), line.boot.clone()),
            Entry::Preparing => self.advance(TaskPhase::Preparing),
            Entry::Gpus(uuids) => self.state.resolved.gpu_uuids.clone_from(uuids),
            Entry::Pulling => {
                self.state.pull.get_or_insert_with(PullProgress::default);
                self.advance(TaskPhase::Pulling);
            }
            Entry::Ready(resolved) => {
                self.state.resolved = resolved.clone();
                self.state.pull = None;
                self.advance(TaskPhase::Ready);
            }
            Entry::PeerPorts(ports) => self.peer_ports.clone_from(ports),
            Entry::Released => self.released = true,
            Entry::Running => self.advance(TaskPhase::Running),
            Entry::Started(at) => self.state.started_at = Some(*at),
            Entry::Stopping(stopping) => {
                self.stopping = Some(*stopping);
                // A task that never ran has nothing to stop; it goes from where it is to its exit.
                if self.state.phase == TaskPhase::Running {
                    self.advance(TaskPhase::Stopping);
                }
            }
            Entry::Exited(exit) => {
                self.state.exit = Some(exit.clone());
                self.state.pull = None;
                self.advance(TaskPhase::Exited);
            }
            Entry::Sealed(log_end) => {
                self.state.log_end = *log_end;
                self.advance(TaskPhase::Sealed);
            }
            Entry::Warning(text) => self.warn(text),
            Entry::Generation(generation) => {
                self.accepted.generation = *generation;
                self.state.generation = *generation;
            }
            Entry::Forgotten => self.forgotten = true,
        }
    }

    /// Adds a warning once, unless there are too many.
    pub(crate) fn warn(&mut self, text: &str) {
        let has_room = self.state.warnings.len() < WARNINGS_LIMIT;
        if has_room && !self.state.warnings.iter().any(|warning| warning == text) {
            self.state.warnings.push(text.to_owned());
        }
    }

    fn advance(&mut self, phase: TaskPhase) {
        self.state.phase = self.state.phase.max(phase);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(entry: Entry) -> Line {
        Line { at: Timestamp::UNIX_EPOCH, boot: "boot".to_owned(), entry }
    }

    fn accepted(generation: u64) -> Entry {
        Entry::Accepted(Accepted {
            id: JobId(uuid::Uuid::nil()),
            generation,
            job_name: "job".to_owned(),
            container: false,
            released: false,
            ssh_port: None,
            on_host_network: true,
            over_host: None,
        })
    }

    #[test]
    fn a_journal_without_acceptance_tells_of_no_task() {
        assert_eq!(Record::replay(&[]), None);
        assert_eq!(Record::replay(&[line(Entry::Preparing)]), None);
    }

    #[test]
    fn a_repeated_step_does_not_take_the_task_back() {
        let entries = [accepted(1), Entry::Preparing, Entry::Running, Entry::Preparing, Entry::Pulling];
        let record = Record::replay(&entries.map(line)).unwrap();
        assert_eq!(record.state.phase, TaskPhase::Running);
    }

    #[test]
    fn warnings_are_told_once_and_not_without_end() {
        let warnings = |text: fn(usize) -> String| {
            let mut entries = vec![line(accepted(1))];
            entries.extend((0..1000).map(|number| line(Entry::Warning(text(number)))));
            Record::replay(&entries).unwrap().state.warnings.len()
        };
        assert_eq!(warnings(|_| "the same".to_owned()), 1);
        assert_eq!(warnings(|number| number.to_string()), WARNINGS_LIMIT);
    }

    #[test]
    fn the_peers_ports_outlive_the_agent() {
        let entries = [accepted(1), Entry::PeerPorts(vec![10022, 40001]), Entry::Released];
        let record = Record::replay(&entries.map(line)).unwrap();
        assert_eq!((record.released, record.peer_ports), (true, vec![10022, 40001]));
    }

    #[test]
    fn a_newer_spec_begins_anew() {
        let entries = [accepted(1), Entry::Preparing, accepted(2)];
        let record = Record::replay(&entries.map(line)).unwrap();
        assert_eq!((record.state.phase, record.state.generation), (TaskPhase::Accepted, 2));
    }

    #[test]
    fn a_stop_before_the_start_is_remembered_but_shows_no_stopping() {
        let stopping = Stopping { kill_at: Timestamp::UNIX_EPOCH };
        let entries = [accepted(1), Entry::Preparing, Entry::Stopping(stopping)];
        let record = Record::replay(&entries.map(line)).unwrap();
        assert_eq!((record.state.phase, record.stopping), (TaskPhase::Preparing, Some(stopping)));
    }
}
