//! Reads a task's log from its agent into the log store.

use std::sync::Arc;
use std::time::Duration;

use api::agent::{AgentError, AgentErrorCode, LOG_FRAME_HEADER, LOG_WINDOW, LogFrame, LogFrameKind};
use api::ids::JobId;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::OrderError;
use super::connection::{Connection, touch_job};
use super::pool::Surroundings;
use super::sender::Sender;

/// A log is acknowledged when this much has arrived, or when nothing more is at hand.
const ACKNOWLEDGE_BYTES: u64 = LOG_WINDOW / 4;

/// The first and the longest delay before a log that broke off is asked for again.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Why a log broke off.
enum Break {
    /// It ended: nothing more will come.
    End,
    /// The agent, or the way to it.
    Agent(String),
    /// Our own disk.
    Disk(std::io::Error),
}

impl From<OrderError> for Break {
    fn from(error: OrderError) -> Break {
        match error {
            // Nobody else has the log of a task that its agent does not know.
            OrderError::Refused(AgentError { code: AgentErrorCode::UnknownTask, .. }) => Break::End,
            error => Break::Agent(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Break {
    fn from(error: std::io::Error) -> Break {
        Break::Disk(error)
    }
}

/// Reads until the log ends, or the connection does.
pub(super) async fn run(
    connection: Arc<Connection>,
    around: Surroundings,
    sender: Sender,
    job: JobId,
    cancel: CancellationToken,
) {
    let mut delay = FIRST_DELAY;
    loop {
        let before = around.logs.received(job);
        let broke = tokio::select! {
            () = cancel.cancelled() => break,
            broke = read(&around, &sender, job) => broke,
        };
        if before < around.logs.received(job) {
            delay = FIRST_DELAY;
        }
        match broke {
            Break::End => match complete(&around, job).await {
                Ok(()) => break,
                Err(error) => tell_disk_error(&around, job, &error).await,
            },
            Break::Agent(error) => tracing::debug!(job.id = %job, "reading the log broke off: {error}"),
            Break::Disk(error) => tell_disk_error(&around, job, &error).await,
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(LONGEST_DELAY);
    }
    connection.pulled(job, &cancel);
}

/// Nothing more of a log will come, and its job may end.
pub(super) async fn complete(around: &Surroundings, job: JobId) -> std::io::Result<()> {
    let (logs, now) = (around.logs.clone(), around.clock.now().as_microsecond());
    let completed = tokio::task::spawn_blocking(move || {
        logs.complete(job, now)?;
        // What owes the disk nothing need not be remembered.
        logs.sync(job)
    });
    completed.await.map_err(std::io::Error::other)??;
    touch_job(around, job).await;
    Ok(())
}

/// The job says what it waits for.
async fn tell_disk_error(around: &Surroundings, job: JobId, error: &std::io::Error) {
    tracing::warn!(job.id = %job, "cannot keep the log, trying again: {error}");
    touch_job(around, job).await;
}

/// Reads what comes, until it breaks off.
async fn read(around: &Surroundings, sender: &Sender, job: JobId) -> Break {
    match read_frames(around, sender, job).await {
        Ok(()) => Break::Agent("the agent closed the stream".to_owned()),
        Err(broke) => broke,
    }
}

/// Stores what comes and acknowledges it meanwhile: over a long way, waiting for the answers would be most of the time.
async fn read_frames(around: &Surroundings, sender: &Sender, job: JobId) -> Result<(), Break> {
    let offset = around.logs.received(job);
    let mut body = sender.stream(&format!("/v1/tasks/{job}/logs?offset={offset}")).await?;
    let mut buffer = BytesMut::new();
    let turn = Mutex::new(());
    let mut settling = FuturesUnordered::new();
    // Up to here somebody acknowledges. The agent's window bounds how many do so at the same time.
    let mut claimed = offset;
    loop {
        let is_over = tokio::select! {
            Some(settled) = settling.next() => {
                settled?;
                continue;
            }
            bytes = next_bytes(&mut body) => match bytes? {
                Some(bytes) => {
                    buffer.extend_from_slice(&bytes);
                    take_frames(around, job, &mut buffer)?.then_some(Err(Break::End))
                }
                None => Some(Ok(())),
            }
        };
        let received = around.logs.received(job);
        if is_over.is_some() || ACKNOWLEDGE_BYTES <= received - claimed {
            claimed = received;
            settling.push(settle(around, sender, job, received, &turn));
        }
        if let Some(end) = is_over {
            while let Some(settled) = settling.next().await {
                settled?;
            }
            return end;
        }
    }
}

async fn next_bytes(body: &mut Incoming) -> Result<Option<Bytes>, Break> {
    loop {
        let Some(frame) = body.frame().await else { return Ok(None) };
        let frame = frame.map_err(|error| Break::Agent(error.to_string()))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// Stores every whole frame; true: the last one said that the log ends.
fn take_frames(around: &Surroundings, job: JobId, buffer: &mut BytesMut) -> Result<bool, Break> {
    loop {
        let Some(header) = buffer.first_chunk::<LOG_FRAME_HEADER>() else { return Ok(false) };
        let Some(frame) = LogFrame::decode(header) else {
            return Err(Break::Agent("the agent sent a broken log frame".to_owned()));
        };
        let length = frame.length as usize;
        if buffer.len() < LOG_FRAME_HEADER + length {
            return Ok(false);
        }
        buffer.advance(LOG_FRAME_HEADER);
        let payload = buffer.split_to(length);
        match frame.kind {
            LogFrameKind::Data => around.logs.append(job, frame.offset, frame.time_micros, &payload)?,
            LogFrameKind::Gap => around.logs.skip_to(job, frame.offset, frame.time_micros)?,
            LogFrameKind::End => {
                around.logs.skip_to(job, frame.offset, frame.time_micros)?;
                return Ok(true);
            }
        }
    }
}

/// What is acknowledged may be deleted by the agent, so it must outlive a power cut here first. One at a time writes to
/// the disk: whoever finds nothing to write must know that somebody else has written it.
async fn settle(
    around: &Surroundings,
    sender: &Sender,
    job: JobId,
    received: u64,
    turn: &Mutex<()>,
) -> Result<(), Break> {
    {
        let _turn = turn.lock().await;
        let logs = around.logs.clone();
        let synced = tokio::task::spawn_blocking(move || logs.sync(job)).await;
        synced.map_err(std::io::Error::other)??;
    }
    sender.acknowledge(job, received).await?;
    Ok(())
}
