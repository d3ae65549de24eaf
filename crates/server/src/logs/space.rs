//! How much of the disk logs may fill.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;

/// Written bytes after which the free space is asked for again.
const ASK_AGAIN_BYTES: u64 = 64 * 1024;

/// How much of the disk logs may fill.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Bytes that are kept of one job's output; what comes later is counted and lost.
    pub job_bytes: u64,
    /// Free bytes that logs leave on the disk, for the database and everybody else.
    pub spare_bytes: u64,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits { job_bytes: 10 * 1024 * 1024 * 1024, spare_bytes: 512 * 1024 * 1024 }
    }
}

/// The disk that logs are on.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    pub(super) limits: LogLimits,
    since_asked: AtomicU64,
    is_full: AtomicBool,
}

impl Space {
    pub(super) fn new(folder: PathBuf, limits: LogLimits) -> Space {
        Space { folder, limits, since_asked: AtomicU64::new(u64::MAX / 2), is_full: AtomicBool::new(false) }
    }

    /// Whether so many bytes more would leave others too little.
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        let since_asked = self.since_asked.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if since_asked < ASK_AGAIN_BYTES {
            return self.is_full.load(Ordering::Relaxed);
        }
        self.since_asked.store(0, Ordering::Relaxed);
        // A file system that does not say what is free is taken for roomy: writing tells.
        let is_full = statvfs(&self.folder)
            .is_ok_and(|disk| disk.blocks_available() * disk.fragment_size() <= self.limits.spare_bytes);
        if is_full && !self.is_full.load(Ordering::Relaxed) {
            tracing::warn!(
                "the disk of `{}` has less than {} MiB free: output of jobs is not kept until there is more",
                self.folder.display(),
                self.limits.spare_bytes / (1024 * 1024)
            );
        }
        self.is_full.store(is_full, Ordering::Relaxed);
        is_full
    }
}
