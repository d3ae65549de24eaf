//! Files of the user that are replaced in one step, so that nobody reads half of one.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

/// The mode of files that only the user may read.
pub(crate) const PRIVATE: u32 = 0o600;

/// Replaces a file, or makes it and its folders. A failure leaves the old one as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let folder = path.parent().with_context(|| format!("`{}` has no folder", path.display()))?;
    std::fs::create_dir_all(folder).with_context(|| format!("make `{}`", folder.display()))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = folder.join(name);
    let written = write(&new, bytes, mode).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // The error is told; what is left of the try is of no use.
        let _ = std::fs::remove_file(&new);
    }
    written.with_context(|| format!("write `{}`", path.display()))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // One that a killed process left may have another mode.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)
}

/// The text of a file; a missing one is empty.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("read `{}`", path.display())),
    }
}
