//! The logs of jobs, as the bytes that their terminals gave.
//!
//! A job's log is a folder with two files that only grow: `data` has the bytes, `index` says which offset of the log
//! begins where in `data`, and when it was written. An index entry is written before its bytes, so whatever a crash
//! leaves can be read: the last entry's bytes reach to the end of `data`.

mod job_log;

pub use job_log::{LogChunk, LogEnd, LogSlice};

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use api::ids::JobId;
use jiff::Timestamp;
use tokio::sync::watch;

use job_log::JobLog;

/// Logs that are kept open at the same time; those that somebody watches are not counted.
const OPEN_LIMIT: usize = 512;

/// All logs of a server.
#[derive(Debug)]
pub struct LogStore {
    folder: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    logs: HashMap<JobId, Arc<JobLog>>,
    /// The order of opening, the oldest first.
    order: Vec<JobId>,
}

impl LogStore {
    /// The logs in a folder, which is made if it is missing.
    pub fn open(folder: PathBuf) -> io::Result<LogStore> {
        std::fs::create_dir_all(&folder)?;
        Ok(LogStore { folder, open: Mutex::default() })
    }

    fn log(&self, job: JobId) -> Arc<JobLog> {
        let mut open = self.open.lock().expect("nobody panics while opening a log");
        if let Some(log) = open.logs.get(&job) {
            return log.clone();
        }
        let log = Arc::new(JobLog::new(self.folder.join(job.to_string())));
        open.logs.insert(job, log.clone());
        open.order.push(job);
        if open.order.len() > OPEN_LIMIT {
            open.close_unused();
        }
        log
    }

    /// How many bytes of a log are here, lost ones counted.
    pub fn received(&self, job: JobId) -> u64 {
        self.end(job).length
    }

    /// How long a log is so far, and whether nothing more will come.
    pub fn end(&self, job: JobId) -> LogEnd {
        self.log(job).end()
    }

    /// Adds bytes that begin at `offset`. Those that are here already are skipped; what is missing before them is lost.
    pub fn append(&self, job: JobId, offset: u64, time_micros: i64, bytes: &[u8]) -> io::Result<()> {
        self.log(job).append(offset, time_micros, bytes)
    }

    /// Says that the bytes before `offset` which are not here are lost.
    pub fn skip_to(&self, job: JobId, offset: u64, time_micros: i64) -> io::Result<()> {
        self.log(job).skip_to(offset, time_micros)
    }

    /// Says that nothing more will come.
    pub fn complete(&self, job: JobId, time_micros: i64) -> io::Result<()> {
        self.log(job).complete(time_micros)
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
        self.log(job).offset_after(time.as_microsecond())
    }

    /// Tells of each change of a log's length.
    pub fn watch(&self, job: JobId) -> watch::Receiver<u64> {
        self.log(job).watch()
    }
}

impl Open {
    fn close_unused(&mut self) {
        let Open { logs, order } = self;
        order.retain(|job| {
            let unused = logs.get(job).is_none_or(|log| Arc::strong_count(log) == 1 && !log.is_watched());
            if unused && logs.len() > OPEN_LIMIT / 2 {
                logs.remove(job);
            }
            logs.contains_key(job)
        });
    }
}
