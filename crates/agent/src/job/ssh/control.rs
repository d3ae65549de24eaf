//! What the supervisor and the SSH server say to each other after the orders.
//!
//! The log lies where only the supervisor may read. So the server asks for the part of it that it needs, and gets it as
//! open files. And the supervisor must know whether anybody is in the job, which the server tells when it changes.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Mutex;

use crate::log_files::{index_name, list_segments, segment_name};

/// How long a word of the supervisor is.
pub(super) const WORD: usize = 9;
/// How long a word of the server is.
pub(super) const REPORT: usize = 9;

/// What the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// It needs the part of the log with the byte at this offset.
    Wants(u64),
    /// A user is in the job, after nobody was.
    Visited,
    /// The last user has left.
    Left,
}

impl Report {
    pub(super) fn encode(self) -> [u8; REPORT] {
        let (kind, number) = match self {
            Report::Wants(offset) => (1, offset),
            Report::Visited => (2, 0),
            Report::Left => (3, 0),
        };
        let mut bytes = [kind; REPORT];
        bytes[1..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; REPORT]) -> Option<Report> {
        let [kind, number @ ..] = bytes;
        match kind {
            1 => Some(Report::Wants(u64::from_be_bytes(number))),
            2 => Some(Report::Visited),
            3 => Some(Report::Left),
            _ => None,
        }
    }
}

/// The server's end of the socket, for all who have something to say.
#[derive(Debug, Clone)]
pub(super) struct Reporter(Arc<Mutex<OwnedWriteHalf>>);

impl Reporter {
    pub(super) fn new(socket: OwnedWriteHalf) -> Reporter {
        Reporter(Arc::new(Mutex::new(socket)))
    }

    pub(super) async fn say(&self, report: Report) -> io::Result<()> {
        self.0.lock().await.write_all(&report.encode()).await
    }
}

/// What the supervisor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The log's segment that begins at this offset, with its file and its index beside it.
    Segment(u64),
    /// There is no such segment yet.
    Nothing,
    /// The job's command has ended: sessions end, the log goes on.
    Ending,
    /// The log is complete, and this long.
    Complete(u64),
    /// Clients also come by the socket beside it.
    Listen,
}

impl Word {
    pub(super) fn encode(self) -> [u8; WORD] {
        let (kind, number) = match self {
            Word::Segment(start) => (1, start),
            Word::Nothing => (2, 0),
            Word::Ending => (3, 0),
            Word::Complete(end) => (4, end),
            Word::Listen => (5, 0),
        };
        let mut bytes = [kind; WORD];
        bytes[1..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; WORD]) -> Option<Word> {
        let [kind, number @ ..] = bytes;
        let number = u64::from_be_bytes(number);
        match kind {
            1 => Some(Word::Segment(number)),
            2 => Some(Word::Nothing),
            3 => Some(Word::Ending),
            4 => Some(Word::Complete(number)),
            5 => Some(Word::Listen),
            _ => None,
        }
    }

    /// Says it, with files beside it. Nobody waits: who does not listen misses it.
    pub(super) fn send(self, socket: impl AsFd, files: &[File]) -> io::Result<()> {
        let bytes = self.encode();
        let descriptors: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(&bytes)], rights, flags, None)?;
        Ok(())
    }
}

/// The segment with the byte at `position`, or else the first one after it; the one that grows, where all are before
/// it.
pub(super) fn find_segment(logs: &Path, position: u64) -> (Word, Vec<File>) {
    let segments = list_segments(logs);
    let holds = |(start, length): &&(u64, u64)| position < start + length;
    let Some((start, _)) = segments.iter().find(holds).or(segments.last()) else {
        return (Word::Nothing, Vec::new());
    };
    let open = |name: String| File::open(logs.join(name));
    match (open(segment_name(*start)), open(index_name(*start))) {
        (Ok(log), Ok(index)) => (Word::Segment(*start), vec![log, index]),
        (Ok(log), Err(_)) => (Word::Segment(*start), vec![log]),
        // The host agent removes what the server has.
        (Err(_), _) => (Word::Nothing, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_understood() {
        for word in [Word::Segment(7), Word::Nothing, Word::Ending, Word::Complete(u64::MAX), Word::Listen] {
            assert_eq!(Word::decode(word.encode()), Some(word));
        }
        assert_eq!(Word::decode([9; WORD]), None);
        for report in [Report::Wants(u64::MAX), Report::Visited, Report::Left] {
            assert_eq!(Report::decode(report.encode()), Some(report));
        }
        assert_eq!(Report::decode([9; REPORT]), None);
    }

    #[test]
    fn the_segment_of_a_byte_is_found_or_the_next_or_the_last() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_segment(dir.path(), 0).0, Word::Nothing);
        for (start, text) in [(5, "abc"), (10, "klm"), (13, "")] {
            std::fs::write(dir.path().join(segment_name(start)), text).unwrap();
        }
        let check = |position, start| assert_eq!(find_segment(dir.path(), position).0, Word::Segment(start));
        check(0, 5);
        check(7, 5);
        check(8, 10);
        check(12, 10);
        check(13, 13);
        check(99, 13);
    }
}
