//! One task: an actor with a mailbox. Requests, the launch and the supervisor send it messages; after each it
//! takes the steps that [`decide`] names, journaling every one before its effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::agent::{
    AgentError, AgentErrorCode, GoOrder, LogAck, StopOrder, TaskOrder, TaskPhase, TaskSpec, TaskState,
};
use api::ids::JobId;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock;
use crate::failpoint::failpoint;
use crate::host::decide::{Seen, decide};
use crate::host::journal::Journal;
use crate::host::log_reader;
use crate::host::record::{Accepted, Entry, Line, Record, Stopping};
use crate::host::runtime::{self, Failure, Gone, Progress};
use crate::host::state::{Host, refuse};
use crate::host::task_dir::TaskDir;
use crate::wire::{JobStatus, Order};

/// How many messages may wait for a task.
const MAILBOX: usize = 64;
/// How long a launch that was told to give up may take.
const LAUNCH_END_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest grace that is believed, so that times can be added.
const LONGEST_GRACE_SECS: u64 = 30 * 24 * 3600;

/// The most nodes that a gang may have.
const NODES_LIMIT: usize = 10_000;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, AgentError>>;

/// What a task may be told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The server wants this.
    Put(Box<TaskSpec>, Reply<TaskState>),
    /// The command may start.
    Go(GoOrder, Reply<TaskState>),
    /// The command is to end.
    Stop(StopOrder, Reply<TaskState>),
    /// The server has all it wants.
    Forget(TaskOrder, Reply<()>),
    /// Something happened to an attempt to run the task.
    News(u64, News),
    /// The time to end in is over and more.
    Overdue,
    /// Try again what a full disk prevented.
    Retry,
}

/// What a launch or a supervisor has to tell.
#[derive(Debug)]
pub(crate) enum News {
    /// The launch came to its end.
    Launched(Result<(), Failure>),
    /// The launch goes on.
    Progress(Progress),
    /// The supervisor listens.
    Connected,
    /// The supervisor said this.
    Status(Box<JobStatus>),
    /// The supervisor is gone without a last word.
    Gone(Gone),
}

/// How far a task's log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LogMark {
    /// The log's length as far as it is known.
    pub(crate) end: u64,
    /// It will not grow any more.
    pub(crate) sealed: bool,
}

/// What others hold of a task.
#[derive(Debug)]
pub(crate) struct TaskHandle {
    /// The task.
    pub(crate) id: JobId,
    /// Its folder.
    pub(crate) dir: TaskDir,
    /// How far its log is.
    pub(crate) log: watch::Sender<LogMark>,
    /// What the server has of it.
    pub(crate) acked: watch::Sender<u64>,
    /// Grows with each change.
    pub(crate) version: AtomicU64,
    mailbox: mpsc::Sender<Message>,
    state: watch::Sender<Option<TaskState>>,
    /// Since when nobody has been in it, as far as that is known.
    unvisited_since: watch::Sender<Option<Instant>>,
}

impl TaskHandle {
    /// Its state, once it is accepted.
    pub(crate) fn snapshot(&self) -> Option<TaskState> {
        let mut state = self.state.borrow().clone()?;
        state.log_end = state.log_end.max(self.log.borrow().end);
        let now = clock::monotonic();
        let unvisited = self.unvisited_since.borrow().filter(|_| state.exit.is_none());
        state.unvisited_millis = unvisited.map(|since| now.saturating_duration_since(since).as_millis() as u64);
        Some(state)
    }

    /// Whether it is at its end.
    pub(crate) fn is_sealed(&self) -> bool {
        self.state.borrow().as_ref().is_some_and(|state| state.phase == TaskPhase::Sealed)
    }

    /// Sends a message; answers whether the task still listens.
    pub(crate) async fn tell(&self, message: Message) -> bool {
        self.mailbox.send(message).await.is_ok()
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Message) -> Result<T, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.tell(request(reply)).await;
        answer.await.unwrap_or_else(|_| {
            Err(refuse(AgentErrorCode::UnknownTask, format!("there is no task {} now", self.id)))
        })
    }

    /// Takes note that the log is at least this long.
    pub(crate) fn log_grew(&self, end: u64) {
        self.log.send_if_modified(|mark| {
            let grew = mark.end < end && !mark.sealed;
            if grew {
                mark.end = end;
            }
            grew
        });
    }

    /// Takes note of what the server has, and removes what nobody needs any more.
    pub(crate) async fn acknowledge(&self, ack: &LogAck) {
        failpoint("ack:before");
        let offset = ack.offset;
        self.acked.send_if_modified(|acked| {
            let is_news = *acked < offset;
            *acked = offset.max(*acked);
            is_news
        });
        let logs = self.dir.logs();
        // Removing may wait for the disk.
        let removal = move || log_reader::remove_acknowledged(&logs, offset);
        let _ = tokio::task::spawn_blocking(removal).await;
        failpoint("ack:after");
    }
}

/// The actor.
pub(crate) struct Task {
    pub(super) host: Arc<Host>,
    pub(super) handle: Arc<TaskHandle>,
    pub(super) journal: Option<Journal>,
    pub(super) record: Option<Record>,
    pub(super) spec: Option<TaskSpec>,
    pub(super) seen: Seen,
    /// Grows with each launch.
    pub(super) attempt: u64,
    pub(super) cancel: CancellationToken,
    pub(super) launching: Option<JoinHandle<()>>,
    pub(super) orders: Option<mpsc::Sender<Order>>,
    /// The end that is watched for.
    pub(super) watched_end: Option<Timestamp>,
}

/// Whether the actor goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    End,
}

/// A task that is yet to be accepted; it runs until it is refused or forgotten.
pub(crate) fn spawn_new(host: &Arc<Host>, id: JobId) -> Arc<TaskHandle> {
    spawn(host, id, None)
}

/// A task as its journal tells it; it goes on where it was.
pub(crate) fn spawn_known(host: &Arc<Host>, journal: Journal, record: Record) -> Arc<TaskHandle> {
    spawn(host, record.state.id, Some((journal, record)))
}

fn spawn(host: &Arc<Host>, id: JobId, known: Option<(Journal, Record)>) -> Arc<TaskHandle> {
    let (mailbox, messages) = mpsc::channel(MAILBOX);
    let dir = TaskDir::new(&host.tasks_dir(), id);
    let mark = known.as_ref().map_or_else(LogMark::default, |(_, record)| LogMark {
        end: record.state.log_end.max(log_reader::end_on_disk(&dir.logs())),
        sealed: record.state.phase == TaskPhase::Sealed,
    });
    if let Some((_, record)) = &known {
        host.ways.note(record);
    }
    let state = known.as_ref().map(|(_, record)| record.state.clone());
    let handle = Arc::new(TaskHandle {
        id,
        dir,
        log: watch::Sender::new(mark),
        acked: watch::Sender::new(0),
        version: AtomicU64::new(1),
        mailbox,
        state: watch::Sender::new(state),
        unvisited_since: watch::Sender::new(None),
    });
    let (journal, record) = known.unzip();
    let task = Task {
        host: host.clone(),
        handle: handle.clone(),
        journal,
        record,
        spec: None,
        seen: Seen::default(),
        attempt: 0,
        cancel: CancellationToken::new(),
        launching: None,
        orders: None,
        watched_end: None,
    };
    tokio::spawn(task.run(messages));
    handle
}

impl Task {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        if self.record.is_some() {
            self.converge().await;
        }
        while let Some(message) = messages.recv().await {
            if self.receive(message).await == Next::End {
                break;
            }
            self.converge().await;
        }
        self.host.drop_task(&self.handle);
    }

    async fn receive(&mut self, message: Message) -> Next {
        match message {
            Message::Put(spec, reply) => {
                let answer = self.put(*spec).await;
                let is_refused = answer.is_err() && self.record.is_none();
                let _ = reply.send(answer);
                if is_refused {
                    return Next::End;
                }
            }
            Message::Go(order, reply) => self.answer(reply, |task| task.go(&order)).await,
            Message::Stop(order, reply) => self.answer(reply, |task| task.stop(&order)).await,
            Message::Forget(order, reply) => {
                let answer = self.forget(&order).await;
                let is_gone = answer.is_ok();
                if is_gone {
                    self.host.drop_task(&self.handle);
                }
                let _ = reply.send(answer);
                if is_gone {
                    return Next::End;
                }
            }
            // News of an earlier attempt mean nothing to this one.
            Message::News(attempt, news) if attempt == self.attempt => self.note_news(news),
            Message::News(..) | Message::Retry => {}
            // Where that fails, the supervisor may still end by itself while it is tried again.
            Message::Overdue => {
                let stopping = self.record.as_ref().and_then(|record| record.stopping);
                let is_due = stopping.is_some_and(|stopping| stopping.kill_at <= clock::now());
                if is_due && !self.handle.is_sealed() && !self.destroy().await {
                    self.tell_later(Message::Overdue);
                }
            }
        }
        Next::Continue
    }

    /// Takes the step of a request, then answers with the state after it.
    async fn answer(&mut self, reply: Reply<TaskState>, step: impl FnOnce(&mut Task) -> Result<(), AgentError>) {
        let result = step(self);
        if result.is_ok() {
            self.converge().await;
        }
        let _ = reply.send(result.and_then(|()| self.current()));
    }

    async fn put(&mut self, spec: TaskSpec) -> Result<TaskState, AgentError> {
        if let Some(record) = &self.record {
            let known = record.state.generation;
            if spec.generation < known {
                return Err(older(spec.generation, known));
            }
            if spec.generation == known {
                return self.current();
            }
            if record.state.phase.has_started() || record.state.exit.is_some() {
                // What has started is not started again; only the older owner's orders are void now.
                self.note(Entry::Generation(spec.generation))?;
                self.publish();
                return self.current();
            }
            self.reset().await?;
        } else if let Some(buried) = self.host.tombstone(spec.id)
            && spec.generation <= buried
        {
            let message = format!("the task {} was forgotten", spec.id);
            return Err(refuse(AgentErrorCode::Fenced, message));
        }
        if let Some(blob) = self.host.missing_blob(&spec) {
            let message = format!("the blob {blob} is not here");
            return Err(refuse(AgentErrorCode::InvalidRequest, message));
        }
        self.accept(spec)?;
        self.converge().await;
        self.current()
    }

    /// Makes the task durable, or leaves nothing of it.
    fn accept(&mut self, spec: TaskSpec) -> Result<(), AgentError> {
        let is_new = self.record.is_none();
        self.try_accept(&spec).map_err(|error| {
            if is_new {
                self.journal = None;
                let _ = self.handle.dir.remove();
            }
            let message = format!("the host cannot keep the task: {error}");
            warn!(task.id = %spec.id, "{message}");
            refuse(AgentErrorCode::Internal, message)
        })?;
        info!(task.id = %spec.id, "accepted `{}`, generation {}", spec.job_name, spec.generation);
        self.spec = Some(spec);
        Ok(())
    }

    fn try_accept(&mut self, spec: &TaskSpec) -> std::io::Result<()> {
        failpoint("accepted:before");
        let dir = self.handle.dir.clone();
        dir.write_spec(spec)?;
        failpoint("accepted:spec-written");
        if self.journal.is_none() {
            let (journal, _) = Journal::open(&dir.journal())?;
            journal.reserve()?;
            crate::disk::sync_parent(dir.root())?;
            self.journal = Some(journal);
        }
        let line = self.line(Entry::Accepted(Accepted::of(spec)));
        let journal = self.journal.as_mut().ok_or_else(|| std::io::Error::other("no journal"))?;
        journal.append(&line)?;
        let Entry::Accepted(accepted) = line.entry else {
            return Ok(());
        };
        self.record = Some(Record::new(accepted, line.boot));
        failpoint("accepted:after");
        Ok(())
    }

    /// Takes everything of an older spec back, before its command has started. Where that fails, the older spec goes on.
    async fn reset(&mut self) -> Result<(), AgentError> {
        self.cancel.cancel();
        self.orders = None;
        self.watched_end = None;
        self.attempt += 1;
        if let Some(mut launching) = self.launching.take()
            && tokio::time::timeout(LAUNCH_END_TIMEOUT, &mut launching).await.is_err()
        {
            launching.abort();
        }
        self.seen = Seen::default();
        self.cancel = CancellationToken::new();
        if !self.destroy().await {
            // What still waits for `go` would be taken for the newer one's.
            return Err(refuse(AgentErrorCode::Internal, "the older generation cannot be ended yet"));
        }
        let is_container = self.record.as_ref().is_some_and(|record| record.accepted.container);
        if let Err(error) = runtime::remove(&self.host, self.handle.id, is_container).await {
            // The next launch finds it, and tries again.
            warn!(task.id = %self.handle.id, "cannot remove the older container: {error}");
        }
        self.host.gpus.release(self.handle.id);
        let _ = self.handle.dir.clear();
        Ok(())
    }

    fn go(&mut self, order: &GoOrder) -> Result<(), AgentError> {
        let record = self.check_generation(order.generation)?;
        if record.released || record.state.exit.is_some() {
            return Ok(());
        }
        if order.ssh_ports.len() > NODES_LIMIT {
            let message = format!("a gang has at most {NODES_LIMIT} nodes");
            return Err(refuse(AgentErrorCode::InvalidRequest, message));
        }
        if !order.ssh_ports.is_empty() && record.peer_ports != order.ssh_ports {
            self.note(Entry::PeerPorts(order.ssh_ports.clone()))?;
        }
        self.note(Entry::Released)
    }

    fn stop(&mut self, order: &StopOrder) -> Result<(), AgentError> {
        let record = self.check_generation(order.generation)?;
        if record.state.exit.is_some() {
            return Ok(());
        }
        let grace = Duration::from_secs(order.grace_secs.min(LONGEST_GRACE_SECS));
        let kill_at = clock::now() + grace;
        let is_later = record.stopping.is_some_and(|stopping| stopping.kill_at <= kill_at);
        if is_later {
            return Ok(());
        }
        info!(task.id = %self.handle.id, "stopping with a grace of {} s", order.grace_secs);
        failpoint("stopping:before");
        self.note_anyway(Entry::Stopping(Stopping { kill_at }));
        failpoint("stopping:after");
        Ok(())
    }

    async fn forget(&mut self, order: &TaskOrder) -> Result<(), AgentError> {
        let record = self.check_generation(order.generation)?;
        let accepted = record.accepted.clone();
        if record.state.phase != TaskPhase::Sealed {
            let message = format!("the task {} has not ended", self.handle.id);
            return Err(refuse(AgentErrorCode::WrongPhase, message));
        }
        failpoint("forgotten:before");
        self.note_anyway(Entry::Forgotten);
        failpoint("forgotten:after");
        let removed = finish_forgetting(&self.host, &self.handle.dir, &accepted);
        removed.await.map_err(|error| refuse(AgentErrorCode::Internal, error.to_string()))?;
        failpoint("forgotten:removed");
        info!(task.id = %self.handle.id, "forgotten");
        Ok(())
    }

    fn check_generation(&self, generation: u64) -> Result<&Record, AgentError> {
        let unknown = || refuse(AgentErrorCode::UnknownTask, "the task was not accepted");
        let record = self.record.as_ref().ok_or_else(unknown)?;
        if generation < record.state.generation {
            Err(older(generation, record.state.generation))
        } else {
            Ok(record)
        }
    }

    /// Takes steps until there is nothing to do but wait.
    async fn converge(&mut self) {
        while let Some(record) = &self.record {
            let step = decide(record, &self.seen, clock::now(), &self.host.boot_id);
            if !self.take(step).await {
                break;
            }
        }
        self.watch_end();
        self.publish();
    }

    /// Shows the state to who listens.
    pub(super) fn publish(&self) {
        let Some(record) = &self.record else {
            return;
        };
        let is_news = self.handle.state.borrow().as_ref() != Some(&record.state);
        if is_news {
            self.host.ways.note(record);
            self.handle.state.send_replace(Some(record.state.clone()));
            self.handle.version.fetch_add(1, Ordering::AcqRel);
            self.host.note_change();
        }
    }

    /// Takes note of since when nobody has been in the job.
    pub(super) fn note_visits(&self, unvisited_millis: Option<u64>) {
        let now = clock::monotonic();
        // What is longer than the clock runs is no claim to believe.
        let since = unvisited_millis.map(|millis| now.checked_sub(Duration::from_millis(millis)).unwrap_or(now));
        if self.handle.unvisited_since.send_replace(since) != since {
            self.handle.version.fetch_add(1, Ordering::AcqRel);
            self.host.note_change();
        }
    }

    fn current(&self) -> Result<TaskState, AgentError> {
        self.publish();
        let none = || refuse(AgentErrorCode::UnknownTask, "the task was not accepted");
        self.handle.snapshot().ok_or_else(none)
    }

    pub(super) fn line(&self, entry: Entry) -> Line {
        Line { at: clock::now(), boot: self.host.boot_id.clone(), entry }
    }

    /// Journals an entry whose effect must not come without it.
    pub(super) fn note(&mut self, entry: Entry) -> Result<(), AgentError> {
        let line = self.line(entry);
        let (Some(journal), Some(record)) = (&mut self.journal, &mut self.record) else {
            return Err(refuse(AgentErrorCode::UnknownTask, "the task was not accepted"));
        };
        match journal.append(&line) {
            Ok(()) => {
                record.apply(&line);
                Ok(())
            }
            Err(error) => {
                let message = format!("the host cannot write its journal: {error}");
                record.warn(&message);
                Err(refuse(AgentErrorCode::Internal, message))
            }
        }
    }

    /// Journals an entry that is safe to lose: after a crash the same would be found out again.
    pub(super) fn note_anyway(&mut self, entry: Entry) {
        if self.note(entry.clone()).is_ok() {
            return;
        }
        let line = self.line(entry);
        if let (Some(journal), Some(record)) = (&mut self.journal, &mut self.record) {
            journal.postpone(&line);
            record.apply(&line);
        }
    }

    /// Ends everything of the task at once; answers whether nothing of it runs any more.
    pub(super) async fn destroy(&mut self) -> bool {
        let container = self.record.as_ref().is_some_and(|record| record.accepted.container);
        let (host, handle) = (&self.host, &self.handle);
        match runtime::destroy(host, &handle.dir, handle.id, container).await {
            Ok(warnings) => {
                for warning in warnings {
                    self.note_anyway(Entry::Warning(warning));
                }
                true
            }
            Err(error) => {
                warn!(task.id = %handle.id, "{error}");
                false
            }
        }
    }
}

/// Removes what is left of a task whose journal says `Forgotten`.
pub(crate) async fn finish_forgetting(host: &Host, dir: &TaskDir, accepted: &Accepted) -> std::io::Result<()> {
    host.bury(accepted.id, accepted.generation)?;
    let removed = runtime::remove(host, accepted.id, accepted.container).await;
    removed.map_err(|error| std::io::Error::other(format!("the task's container cannot be removed: {error}")))?;
    let (dir, aside) = (dir.clone(), host.aside_dir());
    tokio::task::spawn_blocking(move || dir.remove_or_set_aside(&aside)).await.map_err(std::io::Error::other)?
}

fn older(generation: u64, known: u64) -> AgentError {
    let message = format!("generation {generation} is older than {known}");
    refuse(AgentErrorCode::Fenced, message)
}
