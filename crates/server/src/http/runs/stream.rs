//! The live stream of a run: its statuses and the bytes of its logs over one WebSocket.
//!
//! What a client may rely on is said where the messages are: [`RunStreamMessage`]. A stream is a task of its own
//! that waits for its client, so a slow one delays nobody else, and one that stops reading is cut off.

use std::collections::BTreeMap;
use std::time::Duration;

use api::agent::{LOG_FRAME_HEADER, LOG_FRAME_MAX_PAYLOAD, LogFrame, LogFrameKind};
use api::ids::{JobId, RunId};
use api::runs::RunStreamMessage;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::select_all;
use jiff::{SignedDuration, Timestamp};
use lifecycle::job::Job;
use serde::Deserialize;
use store::projects::ProjectRow;
use tokio::sync::watch;
use tokio::time::Instant;

use super::list::names_of;
use crate::deps::Deps;
use crate::http::auth::ProjectMember;
use crate::http::error::{Error, Result};
use crate::http::run_views::{self, Detail, Shown};
use crate::logs::LogSlice;

/// Log bytes of one message.
const MESSAGE_BYTES: usize = 256 * 1024;

/// The longest silence of the server.
const PING_EVERY: Duration = Duration::from_secs(15);

/// How long a client may take to read one message.
const SEND_TIMEOUT: Duration = Duration::from_mins(1);

/// The shortest time between two looks at the run, however often something changes.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The address's query.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct StreamQuery {
    logs: bool,
    replica: u32,
    job: Option<u32>,
    since: Option<Timestamp>,
    follow: bool,
    from: String,
}

impl Default for StreamQuery {
    fn default() -> Self {
        StreamQuery { logs: true, replica: 0, job: None, since: None, follow: true, from: String::new() }
    }
}

pub async fn stream(
    State(deps): State<Deps>,
    member: ProjectMember,
    Path((_, run_name)): Path<(String, String)>,
    Query(query): Query<StreamQuery>,
    upgrade: std::result::Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let run = store::runs::get_by_name(&deps.db, member.project.id, &run_name).await?;
    let run = run.ok_or_else(|| Error::not_exists("Run not found"))?;
    let upgrade = upgrade.map_err(|_| Error::bad_request("This address speaks WebSocket only"))?;
    let resume = parse_from(&query.from)?;
    let project = member.0.project;
    let stream =
        Stream { deps, project, run_id: run.value.id, query, resume, tails: BTreeMap::new(), shown: None };
    Ok(upgrade.on_upgrade(move |socket| stream.run(socket)))
}

/// Reads `<submission id>:<offset>,…`.
fn parse_from(text: &str) -> Result<BTreeMap<JobId, u64>> {
    let parse = |item: &str| {
        let (id, offset) = item.split_once(':')?;
        Some((id.trim().parse().ok()?, offset.trim().parse().ok()?))
    };
    text.split(',')
        .filter(|item| !item.trim().is_empty())
        .map(|item| {
            parse(item)
                .ok_or_else(|| Error::bad_request(format!("`from`: `{item}` is not `<submission id>:<offset>`")))
        })
        .collect()
}

/// Why a stream ends early: the client is gone, does not read, or the server failed.
#[derive(Debug)]
struct Cut;

type Step<T = ()> = std::result::Result<T, Cut>;

struct Stream {
    deps: Deps,
    project: ProjectRow,
    run_id: RunId,
    query: StreamQuery,
    /// What the client has already.
    resume: BTreeMap<JobId, u64>,
    /// What is read of each job's log, by job number.
    tails: BTreeMap<u32, Tail>,
    /// The versions of the run and its jobs that the client was shown.
    shown: Option<(i64, i64)>,
}

/// What is read of one submission's log.
struct Tail {
    id: JobId,
    /// The next byte to send.
    offset: u64,
    length: watch::Receiver<u64>,
    /// The submission that comes after this one.
    next: Option<JobId>,
}

/// What one look at the run found.
struct Look {
    is_finished: bool,
    /// The run as a message, if it has changed.
    changed: Option<String>,
}

impl Stream {
    async fn run(mut self, mut socket: WebSocket) {
        if self.drive(&mut socket).await.is_ok() {
            _ = tokio::time::timeout(SEND_TIMEOUT, socket.send(Message::Close(None))).await;
        }
    }

    async fn drive(&mut self, socket: &mut WebSocket) -> Step {
        let mut next_ping = Instant::now() + PING_EVERY;
        loop {
            let deps = self.deps.clone();
            // Listens before it looks, so that no change falls between.
            let changed = deps.wake.watchers_bell().notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let looked_at = Instant::now();
            let look = self.look(socket).await?;
            if let Some(text) = look.changed {
                send(socket, Message::Text(text.into())).await?;
            }
            let caught_up = self.send_logs(socket, &mut next_ping, look.is_finished).await?;
            if caught_up && (look.is_finished || !self.query.follow) {
                self.shown = None;
                if let Some(text) = self.look(socket).await?.changed {
                    send(socket, Message::Text(text.into())).await?;
                }
                return send(socket, text_of(&RunStreamMessage::End)?).await;
            }
            if !caught_up {
                continue;
            }
            let news = async {
                tokio::select! {
                    () = changed => {}
                    () = more_bytes(&mut self.tails) => {}
                }
                tokio::time::sleep_until(looked_at + LOOK_EVERY).await;
            };
            wait(socket, news, &mut next_ping).await?;
        }
    }

    /// Looks at the run and its jobs, and follows the submissions that are new.
    async fn look(&mut self, socket: &mut WebSocket) -> Step<Look> {
        let found = self.load().await;
        let Some((run_version, jobs_version, run, jobs)) = found.map_err(|error| self.tell(&error))? else {
            return Err(Cut);
        };
        if self.query.logs {
            self.follow(&jobs, socket).await?;
        }
        let is_finished = run.status.is_finished();
        if self.shown == Some((run_version, jobs_version)) {
            return Ok(Look { is_finished, changed: None });
        }
        self.shown = Some((run_version, jobs_version));
        let names = names_of(&self.deps, &self.project.name, &run).await.map_err(|_| Cut)?;
        let now = self.deps.clock.now();
        let view = run_views::run(now, &Shown::by(&self.deps), &run, &jobs, names, Detail::ALL);
        let message = RunStreamMessage::Run(Box::new(view));
        let changed = serde_json::to_string(&message).map_err(|_| Cut)?;
        Ok(Look { is_finished, changed: Some(changed) })
    }

    async fn load(&self) -> store::Result<Option<(i64, i64, lifecycle::run::Run, Vec<Job>)>> {
        let Some(run) = store::runs::get(&self.deps.db, self.run_id).await? else { return Ok(None) };
        let jobs = store::jobs::list_by_runs(&self.deps.db, &[self.run_id]).await?;
        let sum = jobs.iter().map(|job| job.version).sum();
        Ok(Some((run.version, sum, run.value, jobs.into_iter().map(|job| job.value).collect())))
    }

    fn tell(&self, error: &store::Error) -> Cut {
        tracing::warn!(run.id = %self.run_id, "a live stream was cut: {error}");
        Cut
    }

    /// Begins with the last submission of each job, and notes the later ones.
    async fn follow(&mut self, jobs: &[Job], socket: &mut WebSocket) -> Step {
        let wanted = jobs.iter().filter(|job| {
            job.replica_num == self.query.replica && self.query.job.is_none_or(|number| number == job.job_num)
        });
        let latest: BTreeMap<u32, JobId> = wanted.map(|job| (job.job_num, job.id)).collect();
        for (job_num, id) in latest {
            match self.tails.get_mut(&job_num) {
                Some(tail) => tail.next = (tail.id != id).then_some(id),
                None => self.begin(job_num, id, socket).await?,
            }
        }
        Ok(())
    }

    /// Announces a submission, and begins where the client wants it.
    async fn begin(&mut self, job_num: u32, id: JobId, socket: &mut WebSocket) -> Step {
        let length = self.deps.logs.watch(id);
        let offset = match (self.resume.get(&id), self.query.since) {
            (Some(offset), _) => *offset,
            (None, Some(since)) => {
                let before = since.checked_sub(SignedDuration::from_micros(1)).unwrap_or(Timestamp::MIN);
                self.deps.logs.offset_after(id, before)
            }
            (None, None) => 0,
        };
        self.tails.insert(job_num, Tail { id, offset, length, next: None });
        send(socket, text_of(&RunStreamMessage::Submission { job_num, id })?).await
    }

    /// Sends what is there, one message of each job in turn; false if there is more, or news of the run may wait.
    async fn send_logs(
        &mut self,
        socket: &mut WebSocket,
        next_ping: &mut Instant,
        is_finished: bool,
    ) -> Step<bool> {
        let started = Instant::now();
        loop {
            let mut sent = false;
            let numbers: Vec<u32> = self.tails.keys().copied().collect();
            for job_num in numbers {
                sent |= self.send_one(socket, job_num).await?;
            }
            if !sent {
                return Ok(true);
            }
            ping_if_due(socket, next_ping).await?;
            // Somebody who reads a long log still wants to know what becomes of the run.
            if !is_finished && started.elapsed() > Duration::from_secs(1) {
                return Ok(false);
            }
        }
    }

    /// Sends one message of a job's log, or goes over to its next submission; false if there is nothing to do.
    async fn send_one(&mut self, socket: &mut WebSocket, job_num: u32) -> Step<bool> {
        let Some(tail) = self.tails.get_mut(&job_num) else { return Ok(false) };
        tail.length.mark_unchanged();
        let end = self.deps.logs.end(tail.id).length;
        if end <= tail.offset {
            let Some(next) = tail.next else { return Ok(false) };
            self.begin(job_num, next, socket).await?;
            return Ok(true);
        }
        let (logs, id, offset) = (self.deps.logs.clone(), tail.id, tail.offset);
        let read = tokio::task::spawn_blocking(move || logs.read(id, offset, MESSAGE_BYTES)).await;
        let slice = match read {
            Ok(Ok(slice)) => slice,
            Ok(Err(error)) => {
                tracing::warn!(job.id = %id, "a live stream was cut: its log cannot be read: {error}");
                return Err(Cut);
            }
            Err(_) => return Err(Cut),
        };
        let (message, offset) = frames(job_num, &slice, end);
        tail.offset = offset;
        send(socket, Message::Binary(message)).await?;
        Ok(true)
    }
}

/// A binary message of frames, and the offset after it. Where nothing is stored any more, it tells of the gap.
fn frames(job_num: u32, slice: &LogSlice, end: u64) -> (Bytes, u64) {
    let bytes: usize = slice.chunks.iter().map(|chunk| chunk.bytes.len() + LOG_FRAME_HEADER).sum();
    let mut message = BytesMut::with_capacity(4 + bytes + LOG_FRAME_HEADER);
    message.put_u32(job_num);
    let mut offset = end;
    for chunk in &slice.chunks {
        let mut at = chunk.offset;
        for payload in chunk.bytes.chunks(LOG_FRAME_MAX_PAYLOAD) {
            let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            let frame = LogFrame { kind: LogFrameKind::Data, offset: at, time_micros: chunk.time_micros, length };
            message.put_slice(&frame.encode());
            message.put_slice(payload);
            at += u64::from(length);
        }
        offset = at;
    }
    if slice.chunks.is_empty() {
        let frame = LogFrame { kind: LogFrameKind::Gap, offset: end, time_micros: 0, length: 0 };
        message.put_slice(&frame.encode());
    }
    (message.freeze(), offset)
}

fn text_of(message: &RunStreamMessage) -> Step<Message> {
    serde_json::to_string(message).map(|text| Message::Text(text.into())).map_err(|_| Cut)
}

/// Sends, unless the client does not read.
async fn send(socket: &mut WebSocket, message: Message) -> Step {
    match tokio::time::timeout(SEND_TIMEOUT, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Cut),
    }
}

async fn ping_if_due(socket: &mut WebSocket, next_ping: &mut Instant) -> Step {
    if Instant::now() < *next_ping {
        return Ok(());
    }
    *next_ping = Instant::now() + PING_EVERY;
    send(socket, Message::Ping(Bytes::new())).await
}

/// Waits until one of the logs is longer.
async fn more_bytes(tails: &mut BTreeMap<u32, Tail>) {
    let waits: Vec<_> = tails.values_mut().map(|tail| Box::pin(tail.length.changed())).collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    let (changed, ..) = select_all(waits).await;
    // A log that is gone never changes; the run's end tells when to stop.
    if changed.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for news, pings in between, and notices a client that leaves.
async fn wait(socket: &mut WebSocket, news: impl Future<Output = ()>, next_ping: &mut Instant) -> Step {
    tokio::pin!(news);
    loop {
        tokio::select! {
            () = &mut news => return Ok(()),
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Cut),
                // Clients have nothing to say; the library answers their pings.
                Some(Ok(Message::Text(_) | Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
            },
            () = tokio::time::sleep_until(*next_ping) => ping_if_due(socket, next_ping).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::logs::LogStore;

    const JOB: JobId = JobId(Uuid::from_u128(7));

    fn read_back(message: &Bytes) -> (u32, Vec<(LogFrame, Vec<u8>)>) {
        let job_num = u32::from_be_bytes(message[..4].try_into().unwrap());
        let mut at = 4;
        let mut frames = vec![];
        while at < message.len() {
            let frame = LogFrame::decode(message[at..at + LOG_FRAME_HEADER].try_into().unwrap()).unwrap();
            at += LOG_FRAME_HEADER;
            let end = at + frame.length as usize;
            frames.push((frame, message[at..end].to_vec()));
            at = end;
        }
        (job_num, frames)
    }

    #[test]
    fn a_message_holds_whole_frames_with_their_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogStore::open(folder.path().to_owned()).unwrap();
        logs.append(JOB, 0, 1, b"one ").unwrap();
        logs.append(JOB, 10, 5_000_000, b"two").unwrap();
        let (message, offset) = frames(3, &logs.read(JOB, 1, MESSAGE_BYTES).unwrap(), 13);
        let (job_num, frames) = read_back(&message);
        let frames: Vec<_> = frames.iter().map(|(frame, bytes)| (frame.offset, bytes.as_slice())).collect();
        assert_eq!((job_num, frames, offset), (3, vec![(1, &b"ne "[..]), (10, &b"two"[..])], 13));
    }

    #[test]
    fn what_is_lost_at_the_end_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let logs = LogStore::open(folder.path().to_owned()).unwrap();
        let (message, offset) = frames(0, &logs.read(JOB, 5, MESSAGE_BYTES).unwrap(), 9);
        let (_, frames) = read_back(&message);
        assert_eq!((frames[0].0.kind, frames[0].0.offset, offset), (LogFrameKind::Gap, 9, 9));
    }

    #[test]
    fn offsets_to_resume_at_are_read() {
        let id = Uuid::from_u128(7);
        let parsed = parse_from(&format!("{id}:12, ")).unwrap();
        assert_eq!(parsed, BTreeMap::from([(JOB, 12)]));
        assert!(parse_from("x:1").is_err());
        assert!(parse_from(&id.to_string()).is_err());
    }
}
