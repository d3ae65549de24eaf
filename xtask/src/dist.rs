//! The programs to hand out.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;
use crate::workspace::{self, Profile};

/// Builds `dstack` and the static agent and puts both, with their hashes, into `dist/`.
pub(crate) fn run() -> Result<()> {
    let agent = workspace::build_static_agent(Profile::Release)?;
    let mut build = workspace::cargo(&["build", "--release", "--package", "dstack"]);
    shell::run(&mut build)?;
    let dstack = workspace::program("dstack", Profile::Release)?;

    let dist = workspace::root().join("dist");
    fs::create_dir_all(&dist).context("make `dist/`")?;
    for (program, name) in [(dstack, "dstack"), (agent, "dstack-agent")] {
        fs::copy(&program, dist.join(name)).with_context(|| format!("copy `{}`", program.display()))?;
    }
    let sums = shell::capture(Command::new("sha256sum").args(["dstack", "dstack-agent"]).current_dir(&dist))?;
    fs::write(dist.join("SHA256SUMS"), &sums).context("write `dist/SHA256SUMS`")?;
    print!("{sums}");
    Ok(())
}
