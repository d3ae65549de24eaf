//! Keeps a second server off the same files.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

/// Held while the server runs; the system lets go of it however the server ends.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the lock of `what`, a folder or a database, in a file of its own; or says who is in the way.
    pub(crate) fn take(what: &Path, path: &Path) -> anyhow::Result<DataLock> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("open the lock `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(DataLock { _file: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "another dstack server uses `{}`. Stop it first, or give this one a folder of its own \
                 (DSTACK_SERVER_DIR) and a database of its own (DSTACK_DATABASE_URL)",
                what.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("take the lock `{}`", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.lock");
        let first = DataLock::take(folder.path(), &path).unwrap();
        let error = DataLock::take(folder.path(), &path).unwrap_err().to_string();
        assert!(error.starts_with("another dstack server uses"), "{error}");
        drop(first);
        DataLock::take(folder.path(), &path).unwrap();
    }
}
