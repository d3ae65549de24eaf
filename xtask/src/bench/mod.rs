//! Measurements of the release build: the real programs, driven as users drive them.
//!
//! Each row is a module. Where the official server is installed, rows that it can be measured by too are measured
//! on both, on the same machine in the same run.

mod command_line;
mod entering;
mod gangs;
mod hosts;
mod logs;
mod requests;
mod samples;
mod server;
mod tasks;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::dstack::{Place, Server};
use crate::sandbox::Sandbox;
use crate::shell;
use crate::workspace::{self, Profile, Programs};
use samples::HEAD;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Groups of rows; by default all but those that take many minutes.
    names: Vec<String>,
    /// How often each thing is measured that can be repeated.
    #[arg(long, default_value_t = 10)]
    samples: usize,
    /// Measure the development build, to try the measurements themselves.
    #[arg(long)]
    dev: bool,
}

/// A group of rows: its name, and how it is measured.
type Group = (&'static str, fn(&Bench<'_>) -> Result<()>);

const GROUPS: [Group; 9] = [
    ("tasks", tasks::measure),
    ("containers", tasks::measure_containers),
    ("server", server::measure),
    ("requests", requests::measure),
    ("command-line", command_line::measure),
    ("logs", logs::measure),
    ("entering", entering::measure),
    ("hosts", hosts::measure),
    ("many-hosts", hosts::measure_many),
];

/// Groups that are measured only where they are named.
const NAMED_GROUPS: [Group; 2] = [("hosts-cut", hosts::measure_cut), ("gangs", gangs::measure)];

/// What every group is given.
#[derive(Debug)]
struct Bench<'a> {
    sandbox: &'a Sandbox,
    ours: Programs,
    profile: Profile,
    /// The official server, where it is installed.
    official: Option<Programs>,
    samples: usize,
}

/// Measures and prints one table for each group.
pub(crate) fn run(options: &Options) -> Result<()> {
    let known: Vec<&str> = GROUPS.iter().chain(&NAMED_GROUPS).map(|(name, _)| *name).collect();
    for name in &options.names {
        ensure!(known.contains(&name.as_str()), "no group `{name}`; there is: {}", known.join(", "));
    }
    let sandbox = Sandbox::new()?;
    let profile = if options.dev { Profile::Dev } else { Profile::Release };
    let ours = workspace::build_programs(profile)?;
    let official = official_server().map(|dstack| Programs { dstack, agent: PathBuf::new() });
    let bench = Bench { sandbox: &sandbox, ours, profile, official, samples: options.samples };
    println!("{}", machine());
    if bench.official.is_none() {
        println!("\nThe official server is not measured: DSTACK_BENCH_OFFICIAL_SERVER names no program.");
    }
    let is_named = |(name, _): &Group| options.names.iter().any(|wanted| wanted == name);
    let by_default = GROUPS.into_iter().filter(|group| options.names.is_empty() || is_named(group));
    for (name, measure) in by_default.chain(NAMED_GROUPS.into_iter().filter(is_named)) {
        println!("\n## {name}\n\n{HEAD}");
        measure(&bench).with_context(|| format!("measure `{name}`"))?;
    }
    Ok(())
}

impl<'a> Bench<'a> {
    /// A fresh place for our server.
    fn place(&self, name: &str) -> Result<Place<'a>> {
        Place::new(self.sandbox, name, &self.ours)
    }

    /// Fresh places for every server that is there, by the names of their rows.
    fn contestants(&self, name: &str) -> Result<Vec<(&'static str, Place<'a>)>> {
        let mut places = vec![("ours", self.place(name)?)];
        if let Some(official) = &self.official {
            places.push(("official", Place::new(self.sandbox, &format!("{name}-official"), official)?));
        }
        Ok(places)
    }

    /// A server of ours with two idle nodes.
    fn server_with_fleet(&self, name: &str) -> Result<(Place<'a>, Server)> {
        let place = self.place(name)?;
        let server = place.start()?;
        fs::write(place.home.join("fleet.dstack.yml"), FLEET).context("write the fleet")?;
        shell::capture(place.cli(&["apply", "-f", "fleet.dstack.yml", "-y"]).current_dir(&place.home))?;
        Ok((place, server))
    }
}

const FLEET: &str = "type: fleet\nname: pair\nnodes: 2\nplacement: cluster\n\
                     resources: {cpu: 1.., memory: 256MB.., disk: 1GB..}\n";

/// The program that starts the official server, if somebody installed it.
fn official_server() -> Option<PathBuf> {
    let named = env::var_os("DSTACK_BENCH_OFFICIAL_SERVER").map(PathBuf::from);
    named.or_else(|| Some(workspace::cache_dir().join("official-server/bin/dstack"))).filter(|path| path.exists())
}

/// What was measured on.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = shell::capture(Command::new("uname").arg("-sr")).unwrap_or_default();
    format!("{cores} × {}, {}", model.unwrap_or("unknown CPU"), kernel.trim())
}
