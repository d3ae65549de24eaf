//! The way into a job: the bytes of one connection to its SSH server, over one WebSocket.
//!
//! The client and the job's server speak SSH with each other; this server only carries it, and knows no key of theirs
//! but the one that the job shows.

use std::time::Duration;

use api::agent::{NETWORK_HEADER, SSH_PORT};
use api::jobs::JobStatus;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use lifecycle::job::Job;
use serde::Deserialize;
use store::jobs;
use tokio::sync::mpsc;

use crate::agents::Entered;
use crate::deps::Deps;
use crate::http::auth::ProjectMember;
use crate::http::error::{Error, Result};

/// The longest silence of the server.
const PING_EVERY: Duration = Duration::from_secs(15);

/// How long a client may take to read one message.
const SEND_TIMEOUT: Duration = Duration::from_mins(1);

/// The longest message of a client, in bytes.
const MESSAGE_LIMIT: usize = 1024 * 1024;

/// The address's query.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct EnterQuery {
    replica: u32,
    job: u32,
}

pub async fn enter(
    State(deps): State<Deps>,
    member: ProjectMember,
    Path((_, run_name)): Path<(String, String)>,
    Query(query): Query<EnterQuery>,
    upgrade: std::result::Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let run = store::runs::get_by_name(&deps.db, member.project.id, &run_name).await?;
    let run = run.ok_or_else(|| Error::not_exists("Run not found"))?;
    let upgrade = upgrade.map_err(|_| Error::bad_request("This address speaks WebSocket only"))?;
    let all = jobs::list_by_runs(&deps.db, &[run.value.id]).await?;
    let job = all
        .into_iter()
        .map(|row| row.value)
        .filter(|job| job.spec.replica_num == query.replica && job.spec.job_num == query.job)
        .max_by_key(|job| job.submission_num);
    let job = job.ok_or_else(|| Error::bad_request("Found no job with given parameters"))?;
    check(&job)?;
    let instance = job.instance_id.ok_or_else(|| Error::bad_request("The job is on no instance"))?;
    let entered = deps.agents.enter(instance, job.id).await;
    let entered = entered.map_err(|error| Error::bad_request(format!("The job cannot be entered: {error}")))?;
    let network = entered.network.clone().map(|network| [(NETWORK_HEADER, network)]);
    let upgrade = upgrade.max_message_size(MESSAGE_LIMIT).on_upgrade(move |socket| carry(socket, entered));
    Ok((network, upgrade).into_response())
}

fn check(job: &Job) -> Result<()> {
    if job.status != JobStatus::Running {
        return Err(Error::bad_request(format!(
            "The job is {}, and only running ones can be entered",
            job.status.as_str()
        )));
    }
    let ports = job.state.runtime.as_ref().and_then(|runtime| runtime.ports.as_ref());
    if ports.is_some_and(|ports| ports.contains_key(&SSH_PORT)) {
        return Ok(());
    }
    Err(Error::bad_request("The job has no SSH server"))
}

/// Carries bytes both ways until either side ends.
async fn carry(socket: WebSocket, entered: Entered) {
    let Entered { input, mut output, .. } = entered;
    let (mut sink, stream) = socket.split();
    let reading = tokio::spawn(read(stream, input));
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.tick().await;
    loop {
        let message = tokio::select! {
            bytes = output.next() => match bytes {
                Some(Ok(bytes)) => Message::Binary(bytes),
                Some(Err(_)) | None => break,
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if !send(&mut sink, message).await {
            break;
        }
    }
    // Nobody listens any more, so that nothing more need go there.
    reading.abort();
    send(&mut sink, Message::Close(None)).await;
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, message: Message) -> bool {
    matches!(tokio::time::timeout(SEND_TIMEOUT, sink.send(message)).await, Ok(Ok(())))
}

async fn read(mut stream: SplitStream<WebSocket>, input: mpsc::Sender<Bytes>) {
    while let Some(Ok(message)) = stream.next().await {
        let Message::Binary(bytes) = message else { continue };
        if input.send(bytes).await.is_err() {
            return;
        }
    }
}
