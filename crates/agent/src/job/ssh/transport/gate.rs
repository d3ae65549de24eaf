//! What holds a client back that sends faster than the job reads.
//!
//! The protocol's windows cannot do it: the library gives a client new room as soon as bytes arrive, not when somebody
//! has taken them. So bytes that wait for a reader are counted for the whole connection, and while too many wait the
//! connection itself is read slowly. It is never left unread for long, because what the client sends between its bytes
//! keeps the other direction going: more room for output, a window's new size, the end of a channel. And it is not
//! held back at all while output waits for room, or a program that reads and writes in turn could never go on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// From how many waiting bytes on a connection is read slowly.
const SOFT_LIMIT: usize = 4 << 20;
/// How many bytes may wait at all. A channel with more is given up.
pub(super) const HARD_LIMIT: usize = 256 << 20;
/// How much is read of a connection that is held back, and how long it then waits again.
const SLICE: usize = 256 * 1024;
const SLICE_INTERVAL: Duration = Duration::from_millis(100);

/// The count of what waits on one connection.
#[derive(Debug, Default)]
pub(super) struct Gate {
    waiting: AtomicUsize,
    blocked_outputs: AtomicUsize,
    opened: Notify,
}

impl Gate {
    /// Counts bytes that wait for their reader; answers whether that is still bearable.
    pub(super) fn add(&self, bytes: usize) -> bool {
        self.waiting.fetch_add(bytes, Ordering::AcqRel) + bytes <= HARD_LIMIT
    }

    /// Counts bytes that were taken, or that nobody will take any more.
    pub(super) fn remove(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        self.look();
    }

    /// Says that output waits for room, for as long as the answer is kept.
    pub(super) fn output_waits(&self) -> OutputWaits<'_> {
        self.blocked_outputs.fetch_add(1, Ordering::AcqRel);
        self.look();
        OutputWaits(self)
    }

    fn look(&self) {
        if self.is_open() {
            self.opened.notify_one();
        }
    }

    fn is_open(&self) -> bool {
        self.waiting.load(Ordering::Acquire) <= SOFT_LIMIT || self.blocked_outputs.load(Ordering::Acquire) > 0
    }

    async fn opened_or_due(self: Arc<Self>) {
        let opened = async {
            while !self.is_open() {
                self.opened.notified().await;
            }
        };
        // The end of the wait is as good as an open gate.
        let _ = tokio::time::timeout(SLICE_INTERVAL, opened).await;
    }
}

/// Output that waits for room.
#[derive(Debug)]
pub(super) struct OutputWaits<'a>(&'a Gate);

impl Drop for OutputWaits<'_> {
    fn drop(&mut self) {
        self.0.blocked_outputs.fetch_sub(1, Ordering::AcqRel);
    }
}

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that is read only as fast as its gate allows, and that can be cut: the library goes on with a client
/// for as long as its connection does.
pub(super) struct Gated<S> {
    stream: S,
    gate: Arc<Gate>,
    cut: Wait,
    wait: Option<Wait>,
    allowance: usize,
}

impl<S> Gated<S> {
    /// Puts the gate before the stream.
    pub(super) fn new(stream: S, gate: Arc<Gate>, cut: CancellationToken) -> Gated<S> {
        Gated { stream, gate, cut: Box::pin(cut.cancelled_owned()), wait: None, allowance: SLICE }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        if this.gate.is_open() {
            this.wait = None;
            this.allowance = SLICE;
        } else if this.allowance == 0 {
            let wait = this.wait.get_or_insert_with(|| Box::pin(this.gate.clone().opened_or_due()));
            ready!(wait.as_mut().poll(context));
            this.wait = None;
            this.allowance = SLICE;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        this.allowance = this.allowance.saturating_sub(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_with_much_waiting_is_read_slowly_but_never_left_alone() {
        let gate = Arc::new(Gate::default());
        let (ours, mut theirs) = tokio::io::duplex(16 * SLICE);
        theirs.write_all(&vec![0; 8 * SLICE]).await.unwrap();
        let mut gated = Gated::new(ours, gate.clone(), CancellationToken::new());
        assert!(gate.add(SOFT_LIMIT + 1));
        let mut buffer = vec![0; SLICE];
        let begin = tokio::time::Instant::now();
        for _ in 0..4 {
            gated.read_exact(&mut buffer).await.unwrap();
        }
        assert!(begin.elapsed() >= 3 * SLICE_INTERVAL);
        gate.remove(1);
        assert!(gate.is_open());
        gated.read_exact(&mut buffer).await.unwrap();
        gate.add(1);
        assert!(!gate.is_open());
        let waits = gate.output_waits();
        assert!(gate.is_open());
        drop(waits);
        assert!(!gate.is_open());
    }

    #[tokio::test]
    async fn a_connection_that_was_cut_is_over_for_both_sides() {
        let (ours, mut theirs) = tokio::io::duplex(SLICE);
        let cut = CancellationToken::new();
        let mut gated = Gated::new(ours, Arc::default(), cut.clone());
        let reading = tokio::spawn(async move { gated.read(&mut [0]).await });
        cut.cancel();
        assert!(reading.await.unwrap().is_err());
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
    }

    #[test]
    fn too_much_waiting_is_refused() {
        let gate = Gate::default();
        assert!(gate.add(HARD_LIMIT));
        assert!(!gate.add(1));
    }
}
