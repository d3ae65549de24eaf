//! What lies in a folder that others may write to: in a container its root is the tenant's. Nothing is reached through
//! a link, nothing but a plain file is opened, and whoever reads waits for nobody.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::libc;
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::clock;

/// How many names of a folder are held at once while it is emptied.
const NAMES_AT_ONCE: usize = 1024;

/// A folder that others may write to, held open: renaming it or putting a link in its place leads nowhere else.
#[derive(Debug)]
pub(crate) struct Beneath {
    dir: File,
    path: PathBuf,
}

/// A socket in such a folder, held as it was found.
#[derive(Debug)]
pub(crate) struct BeneathSocket {
    _file: File,
    path: PathBuf,
}

impl BeneathSocket {
    /// A path that means this socket while it is held.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Beneath {
    /// Opens the folder at `path`. Nobody else may move what is above it; the folder itself may be anything by now.
    pub(crate) fn open(path: &Path) -> io::Result<Beneath> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = openat(AT_FDCWD, parent, flags, Mode::empty())?;
        Beneath::within(parent.as_fd(), path.file_name().unwrap_or_default())
    }

    /// Opens a folder in this one.
    pub(crate) fn folder(&self, name: impl AsRef<OsStr>) -> io::Result<Beneath> {
        Beneath::within(self.dir.as_fd(), name.as_ref())
    }

    fn within(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Beneath> {
        let dir = File::from(open_at(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?);
        let path = path_of(&dir);
        Ok(Beneath { dir, path })
    }

    /// A path that means this very folder while it is held.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a plain file for reading.
    pub(crate) fn file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = name.as_ref();
        // Merely opening a device may act, and a watchdog ends the host: so it is looked at before it is opened.
        let found = self.pin(name)?;
        if !found.metadata()?.is_file() {
            return Err(io::Error::other(format!("`{}` is not a plain file", name.display())));
        }
        // Without waiting, or its owner could make us wait by a lease.
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path_of(&found))
    }

    /// Reads a plain file of at most `limit` bytes.
    pub(crate) fn read(&self, name: impl AsRef<OsStr>, limit: usize) -> io::Result<Vec<u8>> {
        let name = name.as_ref();
        let mut bytes = Vec::new();
        self.file(name)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if limit < bytes.len() {
            return Err(io::Error::other(format!("`{}` is longer than {limit} bytes", name.display())));
        }
        Ok(bytes)
    }

    /// Finds a socket.
    pub(crate) fn socket(&self, name: &str) -> io::Result<BeneathSocket> {
        let file = self.pin(OsStr::new(name))?;
        if !file.metadata()?.file_type().is_socket() {
            return Err(io::Error::other(format!("`{name}` is not a socket")));
        }
        let path = path_of(&file);
        Ok(BeneathSocket { _file: file, path })
    }

    /// Whether there is something of this name, be it a link that leads nowhere.
    pub(crate) fn has(&self, name: &str) -> bool {
        fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Replaces a file by `bytes`, readable only by its owner. After a crash the old or the new one is there.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{name}.tmp");
        let write = || -> io::Result<()> {
            // What lies there need not be ours: through a link we would write to wherever its maker wanted.
            self.remove(&temporary)?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let file = open_at(self.dir.as_fd(), OsStr::new(&temporary), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let mut file = File::from(file);
            file.write_all(bytes)?;
            file.sync_all()?;
            Ok(renameat(&self.dir, temporary.as_str(), &self.dir, name)?)
        };
        write().inspect_err(|_| {
            // What a full disk left behind would only keep it full.
            let _ = self.remove(&temporary);
        })?;
        self.dir.sync_all()
    }

    /// Opens a plain file to add to its end, and makes it if it is missing.
    pub(crate) fn append(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NONBLOCK;
        let file = File::from(open_at(self.dir.as_fd(), OsStr::new(name), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("`{name}` is not a plain file")));
        }
        Ok(file)
    }

    /// Removes a name that is not a folder's, if it is there; what a link points to stays.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes everything in the folder. However deep it goes, a few open files and little memory suffice: what lies
    /// deeper is first moved up.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let mut spare = SpareNames { prefix: clock::unix_micros(), next: 0 };
        loop {
            let names = self.names(NAMES_AT_ONCE)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                while !self.remove_if_flat(&name)? {
                    self.lift_folders(&name, &mut spare)?;
                }
            }
        }
    }

    /// Removes a file or an empty folder; answers whether it is gone.
    fn remove_if_flat(&self, name: &OsStr) -> io::Result<bool> {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            Err(Errno::EISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(&self.dir, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            Err(Errno::ENOTEMPTY) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Empties a folder in this one: its files go, its folders come up here.
    fn lift_folders(&self, name: &OsStr, spare: &mut SpareNames) -> io::Result<()> {
        let inner = self.folder(name)?;
        for child in inner.names(NAMES_AT_ONCE)? {
            if inner.remove_if_flat(&child)? {
                continue;
            }
            loop {
                match renameat(&inner.dir, child.as_os_str(), &self.dir, spare.take().as_str()) {
                    Ok(()) | Err(Errno::ENOENT) => break,
                    Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn names(&self, most: usize) -> io::Result<Vec<OsString>> {
        fs::read_dir(&self.path)?.take(most).map(|entry| Ok(entry?.file_name())).collect()
    }

    /// Holds what has this name, without opening it and without following it.
    fn pin(&self, name: &OsStr) -> io::Result<File> {
        Ok(File::from(open_at(self.dir.as_fd(), name, OFlag::O_PATH, Mode::empty())?))
    }
}

/// Removes whatever is at `path`, if anything. Nobody else may move what is above it.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
        Err(error) => return Err(error),
    }
    Beneath::open(path)?.clear()?;
    fs::remove_dir(path)
}

/// Names that nobody has foreseen.
#[derive(Debug)]
struct SpareNames {
    prefix: i64,
    next: u64,
}

impl SpareNames {
    fn take(&mut self) -> String {
        self.next += 1;
        format!(".{}-{}", self.prefix, self.next)
    }
}

/// A path that means an open file or folder, whatever its name is by now.
fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Opens a name in a folder: itself, never what it points to, and nothing outside of the folder.
fn open_at(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    match openat2(dir, name, OpenHow::new().flags(flags).mode(mode).resolve(resolve)) {
        // The kernel is too old, or a filter does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => open_one(dir, name, flags, mode),
        opened => opened,
    }
}

/// As [`open_at`], by what every kernel has: a single name leads out of a folder only by a link, or by its dots.
fn open_one(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let bytes = name.as_encoded_bytes();
    if bytes.is_empty() || bytes == b".." || bytes.contains(&b'/') {
        return Err(Errno::EXDEV);
    }
    openat(dir, name, flags | OFlag::O_NOFOLLOW, mode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{SFlag, makedev, mknod};
    use nix::unistd::mkfifo;

    use super::*;

    /// A host's folder with a secret in it, and beside it a tenant's.
    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (host, run) = (dir.path().join("host"), dir.path().join("run"));
        fs::create_dir(&host).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(host.join("secret"), "secret").unwrap();
        (dir, host, run)
    }

    #[test]
    fn a_plain_file_is_read_up_to_its_limit() {
        let (_dir, _host, run) = folders();
        fs::write(run.join("file"), "12345").unwrap();
        let run = Beneath::open(&run).unwrap();
        assert_eq!(run.read("file", 5).unwrap(), b"12345");
        assert!(run.read("file", 4).is_err());
        assert!(run.read("missing", 4).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn a_huge_file_is_refused_and_costs_nothing() {
        let (_dir, _host, run) = folders();
        File::create(run.join("huge")).unwrap().set_len(1 << 43).unwrap();
        assert!(Beneath::open(&run).unwrap().read("huge", 1 << 20).is_err());
    }

    #[test]
    fn no_link_is_followed_wherever_it_stands() {
        let (_dir, host, run) = folders();
        symlink(host.join("secret"), run.join("link")).unwrap();
        symlink("../host/secret", run.join("relative")).unwrap();
        symlink(&host, run.join("logs")).unwrap();
        symlink("/proc/self/root", run.join("magic")).unwrap();
        let beneath = Beneath::open(&run).unwrap();
        for name in ["link", "relative", "logs", "magic", "../host/secret", "logs/secret", "/etc/passwd", ".."] {
            assert!(beneath.file(name).is_err(), "{name}");
            assert!(beneath.folder(name).is_err(), "{name}");
            assert!(beneath.append(name).is_err(), "{name}");
        }
        assert!(Beneath::open(&run.join("logs")).is_err());
        assert!(beneath.has("link") && !beneath.has("other"));
    }

    #[test]
    fn the_way_for_old_kernels_follows_no_link_either() {
        let (_dir, host, run) = folders();
        symlink(host.join("secret"), run.join("link")).unwrap();
        symlink(&host, run.join("logs")).unwrap();
        fs::write(run.join("file"), "own").unwrap();
        let dir = File::open(&run).unwrap();
        let open = |name: &str| open_one(dir.as_fd(), OsStr::new(name), OFlag::O_RDONLY, Mode::empty());
        for name in ["link", "logs", "logs/secret", "../host/secret", "/etc/passwd", "..", ""] {
            assert!(open(name).is_err(), "{name}");
        }
        open("file").unwrap();
    }

    #[test]
    fn what_is_no_plain_file_is_neither_opened_nor_waited_for() {
        let (_dir, _host, run) = folders();
        mkfifo(&run.join("pipe"), Mode::S_IRWXU).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(run.join("socket")).unwrap();
        fs::create_dir(run.join("folder")).unwrap();
        // Only root makes devices.
        let device = mknod(&run.join("device"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).is_ok();
        let run = Beneath::open(&run).unwrap();
        for name in ["pipe", "socket", "folder"].into_iter().chain(device.then_some("device")) {
            let error = run.file(name).unwrap_err();
            assert!(error.to_string().contains("not a plain file"), "{name}: {error}");
        }
        assert!(run.socket("pipe").is_err());
        run.socket("socket").unwrap();
    }

    #[test]
    fn a_file_that_becomes_a_link_again_and_again_never_shows_what_it_points_to() {
        let (dir, host, run) = folders();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let next = dir.path().join("next");
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::write(&next, "own").unwrap();
                    fs::rename(&next, run.join("file")).unwrap();
                    symlink(host.join("secret"), &next).unwrap();
                    fs::rename(&next, run.join("file")).unwrap();
                }
            });
            let beneath = Beneath::open(&run).unwrap();
            let read = (0..5000).filter_map(|_| beneath.read("file", 100).ok()).collect::<Vec<_>>();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(read.iter().all(|bytes| bytes == b"own" || bytes.is_empty()));
        });
    }

    #[test]
    fn a_folder_that_is_held_stays_the_same_under_any_name() {
        let (dir, host, run) = folders();
        fs::write(run.join("secret"), "own").unwrap();
        let beneath = Beneath::open(&run).unwrap();
        fs::rename(&run, dir.path().join("elsewhere")).unwrap();
        symlink(&host, &run).unwrap();
        assert_eq!(beneath.read("secret", 100).unwrap(), b"own");
        beneath.remove("secret").unwrap();
        assert_eq!(fs::read(host.join("secret")).unwrap(), b"secret");
    }

    #[test]
    fn writing_replaces_links_instead_of_following_them() {
        let (_dir, host, run) = folders();
        symlink(host.join("secret"), run.join("job.json")).unwrap();
        symlink(host.join("secret"), run.join("job.json.tmp")).unwrap();
        let beneath = Beneath::open(&run).unwrap();
        beneath.replace("job.json", b"orders").unwrap();
        assert_eq!(fs::read(run.join("job.json")).unwrap(), b"orders");
        assert!(!fs::symlink_metadata(run.join("job.json")).unwrap().is_symlink());
        assert_eq!(fs::read(host.join("secret")).unwrap(), b"secret");
        assert!(!run.join("job.json.tmp").exists());
    }

    #[test]
    fn a_folder_deeper_than_open_files_and_stacks_go_is_removed_and_links_lead_nowhere() {
        let (_dir, host, run) = folders();
        symlink(&host, run.join("host")).unwrap();
        let mut folder = Beneath::open(&run).unwrap();
        for depth in 0..3000 {
            nix::sys::stat::mkdirat(&folder.dir, "deep", Mode::S_IRWXU).unwrap();
            fs::write(folder.path().join("file"), "text").unwrap();
            if depth % 1000 == 0 {
                symlink(&host, folder.path().join("link")).unwrap();
            }
            folder = folder.folder("deep").unwrap();
        }
        remove_all(&run).unwrap();
        assert!(!run.exists());
        assert_eq!(fs::read(host.join("secret")).unwrap(), b"secret");
        remove_all(&run).unwrap();
        symlink(&host, &run).unwrap();
        remove_all(&run).unwrap();
        assert!(host.join("secret").exists());
    }
}
