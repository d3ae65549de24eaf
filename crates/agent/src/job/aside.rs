//! Work on a thread of its own, whose end the supervisor's loop can wait for beside everything else.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// Work that somebody else does. The other end of the stream closes when it is done.
pub(super) struct Aside<T> {
    thread: JoinHandle<T>,
    done: UnixStream,
}

impl<T: Send + 'static> Aside<T> {
    /// Begins the work, on a thread of this name.
    pub(super) fn start(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Aside<T>> {
        let (done, thread_end) = UnixStream::pair()?;
        done.set_nonblocking(true)?;
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _closes_at_the_end = thread_end;
            work()
        })?;
        Ok(Aside { thread, done })
    }

    /// What to poll for reading.
    pub(super) fn done(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// Whether the work has ended.
    pub(super) fn is_done(&self) -> bool {
        self.thread.is_finished() || matches!((&self.done).read(&mut [0]), Ok(0))
    }

    /// What the work came to; nothing if it panicked.
    pub(super) fn join(self) -> Option<T> {
        self.thread.join().ok()
    }
}
