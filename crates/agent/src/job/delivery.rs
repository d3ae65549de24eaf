//! Uploaded code and files on their way to where the job wants them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};

use api::agent::{CodeDelivery, FileDelivery};

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

/// Unpacks uploaded code into `target`.
pub(crate) fn deliver_code(
    code: &CodeDelivery,
    target: &Path,
    blobs: &Path,
    owner: Owner<'_>,
) -> Result<(), String> {
    make_dirs(target, owner)?;
    if !is_empty(target) {
        return if code.skip_if_exists {
            Ok(())
        } else {
            Err(format!("the repository's directory `{}` is not empty", target.display()))
        };
    }
    let Some(blob) = &code.blob_sha256 else {
        return Ok(());
    };
    unpack(&blobs.join(blob), target, owner)
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

fn own(path: &Path, owner: Owner<'_>) -> io::Result<()> {
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

    #[test]
    fn code_goes_into_an_empty_directory_only() {
        let dir = tempfile::tempdir().unwrap();
        archive(dir.path(), "blob", &[("a/b.txt", "text")]);
        let mut code =
            CodeDelivery { blob_sha256: Some("blob".to_owned()), repo_dir: String::new(), skip_if_exists: false };
        let target = dir.path().join("deep/repo");
        deliver_code(&code, &target, dir.path(), None).unwrap();
        assert_eq!(fs::read_to_string(target.join("a/b.txt")).unwrap(), "text");
        assert!(deliver_code(&code, &target, dir.path(), None).is_err());
        code.skip_if_exists = true;
        deliver_code(&code, &target, dir.path(), None).unwrap();
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
