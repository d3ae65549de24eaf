//! One job's log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::watch;

/// Bytes of one index entry: offset, position, time, kind; each eight bytes, little-endian.
const ENTRY_BYTES: usize = 32;

/// Bytes written within this time of each other share an index entry, in microseconds.
const ENTRY_SPAN_MICROS: i64 = 20_000;

/// No index entry covers more bytes than this.
const ENTRY_MAX_BYTES: u64 = 32 * 1024;

/// How long a log is, and whether nothing more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// The log's length in bytes, lost ones counted.
    pub length: u64,
    /// Nothing more will come.
    pub complete: bool,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSlice {
    /// Where the part begins; later than asked for if bytes are lost.
    pub start: u64,
    /// Its pieces, in order.
    pub chunks: Vec<LogChunk>,
}

/// Bytes that were written together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Where they begin in the log.
    pub offset: u64,
    /// When they were written, in microseconds since the epoch.
    pub time_micros: i64,
    /// The bytes.
    pub bytes: Bytes,
    /// Bytes before them are lost.
    pub gap_before: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Gap,
    End,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u64,
    position: u64,
    time_micros: i64,
    kind: Kind,
}

impl Entry {
    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let kind = match self.kind {
            Kind::Data => 0_u64,
            Kind::Gap => 1,
            Kind::End => 2,
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.time_micros.to_le_bytes());
        bytes[24..].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Entry {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            word
        };
        Entry {
            offset: u64::from_le_bytes(word(0)),
            position: u64::from_le_bytes(word(8)),
            time_micros: i64::from_le_bytes(word(16)),
            kind: match u64::from_le_bytes(word(24)) {
                1 => Kind::Gap,
                2 => Kind::End,
                _ => Kind::Data,
            },
        }
    }
}

/// One job's log. Its files are opened when they are first needed.
#[derive(Debug)]
pub(super) struct JobLog {
    folder: PathBuf,
    state: Mutex<State>,
    length: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    loaded: bool,
    writer: Option<Writer>,
    entries: Vec<Entry>,
    /// Bytes in `data`.
    stored: u64,
}

#[derive(Debug)]
struct Writer {
    data: File,
    index: File,
}

impl State {
    fn length(&self) -> u64 {
        self.entries.last().map_or(0, |last| last.offset + (self.stored - last.position))
    }

    fn is_complete(&self) -> bool {
        self.entries.last().is_some_and(|last| last.kind == Kind::End)
    }

    /// Whether bytes at the end go into the last entry.
    fn joins_last(&self, time_micros: i64, bytes: u64) -> bool {
        self.entries.last().is_some_and(|last| {
            last.kind != Kind::End
                && time_micros - last.time_micros < ENTRY_SPAN_MICROS
                && self.stored - last.position + bytes <= ENTRY_MAX_BYTES
        })
    }
}

impl JobLog {
    pub(super) fn new(folder: PathBuf) -> JobLog {
        JobLog { folder, state: Mutex::default(), length: watch::channel(0).0 }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().expect("nobody panics while writing a log");
        if !state.loaded {
            if let Err(error) = self.load(&mut state) {
                tracing::error!("cannot read the log `{}`: {error}", self.folder.display());
            }
            state.loaded = true;
            self.length.send_replace(state.length());
        }
        work(&mut state)
    }

    fn load(&self, state: &mut State) -> io::Result<()> {
        let mut index = match File::open(self.folder.join("index")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            index => index?,
        };
        let mut bytes = vec![];
        index.read_to_end(&mut bytes)?;
        state.stored = std::fs::metadata(self.folder.join("data")).map_or(0, |data| data.len());
        // A crash may leave half an entry, or an entry without its bytes; neither says anything.
        let whole = bytes.chunks_exact(ENTRY_BYTES).map(Entry::decode);
        state.entries = whole.filter(|entry| entry.position <= state.stored).collect();
        Ok(())
    }

    /// Opens the files for writing and cuts off what a crash left.
    fn writer<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Writer> {
        if state.writer.is_none() {
            std::fs::create_dir_all(&self.folder)?;
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(0o600);
            let (data, index) =
                (options.open(self.folder.join("data"))?, options.open(self.folder.join("index"))?);
            index.set_len((state.entries.len() * ENTRY_BYTES) as u64)?;
            state.writer = Some(Writer { data, index });
        }
        state.writer.as_mut().ok_or_else(|| io::Error::other("the log was not opened"))
    }

    fn push(&self, state: &mut State, entry: Entry) -> io::Result<()> {
        self.writer(state)?.index.write_all(&entry.encode())?;
        state.entries.push(entry);
        Ok(())
    }

    pub(super) fn append(&self, offset: u64, time_micros: i64, bytes: &[u8]) -> io::Result<()> {
        let length = self.with(|state| -> io::Result<u64> {
            let have = state.length();
            let skip = usize::try_from(have.saturating_sub(offset)).unwrap_or(usize::MAX);
            if skip >= bytes.len() || state.is_complete() {
                return Ok(have);
            }
            let fresh = &bytes[skip..];
            let begins_at = offset + skip as u64;
            let gap = begins_at > have;
            if gap || !state.joins_last(time_micros, fresh.len() as u64) {
                let kind = if gap { Kind::Gap } else { Kind::Data };
                self.push(state, Entry { offset: begins_at, position: state.stored, time_micros, kind })?;
            }
            let result = self.writer(state)?.data.write_all(fresh);
            if result.is_err() {
                // Part of the bytes may be there: what is true is what the file says.
                state.stored = std::fs::metadata(self.folder.join("data"))?.len();
            } else {
                state.stored += fresh.len() as u64;
            }
            result.map(|()| state.length())
        })?;
        self.length.send_replace(length);
        Ok(())
    }

    pub(super) fn skip_to(&self, offset: u64, time_micros: i64) -> io::Result<()> {
        let length = self.with(|state| -> io::Result<u64> {
            if offset > state.length() && !state.is_complete() {
                self.push(state, Entry { offset, position: state.stored, time_micros, kind: Kind::Gap })?;
            }
            Ok(state.length())
        })?;
        self.length.send_replace(length);
        Ok(())
    }

    pub(super) fn complete(&self, time_micros: i64) -> io::Result<()> {
        let length = self.with(|state| -> io::Result<u64> {
            if !state.is_complete() {
                let (offset, position) = (state.length(), state.stored);
                self.push(state, Entry { offset, position, time_micros, kind: Kind::End })?;
            }
            Ok(state.length())
        })?;
        self.length.send_replace(length);
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        // The files are cloned so that readers need not wait for the disk.
        let files = self.with(|state| {
            state
                .writer
                .as_ref()
                .map(|writer| Ok::<_, io::Error>((writer.index.try_clone()?, writer.data.try_clone()?)))
        });
        if let Some(files) = files {
            let (index, data) = files?;
            index.sync_data()?;
            data.sync_data()?;
        }
        Ok(())
    }

    pub(super) fn end(&self) -> LogEnd {
        self.with(|state| LogEnd { length: state.length(), complete: state.is_complete() })
    }

    pub(super) fn offset_after(&self, time_micros: i64) -> u64 {
        self.with(|state| {
            let first = state.entries.partition_point(|entry| entry.time_micros <= time_micros);
            state.entries.get(first).map_or(state.length(), |entry| entry.offset)
        })
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.with(|_| ());
        self.length.subscribe()
    }

    pub(super) fn is_watched(&self) -> bool {
        self.length.receiver_count() > 0
    }

    pub(super) fn read(&self, from: u64, max_bytes: usize) -> io::Result<LogSlice> {
        let (spans, start) = self.with(|state| spans(state, from, max_bytes as u64));
        let mut chunks = Vec::with_capacity(spans.len());
        if spans.is_empty() {
            return Ok(LogSlice { start, chunks });
        }
        let data = File::open(self.folder.join("data"))?;
        let first = spans.first().map_or(0, |span| span.position);
        let total: u64 = spans.iter().map(|span| span.length).sum();
        let mut buffer = vec![0; usize::try_from(total).unwrap_or(usize::MAX)];
        data.read_exact_at(&mut buffer, first)?;
        let buffer = Bytes::from(buffer);
        for span in spans {
            let at = usize::try_from(span.position - first).unwrap_or(usize::MAX);
            let length = usize::try_from(span.length).unwrap_or(usize::MAX);
            chunks.push(LogChunk {
                offset: span.offset,
                time_micros: span.time_micros,
                bytes: buffer.slice(at..at + length),
                gap_before: span.gap_before,
            });
        }
        Ok(LogSlice { start, chunks })
    }
}

struct Span {
    offset: u64,
    position: u64,
    length: u64,
    time_micros: i64,
    gap_before: bool,
}

/// The stored pieces of a log that begin at `from`; `data` has them side by side.
fn spans(state: &State, from: u64, max_bytes: u64) -> (Vec<Span>, u64) {
    let mut spans = vec![];
    let mut left = max_bytes;
    let first = state.entries.partition_point(|entry| entry.offset <= from).saturating_sub(1);
    for (index, entry) in state.entries.iter().enumerate().skip(first) {
        let next_position = state.entries.get(index + 1).map_or(state.stored, |next| next.position);
        let length = next_position - entry.position;
        let skip = from.saturating_sub(entry.offset);
        if skip >= length {
            continue;
        }
        if left == 0 {
            break;
        }
        let taken = (length - skip).min(left);
        left -= taken;
        spans.push(Span {
            offset: entry.offset + skip,
            position: entry.position + skip,
            length: taken,
            time_micros: entry.time_micros,
            gap_before: entry.kind == Kind::Gap && skip == 0,
        });
        if taken < length - skip {
            break;
        }
    }
    let start = spans.first().map_or(from.max(state.length().min(from)), |span| span.offset);
    (spans, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &tempfile::TempDir) -> JobLog {
        JobLog::new(folder.path().join("job"))
    }

    fn text(log: &JobLog, from: u64) -> String {
        let slice = log.read(from, 1 << 20).unwrap();
        slice.chunks.iter().map(|chunk| String::from_utf8_lossy(&chunk.bytes).into_owned()).collect()
    }

    #[test]
    fn bytes_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.append(0, 1, b"one ").unwrap();
        log.append(4, 2, b"two ").unwrap();
        log.append(8, 90_000, b"three").unwrap();
        assert_eq!(text(&log, 0), "one two three");
        assert_eq!(text(&log, 5), "wo three");
        assert_eq!(log.end(), LogEnd { length: 13, complete: false });
    }

    #[test]
    fn bytes_that_are_here_already_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.append(0, 1, b"abcdef").unwrap();
        log.append(3, 2, b"defghi").unwrap();
        log.append(0, 3, b"abc").unwrap();
        assert_eq!(text(&log, 0), "abcdefghi");
    }

    #[test]
    fn lost_bytes_leave_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.append(0, 1, b"abc").unwrap();
        log.append(10, 2, b"xyz").unwrap();
        let slice = log.read(0, 100).unwrap();
        assert_eq!(slice.chunks.len(), 2);
        assert!(slice.chunks[1].gap_before);
        assert_eq!(slice.chunks[1].offset, 10);
        assert_eq!(log.read(5, 100).unwrap().start, 10);
        assert_eq!(log.end().length, 13);
    }

    #[test]
    fn a_log_is_found_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        {
            let log = log(&folder);
            log.append(0, 1, b"abc").unwrap();
            log.append(3, 50_000, b"def").unwrap();
            log.sync().unwrap();
        }
        let log = log(&folder);
        assert_eq!(log.end(), LogEnd { length: 6, complete: false });
        log.append(6, 100_000, b"ghi").unwrap();
        log.complete(100_001).unwrap();
        log.append(9, 100_002, b"late").unwrap();
        assert_eq!(text(&log, 0), "abcdefghi");
        assert_eq!(log.end(), LogEnd { length: 9, complete: true });
    }

    #[test]
    fn half_an_entry_left_by_a_crash_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        log(&folder).append(0, 1, b"abc").unwrap();
        let index = folder.path().join("job/index");
        let mut bytes = std::fs::read(&index).unwrap();
        bytes.extend_from_slice(&[7; 11]);
        std::fs::write(&index, bytes).unwrap();
        let log = log(&folder);
        log.append(3, 90_000, b"def").unwrap();
        drop(log);
        let log = self::log(&folder);
        assert_eq!(text(&log, 0), "abcdef");
    }

    #[test]
    fn the_time_of_writing_finds_the_offset() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.append(0, 1_000_000, b"abc").unwrap();
        log.append(3, 2_000_000, b"def").unwrap();
        assert_eq!(log.offset_after(0), 0);
        assert_eq!(log.offset_after(1_000_000), 3);
        assert_eq!(log.offset_after(2_000_000), 6);
    }
}
