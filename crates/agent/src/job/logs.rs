//! The job's log on the disk: segments named by the offset of their first byte, each with an index of times.
//!
//! Writing never waits for a reader. When too much lies unacknowledged, or the disk is full, bytes are lost,
//! their offsets are skipped, and the reader sees a gap.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::clock;
use crate::disk::Heir;
use crate::log_files::{INDEX_ENTRY, SEGMENT_BYTES, index_name, list_segments, segment_name};

/// Writes that follow each other faster than this share an entry.
const INDEX_INTERVAL_MICROS: i64 = 1000;
/// How long a full disk is left alone.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// How much of the log's end is kept for the message of a failure.
const TAIL_BYTES: usize = 8 * 1024;

/// Writes a job's log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    dir: PathBuf,
    cap: u64,
    end: u64,
    segment: Option<Segment>,
    retry_at: Option<Instant>,
    tail: Vec<u8>,
    /// Bytes that could not be written.
    pub(crate) lost: u64,
    /// Why not, the last time.
    pub(crate) error: Option<String>,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    length: u64,
    file: File,
    index: Option<File>,
    indexed_at: i64,
}

impl LogWriter {
    /// A new log in `dir`, of which at most about `cap` bytes may lie on the disk. The heir removes what it has read.
    pub(crate) fn create(dir: &Path, cap: u64, heir: Heir) -> io::Result<LogWriter> {
        crate::disk::create_private_dir(dir)?;
        heir.give(dir)?;
        Ok(LogWriter {
            dir: dir.to_owned(),
            cap,
            end: 0,
            segment: None,
            retry_at: None,
            tail: Vec::new(),
            lost: 0,
            error: None,
        })
    }

    /// The offset after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Adds bytes. They count even where the disk has no room for them.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.remember(bytes);
        let waits = self.retry_at.is_some_and(|retry_at| clock::monotonic() < retry_at);
        let written = if waits { 0 } else { self.write(bytes) };
        self.end += bytes.len() as u64;
        self.lost += (bytes.len() - written) as u64;
    }

    /// Makes the log durable.
    pub(crate) fn seal(&mut self) {
        if let Some(segment) = self.segment.take() {
            let _ = segment.file.sync_all();
        }
    }

    /// The last lines, without what only a terminal understands.
    pub(crate) fn last_lines(&self, count: usize) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let plain = strip_terminal_codes(&text);
        let lines: Vec<&str> = plain.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.try_write(bytes) {
            Ok(()) => {
                self.retry_at = None;
                bytes.len()
            }
            Err((written, error)) => {
                // The next segment's name shows how much is missing.
                self.segment = None;
                self.error = Some(error.to_string());
                self.retry_at = Some(clock::monotonic() + RETRY_AFTER);
                written
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        if self.segment.as_ref().is_none_or(|segment| segment.length >= SEGMENT_BYTES) {
            self.begin_segment().map_err(|error| (0, error))?;
        }
        let Some(segment) = self.segment.as_mut() else {
            return Err((0, io::Error::other("no segment")));
        };
        segment.note_time();
        let mut rest = bytes;
        while !rest.is_empty() {
            match segment.file.write(rest) {
                Ok(written) => {
                    segment.length += written as u64;
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if segment.length == 0 {
                        let _ = fs::remove_file(self.dir.join(segment_name(segment.start)));
                        let _ = fs::remove_file(self.dir.join(index_name(segment.start)));
                    }
                    return Err((bytes.len() - rest.len(), error));
                }
            }
        }
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        self.segment = None;
        self.keep_cap();
        let open = |name: String| OpenOptions::new().append(true).create_new(true).open(self.dir.join(name));
        let file = open(segment_name(self.end))?;
        // Without an index the times are coarser, and nothing else.
        let index = open(index_name(self.end)).ok();
        self.segment = Some(Segment { start: self.end, length: 0, file, index, indexed_at: i64::MIN });
        Ok(())
    }

    /// Drops the oldest segments until what is left and one new segment fit under the cap.
    fn keep_cap(&self) {
        let mut segments = list_segments(&self.dir);
        let mut total: u64 = segments.iter().map(|(_, length)| length).sum();
        segments.reverse();
        while total + SEGMENT_BYTES > self.cap.max(2 * SEGMENT_BYTES) {
            let Some((start, length)) = segments.pop() else {
                return;
            };
            let _ = fs::remove_file(self.dir.join(segment_name(start)));
            let _ = fs::remove_file(self.dir.join(index_name(start)));
            total -= length;
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        if self.tail.len() + bytes.len() > 2 * TAIL_BYTES {
            self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        }
        self.tail.extend_from_slice(bytes);
    }
}

impl Segment {
    fn note_time(&mut self) {
        let now = clock::unix_micros();
        let is_recent = now.saturating_sub(self.indexed_at) < INDEX_INTERVAL_MICROS && self.indexed_at <= now;
        let Some(index) = self.index.as_mut().filter(|_| !is_recent) else {
            return;
        };
        let mut entry = [0; INDEX_ENTRY];
        entry[..8].copy_from_slice(&(self.start + self.length).to_be_bytes());
        entry[8..].copy_from_slice(&now.to_be_bytes());
        if index.write_all(&entry).is_err() {
            self.index = None;
        }
        self.indexed_at = now;
    }
}

/// Takes out escape sequences and control characters other than line ends and tabs.
fn strip_terminal_codes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.next_if_eq(&'[').is_some() => {
                while characters.next_if(|c| !('\u{40}'..='\u{7e}').contains(c)).is_some() {}
                characters.next();
            }
            '\n' | '\t' => plain.push(character),
            character if character.is_control() => {}
            character => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_files::end_on_disk;

    fn contents(dir: &Path) -> Vec<(u64, Vec<u8>)> {
        let read = |start| fs::read(dir.join(segment_name(start))).unwrap();
        list_segments(dir).into_iter().map(|(start, _)| (start, read(start))).collect()
    }

    #[test]
    fn segments_follow_each_other_without_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::create(dir.path(), 1 << 30, Heir::default()).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..9 {
            log.append(&chunk);
        }
        let segments = contents(dir.path());
        assert_eq!(segments.len(), 3);
        let mut end = 0;
        for (start, bytes) in segments {
            assert_eq!(start, end);
            end += bytes.len() as u64;
        }
        assert_eq!(end, log.end());
        assert_eq!(log.lost, 0);
    }

    #[test]
    fn the_cap_drops_the_oldest_segments() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::create(dir.path(), 3 * SEGMENT_BYTES, Heir::default()).unwrap();
        for _ in 0..40 {
            log.append(&vec![b'x'; 1 << 20]);
        }
        let segments = list_segments(dir.path());
        assert!(segments.iter().map(|(_, length)| length).sum::<u64>() <= 3 * SEGMENT_BYTES);
        assert!(segments[0].0 > 0);
        assert_eq!(end_on_disk(dir.path()), 40 << 20);
    }

    #[test]
    fn what_cannot_be_written_is_skipped_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs");
        let mut log = LogWriter::create(&path, 1 << 30, Heir::default()).unwrap();
        fs::remove_dir(&path).unwrap();
        log.append(b"lost");
        assert_eq!((log.end(), log.lost), (4, 4));
        assert!(log.error.is_some());
    }

    #[test]
    fn last_lines_are_plain_text() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::create(dir.path(), 1 << 30, Heir::default()).unwrap();
        log.append(b"one\r\ntwo\r\n\x1b[31mthree\x1b[0m\r\n\r\n");
        assert_eq!(log.last_lines(2), "two\nthree");
    }
}
