//! A clone on the disk: its objects, names of commits, settings, and files.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;

use gix_hash::{Kind, ObjectId};
use gix_index::entry::{Mode, Stat};
use gix_object::{CommitRefIter, Exists, Find};
use gix_utils::progress::Discard;

use super::error::Error;
use super::remote::is_safe_name;

/// How much memory one object may take: a file is held whole while it is written.
const OBJECT_LIMIT: usize = 4 << 30;
/// The longest file that says where submodules are.
pub(super) const SMALL_FILE: usize = 1 << 20;
/// How many threads work on a pack. Each holds objects in memory.
const THREADS: usize = 4;

/// A clone whose objects and names are in one folder.
pub(super) struct Store {
    dir: PathBuf,
    objects: Option<gix_odb::Handle>,
}

/// A file of a commit.
#[derive(Debug)]
pub(super) struct Submodule {
    /// Where it goes, from the top of the files.
    pub(super) path: String,
    /// Its commit.
    pub(super) id: ObjectId,
}

impl Store {
    /// Makes an empty one.
    pub(super) fn create(dir: &Path) -> Result<Store, Error> {
        for part in ["objects/pack", "objects/info", "refs/heads", "refs/tags", "info"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::write(dir.join("HEAD"), "ref: refs/heads/main\n")?;
        Ok(Store { dir: dir.to_owned(), objects: None })
    }

    /// Takes in a pack as it comes; it is indexed on the way.
    pub(super) fn receive(&mut self, pack: &mut dyn BufRead) -> Result<(), Error> {
        let options = gix_pack::bundle::write::Options {
            thread_limit: Some(std::thread::available_parallelism().map_or(1, usize::from).min(THREADS)),
            alloc_limit_bytes: Some(OBJECT_LIMIT),
            ..gix_pack::bundle::write::Options::default()
        };
        let packs = self.dir.join("objects/pack");
        let none: Option<gix_odb::Handle> = None;
        let (mut progress, stop) = (Discard, AtomicBool::new(false));
        let mut pack = Noting { pack, failure: None };
        let written = gix_pack::Bundle::write_to_directory(
            &mut pack,
            Some(packs.as_path()),
            &mut progress,
            &stop,
            none,
            Kind::Sha1,
            options,
        );
        let written = written.map_err(|error| pack.failure.unwrap_or_else(|| Error::from_chain(&error)))?;
        if let Some(keep) = written.keep_path {
            fs::remove_file(keep)?;
        }
        self.objects = None;
        Ok(())
    }

    fn objects(&mut self) -> Result<&gix_odb::Handle, Error> {
        if self.objects.is_none() {
            self.objects = Some(gix_odb::at(self.dir.join("objects"), Kind::Sha1)?);
        }
        self.objects.as_ref().ok_or_else(|| Error::Other("the objects are gone".to_owned()))
    }

    /// The same clone for somebody else.
    pub(super) fn again(&self) -> Store {
        Store { dir: self.dir.clone(), objects: None }
    }

    /// The commit whose name begins so, if it is here and the only one.
    pub(super) fn find_commit(&mut self, prefix: &str) -> Result<Option<ObjectId>, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Other(format!("`{prefix}` is not a commit: {error}"));
        let prefix = gix_hash::Prefix::from_hex(&prefix.to_ascii_lowercase()).map_err(|error| wrong(&error))?;
        let found = self.objects()?.lookup_prefix(prefix, None).map_err(|error| wrong(&error))?;
        match found {
            None => Ok(None),
            Some(Ok(id)) => Ok(Some(id)),
            Some(Err(())) => Err(wrong(&"several objects begin so")),
        }
    }

    /// Whether an object is here.
    pub(super) fn has(&mut self, id: &ObjectId) -> Result<bool, Error> {
        Ok(self.objects()?.exists(id))
    }

    /// The files of a commit or of a tag, by their names.
    pub(super) fn read_tree(&mut self, id: &ObjectId) -> Result<gix_index::State, Error> {
        let objects = self.objects()?;
        let tree = tree_of(objects, id)?;
        let validate = gix_validate_options();
        gix_index::State::from_tree(&tree, objects, validate).map_err(|error| Error::from_chain(&error))
    }

    /// Writes the files of a commit into the empty folder `target`; answers its submodules, which are left out.
    pub(super) fn check_out(&mut self, id: &ObjectId, target: &Path) -> Result<Vec<Submodule>, Error> {
        let mut state = self.read_tree(id)?;
        let objects = self.objects()?;
        let mut submodules = Vec::new();
        let mut buffer = Vec::new();
        let mut parent = PathBuf::new();
        for (entry, path) in state.entries_mut_with_paths() {
            let name = path_of(path)?;
            let file = target.join(&name);
            if entry.mode == Mode::COMMIT {
                make_parents(target, &name.join("x"), &mut parent)?;
                submodules.push(Submodule { path: name.to_string_lossy().into_owned(), id: entry.id });
                continue;
            }
            make_parents(target, &name, &mut parent)?;
            find(objects, &entry.id, &mut buffer)?;
            write_entry(&file, entry.mode, &buffer).map_err(|error| at(&file, &error))?;
            let metadata = gix_index::fs::Metadata::from_path_no_follow(&file)?;
            entry.stat = Stat::from_fs(&metadata).map_err(|error| Error::Other(error.to_string()))?;
        }
        let mut index = io::BufWriter::new(fs::File::create(self.dir.join("index"))?);
        let file = gix_index::File::from_state(state, self.dir.join("index"));
        file.write_to(&mut index, gix_index::write::Options::default())
            .map_err(|error| Error::from_chain(&error))?;
        index.flush()?;
        Ok(submodules)
    }

    /// Gives a commit a name, such as `refs/heads/main`.
    pub(super) fn set_ref(&self, name: &str, id: &ObjectId) -> Result<(), Error> {
        if !is_safe_name(name) {
            return Err(Error::Other(format!("`{name}` is not a name for a commit")));
        }
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(path, format!("{id}\n"))?)
    }

    /// Gives many commits names at once.
    pub(super) fn set_packed_refs(&self, names: &[(String, ObjectId)]) -> Result<(), Error> {
        let mut text = "# pack-refs with: sorted \n".to_owned();
        let mut names: Vec<&(String, ObjectId)> = names.iter().filter(|(name, _)| is_safe_name(name)).collect();
        names.sort();
        for (name, id) in names {
            let _ = writeln!(text, "{id} {name}");
        }
        Ok(fs::write(self.dir.join("packed-refs"), text)?)
    }

    /// Says what is checked out: `ref: refs/heads/main`, or a commit.
    pub(super) fn set_head(&self, text: &str) -> Result<(), Error> {
        Ok(fs::write(self.dir.join("HEAD"), format!("{text}\n"))?)
    }

    /// Says where the histories end early.
    pub(super) fn set_shallow(&self, ends: &[ObjectId]) -> Result<(), Error> {
        if ends.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for id in ends {
            text.push_str(&id.to_string());
            text.push('\n');
        }
        Ok(fs::write(self.dir.join("shallow"), text)?)
    }

    /// Writes the settings.
    pub(super) fn set_config(&self, text: &str) -> Result<(), Error> {
        Ok(fs::write(self.dir.join("config"), text)?)
    }
}

/// Keeps why a pack ended early: what writes packs tells only that it did.
struct Noting<'a> {
    pack: &'a mut dyn BufRead,
    failure: Option<Error>,
}

impl Noting<'_> {
    fn note<T>(failure: &mut Option<Error>, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            *failure = Some(error.into());
            io::ErrorKind::ConnectionAborted.into()
        })
    }
}

impl Read for Noting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Noting::note(&mut self.failure, self.pack.read(buffer))
    }
}

impl BufRead for Noting<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Noting::note(&mut self.failure, self.pack.fill_buf())
    }

    fn consume(&mut self, length: usize) {
        self.pack.consume(length);
    }
}

/// A value as it stands in a file of settings.
pub(super) fn quote_setting(value: &str) -> String {
    let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n").replace('\t', r"\t");
    format!("\"{escaped}\"")
}

fn gix_validate_options() -> gix_index::validate::path::component::Options {
    gix_index::validate::path::component::Options {
        protect_windows: false,
        protect_hfs: false,
        protect_ntfs: false,
    }
}

fn find(objects: &gix_odb::Handle, id: &ObjectId, buffer: &mut Vec<u8>) -> Result<gix_object::Kind, Error> {
    let found = objects.try_find(id, buffer).map_err(|error| Error::from_chain(&error))?;
    found.map(|data| data.kind).ok_or_else(|| Error::Other(format!("the object {id} is missing")))
}

/// The tree of a commit, or of the commit that a tag means.
fn tree_of(objects: &gix_odb::Handle, id: &ObjectId) -> Result<ObjectId, Error> {
    let (mut id, mut buffer) = (*id, Vec::new());
    let wrong = |error: &dyn std::fmt::Display| Error::Other(format!("the object cannot be read: {error}"));
    for _ in 0..8 {
        match find(objects, &id, &mut buffer)? {
            gix_object::Kind::Tree => return Ok(id),
            gix_object::Kind::Commit => {
                return CommitRefIter::from_bytes(&buffer, Kind::Sha1).tree_id().map_err(|error| wrong(&error));
            }
            gix_object::Kind::Tag => {
                id = gix_object::TagRefIter::from_bytes(&buffer, Kind::Sha1)
                    .target_id()
                    .map_err(|error| wrong(&error))?;
            }
            gix_object::Kind::Blob => break,
        }
    }
    Err(Error::Other(format!("{id} is not a commit")))
}

/// A path of a commit as one of the file system. Git's own folder, and ways out, were refused before.
fn path_of(path: &[u8]) -> Result<PathBuf, Error> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if is_plain { Ok(path.to_owned()) } else { Err(Error::Other(format!("`{}` is not a path", path.display()))) }
}

/// Makes the folders above a file. A commit may name a link and files below it; nothing is written through a link.
/// `last` is what was made last.
pub(super) fn make_parents(target: &Path, name: &Path, last: &mut PathBuf) -> Result<(), Error> {
    let parent = name.parent().unwrap_or(Path::new(""));
    if parent == last.as_path() {
        return Ok(());
    }
    let mut dir = target.to_owned();
    for part in parent.components() {
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&dir)?.is_dir() {
                    return Err(Error::Other(format!("`{}` is in the way of a folder", dir.display())));
                }
            }
            made => made.map_err(|error| at(&dir, &error))?,
        }
    }
    parent.clone_into(last);
    Ok(())
}

/// Writes a file or a link where nothing is yet.
pub(super) fn write_entry(file: &Path, mode: Mode, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    if mode == Mode::SYMLINK {
        return symlink(std::ffi::OsStr::from_bytes(bytes), file);
    }
    let mode = if mode == Mode::FILE_EXECUTABLE { 0o777 } else { 0o666 };
    fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?.write_all(bytes)
}

pub(super) fn at(path: &Path, error: &io::Error) -> Error {
    if crate::disk::is_full(error) {
        return Error::Io(io::Error::from(error.kind()));
    }
    Error::Other(format!("`{}`: {error}", path.display()))
}
