//! What holds one side of a relay back that sends faster than the other takes.
//!
//! The library gives a sender new room as soon as bytes arrive, and not when somebody has taken them. So bytes that
//! wait are counted for the whole connection, and while many wait it is read slowly. It is never left unread: what
//! arrives between the bytes keeps the other direction going, and shows that the sender lives. While output to the
//! same side waits for room it is read as it comes, or a program that reads and writes in turn would never go on.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// From how many waiting bytes on a connection is read slowly, and from how many hardly at all.
const SOFT_LIMIT: usize = 4 << 20;
const FIRM_LIMIT: usize = 16 << 20;
/// How many bytes may wait on one connection, and on all of them. A channel with more is given up.
const HARD_LIMIT: usize = 64 << 20;
const TOTAL_LIMIT: usize = 1 << 30;
/// How much is read of a connection that is held back, and how long it then waits again.
const SLICE: usize = 64 * 1024;
const SLICE_INTERVAL: Duration = Duration::from_millis(100);
const FIRM_SLICE_INTERVAL: Duration = Duration::from_secs(5);

/// The count of what waits on one connection.
#[derive(Debug, Default)]
pub(super) struct Gate {
    waiting: AtomicUsize,
    /// What waits on all connections.
    total: Arc<AtomicUsize>,
    blocked_outputs: AtomicUsize,
    opened: Notify,
}

impl Gate {
    /// The gate of a connection, one of all that `total` counts.
    pub(super) fn new(total: Arc<AtomicUsize>) -> Gate {
        let mut gate = Gate::default();
        gate.total = total;
        gate
    }

    /// Counts bytes that wait to be taken; answers whether that is still bearable.
    pub(super) fn add(&self, bytes: usize) -> bool {
        let waiting = self.waiting.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let total = self.total.fetch_add(bytes, Ordering::AcqRel) + bytes;
        waiting <= HARD_LIMIT && total <= TOTAL_LIMIT
    }

    /// Counts bytes that were taken, or that nobody will take any more.
    pub(super) fn remove(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        self.total.fetch_sub(bytes, Ordering::AcqRel);
        self.look();
    }

    /// Says that output to this side waits for room, for as long as the answer is kept.
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
        let is_firm = self.waiting.load(Ordering::Acquire) > FIRM_LIMIT;
        let opened = async {
            while !self.is_open() {
                self.opened.notified().await;
            }
        };
        // The end of the wait is as good as an open gate.
        let _ = tokio::time::timeout(if is_firm { FIRM_SLICE_INTERVAL } else { SLICE_INTERVAL }, opened).await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.total.fetch_sub(*self.waiting.get_mut(), Ordering::AcqRel);
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

/// A connection that is read only as fast as its gate allows, and that can be cut: the library goes on for as long as
/// its connection does.
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_connection_with_much_waiting_is_read_slowly_but_never_left_alone() {
        let gate = Arc::new(Gate::default());
        let (ours, mut theirs) = tokio::io::duplex(64 * SLICE);
        theirs.write_all(&vec![0; 32 * SLICE]).await.unwrap();
        let mut gated = Gated::new(ours, gate.clone(), CancellationToken::new());
        assert!(gate.add(FIRM_LIMIT));
        let start = tokio::time::Instant::now();
        let mut buffer = vec![0; SLICE];
        for _ in 0..4 {
            gated.read_exact(&mut buffer).await.unwrap();
        }
        assert!(SLICE_INTERVAL * 3 <= start.elapsed());
        // With more it would take seconds; but output that waits is never held up.
        assert!(gate.add(1));
        let waits = gate.output_waits();
        let start = tokio::time::Instant::now();
        for _ in 0..8 {
            gated.read_exact(&mut buffer).await.unwrap();
        }
        drop(waits);
        gate.remove(FIRM_LIMIT + 1);
        for _ in 0..8 {
            gated.read_exact(&mut buffer).await.unwrap();
        }
        assert!(start.elapsed() < FIRM_SLICE_INTERVAL);
    }

    #[test]
    fn what_may_wait_has_a_limit_and_what_is_dropped_waits_no_more() {
        let total = Arc::new(AtomicUsize::new(0));
        let gate = Gate::new(total.clone());
        assert!(gate.add(HARD_LIMIT));
        assert!(!gate.add(1));
        drop(gate);
        assert_eq!(total.load(Ordering::Acquire), 0);
        let gates: Vec<Gate> = (0..TOTAL_LIMIT / HARD_LIMIT).map(|_| Gate::new(total.clone())).collect();
        assert!(gates.iter().all(|gate| gate.add(HARD_LIMIT)));
        assert!(!Gate::new(total).add(1));
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_ends() {
        let cut = CancellationToken::new();
        let (ours, _theirs) = tokio::io::duplex(1);
        let mut gated = Gated::new(ours, Arc::default(), cut.clone());
        let reading = tokio::spawn(async move { gated.read_u8().await });
        cut.cancel();
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
