//! A cluster with EFA on this machine alone: a simulated EC2 whose machines are containers, a server of ours that
//! launches two of them, and a task on both.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::demo::type_and_show;
use crate::dstack::{Place, TOKEN};
use crate::http::Client;
use crate::sandbox::Sandbox;
use crate::test::{docker, ec2_hosts};
use crate::workspace::{self, Profile, Programs};
use crate::{cloud, shell, workspace::cargo};

const FLEET: &str = "examples/efa/fleet.dstack.yml";
const TASK: &str = "examples/efa/task.dstack.yml";

/// Whose commands are run instead of those of the task: they need no GPU, and prove that the nodes reach each other.
const COLLECTIVE: &str = "examples/distributed/task.dstack.yml";

/// What each node shows of itself before.
const LOOK: &str = "  - ls /dev/infiniband /dev | grep -E 'uverbs|rdma_cm|nvidia|gdrdrv' | sort | tr '\\n' ' '\n  \
                    - nvidia-smi -L\n  - ulimit -l\n  - hostname -I\n  - env | sort\n";

/// What each node says when its part of the all-reduce came out right.
const PROOF: [&str; 2] = ["[0] rank 0 of 2: all-reduce is right", "[1] rank 1 of 2: all-reduce is right"];

/// The image that tasks run in on machines with EFA unless they name one, for which a small one of ours stands in.
const DEFAULT_IMAGE: &str = "dstackai/base:0.16-devel-efa-ubuntu24.04";

/// The image that stands in for it.
const STAND_IN: &str = "dstack-lab:latest";

/// What it is made of.
const BASE: &str = "dstack-test:latest";

/// The addresses of the simulated VPCs, which nothing else on this machine may have.
const CIDRS: [(&str, &str); 2] = [("--my-vpc-cidr", "10.124.0.0/16"), ("--default-vpc-cidr", "10.125.0.0/16")];

/// How long the cloud may take to answer, and to be empty again.
const PATIENCE: Duration = Duration::from_mins(2);

/// What may be left of a project: the group that its next machines are launched into, with its rules.
const MAY_STAY: &str = "security-group";

/// Shows a task on two machines of EC2 that are none.
pub(crate) fn run() -> Result<()> {
    let sandbox = Sandbox::new()?;
    println!("Building `dstack`, `dstack-agent` and `dstack-ec2sim`; the first time takes a few minutes.");
    shell::run(&mut cargo(&["build", "--package", "dstack", "--package", "ec2sim"]))?;
    let agent = workspace::build_static_agent(Profile::Dev)?;
    let programs = Programs { dstack: workspace::program("dstack", Profile::Dev)?, agent };
    docker::prepare(&sandbox)?;
    ec2_hosts::prepare(&sandbox)?;

    let mut hosts = vec!["--hosts", "containers", "--host-image", ec2_hosts::IMAGE];
    hosts.extend(CIDRS.iter().flat_map(|(option, cidr)| [option, cidr]));
    let (cloud, simulator) = cloud::start(&sandbox, Profile::Dev, &hosts)?;
    let mut place = Place::new(&sandbox, "lab", &programs)?;
    cloud::configure(&mut place, cloud)?;
    let task = sandbox.subdir("task")?.join("task.dstack.yml");
    fs::write(&task, task_text()?).context("write the task")?;
    let result = show(&place, (cloud, simulator), &task);
    if result.is_err() {
        eprintln!("\nThe last lines of the server's log:\n{}\n", place.log_tail());
    }
    result
}

fn show(place: &Place<'_>, (cloud, simulator): (SocketAddr, u32), task: &Path) -> Result<()> {
    println!("\n$ dstack server --port {} &", place.address.port());
    let server = place.start()?;
    let fleet = type_and_show(place, &["apply", "-f", FLEET, "-y"])?;
    ensure!(fleet.success, "the fleet was not made");
    give_image(simulator)?;
    let task = task.to_str().context("the folder for what is temporary has a name that is no text")?;
    let shown = type_and_show(place, &["apply", "-f", task, "-R", "-y"])?;
    ensure!(shown.success, "the task failed");
    for line in PROOF {
        ensure!(shown.lines.iter().any(|seen| seen.starts_with(line)), "no line begins with `{line}`");
    }
    let deleted = type_and_show(place, &["delete", "-f", FLEET, "-y"])?;
    ensure!(deleted.success, "the fleet was not deleted");
    let mut left = Vec::new();
    let is_empty = shell::wait_for("the cloud's being empty", PATIENCE, || {
        left = orphans(cloud).ok()?;
        left.iter().all(|kind| kind.starts_with(MAY_STAY)).then_some(())
    });
    is_empty.with_context(|| format!("this is left in the cloud: {}", left.join(", ")))?;
    println!("\nAll was given back to the cloud, but for the group that the next machines are launched into.");
    server.stop()
}

/// Makes the image that stands in for the default one. It has the Python that the example asks for by name only: that
/// of the system, under one more name.
fn make_stand_in() -> Result<()> {
    let name = format!("dstack-lab-{}", std::process::id());
    let docker = |args: &[&str]| shell::capture(Command::new("docker").args(args));
    let make = ["run", "--name", &name, BASE, "ln", "-sf", "python3", "/usr/bin/python3.12"];
    let made = docker(&make).and_then(|_| docker(&["commit", &name, STAND_IN]));
    let _ = docker(&["rm", "--force", &name]);
    made.map(drop).context("make the image that stands in for the default one")
}

/// Gives every host the image that the task will run in: no registry is asked.
fn give_image(simulator: u32) -> Result<()> {
    make_stand_in()?;
    // Other simulators may have hosts on this engine.
    let filter = format!("name=^ec2sim-{simulator}-");
    let hosts = shell::capture(Command::new("docker").args(["ps", "--quiet", "--filter", &filter]))?;
    let copy = "docker save \"$1\" | docker exec -i \"$2\" docker load --quiet && docker exec \"$2\" docker tag \"$1\" \"$3\"";
    for host in hosts.split_whitespace() {
        let args = ["-o", "pipefail", "-c", copy, "bash", STAND_IN, host, DEFAULT_IMAGE];
        shell::capture(Command::new("bash").args(args))?;
    }
    Ok(())
}

/// The kinds of all that is left in the cloud.
fn orphans(cloud: SocketAddr) -> Result<Vec<String>> {
    let answer = Client::connect(cloud, TOKEN)?.get("/_ec2sim/orphans")?;
    let entries: Vec<Value> = serde_json::from_slice(&answer.body).context("read what is left")?;
    Ok(entries.iter().filter_map(|entry| Some(entry["kind"].as_str()?.to_owned())).collect())
}

/// The task of the example, with commands that need no GPU.
fn task_text() -> Result<String> {
    let read =
        |path: &str| fs::read_to_string(workspace::root().join(path)).with_context(|| format!("read `{path}`"));
    let (task, collective) = (read(TASK)?, read(COLLECTIVE)?);
    let (head, rest) = task.split_once("commands:\n").context("the task has no commands")?;
    let (_, tail) = rest.split_once("\nenv:").context("the task has no variables")?;
    let (_, commands) = collective.split_once("commands:\n").context("the collective has no commands")?;
    let (commands, _) = commands.split_once("\nresources:").context("the collective has no resources")?;
    Ok(format!("{head}commands:\n{LOOK}{commands}\nenv:{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_runs_the_example_but_for_its_commands() {
        let text = task_text().unwrap();
        for kept in
            ["name: efa-task\n", "nodes: 2\n", "  - FI_PROVIDER=efa\n", "  gpu: H100:8\n", "  - nvidia-smi -L\n"]
        {
            assert!(text.contains(kept), "{kept}");
        }
        assert!(text.contains("all-reduce is right") && !text.contains("accelerate"), "{text}");
    }
}
