//! Two hundred light hosts, joined by a server that is then started again.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::lan::{Lan, greets};
use super::{apply, write_fleet};
use crate::bench::Bench;
use crate::bench::samples::{Samples, show};
use crate::bench::server;
use crate::dstack::Place;
use crate::shell;

const START: &str = include_str!("crowd.sh");

/// How many hosts there are, and how many are joined at a time at first, which nobody measures.
const HOSTS: usize = 200;
const AT_A_TIME: usize = 20;

/// The container itself has the address before.
const FIRST: u8 = 11;

/// How long a server is left alone before its memory is looked at.
const REST: Duration = Duration::from_secs(10);

/// How often the server is asked who is there.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

const PATIENCE: Duration = Duration::from_mins(5);

pub(super) fn measure(bench: &Bench<'_>, agent: &Path) -> Result<()> {
    let place = super::place(bench, "crowd", agent)?;
    let lan = Lan::new(&place.home)?;
    let addresses = start(&lan, agent)?;
    let server = place.start()?;
    thread::sleep(REST);
    let idle = server::resident_mib(server.pid())?;
    for (number, hosts) in addresses.chunks(AT_A_TIME).enumerate() {
        write_fleet(&place, &format!("part-{number}"), &lan, hosts)?;
        apply(&place, "fleet.dstack.yml")?;
    }
    server.kill()?;
    let mut joined = Vec::new();
    let mut cpu = Samples::new("s");
    let mut memory = Samples::new("MiB");
    for _ in 0..bench.samples.min(5) {
        let started = Instant::now();
        let server = place.start()?;
        shell::wait_for("every agent's connection", PATIENCE, || {
            let connected = count_connected(&place);
            if !matches!(connected, Ok(HOSTS)) {
                thread::sleep(LOOK_AGAIN);
                return None;
            }
            Some(())
        })?;
        joined.push(started.elapsed());
        cpu.add(server::cpu_seconds(server.pid())?);
        thread::sleep(REST);
        memory.add((server::resident_mib(server.pid())? - idle) / HOSTS as f64);
        server.kill()?;
    }
    show(format!("{HOSTS} hosts: the server's start to all agents connected"), Samples::of_durations(joined));
    show("… CPU that the server took for it", cpu);
    show("… memory of the server for each of them", memory);
    Ok(())
}

/// Starts the hosts, with the agent's program there, and waits until all of them answer.
fn start(lan: &Lan, agent: &Path) -> Result<Vec<String>> {
    let first = lan.address(0).to_string();
    let subnet = first.trim_end_matches(".0");
    let script = format!("{}{START}", lan.let_in()?);
    let count = HOSTS.to_string();
    let command = ["sh", "-c", &script, "crowd", subnet, &FIRST.to_string(), &count];
    let host = lan.start(&command)?;
    let hash = shell::capture(Command::new("sha256sum").arg(agent))?;
    let name = hash.get(..16).context("`sha256sum` prints no hash")?;
    shell::wait_for("the folder for programs", PATIENCE, || host.exec("ls /usr/local/lib/dstack").ok())?;
    host.copy(agent, &format!("/usr/local/lib/dstack/agent-{name}"))?;
    shell::wait_for("the answer of the hosts' engine", PATIENCE, || host.exec("docker info").ok())?;
    let addresses = (FIRST..).map(|number| lan.address(number)).take(HOSTS);
    addresses
        .map(|address| {
            shell::wait_for("sshd's answer", PATIENCE, || greets((address, 22).into()).then_some(()))?;
            Ok(address.to_string())
        })
        .collect()
}

/// How many hosts' agents are connected just now.
fn count_connected(place: &Place<'_>) -> Result<usize> {
    let fleets = place.client()?.call("/api/project/main/fleets/list", &json!({}))?;
    let fleets = fleets.as_array().context("`fleets/list` answers no list")?;
    let all = fleets.iter().filter_map(|fleet| fleet["instances"].as_array()).flatten();
    let is_connected = |instance: &&Value| instance["status"] == "idle" && instance["progress"].is_null();
    let count = all.clone().filter(is_connected).count();
    ensure!(all.count() == HOSTS, "not all hosts are in fleets");
    Ok(count)
}
