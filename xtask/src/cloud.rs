//! The simulated EC2, and what a server is told to use it as in the documented example.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::dstack::Place;
use crate::sandbox::Sandbox;
use crate::shell;
use crate::workspace::{self, Profile};

/// How long the simulator may take to answer.
const START: Duration = Duration::from_mins(2);

/// The configuration of the documented example.
pub(crate) const CONFIG: &str = include_str!("../../examples/efa/config.yml");

/// Starts the cloud, and answers where it is and which process.
pub(crate) fn start(sandbox: &Sandbox, profile: Profile, args: &[&str]) -> Result<(SocketAddr, u32)> {
    let dir = sandbox.subdir("ec2sim")?;
    let log = File::create(dir.join("log")).context("make the simulator's log")?;
    let url_file = dir.join("url");
    let mut command = sandbox.command(workspace::program("dstack-ec2sim", profile)?);
    command.args(["--listen", "127.0.0.1:0"]).args(args).arg("--url-file").arg(&url_file);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let simulator = command.spawn().context("start the simulator")?.id();
    let url = shell::wait_for("the simulator's first answer", START, || fs::read_to_string(&url_file).ok())
        .with_context(|| fs::read_to_string(dir.join("log")).unwrap_or_default())?;
    let address = url.trim_start_matches("http://").parse().context("read the simulator's address")?;
    Ok((address, simulator))
}

/// Lets a server use the cloud.
pub(crate) fn configure(place: &mut Place<'_>, cloud: SocketAddr) -> Result<()> {
    place.set("AWS_ENDPOINT_URL", format!("http://{cloud}"));
    // The key of AWS's own documentation, which the simulator takes.
    place.set("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE".to_owned());
    place.set("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned());
    place.set("AWS_EC2_METADATA_DISABLED", "true".to_owned());
    place.write_config(CONFIG)
}
