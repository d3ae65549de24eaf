//! Packages of the system, installed where that is ours to do.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use crate::shell;

/// The lists of packages may be absent or old; getting new ones once is enough.
static UPDATED: AtomicBool = AtomicBool::new(false);

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
    shell::insist(|| {
        if !UPDATED.load(Ordering::Relaxed) {
            // Without new lists, the old ones may still do.
            UPDATED.store(shell::succeeds(&mut apt_get(&["update"])), Ordering::Relaxed);
        }
        let mut install = apt_get(&["install", "-y", "--no-install-recommends"]);
        install.args(packages);
        Ok(install)
    })?;
    if !is_there() {
        bail!("installing {names} did not help");
    }
    Ok(())
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Another program may be installing something.
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
