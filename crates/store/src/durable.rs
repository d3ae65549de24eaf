//! Makes commits to a SQLite file last, many at once.
//!
//! A disk takes milliseconds to promise anything, and one after another that is all the time there is. So SQLite
//! writes commits to its log without waiting for the disk, and whoever commits waits here: one promise covers
//! everything that was written before it, and those who come together share it. A commit returns when it lasts, as
//! before. Others may read it a moment earlier: what they write lasts after it, because the log is in order, and
//! before they act without having written they settle what they read.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::error::{Error, Obstacle, Result};

/// The write-ahead log of a SQLite file.
#[derive(Debug)]
pub struct Durable {
    log: PathBuf,
    /// Commits that may be in the log but are not counted as written yet.
    under_way: AtomicU64,
    /// Commits that were written.
    written: AtomicU64,
    /// How many of them last.
    lasting: Mutex<u64>,
    /// The disk broke a promise once. What it holds is unknown from then on: asked again, a system may say that all
    /// is well although it has dropped what it could not write.
    failed: AtomicBool,
}

/// A commit on its way to the log. Dropping it counts it as written, which costs nothing where it was not.
///
/// There is one hole: whoever stops waiting for a commit drops this, and SQLite may finish the commit after that. A
/// promise that is made in between does not cover it, although it is counted; the next commit's does.
#[derive(Debug)]
pub(crate) struct Commit<'a>(&'a Durable);

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        // In this order: whoever has read the commit and finds none under way finds it written.
        self.0.written.fetch_add(1, Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Durable {
    /// For the database at `path`.
    pub(crate) fn new(path: &Path) -> Arc<Durable> {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Arc::new(Durable {
            log: log.into(),
            under_way: AtomicU64::new(0),
            written: AtomicU64::new(0),
            lasting: Mutex::new(0),
            failed: AtomicBool::new(false),
        })
    }

    /// Announces a commit; it is written when what this gives is dropped.
    pub(crate) fn commit(&self) -> Commit<'_> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        Commit(self)
    }

    /// Refuses to write once something that was written could not be made to last.
    pub(crate) fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            let error = io::Error::other("an earlier change could not be made to last");
            return Err(Error::Obstructed(Obstacle::NotDurable, error.into()));
        }
        Ok(())
    }

    /// Returns when everything that was written before the call lasts.
    pub(crate) async fn wait(&self) -> Result<()> {
        let own = self.written.load(Ordering::SeqCst);
        let mut lasting = self.lasting.lock().await;
        self.check()?;
        // Somebody who began after us has waited for us too.
        if own <= *lasting {
            return Ok(());
        }
        self.promise(&mut lasting).await
    }

    /// Returns when everything lasts that could be read before the call.
    pub(crate) async fn settle(&self) -> Result<()> {
        let under_way = self.under_way.load(Ordering::SeqCst);
        if under_way == 0 {
            return self.wait().await;
        }
        let mut lasting = self.lasting.lock().await;
        self.check()?;
        self.promise(&mut lasting).await
    }

    async fn promise(&self, lasting: &mut u64) -> Result<()> {
        let all = self.written.load(Ordering::SeqCst);
        let is_first = *lasting == 0;
        let log = self.log.clone();
        let synced = tokio::task::spawn_blocking(move || sync(&log, is_first)).await;
        if let Err(error) = synced.map_err(io::Error::other).and_then(|synced| synced) {
            self.failed.store(true, Ordering::SeqCst);
            return Err(Error::Obstructed(Obstacle::NotDurable, error.into()));
        }
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
            waiting.spawn(async move {
                drop(durable.commit());
                durable.wait().await
            });
        }
        while let Some(waited) = waiting.join_next().await {
            waited.unwrap().unwrap();
        }
        assert_eq!(*durable.lasting.lock().await, 100);
    }

    #[tokio::test]
    async fn a_log_that_was_folded_in_needs_no_promise() {
        let folder = tempfile::tempdir().unwrap();
        let durable = Durable::new(&folder.path().join("sqlite.db"));
        drop(durable.commit());
        durable.wait().await.unwrap();
    }

    #[tokio::test]
    async fn what_may_have_been_read_is_settled_and_nothing_else_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        // Its log cannot be synced, so that every promise fails.
        let broken = || Durable::new(&file.join("sqlite.db"));
        broken().settle().await.unwrap();
        let durable = broken();
        let commit = durable.commit();
        assert_eq!(durable.settle().await.unwrap_err().obstacle(), Some(Obstacle::NotDurable));
        drop(commit);
        let durable = broken();
        drop(durable.commit());
        assert_eq!(durable.settle().await.unwrap_err().obstacle(), Some(Obstacle::NotDurable));
        // What lasts already is asked for once.
        let durable = Durable::new(&folder.path().join("sqlite.db"));
        drop(durable.commit());
        durable.settle().await.unwrap();
        assert_eq!(*durable.lasting.lock().await, 1);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_synced_fails_the_commit_and_all_later_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let durable = Durable::new(&file.join("sqlite.db"));
        durable.check().unwrap();
        drop(durable.commit());
        assert_eq!(durable.wait().await.unwrap_err().obstacle(), Some(Obstacle::NotDurable));
        // Even if the disk works again, what it lost in between is lost.
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(durable.wait().await.unwrap_err().obstacle(), Some(Obstacle::NotDurable));
        assert_eq!(durable.check().unwrap_err().obstacle(), Some(Obstacle::NotDurable));
    }
}
