//! The host agent's end of a supervisor's socket. It comes back after every interruption, until the
//! supervisor has said its last word or is gone.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::clock;
use crate::host::heard;
use crate::host::runtime::{self, Liveness};
use crate::host::state::Host;
use crate::host::task::{Message, News, TaskHandle};
use crate::host::task_dir::{STATUS_LIMIT, TaskDir};
use crate::wire::{self, JobStatus, Order};

/// How soon a supervisor that does not answer yet is tried again, at first and at last.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_millis(500);
/// How many lines and how many news a supervisor may send at once and in a second. An honest one tells of its log
/// every 20 ms, and of itself a few times in its life.
const LINES_AT_ONCE: u32 = 200;
const LINES_PER_SECOND: u32 = 100;
const NEWS_AT_ONCE: u32 = 20;
const NEWS_PER_SECOND: u32 = 5;
/// How long an order may take to leave. An honest supervisor reads at once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
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
    // A container may say anything at any rate; its news go to the disk and to the server.
    let mut lines_left = Budget::new(LINES_AT_ONCE, LINES_PER_SECOND, Instant::now());
    let mut news_left = Budget::new(NEWS_AT_ONCE, NEWS_PER_SECOND, Instant::now());
    loop {
        if let Ok(stream) = connect(&dir).await {
            retry = FIRST_RETRY;
            news_left.spend().await;
            if !tell(News::Connected).await {
                return;
            }
            let pumped = pump(stream, &handle, attempt, &mut orders, &mut lines_left, &mut news_left);
            if pumped.await == Pumped::Abandoned {
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
    let socket = dir.open_run()?.socket(wire::SOCKET)?;
    UnixStream::connect(socket.path()).await
}

/// How much a supervisor may say: some at once, and then only so much in a second.
#[derive(Debug)]
struct Budget {
    per_second: f64,
    most: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    fn new(most: u32, per_second: u32, now: Instant) -> Budget {
        let most = f64::from(most);
        Budget { per_second: f64::from(per_second), most, left: most, at: now }
    }

    /// Takes one, and waits where there were too many.
    async fn spend(&mut self) {
        let wait = self.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes one; answers how long to wait before the next.
    fn take(&mut self, now: Instant) -> Duration {
        let earned = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + earned).min(self.most) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.left).max(0.0) / self.per_second)
    }
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
    lines_left: &mut Budget,
    news_left: &mut Budget,
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
                lines_left.spend().await;
                let Some(status) = heard::status(line.as_bytes(), clock::now()) else {
                    continue;
                };
                handle.log_grew(status.log_end);
                // The end of a job counts only once it is on the disk, and it is when the socket closes.
                let is_news = last.as_ref().is_none_or(|last| status.is_news_after(last));
                if status.exit.is_none() && is_news {
                    news_left.spend().await;
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
                let written = tokio::time::timeout(WRITE_TIMEOUT, write.write_all(&bytes)).await;
                if !matches!(written, Ok(Ok(()))) {
                    return Pumped::Ended;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_may_say_some_at_once_and_then_only_so_much() {
        let start = Instant::now();
        let mut budget = Budget::new(2, 10, start);
        let waits =
            [0, 0, 0, 0, 1000].map(|millis| budget.take(start + Duration::from_millis(millis)).as_millis());
        assert_eq!(waits, [0, 0, 100, 200, 0]);
    }

    #[tokio::test]
    async fn a_socket_is_not_reached_through_a_link() {
        let home = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(home.path(), api::ids::JobId(uuid::Uuid::nil()));
        std::fs::create_dir_all(dir.run()).unwrap();
        let other = home.path().join("other.sock");
        let _listener = tokio::net::UnixListener::bind(&other).unwrap();
        let socket = dir.run().join(wire::SOCKET);
        std::os::unix::fs::symlink(&other, &socket).unwrap();
        assert!(connect(&dir).await.is_err());
        std::fs::rename(&other, &socket).unwrap();
        connect(&dir).await.unwrap();
    }
}
