//! Finds the agent's executable.

use std::path::{Path, PathBuf};

const NAME: &str = "dstack-agent";

/// The agent: where the user says, beside this program, or on the path. None if it is nowhere.
pub(crate) fn find(told: Option<&Path>) -> Option<PathBuf> {
    if let Some(told) = told {
        return is_program(told).then(|| told.to_owned());
    }
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|folder| folder.join(NAME));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(NAME));
    beside.into_iter().chain(on_path).find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_the_user_says_must_be_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent");
        assert_eq!(find(Some(&file)), None);
        std::fs::write(&file, "").unwrap();
        assert_eq!(find(Some(&file)), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(Some(&file)), Some(file));
    }
}
