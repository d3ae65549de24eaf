//! The host agent's end of a supervisor's socket. It comes back after every interruption, until the
//! supervisor has said its last word or is gone.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::disk::ShortPath;
use crate::host::runtime::{self, Liveness};
use crate::host::state::Host;
use crate::host::task::{Message, News, TaskHandle};
use crate::host::task_dir::{STATUS_LIMIT, TaskDir};
use crate::wire::{self, JobStatus, Order};

/// How soon a supervisor that does not answer yet is tried again, at first and at last.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_millis(500);
/// How soon it is asked again whether a supervisor lives, when nobody could say.
const UNKNOWN_RETRY: Duration = Duration::from_secs(1);

/// Follows a supervisor until its end.
pub(crate) async fn follow(
    host: Arc<Host>,
    handle: Arc<TaskHandle>,
    attempt: u64,
    container: bool,
    mut orders: mpsc::Receiver<Order>,
) {
    let dir = handle.dir.clone();
    let tell = |news: News| handle.tell(Message::News(attempt, news));
    let mut retry = FIRST_RETRY;
    loop {
        if let Ok(stream) = connect(&dir).await {
            retry = FIRST_RETRY;
            if !tell(News::Connected).await {
                return;
            }
            if pump(stream, &handle, attempt, &mut orders).await == Pumped::Abandoned {
                return;
            }
        }
        if let Some(status) = dir.read_exit() {
            tell(News::Status(Box::new(status))).await;
            return;
        }
        match runtime::liveness(&host, &dir, handle.id, container).await {
            Liveness::Alive => tokio::time::sleep(retry).await,
            Liveness::Unknown => tokio::time::sleep(UNKNOWN_RETRY).await,
            Liveness::Gone(gone) => {
                // It may have said its last word between the two looks.
                let last = match dir.read_exit() {
                    Some(status) => News::Status(Box::new(status)),
                    None => News::Gone(gone),
                };
                tell(last).await;
                return;
            }
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
}

async fn connect(dir: &TaskDir) -> std::io::Result<UnixStream> {
    let socket = ShortPath::new(&dir.run(), wire::SOCKET)?;
    UnixStream::connect(socket.path()).await
}

#[derive(Debug, PartialEq, Eq)]
enum Pumped {
    /// The connection ended.
    Ended,
    /// Nobody wants to follow this supervisor any more.
    Abandoned,
}

async fn pump(
    stream: UnixStream,
    handle: &TaskHandle,
    attempt: u64,
    orders: &mut mpsc::Receiver<Order>,
) -> Pumped {
    let (read, mut write) = stream.into_split();
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(STATUS_LIMIT));
    let mut last: Option<JobStatus> = None;
    loop {
        tokio::select! {
            line = lines.next() => {
                let Some(Ok(line)) = line else {
                    return Pumped::Ended;
                };
                let Ok(status) = serde_json::from_str::<JobStatus>(&line) else {
                    continue;
                };
                handle.log_grew(status.log_end);
                // The end of a job counts only once it is on the disk, and it is when the socket closes.
                let is_news = !is_same_but_for_the_log(last.as_ref(), &status);
                if status.exit.is_none() && is_news {
                    last = Some(status.clone());
                    let news = News::Status(Box::new(status));
                    if !handle.tell(Message::News(attempt, news)).await {
                        return Pumped::Abandoned;
                    }
                }
            }
            order = orders.recv() => {
                let Some(order) = order else {
                    return Pumped::Abandoned;
                };
                let mut bytes = serde_json::to_vec(&order).unwrap_or_default();
                bytes.push(b'\n');
                if write.write_all(&bytes).await.is_err() {
                    return Pumped::Ended;
                }
            }
        }
    }
}

fn is_same_but_for_the_log(last: Option<&JobStatus>, status: &JobStatus) -> bool {
    let Some(last) = last else {
        return false;
    };
    let mut last = last.clone();
    last.log_end = status.log_end;
    last == *status
}
