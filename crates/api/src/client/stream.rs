//! A run's live stream: statuses and log bytes over one WebSocket, resumed where it was cut.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::poll::Poller;
use super::socket::{self, Socket};
use super::{Client, ClientError};
use crate::agent::{LOG_FRAME_HEADER, LogFrame, LogFrameKind};
use crate::ids::JobId;
use crate::runs::{Run, RunStreamMessage};

/// Events that wait for the caller at most; the connection is not read meanwhile.
const QUEUE_LENGTH: usize = 64;

/// The longest message: 1 MiB of frames and what JSON a run of many nodes takes.
const MESSAGE_LIMIT: usize = 64 * 1024 * 1024;

/// The first pause before a new connection; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause before a new connection.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A server that stays away for longer than this ends the stream.
const AWAY_LIMIT: Duration = Duration::from_mins(5);

/// A server that says nothing for longer than this, pings included, is away.
const SILENCE_LIMIT: Duration = Duration::from_secs(45);

/// Which part of a run's stream is wanted.
#[derive(Debug, Clone)]
pub struct RunStreamOptions {
    /// Log bytes too.
    pub logs: bool,
    /// The replica whose logs are wanted.
    pub replica: u32,
    /// Only the logs of this job of the replica.
    pub job: Option<u32>,
    /// Only logs written at or after this time.
    pub since: Option<Timestamp>,
    /// Go on until the run is finished.
    pub follow: bool,
}

/// What comes out of a stream.
#[derive(Debug)]
pub enum RunStreamEvent {
    /// The run changed.
    Run(Box<Run>),
    /// The log of another submission begins.
    Submission {
        /// The job's number.
        job_num: u32,
        /// The submission.
        id: JobId,
    },
    /// Bytes of a job's log, in order and without gaps unless one is announced.
    Log {
        /// The job's number.
        job_num: u32,
        /// The bytes; never empty.
        bytes: Bytes,
    },
    /// So many bytes of a job's log are lost.
    Gap {
        /// The job's number.
        job_num: u32,
        /// How many.
        bytes: u64,
    },
    /// The connection is lost; the stream goes on by itself once there is a new one.
    Disconnected,
    /// There is a connection again.
    Reconnected,
}

/// A run's live stream. Dropping it closes the connection.
#[derive(Debug)]
pub struct RunStream {
    events: mpsc::Receiver<Result<RunStreamEvent, ClientError>>,
    reader: JoinHandle<()>,
}

impl Drop for RunStream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl RunStream {
    /// Connects; errors of the first connection are answered at once. A server without streams is asked again and
    /// again instead.
    pub async fn open(
        client: &Client,
        project: &str,
        run: &str,
        options: RunStreamOptions,
    ) -> Result<RunStream, ClientError> {
        let reader = Reader {
            client: client.clone(),
            path: format!("/api/project/{}/runs/{}/stream", super::escape(project), super::escape(run)),
            options,
            offsets: BTreeMap::new(),
            current: BTreeMap::new(),
        };
        let (sender, events) = mpsc::channel(QUEUE_LENGTH);
        let reader = match reader.connect().await {
            Ok(socket) => tokio::spawn(reader.read(socket, sender)),
            Err(ClientError::NotFound { .. } | ClientError::MethodNotAllowed { .. }) => {
                let poller = Poller {
                    client: client.clone(),
                    project: project.to_owned(),
                    run_name: run.to_owned(),
                    options: reader.options,
                    positions: BTreeMap::new(),
                };
                tokio::spawn(poller.poll(sender))
            }
            Err(error) => return Err(error),
        };
        Ok(RunStream { events, reader })
    }

    /// The next event; none after the end. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Result<RunStreamEvent, ClientError>> {
        self.events.recv().await
    }

    /// Whether the next event is there already.
    pub fn has_next(&self) -> bool {
        !self.events.is_empty()
    }
}

pub(super) type Sender = mpsc::Sender<Result<RunStreamEvent, ClientError>>;

/// Why a socket is read no more.
enum Outcome {
    /// The server said that nothing more comes, or nobody listens.
    Over,
    /// The connection broke.
    Cut(ClientError),
}

struct Reader {
    client: Client,
    path: String,
    options: RunStreamOptions,
    /// Where the log of each submission goes on.
    offsets: BTreeMap<JobId, u64>,
    /// The submission that the bytes of each job belong to.
    current: BTreeMap<u32, JobId>,
}

impl Reader {
    async fn read(mut self, mut socket: Socket, sender: Sender) {
        loop {
            let error = match self.read_socket(&mut socket, &sender).await {
                Outcome::Over => return,
                Outcome::Cut(error) => error,
            };
            if !error.is_transient() {
                let _ = sender.send(Err(error)).await;
                return;
            }
            if sender.send(Ok(RunStreamEvent::Disconnected)).await.is_err() {
                return;
            }
            socket = match self.reconnect().await {
                Ok(socket) => socket,
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            if sender.send(Ok(RunStreamEvent::Reconnected)).await.is_err() {
                return;
            }
        }
    }

    async fn read_socket(&mut self, socket: &mut Socket, sender: &Sender) -> Outcome {
        loop {
            let message = match tokio::time::timeout(SILENCE_LIMIT, socket.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Outcome::Cut(self.interrupted(error)),
                Ok(None) => return Outcome::Cut(self.interrupted("the connection was closed")),
                Err(_) => return Outcome::Cut(self.interrupted("the server fell silent")),
            };
            let events = match message {
                Message::Text(text) => match serde_json::from_str(&text) {
                    Ok(RunStreamMessage::End) => return Outcome::Over,
                    Ok(message) => self.read_message(message),
                    Err(error) => return Outcome::Cut(self.incomprehensible(error)),
                },
                Message::Binary(bytes) => match self.read_frames(&bytes) {
                    Some(events) => events,
                    None => return Outcome::Cut(self.incomprehensible("a log frame is broken")),
                },
                Message::Close(_) => return Outcome::Cut(self.interrupted("the server closed the connection")),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            for event in events {
                if sender.send(Ok(event)).await.is_err() {
                    return Outcome::Over;
                }
            }
        }
    }

    fn read_message(&mut self, message: RunStreamMessage) -> Vec<RunStreamEvent> {
        match message {
            RunStreamMessage::Run(run) => vec![RunStreamEvent::Run(run)],
            RunStreamMessage::Submission { job_num, id } => {
                let known = self.current.insert(job_num, id) == Some(id);
                if known { Vec::new() } else { vec![RunStreamEvent::Submission { job_num, id }] }
            }
            RunStreamMessage::End => Vec::new(),
        }
    }

    /// Takes a binary message apart. None: it is broken.
    fn read_frames(&mut self, message: &Bytes) -> Option<Vec<RunStreamEvent>> {
        let job_num = u32::from_be_bytes(*message.first_chunk::<4>()?);
        let submission = *self.current.get(&job_num)?;
        let mut at = 4;
        let mut events = Vec::new();
        while at < message.len() {
            let frame = LogFrame::decode(message.get(at..)?.first_chunk::<LOG_FRAME_HEADER>()?)?;
            at += LOG_FRAME_HEADER;
            let end = at + frame.length as usize;
            let payload = (end <= message.len()).then(|| message.slice(at..end))?;
            at = end;
            self.read_frame(job_num, submission, frame, &payload, &mut events);
        }
        Some(events)
    }

    fn read_frame(
        &mut self,
        job_num: u32,
        submission: JobId,
        frame: LogFrame,
        payload: &Bytes,
        events: &mut Vec<RunStreamEvent>,
    ) {
        // With a time to start at, only the server knows which offset that is.
        let start = if self.options.since.is_some() { frame.offset } else { 0 };
        let position = self.offsets.entry(submission).or_insert(start);
        if *position < frame.offset {
            events.push(RunStreamEvent::Gap { job_num, bytes: frame.offset - *position });
            *position = frame.offset;
        }
        let seen = usize::try_from(*position - frame.offset).unwrap_or(usize::MAX);
        if frame.kind == LogFrameKind::Data && seen < payload.len() {
            let bytes = payload.slice(seen..);
            *position += bytes.len() as u64;
            events.push(RunStreamEvent::Log { job_num, bytes });
        }
    }

    async fn reconnect(&self) -> Result<Socket, ClientError> {
        let deadline = Instant::now() + AWAY_LIMIT;
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            match self.connect().await {
                Ok(socket) => return Ok(socket),
                Err(error) if !error.is_transient() || deadline < Instant::now() => return Err(error),
                Err(_) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    async fn connect(&self) -> Result<Socket, ClientError> {
        socket::open(&self.client, &self.path, &self.query(), MESSAGE_LIMIT, ClientError::of_answer)
            .await
            .map(|(socket, _)| socket)
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let options = &self.options;
        let mut query = vec![
            ("logs", options.logs.to_string()),
            ("replica", options.replica.to_string()),
            ("follow", options.follow.to_string()),
        ];
        if let Some(job) = options.job {
            query.push(("job", job.to_string()));
        }
        if let Some(since) = options.since {
            query.push(("since", since.to_string()));
        }
        // Earlier submissions are over; naming them would only make the line longer.
        let from: Vec<String> = self
            .current
            .values()
            .filter_map(|id| self.offsets.get(id).map(|offset| format!("{id}:{offset}")))
            .collect();
        if !from.is_empty() {
            query.push(("from", from.join(",")));
        }
        query
    }

    fn interrupted(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Interrupted { url: self.client.base_url.clone(), source: source.into() }
    }

    fn incomprehensible(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Incomprehensible {
            url: format!("{}{}", self.client.base_url, self.path),
            source: source.into(),
        }
    }
}
