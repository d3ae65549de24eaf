//! One channel of a user joined to one of the job: bytes, their end, and how a program ended, each in its order.
//!
//! What arrives is taken from the library at once, or one channel that nobody reads would hold up all others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use russh::server::Handle;
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;

/// How long the job may take to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the job may take none of the bytes that are left of a user who has gone. Users have all the time they
/// want: they may have stopped their screen, and those who are gone for good are noticed elsewhere.
const LAST_BYTES: Duration = Duration::from_secs(10);

/// The job's channel.
pub(super) type FarHalf = ChannelWriteHalf<client::Msg>;

/// The two gates of a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Gates {
    /// Of what the user sends.
    pub(super) near: Arc<Gate>,
    /// Of what the job sends.
    pub(super) far: Arc<Gate>,
}

/// A joined pair of channels, as the user's requests see it.
#[derive(Debug)]
pub(super) struct Link {
    far: Arc<FarHalf>,
    answers: Mutex<mpsc::UnboundedReceiver<bool>>,
}

impl Link {
    /// The job's channel.
    pub(super) fn far(&self) -> &FarHalf {
        &self.far
    }

    /// Sends a request and answers whether the job granted it.
    pub(super) async fn ask<F>(&self, request: F) -> bool
    where
        F: Future<Output = Result<(), russh::Error>>,
    {
        let mut answers = self.answers.lock().await;
        let asking = async {
            request.await.ok()?;
            answers.recv().await
        };
        let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, asking).await else {
            // A late answer would be taken for the next one.
            answers.close();
            let _ = self.far.close().await;
            return false;
        };
        answer.unwrap_or(false)
    }
}

/// Joins two channels. Nothing goes to the user before `accepted`; where that never comes, nothing is joined.
pub(super) fn join(
    near: Channel<server::Msg>,
    far: Channel<client::Msg>,
    handle: Handle,
    gates: &Gates,
    accepted: oneshot::Receiver<()>,
) -> Arc<Link> {
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = far.split();
    let far_write = Arc::new(far_write);
    let (answer, answers) = mpsc::unbounded_channel();
    let near_gone = CancellationToken::new();
    let far_gone = CancellationToken::new();
    let to_far = Direction {
        from: gates.near.clone(),
        to: gates.far.clone(),
        sender_gone: near_gone.clone(),
        reader_gone: far_gone.clone(),
        patience: Some(LAST_BYTES),
        steps: AtomicUsize::new(0),
    };
    let to_near = Direction {
        from: gates.far.clone(),
        to: gates.near.clone(),
        sender_gone: far_gone,
        reader_gone: near_gone,
        patience: None,
        steps: AtomicUsize::new(0),
    };
    let sink = FarSink(far_write.clone());
    tokio::spawn(to_far.run(near_read, sink, None, std::future::ready(true)));
    let sink = NearSink { id: near_write.id(), half: near_write, handle };
    tokio::spawn(to_near.run(far_read, sink, Some(answer), async { accepted.await.is_ok() }));
    Arc::new(Link { far: far_write, answers: Mutex::new(answers) })
}

/// Where messages go.
trait Sink: Send + 'static {
    fn room(&self) -> impl Future<Output = usize> + Send;
    fn data(&self, extended: Option<u32>, bytes: Bytes) -> impl Future<Output = Result<(), russh::Error>> + Send;
    fn other(&self, message: ChannelMsg) -> impl Future<Output = ()> + Send;
    fn close(&self) -> impl Future<Output = ()> + Send;
}

struct FarSink(Arc<FarHalf>);

impl Sink for FarSink {
    async fn room(&self) -> usize {
        self.0.writable_packet_size().await
    }

    async fn data(&self, extended: Option<u32>, bytes: Bytes) -> Result<(), russh::Error> {
        match extended {
            None => self.0.data_bytes(bytes).await,
            Some(kind) => self.0.extended_data_bytes(kind, bytes).await,
        }
    }

    async fn other(&self, message: ChannelMsg) {
        // Requests are handed on by whoever answers them.
        if matches!(message, ChannelMsg::Eof) {
            let _ = self.0.eof().await;
        }
    }

    async fn close(&self) {
        let _ = self.0.close().await;
    }
}

struct NearSink {
    id: ChannelId,
    half: ChannelWriteHalf<server::Msg>,
    handle: Handle,
}

impl Sink for NearSink {
    async fn room(&self) -> usize {
        self.half.writable_packet_size().await
    }

    async fn data(&self, extended: Option<u32>, bytes: Bytes) -> Result<(), russh::Error> {
        match extended {
            None => self.half.data_bytes(bytes).await,
            Some(kind) => self.half.extended_data_bytes(kind, bytes).await,
        }
    }

    async fn other(&self, message: ChannelMsg) {
        match message {
            ChannelMsg::Eof => {
                let _ = self.half.eof().await;
            }
            ChannelMsg::ExitStatus { exit_status } => {
                let _ = self.handle.exit_status_request(self.id, exit_status).await;
            }
            ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, lang_tag } => {
                let signal =
                    self.handle.exit_signal_request(self.id, signal_name, core_dumped, error_message, lang_tag);
                let _ = signal.await;
            }
            ChannelMsg::XonXoff { client_can_do } => {
                let _ = self.handle.xon_xoff_request(self.id, client_can_do).await;
            }
            _ => {}
        }
    }

    async fn close(&self) {
        let _ = self.half.close().await;
    }
}

/// One direction of a pair.
struct Direction {
    /// The gate of the side that sends.
    from: Arc<Gate>,
    /// The gate of the side that is sent to.
    to: Arc<Gate>,
    sender_gone: CancellationToken,
    reader_gone: CancellationToken,
    /// How long nothing may go on once the sender has gone; unset: for ever.
    patience: Option<Duration>,
    /// Grows with all that is taken.
    steps: AtomicUsize,
}

impl Direction {
    async fn run(
        self,
        read: ChannelReadHalf,
        sink: impl Sink,
        answers: Option<mpsc::UnboundedSender<bool>>,
        may_begin: impl Future<Output = bool>,
    ) {
        // Its length is bounded by the gate.
        let (queue, mut queued) = mpsc::unbounded_channel();
        let taking = take(read, queue, answers, self.from.clone(), self.sender_gone.clone());
        let giving = async {
            tokio::select! {
                () = self.give(&mut queued, &sink, may_begin) => {}
                () = self.reader_gone.cancelled() => {}
                () = self.stalled() => {}
            }
            sink.close().await;
            // What nobody will take any more must not hold back other channels.
            queued.close();
            while let Some(message) = queued.recv().await {
                self.from.remove(weight(&message));
            }
        };
        tokio::join!(taking, giving);
    }

    /// Ends when nothing has gone on for too long after the sender had gone.
    async fn stalled(&self) {
        self.sender_gone.cancelled().await;
        let Some(patience) = self.patience else { return std::future::pending().await };
        loop {
            let before = self.steps.load(Ordering::Acquire);
            tokio::time::sleep(patience).await;
            if self.steps.load(Ordering::Acquire) == before {
                return;
            }
        }
    }

    async fn give(
        &self,
        queued: &mut mpsc::UnboundedReceiver<ChannelMsg>,
        sink: &impl Sink,
        may_begin: impl Future<Output = bool>,
    ) {
        if !may_begin.await {
            return;
        }
        while let Some(message) = queued.recv().await {
            let bytes = weight(&message);
            // Whatever cuts this off, the bytes wait no more.
            let _counted = Counted { gate: &self.from, bytes };
            let sent = match message {
                ChannelMsg::Data { data } => self.send(sink, None, data).await,
                ChannelMsg::ExtendedData { data, ext } => self.send(sink, Some(ext), data).await,
                other => {
                    sink.other(other).await;
                    Ok(())
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn send(&self, sink: &impl Sink, extended: Option<u32>, mut bytes: Bytes) -> Result<(), russh::Error> {
        while !bytes.is_empty() {
            let room = sink.room().await;
            let waits = (room == 0).then(|| self.to.output_waits());
            let part = bytes.split_to(if room == 0 { bytes.len() } else { room.min(bytes.len()) });
            let sent = sink.data(extended, part).await;
            drop(waits);
            self.steps.fetch_add(1, Ordering::AcqRel);
            sent?;
        }
        Ok(())
    }
}

struct Counted<'a> {
    gate: &'a Gate,
    bytes: usize,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.gate.remove(self.bytes);
    }
}

fn weight(message: &ChannelMsg) -> usize {
    match message {
        ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data.len(),
        _ => 0,
    }
}

/// Takes what arrives until the channel is over.
async fn take(
    mut read: ChannelReadHalf,
    queue: mpsc::UnboundedSender<ChannelMsg>,
    answers: Option<mpsc::UnboundedSender<bool>>,
    gate: Arc<Gate>,
    gone: CancellationToken,
) {
    while let Some(message) = read.wait().await {
        match (&message, &answers) {
            (ChannelMsg::Close, _) => break,
            (ChannelMsg::Success, Some(answers)) => {
                let _ = answers.send(true);
                continue;
            }
            (ChannelMsg::Failure, Some(answers)) => {
                let _ = answers.send(false);
                continue;
            }
            _ => {}
        }
        let bytes = weight(&message);
        let has_room = gate.add(bytes);
        if queue.send(message).is_err() {
            // Nobody takes it any more.
            gate.remove(bytes);
        }
        if !has_room {
            tracing::warn!("a channel of the SSH proxy was given up: the other side takes its bytes too slowly");
            break;
        }
    }
    gone.cancel();
}
