//! A cluster with EFA on this machine alone: a simulated EC2 whose machines are containers, a server of ours that
//! launches two of them, and a task on both.

mod compare;
mod example;
mod node;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::compare::{Expected, Run};
use crate::demo::type_and_show;
use crate::dstack::{Place, TOKEN};
use crate::http::Client;
use crate::sandbox::Sandbox;
use crate::test::{docker, ec2_hosts};
use crate::workspace::{self, Profile, Programs};
use crate::{cloud, shell, workspace::cargo};

/// The image that tasks run in on machines with EFA unless they name one, for which a small one of ours stands in.
const DEFAULT_IMAGE: &str = "dstackai/base:0.16-devel-efa-ubuntu24.04";

/// The image that stands in for it.
const STAND_IN: &str = "dstack-lab:latest";

/// What it is made of.
const BASE: &str = "dstack-test:latest";

/// The addresses of the simulated VPCs, which nothing else on this machine may have.
const CIDRS: [(&str, &str); 2] = [("--my-vpc-cidr", "10.124.0.0/16"), ("--default-vpc-cidr", "10.125.0.0/16")];

/// The folder for what is temporary can be called anything.
const NO_TEXT: &str = "the folder for what is temporary has a name that is no text";

/// How long the cloud may take to answer, and to be empty again.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the cloud is told: machines show devices of InfiniBand's other make, too, which are for nobody's container.
const SETTINGS: &str = r#"{ "mlx5_too": ["p5.48xlarge"] }"#;

/// What an engine says that may not let a container lock memory without limit: the kernel's number of that limit.
const FORBIDDEN: &str = "rlimit type 8";

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

    let settings = sandbox.subdir("lab")?.join("ec2sim.json");
    fs::write(&settings, SETTINGS).context("write the cloud's settings")?;
    let settings = settings.to_str().context(NO_TEXT)?;
    let mut hosts = vec!["--hosts", "containers", "--host-image", ec2_hosts::IMAGE, "--settings", settings];
    hosts.extend(CIDRS.iter().flat_map(|(option, cidr)| [option, cidr]));
    let (cloud, simulator) = cloud::start(&sandbox, Profile::Dev, &hosts)?;
    let mut place = Place::new(&sandbox, "lab", &programs)?;
    cloud::configure(&mut place, cloud)?;
    let task = sandbox.subdir("task")?.join("task.dstack.yml");
    fs::write(&task, example::task_text()?).context("write the task")?;
    let result = show(&place, (cloud, simulator), &task);
    if result.is_err() {
        eprintln!("\nThe last lines of the server's log:\n{}\n", place.log_tail());
    }
    result
}

fn show(place: &Place<'_>, (cloud, simulator): (SocketAddr, u32), task: &Path) -> Result<()> {
    println!("\n$ dstack server --port {} &", place.address.port());
    let server = place.start()?;
    let fleet = type_and_show(place, &["apply", "-f", example::FLEET, "-y"])?;
    ensure!(fleet.success, "the fleet was not made");
    compare::fleet(&fleet.lines).into_result().context("compare the fleet")?;
    let hosts = hosts(simulator)?;
    give_image(&hosts)?;
    let task = task.to_str().context(NO_TEXT)?;
    let shown = type_and_show(place, &["apply", "-f", task, "-R", "-y"])?;
    ensure!(shown.success, "the task failed");
    let diagnosis = type_and_show(place, &["logs", "--diagnose", example::TASK_NAME])?;
    ensure!(diagnosis.success, "what happened to the task is not told");
    let expected = expected(place, &hosts)?;
    compare::task(&shown.lines, &diagnosis.lines, &expected).into_result().context("compare the task")?;
    let machines =
        place.client()?.call("/api/project/main/fleets/get", &json!({ "name": example::FLEET_NAME }))?;
    compare::health(&machines, &expected).into_result().context("compare the machines' health")?;
    println!("\n(both nodes have the devices, limits, addresses and variables that they should have)");
    let deleted = type_and_show(place, &["delete", "-f", example::FLEET, "-y"])?;
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

/// The machines, as this machine's engine knows them. Other simulators may have some on it, too.
fn hosts(simulator: u32) -> Result<Vec<String>> {
    let filter = format!("name=^ec2sim-{simulator}-");
    let hosts = shell::capture(Command::new("docker").args(["ps", "--quiet", "--filter", &filter]))?;
    Ok(hosts.split_whitespace().map(str::to_owned).collect())
}

/// Gives every host the image that the task will run in: no registry is asked.
fn give_image(hosts: &[String]) -> Result<()> {
    make_stand_in()?;
    let copy = "docker save \"$1\" | docker exec -i \"$2\" docker load --quiet && docker exec \"$2\" docker tag \"$1\" \"$3\"";
    for host in hosts {
        let args = ["-o", "pipefail", "-c", copy, "bash", STAND_IN, host, DEFAULT_IMAGE];
        shell::capture(Command::new("bash").args(args))?;
    }
    Ok(())
}

/// What the nodes should have shown.
fn expected(place: &Place<'_>, hosts: &[String]) -> Result<Expected> {
    let run = place.client()?.call("/api/project/main/runs/get", &json!({ "run_name": example::TASK_NAME }))?;
    let host = hosts.first().context("there is no machine")?;
    let memory = fs::read_to_string("/proc/meminfo").context("read `/proc/meminfo`")?;
    let pages = memory.lines().find_map(|line| line.strip_prefix("HugePages_Total:"));
    Ok(Expected {
        may_lock: may_lock(host)?,
        lacks_huge_pages: pages.is_some_and(|pages| pages.trim() == "0"),
        variables: example::variables()?,
        run: Run::of(&run)?,
    })
}

/// Whether the engine of a machine may give a container unlimited locked memory, which is for this machine to say. The
/// engine itself is asked, past the agent.
fn may_lock(host: &str) -> Result<bool> {
    let run =
        ["exec", host, "docker", "run", "--rm", "--network", "none", "--ulimit", "memlock=-1", STAND_IN, "true"];
    match shell::capture(Command::new("docker").args(run)) {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains(FORBIDDEN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kinds of all that is left in the cloud.
fn orphans(cloud: SocketAddr) -> Result<Vec<String>> {
    let answer = Client::connect(cloud, TOKEN)?.get("/_ec2sim/orphans")?;
    let entries: Vec<Value> = serde_json::from_slice(&answer.body).context("read what is left")?;
    Ok(entries.iter().filter_map(|entry| Some(entry["kind"].as_str()?.to_owned())).collect())
}
