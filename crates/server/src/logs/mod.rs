//! The logs of jobs, as the bytes that their terminals gave.
//!
//! A job's log is a folder with two files that only grow: `data` has the bytes, `index` says which offset of the log
//! begins where in `data`, and when it was written. An index entry is written before its bytes, so whatever a crash
//! leaves can be read: the last entry's bytes reach to the end of `data`. Only a gap that is still growing is written
//! over in place.

mod index;
mod job_log;
pub mod retention;
mod space;

pub use job_log::{LogChunk, LogEnd, LogSlice};
pub use space::LogLimits;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use api::ids::JobId;
use jiff::Timestamp;
use tokio::sync::watch;

use job_log::JobLog;
use space::Space;

/// Logs that are known at the same time; those that somebody watches are not counted.
pub(crate) const OPEN_LIMIT: usize = 512;

/// Logs whose files are kept open for writing, two each.
const WRITERS_LIMIT: usize = 64;

/// All logs of a server.
#[derive(Debug)]
pub struct LogStore {
    folder: PathBuf,
    space: Arc<Space>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    logs: HashMap<JobId, Arc<JobLog>>,
    /// The order of opening, the oldest first.
    order: Vec<JobId>,
    /// The logs that were last written to, the latest last.
    writing: VecDeque<JobId>,
}

impl LogStore {
    /// The logs in a folder, which is made if it is missing.
    pub fn open(folder: PathBuf) -> io::Result<LogStore> {
        LogStore::open_within(folder, LogLimits::default())
    }

    /// The logs in a folder, which may fill so much of the disk.
    pub fn open_within(folder: PathBuf, limits: LogLimits) -> io::Result<LogStore> {
        std::fs::create_dir_all(&folder)?;
        let space = Arc::new(Space::new(folder.clone(), limits));
        Ok(LogStore { folder, space, open: Mutex::default() })
    }

    fn log(&self, job: JobId) -> Arc<JobLog> {
        let mut open = self.open.lock().expect("nobody panics while opening a log");
        if let Some(log) = open.logs.get(&job) {
            return log.clone();
        }
        let log = Arc::new(JobLog::new(self.folder.join(job.to_string()), self.space.clone()));
        open.logs.insert(job, log.clone());
        open.order.push(job);
        if open.order.len() > OPEN_LIMIT {
            open.close_unused();
        }
        log
    }

    /// A log that is about to be written to. The one that was not for longest closes its files.
    fn log_to_write(&self, job: JobId) -> Arc<JobLog> {
        let log = self.log(job);
        let idle = {
            let mut open = self.open.lock().expect("nobody panics while opening a log");
            if open.writing.back() != Some(&job) {
                open.writing.retain(|other| *other != job);
                open.writing.push_back(job);
            }
            let idle = if open.writing.len() > WRITERS_LIMIT { open.writing.pop_front() } else { None };
            idle.and_then(|idle| open.logs.get(&idle).cloned())
        };
        if let Some(idle) = idle {
            idle.close_writer();
        }
        log
    }

    /// How many bytes of a log are here, lost ones counted.
    pub fn received(&self, job: JobId) -> u64 {
        self.end(job).length
    }

    /// How long a log is so far, and whether nothing more will come. One that cannot be read looks empty: what the
    /// agent sends again is skipped once it can.
    pub fn end(&self, job: JobId) -> LogEnd {
        self.log(job).end().unwrap_or_else(|error| {
            tracing::error!(job.id = %job, "cannot read a log: {error}");
            LogEnd::default()
        })
    }

    /// Why the last bytes of a log could not be added, until some can.
    pub fn error(&self, job: JobId) -> Option<String> {
        let open = self.open.lock().expect("nobody panics while opening a log");
        let log = open.logs.get(&job).cloned();
        drop(open);
        log?.error()
    }

    /// Adds bytes that begin at `offset`. Those that are here already are skipped; what is missing before them is lost.
    pub fn append(&self, job: JobId, offset: u64, time_micros: i64, bytes: &[u8]) -> io::Result<()> {
        self.log_to_write(job).append(offset, time_micros, bytes)
    }

    /// Says that the bytes before `offset` which are not here are lost.
    pub fn skip_to(&self, job: JobId, offset: u64, time_micros: i64) -> io::Result<()> {
        self.log_to_write(job).skip_to(offset, time_micros)
    }

    /// Says that nothing more will come.
    pub fn complete(&self, job: JobId, time_micros: i64) -> io::Result<()> {
        self.log_to_write(job).complete(time_micros)
    }

    /// The jobs whose logs were last written to before `time`, and when.
    pub fn list_older(&self, time: Timestamp) -> io::Result<Vec<(JobId, Timestamp)>> {
        let mut jobs = vec![];
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Some(job) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // The folder's own time is that of its making; `data` is missing where nothing was kept.
            let written = std::fs::metadata(entry.path().join("index")).and_then(|index| index.modified());
            let written = written.or_else(|_| entry.metadata().and_then(|folder| folder.modified()))?;
            let written = Timestamp::try_from(written).map_err(io::Error::other)?;
            if written < time {
                jobs.push((job, written));
            }
        }
        jobs.sort_unstable();
        Ok(jobs)
    }

    /// Removes a log with its files.
    pub fn remove(&self, job: JobId) -> io::Result<()> {
        {
            let mut open = self.open.lock().expect("nobody panics while opening a log");
            open.logs.remove(&job);
            open.order.retain(|other| *other != job);
            open.writing.retain(|other| *other != job);
        }
        match std::fs::remove_dir_all(self.folder.join(job.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes what was added last through a power cut.
    pub fn sync(&self, job: JobId) -> io::Result<()> {
        self.log(job).sync()
    }

    /// At most `max_bytes` that begin at `from`.
    pub fn read(&self, job: JobId, from: u64, max_bytes: usize) -> io::Result<LogSlice> {
        self.log(job).read(from, max_bytes)
    }

    /// Where the first bytes begin that were written later than `time`.
    pub fn offset_after(&self, job: JobId, time: Timestamp) -> u64 {
        self.log(job).offset_after(time.as_microsecond()).unwrap_or_else(|error| {
            tracing::error!(job.id = %job, "cannot search a log: {error}");
            0
        })
    }

    #[cfg(test)]
    pub(crate) fn count_open(&self) -> usize {
        self.open.lock().expect("nobody panics while opening a log").logs.len()
    }

    /// Tells of each change of a log's length.
    pub fn watch(&self, job: JobId) -> watch::Receiver<u64> {
        self.log(job).watch()
    }
}

impl Open {
    fn close_unused(&mut self) {
        let Open { logs, order, .. } = self;
        order.retain(|job| {
            let is_unused =
                |log: &Arc<JobLog>| Arc::strong_count(log) == 1 && !log.is_watched() && !log.is_unsynced();
            let unused = logs.get(job).is_none_or(is_unused);
            if unused && logs.len() > OPEN_LIMIT / 2 {
                logs.remove(job);
            }
            logs.contains_key(job)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &tempfile::TempDir) -> LogStore {
        let limits = LogLimits { spare_bytes: 0, ..LogLimits::default() };
        LogStore::open_within(folder.path().to_owned(), limits).unwrap()
    }

    fn job(number: u128) -> JobId {
        JobId::from(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn few_logs_are_open_for_writing_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let logs = store(&folder);
        let jobs: Vec<JobId> = (0..200).map(job).collect();
        for round in 0..2_u64 {
            for job in &jobs {
                logs.append(*job, round * 3, 1, b"abc").unwrap();
            }
        }
        let open = jobs.iter().filter(|job| logs.log(**job).is_writing()).count();
        assert_eq!(open, WRITERS_LIMIT);
        for job in &jobs {
            logs.sync(*job).unwrap();
            assert_eq!(logs.read(*job, 0, 100).unwrap().chunks[0].bytes.as_ref(), b"abcabc");
        }
    }

    #[test]
    fn a_log_that_is_removed_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let logs = store(&folder);
        logs.append(job(1), 0, 1, b"abc").unwrap();
        logs.append(job(2), 0, 1, b"abc").unwrap();
        let older = |time| logs.list_older(time).unwrap().into_iter().map(|(job, _)| job).collect::<Vec<_>>();
        assert_eq!(older(Timestamp::MAX), [job(1), job(2)]);
        assert_eq!(older(Timestamp::UNIX_EPOCH), []);
        logs.remove(job(1)).unwrap();
        logs.remove(job(1)).unwrap();
        assert_eq!(logs.end(job(1)), LogEnd::default());
        assert_eq!(older(Timestamp::MAX), [job(2)]);
    }
}
