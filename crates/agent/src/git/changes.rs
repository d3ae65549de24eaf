//! Changes that were not committed, on their way to the files of a clone.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gix_index::entry::Mode;

use super::error::Error;
use super::patch::{self, Change, FilePatch};
use super::store::{at, make_parents, write_entry};

/// How the line begins that stands for a submodule's commit.
const SUBMODULE: &[u8] = b"Subproject commit ";

/// A file as it will be.
struct Written {
    path: PathBuf,
    mode: Mode,
    bytes: Vec<u8>,
}

/// Applies a diff to the files in `target`, wholly or, if it does not fit, not at all. Answers what the user should
/// know.
pub(super) fn apply(diff: &[u8], target: &Path) -> Result<Vec<String>, Error> {
    let (mut removed, mut written, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for patch in patch::parse(diff)? {
        if is_submodule(&patch) {
            let path = patch.new.or(patch.old).unwrap_or_default();
            warnings
                .push(format!("the submodule `{path}` has the commit of its repository, not the one checked out"));
            continue;
        }
        let old = match &patch.old {
            Some(path) => Some(read(target, path)?),
            None => None,
        };
        if let Some(path) = patch.old.as_ref().filter(|_| !patch.is_copy) {
            removed.push(target.join(path));
        }
        let Some(path) = &patch.new else { continue };
        let (old_mode, bytes) = old.unwrap_or((Mode::FILE, Vec::new()));
        let mode = patch.new_mode.map_or(Ok(old_mode), mode_of)?;
        written.push(Written {
            path: PathBuf::from(path),
            mode,
            bytes: patch::apply(path, bytes, &patch.change)?,
        });
    }
    for path in &removed {
        remove(path, target)?;
    }
    let mut parent = PathBuf::new();
    for file in written {
        let path = target.join(&file.path);
        make_parents(target, &file.path, &mut parent)?;
        write_entry(&path, file.mode, &file.bytes).map_err(|error| at(&path, &error))?;
    }
    Ok(warnings)
}

fn is_submodule(patch: &FilePatch) -> bool {
    let is_link = |mode: Option<u32>| mode == Some(0o160_000);
    let says = |bytes: &[u8]| bytes.starts_with(SUBMODULE);
    let in_lines = match &patch.change {
        Change::Text(hunks) => hunks.iter().any(|hunk| says(&hunk.old) || says(&hunk.new)),
        _ => false,
    };
    is_link(patch.old_mode) || is_link(patch.new_mode) || in_lines
}

fn mode_of(mode: u32) -> Result<Mode, Error> {
    match mode {
        0o120_000 => Ok(Mode::SYMLINK),
        0o100_000..=0o100_777 if mode & 0o111 != 0 => Ok(Mode::FILE_EXECUTABLE),
        0o100_000..=0o100_777 => Ok(Mode::FILE),
        _ => Err(Error::Other(format!("a changed file has the unknown mode {mode:o}"))),
    }
}

/// A file as it is. Nothing is read through a link on the way.
fn read(target: &Path, path: &str) -> Result<(Mode, Vec<u8>), Error> {
    let file = target.join(path);
    let missing =
        |error: &io::Error| Error::Other(format!("the changed file `{path}` is not in the commit: {error}"));
    for dir in Path::new(path).ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
        if !fs::symlink_metadata(target.join(dir)).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(missing(&io::ErrorKind::NotADirectory.into()));
        }
    }
    let metadata = fs::symlink_metadata(&file).map_err(|error| missing(&error))?;
    if metadata.is_symlink() {
        let link = fs::read_link(&file).map_err(|error| missing(&error))?;
        return Ok((Mode::SYMLINK, link.as_os_str().as_bytes().to_vec()));
    }
    let mode = if metadata.permissions().mode() & 0o100 == 0 { Mode::FILE } else { Mode::FILE_EXECUTABLE };
    Ok((mode, fs::read(&file).map_err(|error| missing(&error))?))
}

/// Removes a file, and the folders that it leaves empty.
fn remove(file: &Path, target: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        // Two changes may begin with the same file.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(file, &error)),
        _ => {}
    }
    let mut dir = file.parent();
    while let Some(empty) = dir.filter(|dir| *dir != target && dir.starts_with(target)) {
        if fs::remove_dir(empty).is_err() {
            break;
        }
        dir = empty.parent();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_where_one_change_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "a\n").unwrap();
        let diff = "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-a\n+b\n\
                    diff --git a/c b/c\n--- a/c\n+++ b/c\n@@ -1 +1 @@\n-a\n+b\n";
        assert!(apply(diff.as_bytes(), dir.path()).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "a\n");
    }

    #[test]
    fn two_files_may_change_places() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "a").unwrap();
        fs::write(dir.path().join("b"), "b").unwrap();
        let diff = "diff --git a/a b/b\nsimilarity index 100%\nrename from a\nrename to b\n\
                    diff --git a/b b/a\nsimilarity index 100%\nrename from b\nrename to a\n";
        apply(diff.as_bytes(), dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "b");
        assert_eq!(fs::read_to_string(dir.path().join("b")).unwrap(), "a");
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        let diff =
            "diff --git a/link/x b/link/x\nnew file mode 100644\n--- /dev/null\n+++ b/link/x\n@@ -0,0 +1 @@\n+x\n";
        assert!(apply(diff.as_bytes(), dir.path()).is_err());
        assert!(!other.path().join("x").exists());
    }
}
