//! The two endless answers: events, and logs.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::agent::{AgentEvent, HostNews, LOG_WINDOW, PING_INTERVAL_SECS};
use api::ids::JobId;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{mpsc, watch};

use crate::host::log_reader::{LogReader, end_frame};
use crate::host::state::Host;
use crate::host::task::{LogMark, TaskHandle};

/// How many lines of events may wait for a slow reader, who then gets the later state only.
const EVENTS_BUFFER: usize = 16;

/// The event stream: a snapshot, then what changes.
pub(crate) async fn events(State(host): State<Arc<Host>>) -> Response {
    let (lines, receiver) = mpsc::channel::<Bytes>(EVENTS_BUFFER);
    tokio::spawn(async move {
        // An error only says that the reader is gone.
        let _ = send_events(&host, &lines).await;
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        let line = receiver.recv().await?;
        Some((Ok::<_, Infallible>(line), receiver))
    });
    Body::from_stream(stream).into_response()
}

async fn send_events(host: &Host, lines: &mpsc::Sender<Bytes>) -> Result<(), mpsc::error::SendError<Bytes>> {
    let mut changes = host.changes.subscribe();
    changes.borrow_and_update();
    let mut news = host.news.subscribe();
    // Versions are read before states, so that a state is never older than its version says.
    let mut sent = versions(host);
    lines.send(line(&AgentEvent::Snapshot(host.snapshot()))).await?;
    // Since the greeting something may have happened.
    tell_news(&mut news, lines).await?;
    let mut ping = tokio::time::interval(Duration::from_secs(PING_INTERVAL_SECS));
    ping.tick().await;
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            changed = news.changed() => match changed {
                Ok(()) => tell_news(&mut news, lines).await?,
                Err(_) => return Ok(()),
            },
            _ = ping.tick() => lines.send(line(&AgentEvent::Ping)).await?,
            () = lines.closed() => return Ok(()),
        }
        let now = versions(host);
        for task in host.tasks() {
            if sent.get(&task.id) != now.get(&task.id)
                && let Some(state) = task.snapshot()
            {
                lines.send(line(&AgentEvent::Task(Box::new(state)))).await?;
            }
        }
        for gone in sent.keys().filter(|id| !now.contains_key(id)) {
            lines.send(line(&AgentEvent::Forgotten(*gone))).await?;
        }
        sent = now;
    }
}

/// Tells what a host has and what its cloud says of it now.
async fn tell_news(
    news: &mut watch::Receiver<HostNews>,
    lines: &mpsc::Sender<Bytes>,
) -> Result<(), mpsc::error::SendError<Bytes>> {
    let event = AgentEvent::Host(Box::new(news.borrow_and_update().clone()));
    lines.send(line(&event)).await
}

fn versions(host: &Host) -> BTreeMap<JobId, u64> {
    let tasks = host.tasks();
    tasks.iter().map(|task| (task.id, task.version.load(Ordering::Acquire))).collect()
}

fn line(event: &AgentEvent) -> Bytes {
    let mut bytes = serde_json::to_vec(event).unwrap_or_default();
    bytes.push(b'\n');
    Bytes::from(bytes)
}

struct Following {
    reader: LogReader,
    /// Where the server began to read: all before that is as good as acknowledged.
    base: u64,
    log: watch::Receiver<LogMark>,
    acked: watch::Receiver<u64>,
    ended: bool,
}

/// A task's log from `offset` on, as frames, until its end. At most a window of it is sent and not
/// acknowledged.
pub(crate) fn logs(task: &TaskHandle, offset: u64) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    let following = Following {
        reader: LogReader::new(task.dir.logs(), offset),
        base: offset,
        log: task.log.subscribe(),
        acked: task.acked.subscribe(),
        ended: false,
    };
    futures_util::stream::unfold(following, |mut following| async move {
        let frame = following.next().await?;
        Some((Ok(Bytes::from(frame)), following))
    })
}

impl Following {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        loop {
            let acked = *self.acked.borrow_and_update();
            let window = acked.max(self.base).saturating_add(LOG_WINDOW).saturating_sub(self.reader.position);
            let mark = *self.log.borrow_and_update();
            let is_over = mark.sealed && mark.end <= self.reader.position;
            if is_over {
                self.ended = true;
                return Some(end_frame(mark.end));
            }
            if window == 0 {
                // The task was forgotten when nobody can acknowledge any more.
                self.acked.changed().await.ok()?;
                continue;
            }
            if let Some(frame) = self.read(window, mark).await {
                return Some(frame);
            }
            self.log.changed().await.ok()?;
        }
    }

    /// The next frame, read off the threads that must not wait for the disk.
    async fn read(&mut self, window: u64, mark: LogMark) -> Option<Vec<u8>> {
        let empty = LogReader::new(std::path::PathBuf::new(), 0);
        let mut reader = std::mem::replace(&mut self.reader, empty);
        let sealed_at = mark.sealed.then_some(mark.end);
        let read = tokio::task::spawn_blocking(move || {
            let frame = reader.next(window, sealed_at);
            (frame, reader)
        });
        let (frame, reader) = read.await.ok()?;
        self.reader = reader;
        frame
    }
}
