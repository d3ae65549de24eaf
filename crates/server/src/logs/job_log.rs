//! One job's log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;

use super::index::{self, Entries, Entry, Kind};
use super::space::Space;

/// Bytes written within this time of each other share an index entry, in microseconds.
const ENTRY_SPAN_MICROS: i64 = 20_000;

/// No index entry covers more bytes than this.
const ENTRY_MAX_BYTES: u64 = 32 * 1024;

/// How long a log is, and whether nothing more will come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The log's length in bytes, lost ones counted.
    pub length: u64,
    /// How many of them are lost.
    pub lost: u64,
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

/// One job's log. Its files are opened when they are first needed.
#[derive(Debug)]
pub(super) struct JobLog {
    folder: PathBuf,
    space: Arc<Space>,
    state: Mutex<State>,
    length: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// What the files hold is known. Until then nothing may be written, for that would cut them off.
    loaded: bool,
    writer: Option<Arc<Writer>>,
    /// Something was written that no power cut may undo, and has not been made to last.
    unsynced: bool,
    /// Entries in `index`.
    count: u64,
    /// The last one.
    last: Option<Entry>,
    /// Bytes in `data`.
    stored: u64,
    /// Why the last bytes could not be added.
    error: Option<String>,
}

#[derive(Debug)]
struct Writer {
    data: File,
    index: File,
}

impl State {
    fn length(&self) -> u64 {
        self.last.map_or(0, |last| last.offset + (self.stored - last.position))
    }

    fn is_complete(&self) -> bool {
        self.last.is_some_and(|last| last.kind == Kind::End)
    }

    /// The last entry is a gap after which nothing has come yet.
    fn ends_in_gap(&self) -> bool {
        self.last.is_some_and(|last| last.kind == Kind::Gap && last.position == self.stored)
    }

    /// Whether bytes at the end go into the last entry.
    fn joins_last(&self, time_micros: i64, bytes: u64) -> bool {
        self.last.is_some_and(|last| {
            last.kind != Kind::End
                && time_micros - last.time_micros < ENTRY_SPAN_MICROS
                && self.stored - last.position + bytes <= ENTRY_MAX_BYTES
        })
    }

    /// Times are searched, so they never fall: a host's clock may be set back, and not every frame has a time.
    fn time(&self, told_micros: i64) -> i64 {
        self.last.map_or(told_micros, |last| last.time_micros.max(told_micros))
    }
}

impl JobLog {
    pub(super) fn new(folder: PathBuf, space: Arc<Space>) -> JobLog {
        JobLog { folder, space, state: Mutex::default(), length: watch::channel(0).0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while writing a log")
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state();
        if !state.loaded {
            self.load(&mut state)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot read what is there: {error}")))?;
            state.loaded = true;
            self.length.send_replace(state.length());
        }
        work(&mut state)
    }

    fn load(&self, state: &mut State) -> io::Result<()> {
        let index = match File::open(self.folder.join("index")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            index => index?,
        };
        state.stored = match std::fs::metadata(self.folder.join("data")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            data => data?.len(),
        };
        (state.count, state.last) = index::recover(&index, state.stored)?;
        Ok(())
    }

    /// Opens the files for writing and cuts off what a crash left.
    fn writer(&self, state: &mut State) -> io::Result<Arc<Writer>> {
        if let Some(writer) = &state.writer {
            return Ok(writer.clone());
        }
        std::fs::create_dir_all(&self.folder)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let (data, index) = (options.open(self.folder.join("data"))?, options.open(self.folder.join("index"))?);
        index.set_len(index::file_length(state.count))?;
        data.set_len(state.stored)?;
        let writer = Arc::new(Writer { data, index });
        state.writer = Some(writer.clone());
        Ok(writer)
    }

    /// Closes the files, which are opened again when they are needed.
    pub(super) fn close_writer(&self) {
        self.state().writer = None;
    }

    fn push(&self, state: &mut State, entry: Entry) -> io::Result<()> {
        index::write(&self.writer(state)?.index, state.count, &entry)?;
        state.count += 1;
        state.last = Some(entry);
        state.unsynced = true;
        Ok(())
    }

    /// Adds a gap that reaches to `offset`, or makes the one at the end longer.
    fn push_gap(&self, state: &mut State, offset: u64, time_micros: i64) -> io::Result<()> {
        let entry =
            Entry { offset, position: state.stored, time_micros: state.time(time_micros), kind: Kind::Gap };
        if !state.ends_in_gap() {
            return self.push(state, entry);
        }
        index::write(&self.writer(state)?.index, state.count - 1, &entry)?;
        state.last = Some(entry);
        state.unsynced = true;
        Ok(())
    }

    /// Runs a change, remembers why it failed, and tells of the new length.
    fn change(&self, work: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        let changed = self.with(|state| work(state).map(|()| state.length()));
        match changed {
            Ok(length) => {
                self.state().error = None;
                self.length.send_replace(length);
                Ok(())
            }
            Err(error) => {
                self.state().error = Some(error.to_string());
                Err(error)
            }
        }
    }

    pub(super) fn append(&self, offset: u64, time_micros: i64, bytes: &[u8]) -> io::Result<()> {
        self.change(|state| {
            let have = state.length();
            let skip = usize::try_from(have.saturating_sub(offset)).unwrap_or(usize::MAX);
            if skip >= bytes.len() || state.is_complete() {
                return Ok(());
            }
            let fresh = &bytes[skip..];
            let begins_at = offset + skip as u64;
            let end = begins_at + fresh.len() as u64;
            let room = self.room(state, fresh.len());
            self.store(state, begins_at, time_micros, &fresh[..room])?;
            if room < fresh.len() { self.push_gap(state, end, time_micros) } else { Ok(()) }
        })
    }

    /// How many of so many bytes may be kept.
    fn room(&self, state: &State, bytes: usize) -> usize {
        if self.space.is_full(bytes as u64) {
            return 0;
        }
        let left = self.space.limits.job_bytes.saturating_sub(state.stored);
        if left < bytes as u64 && !state.ends_in_gap() {
            tracing::warn!(
                "the log `{}` has reached its limit of {} bytes: the rest of the output is not kept",
                self.folder.display(),
                self.space.limits.job_bytes
            );
        }
        bytes.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn store(&self, state: &mut State, offset: u64, time_micros: i64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let time_micros = state.time(time_micros);
        let gap = offset > state.length();
        if gap || !state.joins_last(time_micros, bytes.len() as u64) {
            let kind = if gap { Kind::Gap } else { Kind::Data };
            self.push(state, Entry { offset, position: state.stored, time_micros, kind })?;
        }
        state.unsynced = true;
        let result = self.writer(state)?.data.write_all_at(bytes, state.stored);
        if result.is_err() {
            // Part of the bytes may be there: what is true is what the file says.
            state.stored = std::fs::metadata(self.folder.join("data"))?.len();
        } else {
            state.stored += bytes.len() as u64;
        }
        result
    }

    pub(super) fn skip_to(&self, offset: u64, time_micros: i64) -> io::Result<()> {
        self.change(|state| {
            let is_news = offset > state.length() && !state.is_complete();
            if is_news { self.push_gap(state, offset, time_micros) } else { Ok(()) }
        })
    }

    pub(super) fn complete(&self, time_micros: i64) -> io::Result<()> {
        self.change(|state| {
            if !state.is_complete() {
                let (offset, position) = (state.length(), state.stored);
                let time_micros = state.time(time_micros);
                self.push(state, Entry { offset, position, time_micros, kind: Kind::End })?;
            }
            // Nothing more will be written.
            state.writer = None;
            Ok(())
        })
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        // Readers need not wait for the disk. Files that were closed meanwhile are opened again: what they owe the
        // disk is the file's and not the opener's.
        let writer = self.with(|state| {
            if !state.unsynced {
                return Ok(None);
            }
            let was_open = state.writer.is_some();
            let writer = self.writer(state)?;
            if !was_open {
                state.writer = None;
            }
            state.unsynced = false;
            Ok(Some(writer))
        })?;
        let Some(writer) = writer else { return Ok(()) };
        let synced = writer.index.sync_data().and_then(|()| writer.data.sync_data());
        if synced.is_err() {
            self.state().unsynced = true;
        }
        synced
    }

    pub(super) fn end(&self) -> io::Result<LogEnd> {
        self.with(|state| {
            let length = state.length();
            Ok(LogEnd { length, lost: length.saturating_sub(state.stored), complete: state.is_complete() })
        })
    }

    /// Why the last bytes could not be added, until some can.
    pub(super) fn error(&self) -> Option<String> {
        self.state().error.clone()
    }

    /// Whether forgetting the log would leave unsaid that it owes the disk something.
    pub(super) fn is_unsynced(&self) -> bool {
        self.state().unsynced
    }

    #[cfg(test)]
    pub(super) fn is_writing(&self) -> bool {
        self.state().writer.is_some()
    }

    /// What there is at this moment; none of an empty log.
    fn entries(&self) -> io::Result<Option<(Entries, u64)>> {
        let (count, last, stored) = self.with(|state| Ok((state.count, state.last, state.stored)))?;
        let Some(last) = last else { return Ok(None) };
        let file = File::open(self.folder.join("index"))?;
        Ok(Some((Entries { file, count, last }, stored)))
    }

    pub(super) fn offset_after(&self, time_micros: i64) -> io::Result<u64> {
        let Some((entries, stored)) = self.entries()? else { return Ok(0) };
        let end = entries.last.offset + (stored - entries.last.position);
        Ok(entries.offset_after(time_micros)?.unwrap_or(end))
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        if let Err(error) = self.with(|_| Ok(())) {
            tracing::error!("cannot read the log `{}`: {error}", self.folder.display());
        }
        self.length.subscribe()
    }

    pub(super) fn is_watched(&self) -> bool {
        self.length.receiver_count() > 0
    }

    pub(super) fn read(&self, from: u64, max_bytes: usize) -> io::Result<LogSlice> {
        let Some((entries, stored)) = self.entries()? else { return Ok(LogSlice { start: from, chunks: vec![] }) };
        let (spans, start) = spans(&entries, stored, from, max_bytes as u64)?;
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
fn spans(entries: &Entries, stored: u64, from: u64, max_bytes: u64) -> io::Result<(Vec<Span>, u64)> {
    let mut spans: Vec<Span> = vec![];
    let mut left = max_bytes;
    let mut number = entries.number_at(from)?;
    // A gap after which nothing came at first belongs to the bytes that came next.
    let mut is_after_gap = false;
    let mut block = entries.block(number)?;
    'entries: while !block.is_empty() {
        number += block.len() as u64;
        let following = entries.block(number)?;
        for (index, entry) in block.iter().enumerate() {
            let next = block.get(index + 1).or(following.first());
            let length = next.map_or(stored, |next| next.position) - entry.position;
            let skip = from.saturating_sub(entry.offset);
            is_after_gap |= entry.kind == Kind::Gap && skip == 0;
            if skip >= length {
                continue;
            }
            if left == 0 {
                break 'entries;
            }
            let taken = (length - skip).min(left);
            left -= taken;
            spans.push(Span {
                offset: entry.offset + skip,
                position: entry.position + skip,
                length: taken,
                time_micros: entry.time_micros,
                gap_before: std::mem::take(&mut is_after_gap),
            });
            if taken < length - skip {
                break 'entries;
            }
        }
        block = following;
    }
    let start = spans.first().map_or(from, |span| span.offset);
    Ok((spans, start))
}

#[cfg(test)]
mod tests {
    use super::super::space::LogLimits;
    use super::*;

    fn log_within(folder: &tempfile::TempDir, limits: LogLimits) -> JobLog {
        let space = Arc::new(Space::new(folder.path().to_owned(), limits));
        JobLog::new(folder.path().join("job"), space)
    }

    fn log(folder: &tempfile::TempDir) -> JobLog {
        log_within(folder, LogLimits { spare_bytes: 0, ..LogLimits::default() })
    }

    fn end(log: &JobLog) -> (u64, bool) {
        let end = log.end().unwrap();
        (end.length, end.complete)
    }

    /// The pieces of a log: where each begins, its bytes, and whether some before it are lost.
    fn pieces(log: &JobLog) -> Vec<(u64, String, bool)> {
        let slice = log.read(0, 1 << 20).unwrap();
        let chunks = slice.chunks.into_iter();
        chunks
            .map(|chunk| (chunk.offset, String::from_utf8_lossy(&chunk.bytes).into_owned(), chunk.gap_before))
            .collect()
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
        assert_eq!(end(&log), (13, false));
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
        let end = log.end().unwrap();
        assert_eq!((end.length, end.lost), (13, 7));
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
        assert_eq!(end(&log), (6, false));
        log.append(6, 100_000, b"ghi").unwrap();
        log.complete(100_001).unwrap();
        log.append(9, 100_002, b"late").unwrap();
        assert_eq!(text(&log, 0), "abcdefghi");
        assert_eq!(end(&log), (9, true));
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
        assert_eq!(log.offset_after(0).unwrap(), 0);
        assert_eq!(log.offset_after(1_000_000).unwrap(), 3);
        assert_eq!(log.offset_after(2_000_000).unwrap(), 6);
    }

    #[test]
    fn a_gap_that_was_told_before_the_bytes_after_it_is_still_told_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.append(0, 1_000_000, b"abc").unwrap();
        // Agents tell of gaps without a time.
        log.skip_to(10, 0).unwrap();
        log.append(10, 2_000_000, b"xyz").unwrap();
        assert_eq!(pieces(&log), [(0, "abc".to_owned(), false), (10, "xyz".to_owned(), true)]);
        assert_eq!(log.offset_after(999_999).unwrap(), 0);
        assert_eq!(log.offset_after(1_500_000).unwrap(), 10);
        assert_eq!(log.offset_after(2_000_000).unwrap(), 13);
    }

    #[test]
    fn a_gap_that_grows_is_one_gap() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.append(0, 1, b"abc").unwrap();
        for offset in 4..1000 {
            log.skip_to(offset, 0).unwrap();
        }
        let index = std::fs::metadata(folder.path().join("job/index")).unwrap();
        assert_eq!(index.len(), index::file_length(2));
        drop(log);
        let log = self::log(&folder);
        log.append(999, 50_000, b"xyz").unwrap();
        assert_eq!(pieces(&log), [(0, "abc".to_owned(), false), (999, "xyz".to_owned(), true)]);
    }

    #[test]
    fn output_beyond_the_limit_is_counted_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = log_within(&folder, LogLimits { job_bytes: 5, spare_bytes: 0 });
        log.append(0, 1, b"abc").unwrap();
        log.append(3, 50_000, b"def").unwrap();
        log.append(6, 100_000, b"ghi").unwrap();
        log.complete(100_001).unwrap();
        assert_eq!(text(&log, 0), "abcde");
        assert_eq!(log.end().unwrap(), LogEnd { length: 9, lost: 4, complete: true });
        // What is not kept is not asked for again.
        let log = self::log(&folder);
        assert_eq!(log.end().unwrap(), LogEnd { length: 9, lost: 4, complete: true });
    }

    #[test]
    fn logs_leave_others_their_part_of_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let log = log_within(&folder, LogLimits { spare_bytes: u64::MAX, ..LogLimits::default() });
        log.append(0, 1, b"abc").unwrap();
        assert_eq!(log.end().unwrap(), LogEnd { length: 3, lost: 3, complete: false });
        // There is room again.
        drop(log);
        let log = self::log(&folder);
        log.append(3, 50_000, b"def").unwrap();
        assert_eq!(pieces(&log), [(3, "def".to_owned(), true)]);
    }

    #[test]
    fn a_log_that_could_not_be_read_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        log(&folder).append(0, 1, b"abc").unwrap();
        let log = log(&folder);
        let (index, away) = (folder.path().join("job/index"), folder.path().join("job/away"));
        std::fs::rename(&index, &away).unwrap();
        std::os::unix::fs::symlink(&index, &index).unwrap();
        assert!(log.end().is_err());
        assert!(log.append(3, 50_000, b"def").is_err());
        assert!(log.error().is_some());
        std::fs::rename(&away, &index).unwrap();
        log.append(3, 50_000, b"def").unwrap();
        assert_eq!(log.error(), None);
        assert_eq!(text(&log, 0), "abcdef");
    }

    #[test]
    fn closed_files_are_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        log.append(0, 1, b"abc").unwrap();
        log.close_writer();
        log.sync().unwrap();
        assert!(!log.is_writing());
        log.append(3, 2, b"def").unwrap();
        assert!(log.is_writing());
        log.complete(3).unwrap();
        assert!(!log.is_writing());
        log.sync().unwrap();
        assert!(!log.is_writing());
        assert_eq!(text(&log, 0), "abcdef");
    }

    #[test]
    fn a_long_index_is_searched_in_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(&folder);
        let lines = 5000_u64;
        for line in 0..lines {
            log.append(line * 4, line as i64 * 20_000, format!("{line:04}").as_bytes()).unwrap();
        }
        let whole = text(&log, 0);
        assert_eq!(whole.len() as u64, lines * 4);
        for line in [0, 1, 2047, 2048, 2049, 4095, 4096, lines - 1] {
            let slice = log.read(line * 4 + 1, 6).unwrap();
            let bytes: Vec<u8> = slice.chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
            let from = line as usize * 4 + 1;
            assert_eq!(bytes, whole.as_bytes()[from..whole.len().min(from + 6)]);
            assert_eq!(log.offset_after(line as i64 * 20_000 - 1).unwrap(), line * 4);
        }
    }
}
