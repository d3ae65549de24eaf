//! Reading a task's log while it is written, as frames.
//!
//! The folder may be writable for a container's root, so nothing in it is trusted: no links are followed,
//! and only the names and lengths that the format allows mean anything.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use api::agent::{LOG_FRAME_HEADER, LOG_FRAME_MAX_PAYLOAD, LogFrame, LogFrameKind};

use crate::disk::{self, UntrustedDir};
use crate::log_files::{self, INDEX_ENTRY, index_name, list_segments, segment_name};

/// Writes closer together than this may share a frame.
const FRAME_SPAN_MICROS: i64 = 100_000;
/// How many entries of an index are read at once.
const INDEX_BATCH: usize = 4096;

/// A place in a log, from where frames are read.
#[derive(Debug)]
pub(crate) struct LogReader {
    dir: PathBuf,
    /// The offset of the next byte.
    pub(crate) position: u64,
    segment: Option<Segment>,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    file: File,
    index: Index,
}

/// A window onto an index, which may still grow.
#[derive(Debug, Default)]
struct Index {
    file: Option<File>,
    /// The first entry in `entries`, by number.
    first: u64,
    entries: Vec<(u64, i64)>,
}

impl LogReader {
    /// Reads the log in `dir` from `position` on.
    pub(crate) fn new(dir: PathBuf, position: u64) -> LogReader {
        LogReader { dir, position, segment: None }
    }

    /// The next frame with at most `limit` bytes of payload, ready to send. None: there is nothing more for
    /// now. A gap is told as soon as what follows it is there, or `sealed_at` says that nothing will be.
    pub(crate) fn next(&mut self, limit: u64, sealed_at: Option<u64>) -> Option<Vec<u8>> {
        if let Some(frame) = self.read(limit) {
            return Some(frame);
        }
        // Either all is read, or the segment is over, or it was removed.
        self.segment = None;
        let dir = UntrustedDir::open(&self.dir).ok();
        let segments = dir.as_ref().map(|dir| list_segments(dir.path())).unwrap_or_default();
        let holds = |(start, length): &&(u64, u64)| *start <= self.position && self.position < start + length;
        if let (Some((start, _)), Some(dir)) = (segments.iter().find(holds), &dir) {
            self.open(dir, *start);
            return self.read(limit);
        }
        let next = segments.iter().map(|(start, _)| *start).find(|start| *start > self.position);
        // A segment that was just begun is empty, and after it more may come.
        let resume = next.or(sealed_at.filter(|end| *end > self.position))?;
        self.position = resume;
        Some(header(LogFrameKind::Gap, resume, 0, 0))
    }

    fn open(&mut self, dir: &UntrustedDir, start: u64) {
        let open = |name: String| disk::open_untrusted(&dir.path().join(name));
        let Ok(file) = open(segment_name(start)) else {
            return;
        };
        let index = Index { file: open(index_name(start)).ok(), ..Index::default() };
        self.segment = Some(Segment { start, file, index });
    }

    fn read(&mut self, limit: u64) -> Option<Vec<u8>> {
        let segment = self.segment.as_mut()?;
        let (time, until) = segment.index.find(self.position);
        let wanted =
            until.saturating_sub(self.position).min(LOG_FRAME_MAX_PAYLOAD as u64).min(limit.max(1)) as usize;
        let mut frame = vec![0; LOG_FRAME_HEADER + wanted];
        let place = self.position.checked_sub(segment.start)?;
        let length = segment.file.read_at(&mut frame[LOG_FRAME_HEADER..], place).ok()?;
        if length == 0 {
            return None;
        }
        frame.truncate(LOG_FRAME_HEADER + length);
        let encoded = header(LogFrameKind::Data, self.position, time, length as u32);
        frame[..LOG_FRAME_HEADER].copy_from_slice(&encoded);
        self.position += length as u64;
        Some(frame)
    }
}

impl Index {
    /// When the byte at `position` was written, and the offset up to which that is about right.
    fn find(&mut self, position: u64) -> (i64, u64) {
        self.load(position);
        let after = self.entries.partition_point(|(offset, _)| *offset <= position);
        let time = after.checked_sub(1).map_or(0, |entry| self.entries[entry].1);
        let until = self.entries[after..]
            .iter()
            .find(|(_, later)| (*later - time).abs() > FRAME_SPAN_MICROS)
            .map_or(u64::MAX, |(offset, _)| *offset);
        (time, until)
    }

    /// Moves the window until it covers `position`, or the index ends.
    fn load(&mut self, position: u64) {
        let Some(file) = &self.file else {
            return;
        };
        let is_last = |entries: &[(u64, i64)]| entries.last().is_none_or(|(at, _)| *at <= position);
        while is_last(&self.entries) {
            let count = self.entries.len();
            let mut bytes = vec![0; INDEX_BATCH * INDEX_ENTRY];
            let place = (self.first + count as u64) * INDEX_ENTRY as u64;
            let length = file.read_at(&mut bytes, place).unwrap_or(0);
            if length < INDEX_ENTRY {
                return;
            }
            // The last known entry may still be the one that counts.
            let keep = count.min(1);
            self.entries.drain(..count - keep);
            self.first += (count - keep) as u64;
            self.entries.extend(bytes[..length].chunks_exact(INDEX_ENTRY).map(entry));
        }
    }
}

fn entry(bytes: &[u8]) -> (u64, i64) {
    let (offset, time) = bytes.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    (number(offset), number(time) as i64)
}

fn header(kind: LogFrameKind, offset: u64, time_micros: i64, length: u32) -> Vec<u8> {
    LogFrame { kind, offset, time_micros, length }.encode().to_vec()
}

/// The frame that says where the log ends.
pub(crate) fn end_frame(offset: u64) -> Vec<u8> {
    header(LogFrameKind::End, offset, 0, 0)
}

/// Removes the segments that lie before `acked` as a whole. The one being written stays.
pub(crate) fn remove_acknowledged(dir: &Path, acked: u64) {
    let Ok(dir) = UntrustedDir::open(dir) else {
        return;
    };
    let segments = list_segments(dir.path());
    for pair in segments.windows(2) {
        let [(start, length), _] = pair else {
            return;
        };
        if start + length <= acked {
            let _ = std::fs::remove_file(dir.path().join(segment_name(*start)));
            let _ = std::fs::remove_file(dir.path().join(index_name(*start)));
        }
    }
}

/// The log's end as the files show it.
pub(crate) fn end_on_disk(dir: &Path) -> u64 {
    UntrustedDir::open(dir).map_or(0, |dir| log_files::end_on_disk(dir.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, start: u64, text: &str) {
        std::fs::write(dir.join(segment_name(start)), text).unwrap();
    }

    fn read_all(dir: &Path, position: u64, sealed_at: u64) -> Vec<(LogFrameKind, u64, String)> {
        let mut reader = LogReader::new(dir.to_owned(), position);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next(u64::MAX, Some(sealed_at)) {
            let (head, text) = frame.split_first_chunk().unwrap();
            let head = LogFrame::decode(head).unwrap();
            frames.push((head.kind, head.offset, String::from_utf8(text.to_vec()).unwrap()));
        }
        frames
    }

    #[test]
    fn holes_between_and_after_segments_are_told() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 0, "abc");
        write(dir.path(), 10, "klm");
        let data = |offset, text: &str| (LogFrameKind::Data, offset, text.to_owned());
        let gap = |offset| (LogFrameKind::Gap, offset, String::new());
        let all = [data(0, "abc"), gap(10), data(10, "klm"), gap(20)];
        assert_eq!(read_all(dir.path(), 0, 20), all);
        assert_eq!(read_all(dir.path(), 2, 13), [data(2, "c"), gap(10), data(10, "klm")]);
        assert_eq!(read_all(dir.path(), 5, 13), [gap(10), data(10, "klm")]);
    }

    #[test]
    fn a_folder_that_became_a_link_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (other, link) = (dir.path().join("other"), dir.path().join("logs"));
        std::fs::create_dir(&other).unwrap();
        write(&other, 0, "somebody else's");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert_eq!(read_all(&link, 0, 0), []);
        assert_eq!(end_on_disk(&link), 0);
        write(&other, 100, "more");
        remove_acknowledged(&link, 1000);
        assert!(other.join(segment_name(0)).exists());
    }
}
