//! Files that are replaced whole or not at all, and the time of day.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The number of the next file that is not in its place yet.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Puts a file in the place of the one that is there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // Several backends may write the same file at once.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
    let mut file = std::fs::File::create(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| std::fs::rename(&temporary, path));
    written.inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// The time of day, by which files and AWS's own dates are judged. What the server decides does not depend on it.
#[expect(clippy::disallowed_methods, reason = "files have the time of this machine")]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}
