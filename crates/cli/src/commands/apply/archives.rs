//! The `files` of a configuration as archives that the server keeps.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use api::configurations::FilePathMapping;
use api::runs::FileArchiveMapping;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::ignore::Rules;
use crate::session::Project;

/// Packs and uploads each of `files`, whose local paths are absolute.
pub(super) async fn upload(
    project: &Project,
    files: &[FilePathMapping],
) -> anyhow::Result<Vec<FileArchiveMapping>> {
    let mut archives = Vec::new();
    for file in files {
        let path = PathBuf::from(&file.local_path);
        // Large folders take a while, in which Ctrl-C is to be heard.
        let archive = tokio::task::spawn_blocking(move || pack(&path)).await.context("pack files")??;
        let hash = hex::encode(Sha256::digest(&archive));
        let uploaded = project.client.upload_archive(&hash, archive).await?;
        archives.push(FileArchiveMapping { id: uploaded.id, path: file.path.clone() });
    }
    Ok(archives)
}

/// A tar of a file or folder, whose only root has its name. The same contents make the same bytes.
fn pack(path: &Path) -> anyhow::Result<Vec<u8>> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("`{}` of `files` does not exist", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("read `{}`", path.display())),
    };
    let name = path.file_name().map_or_else(|| PathBuf::from("root"), PathBuf::from);
    let mut builder = Builder::new(Vec::new());
    if metadata.is_dir() {
        add_folder(&mut builder, path, &name, &metadata, &Rules::default())?;
    } else {
        add_file(&mut builder, path, &name, &metadata)?;
    }
    builder.into_inner().context("end the archive")
}

fn add_folder(
    builder: &mut Builder<Vec<u8>>,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
    rules: &Rules,
) -> anyhow::Result<()> {
    let mut header = header(metadata, EntryType::Directory, 0);
    builder.append_data(&mut header, name, std::io::empty())?;
    let rules = rules.within(path);
    let listed = std::fs::read_dir(path).with_context(|| format!("list `{}`", path.display()))?;
    let mut entries: Vec<PathBuf> = listed.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for entry in entries {
        let metadata = std::fs::symlink_metadata(&entry).with_context(|| format!("read `{}`", entry.display()))?;
        let Some(file_name) = entry.file_name() else { continue };
        let name = name.join(file_name);
        if rules.leave_out(&entry, metadata.is_dir()) {
            continue;
        }
        if metadata.is_dir() {
            add_folder(builder, &entry, &name, &metadata, &rules)?;
        } else if metadata.is_symlink() {
            let target = std::fs::read_link(&entry).with_context(|| format!("read `{}`", entry.display()))?;
            builder.append_link(&mut header_of_link(&metadata), &name, target)?;
        } else if metadata.is_file() {
            add_file(builder, &entry, &name, &metadata)?;
        }
    }
    Ok(())
}

fn add_file(builder: &mut Builder<Vec<u8>>, path: &Path, name: &Path, metadata: &Metadata) -> anyhow::Result<()> {
    // Read whole, so that a file that grows meanwhile cannot break the archive.
    let contents = std::fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
    let mut header = header(metadata, EntryType::Regular, contents.len() as u64);
    builder.append_data(&mut header, name, contents.as_slice())?;
    Ok(())
}

fn header_of_link(metadata: &Metadata) -> Header {
    header(metadata, EntryType::Symlink, 0)
}

// Without owners: they mean nothing on another machine.
fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_folder_is_packed_under_its_name_without_what_is_ignored() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("src");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        std::fs::create_dir_all(folder.join(".git")).unwrap();
        for (name, text) in
            [("a.py", "a"), ("b.log", "b"), ("deep/c.log", "c"), ("deep/d.py", "d"), (".git/x", "x")]
        {
            std::fs::write(folder.join(name), text).unwrap();
        }
        std::fs::write(folder.join(".gitignore"), "*.log\n").unwrap();
        let archive = pack(&folder).unwrap();
        assert_eq!(names(&archive), ["src", "src/.gitignore", "src/a.py", "src/deep", "src/deep/d.py"]);
        assert_eq!(pack(&folder).unwrap(), archive);
    }

    #[test]
    fn a_file_is_packed_under_its_name() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("train.py"), "print()").unwrap();
        assert_eq!(names(&pack(&root.path().join("train.py")).unwrap()), ["train.py"]);
        assert!(pack(&root.path().join("missing")).unwrap_err().to_string().contains("does not exist"));
    }
}
