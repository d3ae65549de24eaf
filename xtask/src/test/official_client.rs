//! The official client, in a Python environment of its own that is made once.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::packages;
use crate::{shell, workspace};

/// The version whose place we take.
const VERSION: &str = "0.22.5";

/// Makes sure that the client is installed and answers where it is.
pub(super) fn prepare() -> Result<Vec<(&'static str, String)>> {
    let dir = workspace::cache_dir().join("official");
    let client = dir.join("bin/dstack");
    let is_there =
        || shell::capture(Command::new(&client).arg("--version")).is_ok_and(|text| text.contains(VERSION));
    if !is_there() {
        packages::ensure(&["python3", "python3-venv"], || {
            shell::succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]))
        })?;
        println!("installing the official client; this takes a minute, once");
        if dir.exists() {
            fs::remove_dir_all(&dir).context("remove an unfinished environment")?;
        }
        shell::capture(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
        let package = format!("dstack=={VERSION}");
        shell::insist(|| {
            let mut pip = Command::new(dir.join("bin/pip"));
            pip.args(["install", "--quiet", &package]);
            Ok(pip)
        })?;
    }
    // The client refuses to start without one.
    packages::ensure(&["openssh-client"], || shell::find("ssh").is_some())?;
    Ok(vec![("DSTACK_TEST_OFFICIAL_CLI", client.display().to_string())])
}
