//! Reading a task's log while it is written, as frames.
//!
//! The folder may be writable for a container's root, so nothing in it is trusted: no links are followed,
//! and only the names and lengths that the format allows mean anything.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use api::agent::{LOG_FRAME_HEADER, LOG_FRAME_MAX_PAYLOAD, LogFrame, LogFrameKind};

use crate::beneath::Beneath;
use crate::clock;
use crate::log_files::{self, INDEX_ENTRY, LONGEST_SEGMENT, index_name, list_segments, segment_name};

/// Writes closer together than this may share a frame.
const FRAME_SPAN_MICROS: u64 = 100_000;
/// How many entries of an index are read at once.
const INDEX_BATCH: u64 = 4096;
/// An index with an entry for every byte is as long.
const LONGEST_INDEX: u64 = LONGEST_SEGMENT * INDEX_ENTRY as u64;

/// A place in a log, from where frames are read.
#[derive(Debug)]
pub(crate) struct LogReader {
    dir: PathBuf,
    /// The offset of the next byte.
    pub(crate) position: u64,
    segment: Option<Segment>,
    /// Start and length of the segments as they were listed last.
    segments: Vec<(u64, u64)>,
}

/// What a list of segments leads to.
enum Step {
    Frame(Vec<u8>),
    /// What comes next is there and cannot be read yet.
    Wait,
    Nothing,
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
    entries: Vec<(u64, i64)>,
}

impl LogReader {
    /// Reads the log in `dir` from `position` on.
    pub(crate) fn new(dir: PathBuf, position: u64) -> LogReader {
        LogReader { dir, position, segment: None, segments: Vec::new() }
    }

    /// The next frame with at most `limit` bytes of payload, ready to send. None: there is nothing more for
    /// now. A gap is told as soon as what follows it is there, or `sealed_at` says that nothing will be.
    pub(crate) fn next(&mut self, limit: u64, sealed_at: Option<u64>) -> Option<Vec<u8>> {
        if let Some(frame) = self.read(limit) {
            return Some(frame);
        }
        // Either all is read, or the segment is over, or it was removed.
        self.segment = None;
        let dir = Beneath::open(&self.dir).ok();
        // A list is walked to its end before the next is made, or a folder full of names would cost its square.
        for list_again in [false, true] {
            if list_again {
                self.segments = dir.as_ref().map(|dir| list_segments(dir.path())).unwrap_or_default();
            }
            match dir.as_ref().map_or(Step::Nothing, |dir| self.step(dir, limit, sealed_at.is_some())) {
                Step::Frame(frame) => return Some(frame),
                Step::Wait => return None,
                Step::Nothing => {}
            }
        }
        Some(self.skip_to(sealed_at.filter(|end| *end > self.position)?))
    }

    /// The next frame as the list of segments has it.
    fn step(&mut self, dir: &Beneath, limit: u64, is_sealed: bool) -> Step {
        let after = self.segments.partition_point(|(start, _)| *start <= self.position);
        let here = after.checked_sub(1).map(|at| self.segments[at]);
        if let Some((start, length)) = here {
            // It may have grown since it was listed.
            self.open(dir, start);
            if let Some(frame) = self.read(limit) {
                return Step::Frame(frame);
            }
            let is_there = self.position < start + length && dir.has(&segment_name(start));
            if is_there && !is_sealed {
                return Step::Wait;
            }
            // What cannot be read although nobody writes any more is lost. Waiting for it would be for ever.
        }
        // A segment that was just begun is empty, and after it more may come.
        let next = self.segments[after..].iter().find(|(_, length)| *length > 0);
        next.copied().map_or(Step::Nothing, |(start, _)| Step::Frame(self.skip_to(start)))
    }

    fn skip_to(&mut self, offset: u64) -> Vec<u8> {
        self.position = offset;
        header(LogFrameKind::Gap, offset, 0, 0)
    }

    fn open(&mut self, dir: &Beneath, start: u64) {
        let Ok(file) = dir.file(segment_name(start)) else {
            return;
        };
        let index = Index { file: dir.file(index_name(start)).ok(), ..Index::default() };
        self.segment = Some(Segment { start, file, index });
    }

    fn read(&mut self, limit: u64) -> Option<Vec<u8>> {
        let segment = self.segment.as_mut()?;
        let (time, until) = segment.index.find(self.position);
        let wanted =
            until.saturating_sub(self.position).min(LOG_FRAME_MAX_PAYLOAD as u64).min(limit.max(1)) as usize;
        let mut frame = vec![0; LOG_FRAME_HEADER + wanted];
        // A file that grows on is not ours any more.
        let place = self.position.checked_sub(segment.start).filter(|place| *place < LONGEST_SEGMENT)?;
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
        let is_first = |entries: &[(u64, i64)]| entries.first().is_none_or(|(at, _)| position < *at);
        let is_last = |entries: &[(u64, i64)]| entries.last().is_none_or(|(at, _)| *at <= position);
        if is_first(&self.entries) || is_last(&self.entries) {
            self.load(position);
        }
        let after = self.entries.partition_point(|(offset, _)| *offset <= position);
        let time = after.checked_sub(1).map_or(0, |entry| self.entries[entry].1);
        let until = self.entries[after..]
            .iter()
            .find(|(offset, later)| position < *offset && FRAME_SPAN_MICROS < later.abs_diff(time))
            .map_or(u64::MAX, |(offset, _)| *offset);
        // Nothing was written before there was time, or later than now.
        (time.clamp(0, clock::unix_micros().max(0)), until)
    }

    /// Moves the window to `position`. The way there is short, whatever the file holds and however long it is.
    fn load(&mut self, position: u64) {
        let Some(file) = &self.file else {
            return;
        };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let count = length.min(LONGEST_INDEX) / INDEX_ENTRY as u64;
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low.midpoint(high);
            let mut bytes = [0; INDEX_ENTRY];
            if file.read_exact_at(&mut bytes, middle * INDEX_ENTRY as u64).is_err() {
                break;
            }
            if entry(&bytes).0 <= position { low = middle + 1 } else { high = middle }
        }
        let first = low.saturating_sub(1);
        let batch = (count - first).min(INDEX_BATCH) as usize;
        let mut bytes = vec![0; batch * INDEX_ENTRY];
        let length = file.read_at(&mut bytes, first * INDEX_ENTRY as u64).unwrap_or(0);
        self.entries = bytes[..length].chunks_exact(INDEX_ENTRY).map(entry).collect();
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
    let Ok(dir) = Beneath::open(dir) else {
        return;
    };
    let segments = list_segments(dir.path());
    for pair in segments.windows(2) {
        let [(start, length), _] = pair else {
            return;
        };
        if start + length <= acked {
            let _ = dir.remove(&segment_name(*start));
            let _ = dir.remove(&index_name(*start));
        }
    }
}

/// The log's end as the files show it.
pub(crate) fn end_on_disk(dir: &Path) -> u64 {
    Beneath::open(dir).map_or(0, |dir| log_files::end_on_disk(dir.path()))
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

    #[test]
    fn times_are_found_in_an_index_and_nonsense_in_it_ends_soon() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 0, &"x".repeat(20_000));
        let index = dir.path().join(index_name(0));
        let bytes = |entries: &mut dyn Iterator<Item = (u64, i64)>| -> Vec<u8> {
            entries.flat_map(|(at, time)| [at.to_be_bytes(), time.to_be_bytes()].concat()).collect()
        };
        let first = |position| {
            let frame = LogReader::new(dir.path().to_owned(), position).next(u64::MAX, None).unwrap();
            let head = LogFrame::decode(frame.first_chunk().unwrap()).unwrap();
            (head.time_micros, head.length)
        };
        let mut honest = (0..10_000).map(|number| (2 * number, 200_000 * number as i64));
        std::fs::write(&index, bytes(&mut honest)).unwrap();
        assert_eq!(first(0), (0, 2));
        assert_eq!(first(9001), (200_000 * 4500, 1));
        assert_eq!(first(19_999), (200_000 * 9999, 1));
        std::fs::write(&index, bytes(&mut [(0, i64::MIN), (7, i64::MAX)].into_iter())).unwrap();
        assert_eq!(first(0), (0, 7));
        assert!(first(8).0 <= clock::unix_micros());
        File::options().write(true).open(&index).unwrap().set_len(1 << 43).unwrap();
        assert_eq!(first(0).1, 20_000);
    }

    #[test]
    fn a_segment_longer_than_any_of_ours_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 0, "abc");
        let huge = File::create(dir.path().join(segment_name(10))).unwrap();
        huge.set_len(1 << 43).unwrap();
        assert_eq!(end_on_disk(dir.path()), 3);
        assert_eq!(read_all(dir.path(), 3, 10), [(LogFrameKind::Gap, 10, String::new())]);
    }

    #[test]
    fn a_segment_that_cannot_be_read_holds_up_only_what_is_still_written() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 0, "abc");
        write(dir.path(), 3, "def");
        // An index that runs backwards once made the reader want nothing.
        let entries: Vec<u8> = [(0_u64, 5_i64), (0, 1 << 40)]
            .iter()
            .flat_map(|(at, time)| [at.to_be_bytes(), time.to_be_bytes()].concat())
            .collect();
        std::fs::write(dir.path().join(index_name(0)), entries).unwrap();
        let mut reader = LogReader::new(dir.path().to_owned(), 0);
        assert!(reader.next(u64::MAX, None).is_some());
        // Its name and length say that it goes on, and there is nothing to read.
        reader.position = 4;
        let end = dir.path().join(segment_name(3));
        std::fs::remove_file(&end).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &end).unwrap();
        assert_eq!(reader.next(u64::MAX, None), None);
        let frame = reader.next(u64::MAX, Some(6)).unwrap();
        assert_eq!(LogFrame::decode(frame.first_chunk().unwrap()).unwrap().kind, LogFrameKind::Gap);
    }

    #[test]
    fn a_folder_full_of_names_is_soon_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 0, "abc");
        for number in 0..5000 {
            write(dir.path(), 100 + 10 * number, if number % 2 == 0 { "" } else { "x" });
        }
        let frames = read_all(dir.path(), 0, 1 << 20);
        assert_eq!(frames[0], (LogFrameKind::Data, 0, "abc".to_owned()));
        assert_eq!(frames[2], (LogFrameKind::Data, 110, "x".to_owned()));
        assert_eq!(frames.len(), 1 + 2 * 2500 + 1);
    }
}
