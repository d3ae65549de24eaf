//! One `authorized_keys` file: our lines in it, and nothing else of it.
//!
//! Whoever administers the host writes there too. The file is replaced as a whole, so that `sshd` never sees half of
//! one, and only if it still is what was read.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::ids::JobId;
use nix::libc;

use crate::clock;

/// What our lines begin with.
pub(super) const FIRST_WORD: &str = "restrict,";

/// What stands in them before the job.
pub(super) const MARK: &str = "dstack ";

/// The largest file that is believed to be one.
const SIZE_LIMIT: u64 = 4 << 20;

/// How long another agent may have the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// How often a file that others change at the same time is tried.
const TRIES: usize = 5;

/// What the new file is called until it takes the old one's place. Whoever has the lock may remove it.
const NEW_FILE: &str = ".authorized_keys.dstack";

/// A user as whom clients log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) home: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Makes the wanted lines the only ones of ours. Others stay byte for byte and stand before ours, so that a key that
/// may do more goes on doing so. Answers whether anything was changed.
pub(super) fn settle(login: &Login, wanted: &[String]) -> io::Result<bool> {
    let folder = login.home.join(".ssh");
    if !folder.exists() {
        if wanted.is_empty() {
            return Ok(false);
        }
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        std::os::unix::fs::chown(&folder, Some(login.uid), Some(login.gid))?;
    }
    // A file that lies elsewhere is replaced there.
    let path = match folder.join("authorized_keys").canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => folder.join("authorized_keys"),
        Err(error) => return Err(error),
    };
    let place = path.parent().unwrap_or(Path::new("/"));
    let _lock = lock(place)?;
    for _ in 0..TRIES {
        if let Some(changed) = try_settle(login, &path, wanted)? {
            return Ok(changed);
        }
    }
    Err(io::Error::other(format!("`{}` changes all the time", path.display())))
}

/// None: somebody else has changed the file meanwhile.
fn try_settle(login: &Login, path: &Path, wanted: &[String]) -> io::Result<Option<bool>> {
    let old = read(path)?;
    let text = old.as_ref().map(|(text, _)| text.as_slice()).unwrap_or_default();
    let new = with_lines(text, wanted);
    if new == text {
        return Ok(Some(false));
    }
    let temporary = path.with_file_name(NEW_FILE);
    let written = write(&temporary, &new, login, old.as_ref().map(|(_, facts)| facts)).and_then(|()| {
        let is_as_read = match (read(path)?, &old) {
            (Some((now, now_facts)), Some((before, facts))) => now == *before && now_facts.ino() == facts.ino(),
            (now, before) => now.is_none() && before.is_none(),
        };
        if is_as_read {
            std::fs::rename(&temporary, path)?;
        }
        Ok(is_as_read)
    });
    if !matches!(written, Ok(true)) {
        // What a full disk left behind would only keep it full.
        let _ = std::fs::remove_file(&temporary);
    }
    if !written? {
        return Ok(None);
    }
    crate::disk::sync_parent(path)?;
    Ok(Some(true))
}

fn read(path: &Path) -> io::Result<Option<(Vec<u8>, Metadata)>> {
    // A pipe in its place must not keep us.
    let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let facts = file.metadata()?;
    if !facts.is_file() || facts.len() > SIZE_LIMIT {
        return Err(io::Error::other(format!("`{}` is no file of keys", path.display())));
    }
    let mut text = Vec::new();
    Read::take(&mut file, SIZE_LIMIT).read_to_end(&mut text)?;
    Ok(Some((text, facts)))
}

/// Writes the new file as the old one was: the same owner, group and mode.
fn write(path: &Path, text: &[u8], login: &Login, old: Option<&Metadata>) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    let (uid, gid, mode) = old.map_or((login.uid, login.gid, 0o600), |old| (old.uid(), old.gid(), old.mode()));
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (uid, gid) {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode & 0o7777))?;
    file.sync_all()
}

/// The folder is locked and not the file, which is another one after each change.
fn lock(folder: &Path) -> io::Result<File> {
    let file = File::open(folder)?;
    let deadline: Instant = clock::monotonic() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if clock::monotonic() < deadline => clock::pause(LOCK_LOOK),
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other(format!("somebody else has locked `{}`", folder.display())));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// The text with these lines of ours in place of all others of ours.
fn with_lines(text: &[u8], wanted: &[String]) -> Vec<u8> {
    let mut new: Vec<u8> =
        text.split_inclusive(|byte| *byte == b'\n').filter(|line| !is_ours(line)).flatten().copied().collect();
    if !wanted.is_empty() && !new.is_empty() && !new.ends_with(b"\n") {
        new.push(b'\n');
    }
    for line in wanted {
        new.extend_from_slice(line.as_bytes());
        new.push(b'\n');
    }
    new
}

/// Whether we have written a line: by its first word, and the job that it names last.
pub(super) fn is_ours(line: &[u8]) -> bool {
    let Ok(line) = std::str::from_utf8(line) else { return false };
    let Some((rest, job)) = line.trim_end().rsplit_once(' ') else { return false };
    line.starts_with(FIRST_WORD)
        && rest.ends_with(&[" ", MARK.trim_end()].concat())
        && job.parse::<JobId>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "00000000-0000-0000-0000-000000000007";

    fn ours(number: u16) -> String {
        format!("restrict,permitopen=\"localhost:{number}\" ssh-ed25519 AAAA dstack {JOB}")
    }

    fn login(home: &Path) -> Login {
        Login { home: home.to_owned(), uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() }
    }

    #[test]
    fn only_what_we_have_written_is_ours() {
        let check = |line: &str, expected| assert_eq!(is_ours(line.as_bytes()), expected, "{line}");
        check(&ours(1), true);
        check(&format!("{}\n", ours(1)), true);
        check(&format!("ssh-ed25519 AAAA dstack {JOB}"), false);
        check(&format!("# restrict, dstack {JOB}"), false);
        check("restrict,command=\"x\" ssh-ed25519 AAAA dstack 7", false);
        check(&format!("restrict,pty ssh-ed25519 AAAA my-dstack {JOB}"), false);
        check("", false);
        assert!(!is_ours(b"restrict,\xff dstack"));
    }

    #[test]
    fn all_other_bytes_stay() {
        for text in [&b""[..], b"\n\n# mine\r\nssh-ed25519 AAAA ada\n", b"ssh-rsa \xff\xfe x\n", b" \t\n"] {
            let with = with_lines(text, &[ours(1), ours(2)]);
            assert!(with.starts_with(text));
            let changed = with_lines(&with, &[ours(3)]);
            assert_eq!(changed, [text, ours(3).as_bytes(), b"\n"].concat());
            assert_eq!(with_lines(&changed, &[]), text);
        }
        // A last line without an end gets one, or ours would be a part of it.
        let with = with_lines(b"ssh-ed25519 AAAA ada", &[ours(1)]);
        assert_eq!(with, format!("ssh-ed25519 AAAA ada\n{}\n", ours(1)).as_bytes());
    }

    #[test]
    fn a_file_keeps_its_mode_and_one_that_is_missing_is_made_private() {
        let home = tempfile::tempdir().unwrap();
        let login = login(home.path());
        let path = home.path().join(".ssh/authorized_keys");
        assert!(!settle(&login, &[]).unwrap());
        assert!(!path.exists());
        assert!(settle(&login, &[ours(1)]).unwrap());
        assert!(!settle(&login, &[ours(1)]).unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        std::fs::write(&path, "ssh-ed25519 AAAA ada\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(settle(&login, &[ours(1)]).unwrap());
        assert_eq!(mode(&path), 0o640);
        assert!(settle(&login, &[]).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "ssh-ed25519 AAAA ada\n");
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "nothing else is left there");
    }

    #[test]
    fn a_link_stays_and_what_is_no_file_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let login = login(home.path());
        std::fs::create_dir_all(home.path().join(".ssh")).unwrap();
        std::fs::create_dir(home.path().join("dotfiles")).unwrap();
        let path = home.path().join(".ssh/authorized_keys");
        std::fs::write(home.path().join("dotfiles/keys"), "# mine\n").unwrap();
        std::os::unix::fs::symlink("../dotfiles/keys", &path).unwrap();
        assert!(settle(&login, &[ours(1)]).unwrap());
        assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(
            std::fs::read_to_string(home.path().join("dotfiles/keys"))
                .unwrap()
                .ends_with(&format!("{}\n", ours(1)))
        );
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(settle(&login, &[ours(1)]).unwrap_err().to_string().ends_with("is no file of keys"));
    }

    #[test]
    fn whoever_has_the_lock_is_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let login = login(home.path());
        settle(&login, &[ours(1)]).unwrap();
        let held = lock(&home.path().join(".ssh")).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| settle(&login, &[ours(2)]));
            clock::pause(LOCK_LOOK * 3);
            let text = std::fs::read_to_string(home.path().join(".ssh/authorized_keys")).unwrap();
            assert_eq!(text, format!("{}\n", ours(1)));
            drop(held);
            assert!(waiting.join().unwrap().unwrap());
        });
    }
}
