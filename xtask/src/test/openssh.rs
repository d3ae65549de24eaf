//! The real SSH server and its clients, and what users of real hosts have beside it.

use std::path::Path;

use anyhow::Result;

use super::packages;
use crate::shell;

/// Where packages put the server, which ordinary search paths leave out.
const SERVER: &str = "/usr/sbin/sshd";

/// Makes sure that server and clients are there, and shells that are unlike ours.
pub(super) fn prepare() -> Result<Vec<(&'static str, String)>> {
    let programs = ["ssh", "sftp", "scp", "ssh-keygen", "ssh-agent", "rsync", "sudo", "fish", "tcsh"];
    let are_there = || Path::new(SERVER).exists() && programs.iter().all(|program| shell::find(program).is_some());
    packages::ensure(&["openssh-server", "openssh-client", "rsync", "sudo", "fish", "tcsh"], are_there)?;
    // The tests make users and run servers that let them in.
    anyhow::ensure!(shell::is_root(), "only root can run its tests");
    Ok(vec![("DSTACK_TEST_SSHD", SERVER.to_owned()), ("DSTACK_TEST_SSH", "1".to_owned())])
}
