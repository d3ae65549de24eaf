//! An engine for containers, and one small image that no registry is asked for.

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::images::{self, Recipe};
use super::packages;
use crate::sandbox::Sandbox;
use crate::{shell, workspace};

const START: Duration = Duration::from_mins(1);

/// The image that tests run: a small Debian with what they use.
const IMAGE: Recipe =
    Recipe { name: "dstack-test", packages: "python3,python3-venv,python3-mpi4py,openmpi-bin,procps", finish: "" };

/// Makes sure that an engine answers and has the image.
pub(crate) fn prepare(sandbox: &Sandbox) -> Result<Vec<(&'static str, String)>> {
    if !engine_answers() {
        let programs = ["dockerd", "docker", "ip"];
        packages::ensure(&["docker.io", "iproute2"], || programs.iter().all(|name| shell::find(name).is_some()))?;
    }
    // The package may have started one.
    if !engine_answers() {
        start_engine(sandbox)?;
    }
    images::ensure(sandbox, &IMAGE)?;
    Ok(vec![("DSTACK_TEST_DOCKER", "1".to_owned())])
}

/// Whether an engine is there.
pub(super) fn engine_answers() -> bool {
    shell::succeeds(Command::new("docker").arg("info"))
}

/// Starts an engine that ends with the sandbox. Its images stay in the cache.
fn start_engine(sandbox: &Sandbox) -> Result<()> {
    if !shell::is_root() {
        bail!("no engine answers and only root can start one: start Docker, or add yourself to its group");
    }
    let dir = sandbox.subdir("docker")?;
    // It listens where clients look for it.
    let host = env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let mut dockerd = sandbox.command("dockerd");
    let data_root = workspace::cache_dir().join("docker");
    dockerd.args(["--host", &host]).arg("--data-root").arg(&data_root);
    dockerd.arg("--exec-root").arg(dir.join("exec")).arg("--pidfile").arg(dir.join("pid"));
    let path = dir.join("log");
    let log = File::create(&path).context("make the engine's log")?;
    dockerd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("start `dockerd`")?;
    let started = shell::wait_for("the engine's first answer", START, || engine_answers().then_some(()));
    started.with_context(|| last_lines(&path))?;
    // Somebody else's may have come up in the meantime, and then it is theirs that answers.
    if keeps_its_things_in(&data_root)? { clear_engine() } else { Ok(()) }
}

/// Whether the engine that answers is the one that was given this folder.
fn keeps_its_things_in(data_root: &Path) -> Result<bool> {
    let answer = shell::capture(Command::new("docker").args(["info", "--format", "{{.DockerRootDir}}"]))?;
    // One that did not start may have left no folder of ours.
    let ours = fs::canonicalize(data_root).ok();
    Ok(ours.is_some() && ours == fs::canonicalize(answer.trim()).ok())
}

/// Takes away what tests that were killed have left in an engine that nobody else uses: their networks would keep
/// subnets from others.
fn clear_engine() -> Result<()> {
    let containers = shell::capture(Command::new("docker").args(["ps", "--all", "--quiet"]))?;
    for container in containers.split_whitespace() {
        shell::capture(Command::new("docker").args(["rm", "--force", "--volumes", container]))?;
    }
    shell::capture(Command::new("docker").args(["network", "prune", "--force"]))?;
    Ok(())
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
