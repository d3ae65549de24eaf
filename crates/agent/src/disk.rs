//! Files that survive a crash: whole or not there at all, and locks that end with their process.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::beneath::Beneath;

/// A process's number is no longer.
const SIGNATURE_LIMIT: usize = 32;

/// Makes a directory that only its owner may enter, and its parents.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Replaces a file by `bytes`, readable only by its owner. After a crash the old or the new one is there.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // What a full disk left behind would only keep it full.
        let _ = std::fs::remove_file(&temporary);
    })?;
    sync_parent(path)
}

/// Makes the names in `path`'s directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Whom files in a folder are handed over to: its owner, if that is somebody else. A container's root makes files
/// for an agent that need not be root.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Heir(Option<(u32, u32)>);

impl Heir {
    /// The folder's owner, unless we are.
    pub(crate) fn of(dir: &Path) -> io::Result<Heir> {
        use std::os::unix::fs::MetadataExt;
        let folder = std::fs::metadata(dir)?;
        let is_other = folder.uid() != nix::unistd::geteuid().as_raw();
        Ok(Heir(is_other.then(|| (folder.uid(), folder.gid()))))
    }

    /// Hands a file over.
    pub(crate) fn give(self, path: &Path) -> io::Result<()> {
        match self.0 {
            Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}

/// Whether the error says that the disk is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Holds a lock for as long as it, or a process that inherited it, lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Writes this process's number into the file, for who must end it.
    pub(crate) fn sign(&self) -> io::Result<()> {
        let pid = std::process::id().to_string();
        self.file.set_len(0)?;
        std::os::unix::fs::FileExt::write_all_at(&self.file, pid.as_bytes(), 0)
    }
}

/// The process that signed the lock at `path`, while somebody has it. Between taking and signing it is the one that
/// had it before.
pub(crate) fn lock_holder(path: &Path) -> Option<nix::unistd::Pid> {
    let (dir, name) = place(path);
    let text = Beneath::open(dir).and_then(|dir| dir.read(name, SIGNATURE_LIMIT)).ok()?;
    let pid = String::from_utf8(text).ok()?.trim().parse().ok()?;
    is_locked(path).ok()?.then_some(nix::unistd::Pid::from_raw(pid))
}

/// Takes the lock at `path`. None: another process has it.
pub(crate) fn lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(Some(Lock { file })),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether some process has the lock at `path`; asking does not take it.
pub(crate) fn is_locked(path: &Path) -> io::Result<bool> {
    let (dir, name) = place(path);
    let file = match Beneath::open(dir).and_then(|dir| dir.file(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut probe = whole_file(libc::F_WRLCK);
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(probe.l_type != libc::F_UNLCK as libc::c_short)
}

/// A file's folder and its name there.
fn place(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new(".")), path.file_name().unwrap_or_default())
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// A short path to a file in `dir`, for socket addresses, which may be only 107 bytes long. The file stays
/// reachable by it while the answer lives.
#[derive(Debug)]
pub(crate) struct ShortPath {
    _dir: File,
    path: PathBuf,
}

impl ShortPath {
    /// The path of `name` in `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> io::Result<ShortPath> {
        use std::os::fd::AsRawFd;
        let dir = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
        Ok(ShortPath { _dir: dir, path })
    }

    /// The short path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_by_others_and_ends_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_locked(&path).unwrap());
        let held = lock(&path).unwrap().expect("nobody else has it");
        assert!(is_locked(&path).unwrap());
        assert!(lock(&path).unwrap().is_none());
        drop(held);
        assert!(!is_locked(&path).unwrap());
    }
}
