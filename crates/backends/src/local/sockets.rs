//! Where a machine's agent listens. The kernel limits the length of a socket's path, so an agent whose home lies
//! too deep listens in a short folder of its own.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::machines::{cannot, make_private_dir};
use crate::{Error, ErrorKind, MachineKey, Result};

/// The longest path of a socket, in bytes; Linux takes 108 with the zero at the end.
const SOCKET_PATH_LIMIT: usize = 107;

/// Where short folders lie.
const SHORT_PARENT: &str = "/tmp";

/// Where the agent with that home listens. Makes the short folder if one is needed.
pub(super) fn path(agent_home: &Path, root: &Path, key: &MachineKey) -> Result<PathBuf> {
    let own = agent_home.join("agent.sock");
    if own.as_os_str().as_bytes().len() <= SOCKET_PATH_LIMIT {
        return Ok(own);
    }
    let folder = short_folder(root);
    prepare(&folder)?;
    Ok(folder.join(format!("{}-{}.sock", key.launch_id, key.index)))
}

/// Makes the folder of a socket again if it lies where others clean up.
pub(super) fn prepare_parent(socket: &Path) -> Result<()> {
    match socket.parent() {
        Some(folder) if folder.starts_with(SHORT_PARENT) && is_short(folder) => prepare(folder),
        _ => Ok(()),
    }
}

/// Removes the socket of a machine that is gone.
pub(super) fn remove(socket: &Path) {
    // The agent's own home goes as a whole; the rest is tidiness.
    let _ = fs::remove_file(socket);
    if let Some(folder) = socket.parent().filter(|folder| is_short(folder)) {
        // Fails while another machine listens there, as it should.
        let _ = fs::remove_dir(folder);
    }
}

fn short_folder(root: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    let uid = nix::unistd::Uid::effective();
    Path::new(SHORT_PARENT).join(format!("dstack-{uid}-{:016x}", hasher.finish()))
}

fn is_short(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    let is_ours = name.is_some_and(|name| name.starts_with("dstack-"));
    is_ours && folder.parent() == Some(Path::new(SHORT_PARENT))
}

/// Makes a private folder where everybody may make folders, and believes nobody else's.
fn prepare(folder: &Path) -> Result<()> {
    make_private_dir(folder).map_err(|error| cannot("make the folder", folder, &error))?;
    let found = fs::symlink_metadata(folder).map_err(|error| cannot("look at", folder, &error))?;
    let is_private = found.is_dir()
        && found.uid() == nix::unistd::Uid::effective().as_raw()
        && found.permissions().mode().trailing_zeros() >= 6;
    if !is_private {
        let message = format!("`{}` is not a private folder of this user; remove it", folder.display());
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use api::ids::LaunchId;

    use super::*;

    fn key() -> MachineKey {
        MachineKey { launch_id: LaunchId(uuid::Uuid::from_u128(1)), index: 999 }
    }

    #[test]
    fn a_short_home_keeps_its_socket() {
        let home = Path::new("/home/somebody/agent");
        let path = path(home, Path::new("/home/somebody"), &key()).unwrap();
        assert_eq!(path, home.join("agent.sock"));
    }

    #[test]
    fn a_deep_home_gets_a_short_private_socket() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("x".repeat(120));
        let socket = path(&root.join("agent"), &root, &key()).unwrap();
        assert!(socket.as_os_str().len() <= SOCKET_PATH_LIMIT);
        let folder = socket.parent().unwrap();
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(&socket, "").unwrap();
        remove(&socket);
        assert!(!folder.exists());
        prepare_parent(&socket).unwrap();
        assert!(folder.exists());
        remove(&socket);
    }

    #[test]
    fn a_folder_that_others_may_enter_is_not_believed() {
        let parent = tempfile::tempdir().unwrap();
        let open = parent.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(prepare(&open).is_err());
        let link = parent.path().join("link");
        let private = parent.path().join("private");
        make_private_dir(&private).unwrap();
        symlink(&private, &link).unwrap();
        assert!(prepare(&link).is_err());
        assert!(prepare(&private).is_ok());
    }
}
