//! One kept connection: made, listened to, and made anew whenever it breaks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::{
    AgentEvent, CloudMachine, Hello, HelloRequest, HostInfo, HostNews, PING_INTERVAL_SECS, PROTOCOL_VERSION,
    TaskPhase, TaskState,
};
use api::ids::{InstanceId, JobId};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::leases::{Table, touch};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::absences::Absences;
use super::hosts::JoinStep;
use super::pool::Surroundings;
use super::route::{NoWay, Route, known_keys};
use super::sender::{ORDER_TIMEOUT, Sender, handshake};
use super::{BlobBytes, BlobSeen, Entered, HostSeen, OrderError, TaskSeen, log_pull};

/// How long a blob may take on its way.
const BLOB_TIMEOUT: Duration = Duration::from_mins(5);

/// Files that are sent at the same time, over all connections: each is in memory while it is.
const UPLOADS_AT_ONCE: usize = 16;

static UPLOADS: Semaphore = Semaphore::const_new(UPLOADS_AT_ONCE);

/// The longest line of the event stream, in bytes: a snapshot of all tasks.
const LINE_LIMIT: usize = 16 * 1024 * 1024;

/// The first and the longest delay between two tries to connect.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// A connection that has said nothing for this long is broken.
const SILENCE: Duration = Duration::from_secs(3 * PING_INTERVAL_SECS);

/// A connection to one agent, whether it stands or not.
#[derive(Debug)]
pub(super) struct Connection {
    instance: InstanceId,
    cancel: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How to send orders, while connected.
    sender: Option<Sender>,
    host: Option<Box<HostInfo>>,
    since: Timestamp,
    error: Option<String>,
    is_final: bool,
    /// How far the host is joined, while it is.
    joining: Option<JoinStep>,
    /// The keys that hosts have shown on the way, by address.
    host_keys: BTreeMap<String, String>,
    tasks: HashMap<JobId, TaskState>,
    absences: Absences,
    /// Files that are being sent, and how the last try ended of those that could not be.
    uploading: HashSet<String>,
    unsent: HashMap<String, Result<BlobSeen, OrderError>>,
    /// Tasks whose logs are being read over this connection.
    pulling: HashMap<JobId, CancellationToken>,
}

fn blob_path(sha256: &str) -> String {
    format!("/v1/blobs/{sha256}")
}

impl Connection {
    pub(super) fn new(instance: InstanceId, now: Timestamp, cancel: CancellationToken) -> Connection {
        let state = State {
            sender: None,
            host: None,
            since: now,
            error: None,
            is_final: false,
            joining: None,
            host_keys: BTreeMap::new(),
            tasks: HashMap::new(),
            absences: Absences::default(),
            uploading: HashSet::new(),
            unsent: HashMap::new(),
            pulling: HashMap::new(),
        };
        Connection { instance, cancel, state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding a connection's state")
    }

    pub(super) fn close(&self) {
        self.cancel.cancel();
    }

    pub(super) fn host(&self) -> HostSeen {
        let state = self.state();
        match (&state.sender, &state.host) {
            (Some(_), Some(host)) => HostSeen::Connected(host.clone()),
            _ => HostSeen::Unknown {
                since: Some(state.since),
                error: state.error.clone(),
                is_final: state.is_final,
            },
        }
    }

    pub(super) fn joining(&self) -> Option<JoinStep> {
        self.state().joining
    }

    pub(super) fn host_keys(&self) -> BTreeMap<String, String> {
        self.state().host_keys.clone()
    }

    pub(super) fn task(&self, job: JobId) -> TaskSeen {
        let state = self.state();
        match (&state.sender, state.tasks.get(&job)) {
            (None, _) => TaskSeen::Unknown,
            (Some(_), None) => TaskSeen::Absent,
            (Some(_), Some(task)) => TaskSeen::Known(Box::new(task.clone())),
        }
    }

    pub(super) fn unvisited_since(&self, job: JobId) -> Option<Timestamp> {
        let state = self.state();
        state.sender.as_ref()?;
        state.absences.since(job)
    }

    pub(super) fn tasks(&self) -> Option<Vec<TaskState>> {
        let state = self.state();
        state.sender.as_ref()?;
        Some(state.tasks.values().cloned().collect())
    }

    fn sender(&self) -> Result<Sender, OrderError> {
        let state = self.state();
        state.sender.clone().ok_or_else(|| {
            OrderError::Unreachable(state.error.clone().unwrap_or_else(|| "not connected yet".to_owned()))
        })
    }

    /// Connects to the SSH server of a job.
    pub(super) async fn enter(&self, job: JobId) -> Result<Entered, OrderError> {
        self.sender()?.enter(job).await
    }

    /// Sends an order and waits for its answer.
    pub(super) async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &B,
    ) -> Result<T, OrderError> {
        self.sender()?.send(method, path, body).await
    }

    /// Whether the agent has a file.
    pub(super) async fn blob(&self, sha256: &str) -> Result<BlobSeen, OrderError> {
        let sender = self.sender()?;
        {
            let mut state = self.state();
            if let Some(sent) = state.unsent.remove(sha256) {
                return sent;
            }
            if state.uploading.contains(sha256) {
                return Ok(BlobSeen::OnItsWay);
            }
        }
        let (status, _) = sender.exchange("HEAD", &blob_path(sha256), Bytes::new(), ORDER_TIMEOUT).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(BlobSeen::Missing),
            status if status.is_success() => Ok(BlobSeen::Here),
            status => Err(OrderError::Unreachable(format!("the agent answered {status}, asked for a file"))),
        }
    }

    /// Sends a file, unless somebody does. A file takes long, and nobody waits for it: neither the job's end nor the
    /// orders to others.
    pub(super) fn send_blob(
        self: &Arc<Self>,
        around: &Surroundings,
        job: JobId,
        sha256: String,
        bytes: BlobBytes,
    ) {
        if !self.state().uploading.insert(sha256.clone()) {
            return;
        }
        let (connection, around) = (self.clone(), around.clone());
        tokio::spawn(async move {
            let sent = connection.upload(&sha256, bytes).await;
            {
                let mut state = connection.state();
                state.uploading.remove(&sha256);
                if !matches!(sent, Ok(BlobSeen::Here)) {
                    state.unsent.insert(sha256, sent);
                }
            }
            touch_job(&around, job).await;
        });
    }

    /// Sends a file when its turn has come, and says where it is then.
    async fn upload(&self, sha256: &str, bytes: BlobBytes) -> Result<BlobSeen, OrderError> {
        let _turn = UPLOADS.acquire().await.expect("nobody closes it");
        let sender = self.sender()?;
        let bytes =
            bytes.await.map_err(|error| OrderError::Unreachable(format!("cannot read the file: {error}")))?;
        let Some(bytes) = bytes else { return Ok(BlobSeen::Lost) };
        sender.request("PUT", &blob_path(sha256), bytes.into(), BLOB_TIMEOUT).await?;
        Ok(BlobSeen::Here)
    }

    /// Takes a task's state from the agent, and makes its job due if it says anything new.
    pub(super) fn learn(self: &Arc<Self>, around: &Surroundings, task: TaskState) {
        let job = task.id;
        let news = {
            let mut state = self.state();
            // An order's answer may be older than an event that came before it.
            let older = state
                .tasks
                .get(&job)
                .is_some_and(|known| (task.generation, task.phase) < (known.generation, known.phase));
            if older {
                return;
            }
            let news = state.tasks.get(&job).is_none_or(|known| differs(known, &task));
            let moved = state.absences.note(&task, around.clock.now());
            state.tasks.insert(job, task);
            news || moved
        };
        self.pull_log(around, job);
        if news {
            let around = around.clone();
            tokio::spawn(async move { touch_job(&around, job).await });
        }
    }

    /// Reads a task's log over this connection, unless somebody does.
    fn pull_log(self: &Arc<Self>, around: &Surroundings, job: JobId) {
        let mut state = self.state();
        let Some(sender) = state.sender.clone() else { return };
        let Some(task) = state.tasks.get(&job) else { return };
        let may_have_log = task.phase.has_started();
        let end = around.logs.end(job);
        if !may_have_log || end.complete || state.pulling.contains_key(&job) {
            return;
        }
        let cancel = self.cancel.child_token();
        state.pulling.insert(job, cancel.clone());
        tokio::spawn(log_pull::run(self.clone(), around.clone(), sender, job, cancel));
    }

    /// A log's reader has ended. One that was cancelled has no place any more, and another one may have it.
    pub(super) fn pulled(&self, job: JobId, reader: &CancellationToken) {
        let mut state = self.state();
        if !reader.is_cancelled() {
            state.pulling.remove(&job);
        }
    }

    fn connected(self: &Arc<Self>, around: &Surroundings, sender: Sender, hello: Hello) {
        let tasks: Vec<JobId> = hello.tasks.iter().map(|task| task.id).collect();
        {
            let mut state = self.state();
            state.sender = Some(sender);
            state.host = Some(Box::new(hello.host));
            state.error = None;
            state.is_final = false;
            state.joining = None;
            state.since = around.clock.now();
            state.absences = Absences::default();
            for task in &hello.tasks {
                state.absences.note(task, around.clock.now());
            }
            state.tasks = hello.tasks.into_iter().map(|task| (task.id, task)).collect();
        }
        for job in tasks {
            self.pull_log(around, job);
        }
    }

    /// Remembers the end of a connection, or of a try to make one. Answers whether that is news for people.
    fn disconnected(&self, now: Timestamp, NoWay { error, is_final }: NoWay) -> bool {
        let mut state = self.state();
        let is_news = state.error.as_ref() != Some(&error) || state.is_final != is_final;
        if state.sender.take().is_some() {
            state.since = now;
        }
        state.error = Some(error);
        state.is_final = is_final;
        state.joining = None;
        state.unsent.clear();
        for (_, cancel) in state.pulling.drain() {
            cancel.cancel();
        }
        is_news
    }

    fn apply(self: &Arc<Self>, around: &Surroundings, event: AgentEvent) {
        match event {
            AgentEvent::Ping => {}
            AgentEvent::Task(task) => self.learn(around, *task),
            AgentEvent::Forgotten(job) => self.forget(around, job),
            AgentEvent::Host(news) => self.learn_host(around, *news),
            AgentEvent::Snapshot(tasks) => {
                let is_there = |job: &JobId| tasks.iter().any(|task| task.id == *job);
                {
                    let mut state = self.state();
                    state.tasks.retain(|job, _| is_there(job));
                    state.absences.retain(is_there);
                }
                for task in tasks {
                    self.learn(around, task);
                }
            }
        }
    }
}

impl Connection {
    /// Takes over what has changed of the host, and makes the instance and its jobs due.
    fn learn_host(&self, around: &Surroundings, news: HostNews) {
        {
            let mut state = self.state();
            let Some(host) = &mut state.host else { return };
            let mut changed = host.clone();
            changed.learn(news);
            if changed == *host {
                return;
            }
            *host = changed;
        }
        let (around, instance) = (around.clone(), self.instance);
        tokio::spawn(async move { touch_instance(&around, instance).await });
    }

    /// The agent no longer knows a task: nothing more of its log will come.
    fn forget(self: &Arc<Self>, around: &Surroundings, job: JobId) {
        let task = {
            let mut state = self.state();
            if let Some(reader) = state.pulling.remove(&job) {
                reader.cancel();
            }
            state.absences.forget(job);
            state.tasks.remove(&job)
        };
        let may_have_log = task.is_some_and(|task| task.phase.has_started());
        if !may_have_log || around.logs.end(job).complete {
            return;
        }
        let around = around.clone();
        tokio::spawn(async move {
            if let Err(error) = log_pull::complete(&around, job).await {
                tracing::warn!(job.id = %job, "cannot complete the log of a task that is forgotten: {error}");
            }
        });
    }
}

/// Whether a state says more than that the log grew.
fn differs(known: &TaskState, new: &TaskState) -> bool {
    let sealed = new.phase == TaskPhase::Sealed;
    let log_end = if sealed { new.log_end } else { known.log_end };
    TaskState { log_end, unvisited_millis: known.unvisited_millis, ..new.clone() } != *known
}

/// Makes a job due: there is news of its task, its log or its files.
pub(super) async fn touch_job(around: &Surroundings, job: JobId) {
    if let Err(error) = touch(&around.db, Table::Jobs, job.0, around.clock.now()).await {
        tracing::warn!(job.id = %job, "cannot make the job due, it is looked at later: {error}");
    }
    around.wake.ring(Table::Jobs);
}

/// Makes the instance and its jobs due: its agent came or went.
pub(super) async fn touch_instance(around: &Surroundings, instance: InstanceId) {
    let now = around.clock.now();
    let touched = async {
        touch(&around.db, Table::Instances, instance.0, now).await?;
        store::jobs::touch_by_instance(&around.db, instance, now).await
    };
    if let Err(error) = touched.await {
        tracing::warn!(instance.id = %instance, "cannot make the instance due, it is looked at later: {error}");
    }
    around.wake.ring(Table::Instances);
    around.wake.ring(Table::Jobs);
}

/// Connects, listens, and connects again, until the connection is closed.
pub(super) async fn keep(connection: Arc<Connection>, around: Surroundings, mut route: Route) {
    let mut delay = FIRST_DELAY;
    loop {
        let (was_connected, is_news) = tokio::select! {
            () = connection.cancel.cancelled() => break,
            end = once(&connection, &around, &mut route) => {
                let was_connected = matches!(connection.host(), HostSeen::Connected(_));
                let error = &end.error;
                tracing::debug!(instance.id = %connection.instance, "no connection to the agent: {error}");
                (was_connected, connection.disconnected(around.clock.now(), end))
            }
        };
        if was_connected {
            delay = FIRST_DELAY;
        }
        // People wait for what becomes of a machine of their own.
        if was_connected || (is_news && route.host().is_some()) {
            touch_instance(&around, connection.instance).await;
        }
        let jitter = Duration::from_millis(u64::from(around.ids.below(50)));
        tokio::select! {
            () = connection.cancel.cancelled() => break,
            () = tokio::time::sleep(delay + jitter) => {}
        }
        delay = (delay * 2).min(LONGEST_DELAY);
    }
    let closed = NoWay { error: "the connection was closed".to_owned(), is_final: false };
    connection.disconnected(around.clock.now(), closed);
}

/// One connection, from the way to it to its end.
async fn once(connection: &Arc<Connection>, around: &Surroundings, route: &mut Route) -> NoWay {
    let told = |step: JoinStep| {
        connection.state().joining = Some(step);
        around.wake.tell_watchers();
    };
    let stream = match route.open(&around.agent_program, &around.clock, &told).await {
        Ok(stream) => stream,
        Err(no_way) => return no_way,
    };
    if let Some(access) = route.host() {
        connection.state().host_keys = known_keys(&access.target);
    }
    match listen(connection, around, route, stream).await {
        Ok(()) => anyhow::anyhow!("the agent closed the connection").into(),
        Err(error) => error.into(),
    }
}

/// Whether an agent has seen a server of this installation that started later: this one runs on a copy of the
/// database, or on one that was put back.
fn is_superseded_by(error: &OrderError) -> bool {
    matches!(error, OrderError::Refused(refusal) if refusal.code == api::agent::AgentErrorCode::Fenced)
}

/// Asks the agent of a machine once for its tasks. Nothing is changed there, but that the agent learns of this server.
/// None: there is no agent.
pub(super) async fn visit(around: &Surroundings, mut route: Route) -> anyhow::Result<Option<Vec<TaskState>>> {
    let opened = route.visit(&around.clock).await.map_err(|no_way| anyhow::anyhow!(no_way.error))?;
    let Some(stream) = opened else { return Ok(None) };
    let (_, hello) = greet(around, &route, stream).await?;
    Ok(Some(hello.tasks))
}

/// Says who we are and hears who answers.
async fn greet<S>(around: &Surroundings, route: &Route, stream: S) -> anyhow::Result<(Sender, Hello)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let sender = handshake(stream, around.epoch).await?;
    let request = HelloRequest { server_id: around.server_id, epoch: around.epoch, protocol: PROTOCOL_VERSION };
    let answered: Result<Hello, OrderError> = sender.send("POST", "/v1/hello", &request).await;
    let hello = answered.inspect_err(|error| {
        if is_superseded_by(error) {
            around.superseded.store(true, Ordering::Relaxed);
        }
    })?;
    check_machine(route, hello.host.cloud.as_ref())?;
    Ok((sender, hello))
}

async fn listen<S>(
    connection: &Arc<Connection>,
    around: &Surroundings,
    route: &Route,
    stream: S,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, hello) = greet(around, route, stream).await?;
    if let Some(why) = route.lacks_docker(&hello.host) {
        anyhow::bail!(why);
    }
    let mut events = Events { stream: sender.stream("/v1/events").await?, buffer: BytesMut::new() };
    // Orders are given only after the snapshot: a task that is given before it is read would be missing in it, and
    // what an agent does not know that it should is taken for lost.
    let Some(AgentEvent::Snapshot(tasks)) = events.next().await? else {
        anyhow::bail!("the agent did not begin with a snapshot");
    };
    connection.connected(around, sender, Hello { tasks, ..hello });
    touch_instance(around, connection.instance).await;
    while let Some(event) = events.next().await? {
        if let AgentEvent::Host(news) = &event {
            check_machine(route, news.cloud.as_ref())?;
        }
        connection.apply(around, event);
    }
    Ok(())
}

/// Refuses the agent of another machine than the one that was bought: addresses are used again.
fn check_machine(route: &Route, told: Option<&CloudMachine>) -> anyhow::Result<()> {
    route.stranger(told).map_or(Ok(()), |error| Err(anyhow::anyhow!(error)))
}

/// The events of one connection.
struct Events {
    stream: Incoming,
    buffer: BytesMut,
}

impl Events {
    /// The next event; none when the stream ends. An error when it falls silent.
    async fn next(&mut self) -> anyhow::Result<Option<AgentEvent>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(serde_json::from_slice(&self.buffer.split_to(end + 1))?));
            }
            anyhow::ensure!(
                self.buffer.len() <= LINE_LIMIT,
                "the agent sent a line of more than {LINE_LIMIT} bytes"
            );
            let frame = tokio::time::timeout(SILENCE, self.stream.frame()).await;
            let Ok(frame) = frame else { anyhow::bail!("the agent has been silent for {} s", SILENCE.as_secs()) };
            let Some(frame) = frame else { return Ok(None) };
            if let Ok(data) = frame?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

#[cfg(test)]
mod tests;
