//! Reads a task's log from its agent into the log store.

use std::sync::Arc;
use std::time::Duration;

use api::agent::{LOG_FRAME_HEADER, LOG_WINDOW, LogFrame, LogFrameKind};
use api::ids::JobId;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use store::leases::{Table, touch};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Sender};
use super::pool::Surroundings;

/// A log is acknowledged when this much has arrived, or when nothing more is at hand.
const ACKNOWLEDGE_BYTES: u64 = LOG_WINDOW / 4;

/// The delay before a log that broke off is asked for again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Reads until the log ends, or the connection does.
pub(super) async fn run(
    connection: Arc<Connection>,
    around: Surroundings,
    sender: Sender,
    job: JobId,
    cancel: CancellationToken,
) {
    loop {
        let result = tokio::select! {
            () = cancel.cancelled() => break,
            result = read(&around, &sender, job) => result,
        };
        match result {
            Ok(true) => {
                if let Err(error) = touch(&around.db, Table::Jobs, job.0, around.clock.now()).await {
                    tracing::warn!(job.id = %job, "cannot make the job due, it is looked at later: {error}");
                }
                around.wake.ring(Table::Jobs);
                break;
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(job.id = %job, "reading the log broke off: {error:#}"),
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(RETRY_DELAY) => {}
        }
    }
    connection.pulled(job);
}

/// Reads what comes; true: the log ended.
async fn read(around: &Surroundings, sender: &Sender, job: JobId) -> anyhow::Result<bool> {
    let offset = around.logs.received(job);
    let mut body = sender.stream(&format!("/v1/tasks/{job}/logs?offset={offset}")).await?;
    let mut buffer = BytesMut::new();
    let mut acknowledged = offset;
    while let Some(bytes) = next_bytes(&mut body).await? {
        buffer.extend_from_slice(&bytes);
        let ended = take_frames(around, job, &mut buffer)?;
        let received = around.logs.received(job);
        if ended || received - acknowledged >= ACKNOWLEDGE_BYTES {
            settle(around, sender, job, received).await?;
            acknowledged = received;
        }
        if ended {
            return Ok(true);
        }
    }
    let received = around.logs.received(job);
    if received > acknowledged {
        settle(around, sender, job, received).await?;
    }
    Ok(false)
}

async fn next_bytes(body: &mut Incoming) -> anyhow::Result<Option<Bytes>> {
    loop {
        let Some(frame) = body.frame().await else { return Ok(None) };
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
}

/// Stores every whole frame; true: the last one said that the log ends.
fn take_frames(around: &Surroundings, job: JobId, buffer: &mut BytesMut) -> anyhow::Result<bool> {
    loop {
        let Some(header) = buffer.first_chunk::<LOG_FRAME_HEADER>() else { return Ok(false) };
        let Some(frame) = LogFrame::decode(header) else { anyhow::bail!("the agent sent a broken log frame") };
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
                around.logs.complete(job, frame.time_micros)?;
                return Ok(true);
            }
        }
    }
}

/// What is acknowledged may be deleted by the agent, so it must outlive a power cut here first.
async fn settle(around: &Surroundings, sender: &Sender, job: JobId, received: u64) -> anyhow::Result<()> {
    let logs = around.logs.clone();
    tokio::task::spawn_blocking(move || logs.sync(job)).await??;
    sender.acknowledge(job, received).await?;
    Ok(())
}
