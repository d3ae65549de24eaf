//! The port at which official clients look for a job's log: answered here, without a port that listens.
//!
//! The client asks for `ws://localhost:10999/logs_ws?start_time=…`, and gets the log's bytes from that time on until the
//! job has ended.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc, watch};

use super::Server;
use super::control::{Report, Reporter, Word};
use crate::log_files::INDEX_ENTRY;
use crate::names;

/// The port.
const PORT: u16 = 10999;
/// How many bytes may be on their way to a client's channel.
const BUFFER: usize = 256 * 1024;
/// How much of the log goes into one message.
const MESSAGE_BYTES: usize = 64 * 1024;
/// How often a log that grows is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long a client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// The largest index that is read; that of a full segment is far smaller.
const INDEX_LIMIT: u64 = 64 << 20;

/// A part of the log.
#[derive(Debug)]
pub(super) struct Segment {
    /// The offset of its first byte.
    pub(super) start: u64,
    pub(super) file: File,
    /// When its bytes were written.
    pub(super) index: Option<File>,
}

/// The log, as the supervisor hands it out.
#[derive(Debug)]
pub(super) struct Log {
    reporter: Reporter,
    answers: Mutex<mpsc::Receiver<Option<Segment>>>,
    complete: watch::Receiver<Option<u64>>,
}

impl Log {
    /// Asks the supervisor; answers come as they are read from there.
    pub(super) fn new(
        reporter: Reporter,
        answers: mpsc::Receiver<Option<Segment>>,
        complete: watch::Receiver<Option<u64>>,
    ) -> Log {
        Log { reporter, answers: Mutex::new(answers), complete }
    }

    async fn segment(&self, position: u64) -> Option<Segment> {
        // Each waits for its own answer.
        let mut answers = self.answers.lock().await;
        self.reporter.say(Report::Wants(position)).await.ok()?;
        answers.recv().await?
    }
}

/// A connection to it, where that is what the client asks for.
pub(super) fn connect(server: &Arc<Server>, host: &str, port: u16) -> Option<DuplexStream> {
    let is_here = names::is_localhost(host) || host == "127.0.0.1";
    if !is_here || port != PORT {
        return None;
    }
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let routes = Router::new().route("/logs_ws", get(answer)).with_state(server.clone());
    tokio::spawn(async move {
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(ours), TowerToHyperService::new(routes));
        // A client that breaks off is nobody's problem.
        let _ = connection.with_upgrades().await;
    });
    Some(theirs)
}

#[derive(Debug, Deserialize)]
struct Wanted {
    start_time: Option<String>,
}

async fn answer(
    State(server): State<Arc<Server>>,
    Query(wanted): Query<Wanted>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let start = match wanted.start_time.as_deref().map(str::parse::<Timestamp>) {
        None => None,
        Some(Ok(time)) => Some(time.as_microsecond()),
        Some(Err(_)) => return (StatusCode::BAD_REQUEST, "`start_time` is no time").into_response(),
    };
    upgrade.on_upgrade(move |mut socket| async move {
        let _followed = server.followers.token();
        if follow(&server.log, start, &mut socket).await.is_ok() && socket.send(Message::Close(None)).await.is_ok()
        {
            // Its answer says that all has arrived.
            let goodbye = async { while let Some(Ok(_)) = socket.recv().await {} };
            let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        }
    })
}

/// Sends the log from a time on until it is complete.
async fn follow(log: &Log, mut start: Option<i64>, socket: &mut WebSocket) -> Result<(), axum::Error> {
    let mut position = 0;
    let mut complete = log.complete.clone();
    loop {
        // What is read after this is all that there will be, if it says so.
        let end = *complete.borrow_and_update();
        let mut has_more = false;
        if let Some(segment) = log.segment(position).await {
            // What lies before it is lost, or was handed over and removed.
            position = position.max(segment.start);
            if let Some(time) = start {
                let (place, is_found) = place_of(&segment, time);
                position = position.max(place);
                start = start.filter(|_| !is_found);
            }
            while let Some(bytes) = read(&segment, position) {
                position += bytes.len() as u64;
                has_more = true;
                socket.send(Message::Binary(bytes)).await?;
            }
        }
        if has_more {
            continue;
        }
        if end.is_some() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            changed = complete.changed() => if changed.is_err() { return Ok(()) },
            said = socket.recv() => if !matches!(said, Some(Ok(_))) { return Err(axum::Error::new(Gone)) },
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
struct Gone;

fn read(segment: &Segment, position: u64) -> Option<Bytes> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let length = segment.file.read_at(&mut bytes, position - segment.start).ok()?;
    bytes.truncate(length);
    (length > 0).then(|| Bytes::from(bytes))
}

/// The offset of the first byte that was written at `time` or later, and whether there is one; else the end so far.
fn place_of(segment: &Segment, time: i64) -> (u64, bool) {
    let length = segment.file.metadata().map_or(0, |file| file.len());
    let Some(index) = &segment.index else {
        return (segment.start, true);
    };
    let size = index.metadata().map_or(0, |file| file.len()).min(INDEX_LIMIT);
    let mut entries = vec![0; size as usize];
    let read = index.read_at(&mut entries, 0).unwrap_or(0);
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let found = entries[..read].chunks_exact(INDEX_ENTRY).find(|entry| number(&entry[8..]) as i64 >= time);
    match found {
        Some(entry) => (number(&entry[..8]), true),
        None => (segment.start + length, false),
    }
}

/// Reads what the supervisor says, and what it sends beside it.
pub(super) async fn hear(socket: &UnixStream) -> Option<(Word, Vec<File>)> {
    let mut bytes = [0; super::control::WORD];
    let mut filled = 0;
    let mut files = Vec::new();
    while filled < bytes.len() {
        let (length, came) = socket
            .async_io(tokio::io::Interest::READABLE, || Ok(crate::sys::receive(socket, &mut bytes[filled..])?))
            .await
            .ok()?;
        files.extend(came.into_iter().map(File::from));
        filled += if length == 0 { return None } else { length };
    }
    Some((Word::decode(bytes)?, files))
}
