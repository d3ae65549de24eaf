//! Machines of the user's own, joined over SSH: how long that takes, what it costs the server, and what a long way
//! there does to logs and orders.
//!
//! Hosts are containers of the image that `cargo xtask test` makes, with real sshd and an engine each.

mod crowd;
mod lan;
mod link;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::samples::{Samples, show};
use super::{Bench, logs, tasks};
use crate::dstack::Place;
use crate::shell;
use crate::workspace::{self, Programs};
use lan::{Host, Lan};

/// The image of tasks, as the hosts' engines know it.
const IMAGE: &str = "dstack-test:bench";

/// How many hosts are joined at once.
const MANY: usize = 20;

/// How long each way over the long link takes.
const ONE_WAY: Duration = Duration::from_millis(25);

/// How long the network is cut.
const CUT: Duration = Duration::from_mins(5);

/// The lines of the run that lives through that, two in a second.
const LINES: usize = 800;

const PATIENCE: Duration = Duration::from_mins(5);

/// One host: joined, used, and used over a long way.
pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    let Some(agent) = agent(bench)? else { return Ok(()) };
    let place = place(bench, "hosts", &agent)?;
    let lan = Lan::new(&place.home)?;
    let hosts = lan.hosts(1)?;
    hosts[0].give_image(tasks::IMAGE, IMAGE)?;
    let server = place.start()?;
    write_fleet(&place, "own", &lan, &names(&hosts))?;
    join("join a fresh host", &place, &hosts, bench.samples)?;
    use_host(&place, &hosts[0], bench.samples)?;
    use_over_a_long_way(&place, &lan, &hosts[0], bench.samples.min(5))?;
    server.stop()
}

/// Many hosts: joined at once, and found again by a server that was away.
pub(super) fn measure_many(bench: &Bench<'_>) -> Result<()> {
    let Some(agent) = agent(bench)? else { return Ok(()) };
    join_many(bench, &agent)?;
    crowd::measure(bench, &agent)
}

fn join_many(bench: &Bench<'_>, agent: &Path) -> Result<()> {
    let place = place(bench, "many", agent)?;
    let lan = Lan::new(&place.home)?;
    let hosts = lan.hosts(MANY)?;
    let server = place.start()?;
    write_fleet(&place, "own", &lan, &names(&hosts))?;
    join(&format!("join {MANY} fresh hosts at once"), &place, &hosts, bench.samples.min(3))?;
    server.stop()
}

/// A run on a host whose network is cut for minutes.
pub(super) fn measure_cut(bench: &Bench<'_>) -> Result<()> {
    let Some(agent) = agent(bench)? else { return Ok(()) };
    let place = place(bench, "cut", &agent)?;
    let lan = Lan::new(&place.home)?;
    let hosts = lan.hosts(1)?;
    hosts[0].give_image(tasks::IMAGE, IMAGE)?;
    let server = place.start()?;
    write_fleet(&place, "own", &lan, &names(&hosts))?;
    apply(&place, "fleet.dstack.yml")?;
    let lines = format!("for i in $(seq {LINES}); do echo line $i; sleep 0.5; done");
    logs::write_task(&place, "long", Some(IMAGE), &lines)?;
    shell::capture(place.cli(&["apply", "-f", "long.dstack.yml", "-y", "-d"]).current_dir(&place.home))?;
    let log = || shell::capture(&mut place.cli(&["logs", "long"])).unwrap_or_default();
    shell::wait_for("the first lines", PATIENCE, || log().contains("line 10").then_some(()))?;
    hosts[0].cut_network()?;
    let cut_at = Instant::now();
    thread::sleep(CUT);
    hosts[0].restore_network()?;
    let restored_at = Instant::now();
    show("the network is cut for", Samples::of_one(cut_at.elapsed().as_secs_f64(), "s"));
    let before = log().lines().count();
    shell::wait_for("the lines of the time of the cut", PATIENCE, || {
        (before < log().lines().count()).then_some(())
    })?;
    show(
        "… its return to the first line from the time of the cut",
        Samples::of_durations([restored_at.elapsed()]),
    );
    shell::wait_for("the run's end", PATIENCE, || log().contains(&format!("line {LINES}")).then_some(()))?;
    let text = log();
    let got: Vec<&str> = text.lines().map(str::trim_end).filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<String> = (1..=LINES).map(|number| format!("line {number}")).collect();
    ensure!(got == expected, "the log has {} of {LINES} lines, or in another order", got.len());
    show("… lines of its log, in order and each once", Samples::of_one(got.len() as f64, "lines"));
    server.stop()
}

/// Joins hosts that have nothing of ours and leaves them again, over and over.
fn join(what: &str, place: &Place<'_>, hosts: &[Host], samples: usize) -> Result<()> {
    let mut joined = Vec::new();
    let mut left = Vec::new();
    for _ in 0..samples {
        let started = Instant::now();
        apply(place, "fleet.dstack.yml")?;
        joined.push(started.elapsed());
        let started = Instant::now();
        leave(place, hosts)?;
        left.push(started.elapsed());
    }
    show(format!("{what}: `apply` to its end, all `idle`"), Samples::of_durations(joined));
    show("… `fleet delete` to clean hosts", Samples::of_durations(left));
    Ok(())
}

fn leave(place: &Place<'_>, hosts: &[Host]) -> Result<()> {
    shell::capture(&mut place.cli(&["fleet", "delete", "own", "-y"]))?;
    hosts.iter().try_for_each(Host::wait_until_clean)?;
    let is_there = || shell::succeeds(&mut place.cli(&["fleet", "get", "own", "--json"]));
    shell::wait_for("the fleet's end", PATIENCE, || (!is_there()).then_some(()))
}

fn use_host(place: &Place<'_>, host: &Host, samples: usize) -> Result<()> {
    apply(place, "fleet.dstack.yml")?;
    tasks::measure_one(place, "a host's container", IMAGE, samples)?;
    leave(place, std::slice::from_ref(host))
}

fn use_over_a_long_way(place: &Place<'_>, lan: &Lan, host: &Host, samples: usize) -> Result<()> {
    let near = link::start(host.sshd(), ONE_WAY)?;
    let way = format!("{} ms there and back", 2 * ONE_WAY.as_millis());
    let at = format!("{{hostname: {}, port: {}}}", near.ip(), near.port());
    write_fleet(place, "own", lan, &[at])?;
    join(&format!("join a fresh host, {way}"), place, std::slice::from_ref(host), samples)?;
    apply(place, "fleet.dstack.yml")?;
    tasks::measure_one(place, &format!("a host's container, {way}"), IMAGE, samples)?;
    logs::measure_on(place, &way, IMAGE, samples)?;
    leave(place, std::slice::from_ref(host))
}

/// The agent as hosts are given it, unless there are no images for hosts.
fn agent(bench: &Bench<'_>) -> Result<Option<PathBuf>> {
    for image in [lan::IMAGE, tasks::IMAGE] {
        if !shell::succeeds(Command::new("docker").args(["image", "inspect", image])) {
            println!("(left out: no engine has `{image}`; `cargo xtask test` makes it)");
            return Ok(None);
        }
    }
    workspace::build_static_agent(bench.profile).map(Some)
}

fn place<'a>(bench: &Bench<'a>, name: &str, agent: &Path) -> Result<Place<'a>> {
    let programs = Programs { agent: agent.to_owned(), ..bench.ours.clone() };
    Place::new(bench.sandbox, name, &programs)
}

fn apply(place: &Place<'_>, file: &str) -> Result<()> {
    shell::capture(place.cli(&["apply", "-f", file, "-y"]).current_dir(&place.home)).map(drop)
}

fn names(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(|host| host.address.to_string()).collect()
}

/// Writes the configuration of a fleet of these hosts.
fn write_fleet(place: &Place<'_>, name: &str, lan: &Lan, hosts: &[String]) -> Result<()> {
    let hosts: Vec<String> = hosts.iter().map(|host| format!("    - {host}\n")).collect();
    let text = format!(
        "type: fleet\nname: {name}\nssh_config:\n  user: root\n  identity_file: {}\n  hosts:\n{}",
        lan.key().display(),
        hosts.concat()
    );
    fs::write(place.home.join("fleet.dstack.yml"), text).context("write the fleet")
}
