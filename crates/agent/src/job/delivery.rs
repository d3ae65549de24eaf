//! Uploaded code and files on their way to where the job wants them.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};

use api::agent::{CodeDelivery, FileDelivery};

use crate::disk;
use crate::sys::Credentials;

/// Whose the delivered files are: the job's user, where that is not who we are.
pub(crate) type Owner<'a> = Option<&'a Credentials>;

/// Makes a directory with its parents, and gives those that were missing to the owner.
pub(crate) fn make_dirs(path: &Path, owner: Owner<'_>) -> Result<(), String> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev().filter(|dir| !dir.as_os_str().is_empty()) {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("cannot make the directory `{}`: {error}", dir.display()));
            }
            _ => own(dir, owner).map_err(|error| format!("`{}`: {error}", dir.display()))?,
        }
    }
    if path.is_dir() { Ok(()) } else { Err(format!("`{}` is not a directory", path.display())) }
}

/// What the directory of a job's code was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// There is nothing in it.
    Empty,
    /// There is what an earlier try of this job put there.
    Begun,
    /// There is something in it that stays.
    Kept,
}

/// Makes the directory for a job's code and looks what is in it. The file `mark` remembers that this was begun in an
/// empty directory, so that whoever repeats it knows that what is there is the job's own.
pub(crate) fn claim(code: &CodeDelivery, target: &Path, owner: Owner<'_>, mark: &Path) -> Result<Place, String> {
    make_dirs(target, owner)?;
    let was_begun = fs::read(mark).is_ok_and(|marked| marked == target.as_os_str().as_bytes());
    let place = match (was_begun, is_empty(target)) {
        (true, _) => Place::Begun,
        (false, true) => Place::Empty,
        (false, false) if code.skip_if_exists => return Ok(Place::Kept),
        (false, false) => {
            return Err(format!(
                "the repository's directory `{}` is not empty: choose another `path`, or set `if_exists: skip`",
                target.display()
            ));
        }
    };
    let marked = disk::write_atomically(mark, target.as_os_str().as_bytes());
    marked.map(|()| place).map_err(|error| format!("cannot write `{}`: {error}", mark.display()))
}

/// Unpacks uploaded code into the directory `target`.
pub(crate) fn deliver_code(blob: &Path, target: &Path, owner: Owner<'_>) -> Result<(), String> {
    unpack(blob, target, owner)
        .map_err(|error| format!("cannot unpack the code into `{}`: {error}", target.display()))
}

/// Puts the only root of an uploaded archive at `target`, in place of what is there.
pub(crate) fn deliver_file(
    file: &FileDelivery,
    target: &Path,
    blobs: &Path,
    owner: Owner<'_>,
) -> Result<(), String> {
    let parent = target.parent().ok_or_else(|| "a file cannot replace `/`".to_owned())?;
    make_dirs(parent, owner)?;
    let staging = parent.join(format!(".dstack-{}", file.blob_sha256));
    let deliver = || -> io::Result<()> {
        remove(&staging)?;
        fs::create_dir(&staging)?;
        unpack(&blobs.join(&file.blob_sha256), &staging, owner)?;
        let mut roots = fs::read_dir(&staging)?;
        let root = roots.next().ok_or_else(|| io::Error::other("the archive is empty"))??;
        if roots.next().is_some() {
            return Err(io::Error::other("the archive has more than one root"));
        }
        remove(target)?;
        fs::rename(root.path(), target)?;
        fs::remove_dir(&staging)
    };
    deliver().map_err(|error| {
        let _ = remove(&staging);
        format!("cannot put the uploaded file at `{}`: {error}", target.display())
    })
}

fn unpack(archive: &Path, target: &Path, owner: Owner<'_>) -> io::Result<()> {
    let mut archive = tar::Archive::new(io::BufReader::new(File::open(archive)?));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    let mut unpacked: Vec<PathBuf> = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if entry.unpack_in(target)? {
            unpacked.push(path);
        }
    }
    for path in unpacked {
        // Directories that the archive only implies are the owner's as well.
        for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
            own(&target.join(part), owner)?;
        }
    }
    Ok(())
}

/// Gives a file or a directory to its owner.
pub(crate) fn own(path: &Path, owner: Owner<'_>) -> io::Result<()> {
    match owner {
        Some(owner) => lchown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    }
}

fn is_empty(dir: &Path) -> bool {
    let is_own = |entry: &fs::DirEntry| entry.file_name() != "lost+found";
    fs::read_dir(dir).is_ok_and(|entries| entries.flatten().find(is_own).is_none())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(dir: &Path, name: &str, files: &[(&str, &str)]) {
        let mut builder = tar::Builder::new(File::create(dir.join(name)).unwrap());
        for (path, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o755);
            header.set_cksum();
            builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        builder.finish().unwrap();
    }

    fn code(skip_if_exists: bool) -> CodeDelivery {
        CodeDelivery { blob_sha256: Some("blob".to_owned()), repo_dir: String::new(), skip_if_exists, git: None }
    }

    fn deliver(code: &CodeDelivery, target: &Path, blobs: &Path, mark: &Path) -> Result<(), String> {
        match claim(code, target, None, mark)? {
            Place::Kept => Ok(()),
            Place::Empty | Place::Begun => deliver_code(&blobs.join("blob"), target, None),
        }
    }

    #[test]
    fn code_goes_into_an_empty_directory_only() {
        let dir = tempfile::tempdir().unwrap();
        archive(dir.path(), "blob", &[("a/b.txt", "text")]);
        let mut code = code(false);
        let target = dir.path().join("deep/repo");
        let deliver = |code: &CodeDelivery, mark: &str| deliver(code, &target, dir.path(), &dir.path().join(mark));
        let file = target.join("a/b.txt");
        deliver(&code, "mark").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        assert!(deliver(&code, "mark-of-another-task").is_err());
        code.skip_if_exists = true;
        fs::write(&file, "changed").unwrap();
        deliver(&code, "mark-of-another-task").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "changed");
    }

    #[test]
    fn a_delivery_that_was_cut_short_is_repeated() {
        let dir = tempfile::tempdir().unwrap();
        archive(dir.path(), "blob", &[("a.txt", "text"), ("b.txt", "more")]);
        for skip_if_exists in [false, true] {
            let code = code(skip_if_exists);
            let target = dir.path().join(format!("repo-{skip_if_exists}"));
            let mark = dir.path().join("mark");
            let deliver = || deliver(&code, &target, dir.path(), &mark);
            deliver().unwrap();
            fs::write(target.join("a.txt"), "te").unwrap();
            fs::remove_file(target.join("b.txt")).unwrap();
            deliver().unwrap();
            let read = |name: &str| fs::read_to_string(target.join(name)).unwrap();
            assert_eq!((read("a.txt"), read("b.txt")), ("text".to_owned(), "more".to_owned()));
        }
    }

    #[test]
    fn a_file_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        archive(dir.path(), "blob", &[("config.yml", "new")]);
        let target = dir.path().join("etc/app.yml");
        fs::create_dir_all(&target).unwrap();
        let file = FileDelivery { blob_sha256: "blob".to_owned(), path: String::new() };
        deliver_file(&file, &target, dir.path(), None).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }
}
