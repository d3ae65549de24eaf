//! Where the project's files are, and how it is built.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// The target that static programs are built for. Naming it keeps the flag away from build scripts and macros.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The root of the clone that this program was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where things are kept that take long to make and do not belong into the clone.
pub(crate) fn cache_dir() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|base| base.is_absolute());
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache");
    base.unwrap_or_else(home).join("dstack")
}

/// Cargo, in the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        }
    }

    pub(crate) fn flags(self) -> &'static [&'static str] {
        match self {
            Profile::Dev => &[],
            Profile::Release => &["--release"],
        }
    }
}

/// The two programs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) dstack: PathBuf,
    pub(crate) agent: PathBuf,
}

/// Builds both programs, without the backends that nobody needs on one machine.
pub(crate) fn build_programs(profile: Profile) -> Result<Programs> {
    // One call, so that both agree on the features of what they share.
    let args = ["build", "--package", "dstack", "--package", "agent", "--no-default-features"];
    shell::run(cargo(&args).args(profile.flags()))?;
    programs(profile)
}

/// Builds everything in the workspace, and finds the programs in it.
pub(crate) fn build_workspace() -> Result<Programs> {
    // With all targets, so that the tests find everything built with the very same features.
    shell::run(&mut cargo(&["build", "--workspace", "--all-targets"]))?;
    programs(Profile::Dev)
}

/// Builds `dstack` with all backends, and the simulated cloud.
pub(crate) fn build_with_clouds(profile: Profile) -> Result<PathBuf> {
    let targets =
        ["build", "--package", "dstack", "--package", "ec2sim", "--bin", "dstack", "--bin", "dstack-ec2sim"];
    shell::run(cargo(&targets).args(profile.flags()))?;
    program("dstack", profile)
}

/// Builds the program that measures gangs. It is a test as much as a program, so its libraries are those of tests.
pub(crate) fn build_gangs(profile: Profile) -> Result<PathBuf> {
    let mut build =
        cargo(&["build", "--workspace", "--bench", "gangs", "--message-format", "json-render-diagnostics"]);
    let messages = shell::capture(build.args(profile.flags()))?;
    let is_bench = |message: &serde_json::Value| {
        message["target"]["name"] == "gangs" && message["target"]["kind"][0] == "bench"
    };
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let built = messages.find(is_bench).context("cargo does not tell of the program that measures gangs")?;
    built["executable"].as_str().map(PathBuf::from).context("cargo does not tell where it put a program")
}

fn programs(profile: Profile) -> Result<Programs> {
    Ok(Programs { dstack: program("dstack", profile)?, agent: program("dstack-agent", profile)? })
}

/// Where cargo has put a program that it built.
pub(crate) fn program(name: &str, profile: Profile) -> Result<PathBuf> {
    let program = target_dir()?.join(profile.folder()).join(name);
    ensure!(program.exists(), "cargo built `{}`, but it is not there", program.display());
    Ok(program)
}

/// Builds the agent as it goes to other machines and into containers: without any library of the host.
pub(crate) fn build_static_agent(profile: Profile) -> Result<PathBuf> {
    let mut build = cargo(&["build", "--package", "agent", "--target", STATIC_TARGET]);
    build.args(profile.flags()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    shell::run(&mut build)?;
    Ok(target_dir()?.join(STATIC_TARGET).join(profile.folder()).join("dstack-agent"))
}

/// What cargo knows of the workspace's own crates.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let text = shell::capture(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text).context("read the output of `cargo metadata`")
}

fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let dir = metadata["target_directory"].as_str().context("`cargo metadata` names no target directory")?;
    Ok(PathBuf::from(dir))
}
