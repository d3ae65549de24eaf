//! Makes commits to a SQLite file last, many at once.
//!
//! A disk takes milliseconds to promise anything, and one after another that is all the time there is. So SQLite
//! writes commits to its log without waiting for the disk, and whoever commits waits here: one promise covers
//! everything that was written before it, and those who come together share it. A commit returns when it lasts, as
//! before; what others read in between lasts before anything that they write, because the log is in order.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::error::{Error, Result};

/// The write-ahead log of a SQLite file.
#[derive(Debug)]
pub struct Durable {
    log: PathBuf,
    /// Commits that were written.
    written: AtomicU64,
    /// How many of them last.
    lasting: Mutex<u64>,
}

impl Durable {
    /// For the database at `path`.
    pub(crate) fn new(path: &Path) -> Arc<Durable> {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Arc::new(Durable { log: log.into(), written: AtomicU64::new(0), lasting: Mutex::new(0) })
    }

    /// Returns when everything that was written before the call lasts.
    pub(crate) async fn wait(&self) -> Result<()> {
        let own = self.written.fetch_add(1, Ordering::SeqCst) + 1;
        let mut lasting = self.lasting.lock().await;
        // Somebody who began after us has waited for us too.
        if own <= *lasting {
            return Ok(());
        }
        let all = self.written.load(Ordering::SeqCst);
        let is_first = *lasting == 0;
        let log = self.log.clone();
        let synced = tokio::task::spawn_blocking(move || sync(&log, is_first)).await;
        synced
            .map_err(io::Error::other)
            .and_then(|synced| synced)
            .map_err(|error| Error::Database(error.into()))?;
        *lasting = all;
        Ok(())
    }
}

/// Waits for the disk.
fn sync(log: &Path, is_first: bool) -> io::Result<()> {
    match File::open(log) {
        Ok(file) => file.sync_data()?,
        // The last connection folds the log into the database and deletes it, which waits for the disk itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    // The log's name must last too.
    match log.parent().filter(|_| is_first) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_is_covered_by_a_later_promise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sqlite.db");
        std::fs::write(folder.path().join("sqlite.db-wal"), "written").unwrap();
        let durable = Durable::new(&path);
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let durable = durable.clone();
            waiting.spawn(async move { durable.wait().await });
        }
        while let Some(waited) = waiting.join_next().await {
            waited.unwrap().unwrap();
        }
        assert_eq!(*durable.lasting.lock().await, 100);
    }

    #[tokio::test]
    async fn a_log_that_was_folded_in_needs_no_promise() {
        let folder = tempfile::tempdir().unwrap();
        Durable::new(&folder.path().join("sqlite.db")).wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_synced_fails_the_commit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Durable::new(&file.join("sqlite.db")).wait().await.is_err());
    }
}
