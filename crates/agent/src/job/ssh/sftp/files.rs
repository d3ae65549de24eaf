//! What is done to files.

use std::collections::HashMap;
use std::fs::{self, File, ReadDir};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::statvfs::{Statvfs, fstatvfs, statvfs};

use super::attributes::{self, Attributes};
use super::packet::{Reader, Refusal, Writer};
use super::{DATA_LIMIT, HANDLES_LIMIT, PACKET_LIMIT, kind};
use crate::clock;

/// How a file is to be opened.
mod open {
    pub(super) const READ: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const APPEND: u32 = 4;
    pub(super) const CREATE: u32 = 8;
    pub(super) const TRUNCATE: u32 = 16;
    pub(super) const EXCLUSIVE: u32 = 32;
}

/// How long an answer with names becomes before the next one is begun.
const NAMES_BYTES: usize = 32 * 1024;

type Outcome = Result<(), Refusal>;

/// The files and directories that a client has open.
#[derive(Debug, Default)]
pub(super) struct Files {
    handles: HashMap<u32, Handle>,
    last: u32,
}

#[derive(Debug)]
enum Handle {
    File { file: File, appends: bool },
    Dir { path: PathBuf, entries: ReadDir, own: Vec<&'static str> },
}

impl Files {
    /// Answers a request. None: it is not whole.
    pub(super) fn answer(&mut self, kind: u8, request: &mut Reader<'_>, answer: &mut Writer) -> Option<Outcome> {
        let outcome = match kind {
            kind::OPEN => {
                let (path, flags) = (request.path()?, request.u32()?);
                let attributes = Attributes::read(request)?;
                self.open(&path, flags, attributes, answer)
            }
            kind::CLOSE => self.close(request.bytes()?, answer),
            kind::READ => {
                let (handle, offset, length) = (request.bytes()?, request.u64()?, request.u32()?);
                self.read(handle, offset, length as usize, answer)
            }
            kind::WRITE => {
                let (handle, offset, data) = (request.bytes()?, request.u64()?, request.bytes()?);
                self.write(handle, offset, data, answer)
            }
            kind::STAT => tell(fs::metadata(request.path()?), answer),
            kind::LSTAT => tell(fs::symlink_metadata(request.path()?), answer),
            kind::FSTAT => self.stat(request.bytes()?, answer),
            kind::FSETSTAT => {
                let handle = request.bytes()?;
                let attributes = Attributes::read(request)?;
                self.set_stat(handle, attributes, answer)
            }
            kind::OPENDIR => self.open_dir(&request.path()?, answer),
            kind::READDIR => self.read_dir(request.bytes()?, answer),
            kind::EXTENDED => return self.extended(request, answer),
            other => return by_path(other, request, answer),
        };
        Some(outcome)
    }

    fn find(&self, handle: &[u8]) -> Result<&Handle, Refusal> {
        let bad = || Refusal::from(nix::errno::Errno::EBADF);
        self.handles.get(&number(handle).ok_or_else(bad)?).ok_or_else(bad)
    }

    fn file(&self, handle: &[u8]) -> Result<&File, Refusal> {
        match self.find(handle)? {
            Handle::File { file, .. } => Ok(file),
            Handle::Dir { .. } => Err(nix::errno::Errno::EISDIR.into()),
        }
    }

    fn keep(&mut self, handle: Handle, answer: &mut Writer) -> Outcome {
        if self.handles.len() >= HANDLES_LIMIT {
            return Err(nix::errno::Errno::EMFILE.into());
        }
        self.last = self.last.wrapping_add(1);
        self.handles.insert(self.last, handle);
        answer.answer(kind::HANDLE);
        answer.bytes(&self.last.to_be_bytes());
        Ok(())
    }

    fn open(&mut self, path: &Path, flags: u32, attributes: Attributes, answer: &mut Writer) -> Outcome {
        let has = |flag| flags & flag != 0;
        let creates = has(open::CREATE) && has(open::WRITE);
        let mut custom = libc::O_NOCTTY;
        // What the standard library refuses to combine, the kernel may still understand.
        if creates {
            custom |= libc::O_CREAT;
        }
        if has(open::EXCLUSIVE) && creates {
            custom |= libc::O_EXCL;
        }
        if has(open::TRUNCATE) && has(open::WRITE) {
            custom |= libc::O_TRUNC;
        }
        if has(open::APPEND) && has(open::WRITE) {
            custom |= libc::O_APPEND;
        }
        let mut options = File::options();
        options.read(has(open::READ) || !has(open::WRITE)).write(has(open::WRITE)).custom_flags(custom);
        options.mode(attributes.mode.unwrap_or(0o666));
        let file = options.open(path)?;
        self.keep(Handle::File { file, appends: has(open::APPEND) }, answer)
    }

    fn close(&mut self, handle: &[u8], answer: &mut Writer) -> Outcome {
        self.find(handle)?;
        self.handles.remove(&number(handle).unwrap_or_default());
        answer.done();
        Ok(())
    }

    fn read(&self, handle: &[u8], offset: u64, length: usize, answer: &mut Writer) -> Outcome {
        let file = self.file(handle)?;
        answer.answer(kind::DATA);
        let filled = answer.fill(length.min(DATA_LIMIT), |buffer| read_at(file, buffer, offset))?;
        if filled == 0 && length > 0 { Err(Refusal::End) } else { Ok(()) }
    }

    fn write(&self, handle: &[u8], offset: u64, data: &[u8], answer: &mut Writer) -> Outcome {
        let Handle::File { file, appends } = self.find(handle)? else {
            return Err(nix::errno::Errno::EISDIR.into());
        };
        if *appends {
            io::Write::write_all(&mut &*file, data)?;
        } else {
            file.write_all_at(data, offset)?;
        }
        answer.done();
        Ok(())
    }

    fn stat(&self, handle: &[u8], answer: &mut Writer) -> Outcome {
        match self.find(handle)? {
            Handle::File { file, .. } => tell(file.metadata(), answer),
            Handle::Dir { path, .. } => tell(fs::metadata(path), answer),
        }
    }

    fn set_stat(&self, handle: &[u8], attributes: Attributes, answer: &mut Writer) -> Outcome {
        match self.find(handle)? {
            Handle::File { file, .. } => attributes.apply_to_open(file)?,
            Handle::Dir { path, .. } => attributes.apply(path)?,
        }
        answer.done();
        Ok(())
    }

    fn open_dir(&mut self, path: &Path, answer: &mut Writer) -> Outcome {
        let entries = fs::read_dir(path)?;
        self.keep(Handle::Dir { path: path.to_owned(), entries, own: vec!["..", "."] }, answer)
    }

    fn read_dir(&mut self, handle: &[u8], answer: &mut Writer) -> Outcome {
        self.find(handle)?;
        let dir = number(handle).and_then(|number| self.handles.get_mut(&number));
        let Some(Handle::Dir { path, entries, own }) = dir else {
            return Err(nix::errno::Errno::ENOTDIR.into());
        };
        let now = clock::now();
        answer.answer(kind::NAME);
        let place = answer.len();
        answer.u32(0);
        let mut count = 0;
        while answer.len() < NAMES_BYTES {
            let name = match own.pop() {
                Some(name) => name.into(),
                None => match entries.next() {
                    None => break,
                    Some(entry) => entry?.file_name(),
                },
            };
            // It may have gone meanwhile.
            let Ok(metadata) = fs::symlink_metadata(path.join(&name)) else {
                continue;
            };
            answer.bytes(name.as_bytes());
            answer.bytes(attributes::line(&name.to_string_lossy(), &metadata, now).as_bytes());
            attributes::write(answer, &metadata);
            count += 1;
        }
        answer.replace_u32(place, count);
        if count == 0 { Err(Refusal::End) } else { Ok(()) }
    }

    fn extended(&mut self, request: &mut Reader<'_>, answer: &mut Writer) -> Option<Outcome> {
        let name = request.bytes()?;
        let outcome = match name {
            b"posix-rename@openssh.com" => done(fs::rename(request.path()?, request.path()?), answer),
            b"hardlink@openssh.com" => done(fs::hard_link(request.path()?, request.path()?), answer),
            b"statvfs@openssh.com" => {
                let found = statvfs(&request.path()?);
                found.map(|found| write_space(&found, answer)).map_err(Refusal::from)
            }
            b"fstatvfs@openssh.com" => {
                let handle = request.bytes()?;
                let found = self.file(handle).and_then(|file| Ok(fstatvfs(file)?));
                found.map(|found| write_space(&found, answer))
            }
            b"fsync@openssh.com" => {
                let handle = request.bytes()?;
                self.file(handle).and_then(|file| done(file.sync_all(), answer))
            }
            b"lsetstat@openssh.com" => {
                let path = request.path()?;
                let attributes = Attributes::read(request)?;
                attributes.apply_to_link(&path).map(|()| answer.done())
            }
            b"limits@openssh.com" => {
                answer.answer(kind::EXTENDED_REPLY);
                let limits = [PACKET_LIMIT, DATA_LIMIT, DATA_LIMIT, HANDLES_LIMIT];
                for limit in limits {
                    answer.u64(limit as u64);
                }
                Ok(())
            }
            b"expand-path@openssh.com" => {
                let path = expand(&request.path()?);
                canonical(&path).map(|path| write_path(&path, answer)).map_err(Refusal::from)
            }
            _ => Err(Refusal::Unsupported),
        };
        Some(outcome)
    }
}

/// Answers a request about what lies at a path.
fn by_path(kind: u8, request: &mut Reader<'_>, answer: &mut Writer) -> Option<Outcome> {
    let outcome = match kind {
        kind::SETSTAT => {
            let path = request.path()?;
            let attributes = Attributes::read(request)?;
            attributes.apply(&path).map(|()| answer.done())
        }
        kind::REMOVE => done(fs::remove_file(request.path()?), answer),
        kind::MKDIR => {
            let path = request.path()?;
            let mode = Attributes::read(request)?.mode.unwrap_or(0o777);
            done(fs::DirBuilder::new().mode(mode).create(path), answer)
        }
        kind::RMDIR => done(fs::remove_dir(request.path()?), answer),
        kind::REALPATH => canonical(&request.path()?).map(|path| write_path(&path, answer)).map_err(Refusal::from),
        kind::RENAME => done(rename_to_new(&request.path()?, &request.path()?), answer),
        kind::READLINK => {
            fs::read_link(request.path()?).map(|path| write_path(&path, answer)).map_err(Refusal::from)
        }
        // OpenSSH has them the other way round than the standard, and so has everybody.
        kind::SYMLINK => done(symlink(request.path()?, request.path()?), answer),
        _ => Err(Refusal::Unsupported),
    };
    Some(outcome)
}

fn number(handle: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(handle.try_into().ok()?))
}

fn done(result: io::Result<()>, answer: &mut Writer) -> Outcome {
    result?;
    answer.done();
    Ok(())
}

fn tell(metadata: io::Result<fs::Metadata>, answer: &mut Writer) -> Outcome {
    let metadata = metadata?;
    answer.answer(kind::ATTRS);
    attributes::write(answer, &metadata);
    Ok(())
}

fn write_path(path: &Path, answer: &mut Writer) {
    let bytes = path.as_os_str().as_bytes();
    answer.answer(kind::NAME);
    answer.u32(1);
    answer.bytes(bytes);
    answer.bytes(bytes);
    answer.u32(0);
}

fn write_space(found: &Statvfs, answer: &mut Writer) {
    answer.answer(kind::EXTENDED_REPLY);
    let flags = found.flags();
    let read_only = u64::from(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let no_suid = 2 * u64::from(flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID));
    for number in [
        found.block_size(),
        found.fragment_size(),
        found.blocks(),
        found.blocks_free(),
        found.blocks_available(),
        found.files(),
        found.files_free(),
        found.files_available(),
        found.filesystem_id(),
        read_only | no_suid,
        found.name_max(),
    ] {
        answer.u64(number);
    }
}

/// Fills the buffer as far as the file has something: clients take fewer bytes for the end.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if filled > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Renames, unless something has the new name.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    let renamed = nix::fcntl::renameat2(
        nix::fcntl::AT_FDCWD,
        from,
        nix::fcntl::AT_FDCWD,
        to,
        nix::fcntl::RenameFlags::RENAME_NOREPLACE,
    );
    match renamed {
        // Some file systems cannot promise that.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) if fs::symlink_metadata(to).is_err() => {
            fs::rename(from, to)
        }
        result => Ok(result?),
    }
}

/// The path without links and dots. What is missing at its end stays as it is: a client may be about to make it.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(error);
            };
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(fs::canonicalize(parent)?.join(name))
        }
        result => result,
    }
}

/// A path that may begin with the user's home.
fn expand(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.to_owned(),
    }
}
