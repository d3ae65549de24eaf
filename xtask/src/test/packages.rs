//! Packages of the system, installed where that is ours to do.

use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, bail};

use crate::shell;

/// The lists of packages may be absent or old; asking for new ones once is enough.
static UPDATED: OnceLock<bool> = OnceLock::new();

/// Makes sure that `is_there` holds, by installing packages if need be and if we may.
pub(super) fn ensure(packages: &[&str], is_there: impl Fn() -> bool) -> Result<()> {
    if is_there() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !shell::is_root() || shell::find("apt-get").is_none() {
        bail!("install these packages first (by their names in Debian): {names}");
    }
    println!("installing {names}");
    UPDATED.get_or_init(|| shell::succeeds(&mut apt_get(&["update"])));
    shell::capture(apt_get(&["install", "-y", "--no-install-recommends"]).args(packages))?;
    if !is_there() {
        bail!("installing {names} did not help");
    }
    Ok(())
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
