//! Files put on hosts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use tempfile::TempDir;
use tokio::time::timeout;
use tunnel::*;

use crate::support::*;

/// All names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_once_and_then_known() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let path = sshd.dir.path().join("new folder/it's a \"file\"");
    let much = noise(100 * 1024 * 1024);
    let file = File { mode: 0o755, ..File::new(path.to_str().unwrap(), much) };
    assert_eq!(push_file(&session, &file).await.unwrap(), Pushed::Written);
    assert!(fs::read(&path).unwrap() == file.bytes, "the bytes are others");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
    let first = fs::metadata(&path).unwrap().ino();

    let tighter = File { mode: 0o700, ..file.clone() };
    assert_eq!(push_file(&session, &tighter).await.unwrap(), Pushed::Same);
    let now = fs::metadata(&path).unwrap();
    assert_eq!((now.ino(), now.permissions().mode() & 0o7777), (first, 0o700));

    // A changed byte is found, and whoever has the old file open keeps it.
    let mut bytes = file.bytes.to_vec();
    bytes[77] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(push_file(&session, &file).await.unwrap(), Pushed::Written);
    assert_ne!(fs::metadata(&path).unwrap().ino(), first);
    assert_eq!(names(path.parent().unwrap()), ["it's a \"file\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_may_be_empty_or_replace_a_link() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let (path, other) = (sshd.dir.path().join("file"), sshd.dir.path().join("other"));
    fs::write(&other, "precious").unwrap();
    symlink(&other, &path).unwrap();
    let file = File { mode: 0o600, ..File::new(path.to_str().unwrap(), Vec::new()) };
    assert_eq!(push_file(&session, &file).await.unwrap(), Pushed::Written);
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
    assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_cut_leaves_the_old_file_alone() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let proxy = Proxy::to(sshd.port).await;
    let session = Session::connect(&Target { port: proxy.port, ..sshd.target() }, &limits()).await.unwrap();
    let dir = sshd.dir.path().join("folder");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("file");
    fs::write(&path, "old").unwrap();
    let file = File::new(path.to_str().unwrap(), noise(64 * 1024 * 1024));
    let pushing = push_file(&session, &file);
    let part_grows = || {
        let part = names(&dir).into_iter().find(|name| name.contains(".part"));
        part.is_some_and(|part| fs::metadata(dir.join(part)).is_ok_and(|part| 1_000_000 < part.len()))
    };
    let cut = async {
        eventually("a part arrives", part_grows).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        proxy.set(Mode::Cut);
    };
    let (result, ()) = tokio::join!(pushing, cut);
    assert!(matches!(result, Err(Error::Lost { .. })), "{result:?}");
    eventually("the part is removed", || names(&dir) == ["file"]).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

/// A file system of its own, until it is dropped.
struct Tmpfs(TempDir);

impl Tmpfs {
    /// Nothing, and said so, where mounting is not allowed.
    fn new(size: &str) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        match mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())) {
            Ok(()) => Some(Tmpfs(dir)),
            Err(error) => {
                eprintln!("SKIPPED: a small file system cannot be mounted: {error}");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount(self.0.path());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_left_clean() {
    if !enabled() {
        return;
    }
    let Some(disk) = Tmpfs::new("4m") else { return };
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let path = disk.0.path().join("file");
    fs::write(&path, "old").unwrap();
    let file = File::new(path.to_str().unwrap(), noise(16 * 1024 * 1024));
    let error = timeout(PATIENCE, push_file(&session, &file)).await.unwrap().unwrap_err();
    let address = session.address().to_owned();
    assert_eq!(error, Error::DiskFull { address, path: file.path.clone(), bytes: 16 * 1024 * 1024 });
    assert_eq!(names(disk.0.path()), ["file"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_named_with_the_reason() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let user = User::new("/bin/sh");
    let session = sshd.session_of(&user).await;
    let reason = async |path: &str| match push_file(&session, &File::new(path, "text")).await.unwrap_err() {
        Error::Push { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason("/opt/not-allowed").await.contains("Permission denied"));
    assert!(reason("/proc/no/folder").await.contains("cannot create directory"));
    assert_eq!(reason(user.home.to_str().unwrap()).await, "it is a folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_writes_a_file_for_a_user_with_sudo() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let user = User::new("/bin/bash");
    let session = sshd.session_of(&user).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent");
    let every_byte: Vec<u8> = (0..=255).cycle().take(2_000_000).collect();
    let file = File { privilege: Privilege::Sudo, ..File::new(path.to_str().unwrap(), every_byte) };
    let error = push_file(&session, &file).await.unwrap_err();
    assert!(matches!(error, Error::Sudo { problem: SudoProblem::NeedsPassword, .. }), "{error:?}");

    user.sudo("Defaults:% use_pty\n% ALL=(ALL) NOPASSWD: ALL");
    assert_eq!(push_file(&session, &file).await.unwrap(), Pushed::Written);
    assert!(fs::read(&path).unwrap() == file.bytes, "the bytes are others");
    assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
    assert_eq!(push_file(&session, &file).await.unwrap(), Pushed::Same);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_few_programs_takes_files_too() {
    if !enabled() {
        return;
    }
    let programs = ["bash", "sh", "cat", "mkdir", "chmod", "mv", "rm", "wc"];
    for extra in [Some("cksum"), None] {
        let bin = tempfile::tempdir().unwrap();
        fs::set_permissions(bin.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for program in programs.into_iter().chain(extra) {
            symlink(run("which", &[program]), bin.path().join(program)).unwrap();
        }
        let sshd = Sshd::with(&format!("SetEnv PATH={}", bin.path().display())).await;
        let user = User::new("/bin/dash");
        let session = sshd.session_of(&user).await;
        let path = user.home.join("file");
        let file = File::new(path.to_str().unwrap(), noise(1_000_003));
        for _ in 0..2 {
            // Without a hash that can be trusted, it is never the same.
            assert_eq!(push_file(&session, &file).await.unwrap(), Pushed::Written, "{extra:?}");
            assert!(fs::read(&path).unwrap() == file.bytes, "{extra:?}: the bytes are others");
        }
        let wrong = File { sha256: "0".repeat(64), ..file };
        // Only the hash is wrong, which such a host cannot see.
        push_file(&session, &wrong).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_those_of_the_hash_are_never_put_in_place() {
    if !enabled() {
        return;
    }
    let sshd = Sshd::start().await;
    let session = sshd.session().await;
    let dir = sshd.dir.path().join("folder");
    let file = File { sha256: "0".repeat(64), ..File::new(dir.join("file").to_str().unwrap(), "text") };
    let error = push_file(&session, &file).await.unwrap_err();
    assert!(matches!(&error, Error::Push { reason, .. } if reason.contains("checksum")), "{error:?}");
    assert_eq!(names(&dir), Vec::<String>::new());
}
