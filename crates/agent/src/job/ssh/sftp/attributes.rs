//! What the protocol says about a file, read and written.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown, lchown};
use std::path::Path;

use jiff::Timestamp;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;

use super::packet::{Reader, Refusal, Writer};

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 1 << 31;

/// The permissions that may be set.
const MODE_MASK: u32 = 0o7777;
/// Modifications longer ago than this are told by year.
const RECENT_SECS: i64 = 182 * 86_400;

/// What a request wants a file to be like.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    pub(super) times: Option<(u32, u32)>,
}

impl Attributes {
    pub(super) fn read(request: &mut Reader<'_>) -> Option<Attributes> {
        let flags = request.u32()?;
        let mut found = Attributes::default();
        if flags & SIZE != 0 {
            found.size = Some(request.u64()?);
        }
        if flags & OWNER != 0 {
            found.owner = Some((request.u32()?, request.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            found.mode = Some(request.u32()? & MODE_MASK);
        }
        if flags & TIMES != 0 {
            found.times = Some((request.u32()?, request.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..request.u32()? {
                request.bytes()?;
                request.bytes()?;
            }
        }
        Some(found)
    }

    /// Makes the file at `path` so, or what a link there points to.
    pub(super) fn apply(&self, path: &Path) -> Result<(), Refusal> {
        if let Some(size) = self.size {
            File::options().write(true).open(path)?.set_len(size)?;
        }
        if let Some(mode) = self.mode {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        self.set_times(path, UtimensatFlags::FollowSymlink)?;
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Makes a link itself so, as far as links have such a thing.
    pub(super) fn apply_to_link(&self, path: &Path) -> Result<(), Refusal> {
        if self.size.is_some() {
            return Err(Refusal::Unsupported);
        }
        if let Some(mode) = self.mode {
            if fs::symlink_metadata(path)?.is_symlink() {
                return Err(Refusal::Unsupported);
            }
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        self.set_times(path, UtimensatFlags::NoFollowSymlink)?;
        if let Some((user, group)) = self.owner {
            lchown(path, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Makes an open file so.
    pub(super) fn apply_to_open(&self, file: &File) -> Result<(), Refusal> {
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        if let Some(mode) = self.mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        if let Some((accessed, modified)) = self.times {
            futimens(file, &time(accessed), &time(modified))?;
        }
        if let Some((user, group)) = self.owner {
            fchown(file, Some(user), Some(group))?;
        }
        Ok(())
    }

    fn set_times(&self, path: &Path, follow: UtimensatFlags) -> Result<(), Refusal> {
        if let Some((accessed, modified)) = self.times {
            utimensat(AT_FDCWD, path, &time(accessed), &time(modified), follow)?;
        }
        Ok(())
    }
}

fn time(seconds: u32) -> TimeSpec {
    TimeSpec::new(i64::from(seconds), 0)
}

/// Writes what a file is like.
pub(super) fn write(answer: &mut Writer, file: &Metadata) {
    answer.u32(SIZE | OWNER | PERMISSIONS | TIMES);
    answer.u64(file.len());
    answer.u32(file.uid());
    answer.u32(file.gid());
    answer.u32(file.mode());
    // The protocol's times end in 2106.
    answer.u32(u32::try_from(file.atime().max(0)).unwrap_or(u32::MAX));
    answer.u32(u32::try_from(file.mtime().max(0)).unwrap_or(u32::MAX));
}

/// A line about a file as `ls -l` prints it, for people.
pub(super) fn line(name: &str, file: &Metadata, now: Timestamp) -> String {
    let modified = Timestamp::from_second(file.mtime()).unwrap_or_default();
    let age = now.as_second() - modified.as_second();
    let is_recent = (0..RECENT_SECS).contains(&age);
    let date = modified.strftime(if is_recent { "%b %e %H:%M" } else { "%b %e  %Y" });
    let (mode, links) = (mode_text(file.mode()), file.nlink());
    format!("{mode} {links:>4} {:<8} {:<8} {:>8} {date} {name}", file.uid(), file.gid(), file.len())
}

fn mode_text(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o140_000 => 's',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_people_know_them() {
        assert_eq!(mode_text(0o100_644), "-rw-r--r--");
        assert_eq!(mode_text(0o041_777), "drwxrwxrwt");
        assert_eq!(mode_text(0o104_750), "-rwsr-x---");
        assert_eq!(mode_text(0o120_777), "lrwxrwxrwx");
        assert_eq!(mode_text(0o102_644), "-rw-r-Sr--");
    }
}
