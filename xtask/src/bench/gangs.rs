//! Gangs of machines in the simulated EC2: how long until they are asked for, usable, used and gone; and offers.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Bench;
use super::command_line::time;
use super::samples::{Samples, show};
use crate::dstack::Place;
use crate::workspace::{self, Programs};
use crate::{cloud, shell};

/// The sizes, and how often the largest ones are measured at the most.
const SIZES: [(u32, usize); 3] = [(2, 20), (200, 5), (1000, 3)];

/// What is told of a gang, in words and in the program's.
const ROWS: [(&str, &str, &str); 8] = [
    ("calls of RunInstances", "run_instances", ""),
    ("the fleet's row to the request for all machines", "asked_ms", "ms"),
    ("from there until all are idle", "idle_ms", "ms"),
    ("a task's row until it runs on all", "running_ms", "ms"),
    ("its stop to its end", "over_ms", "ms"),
    ("the fleet's end until nothing is left", "gone_ms", "ms"),
    ("calls of TerminateInstances", "terminate_instances", ""),
    ("most memory of the server, the simulated agents included", "peak_mib", "MiB"),
];

pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    let gangs = workspace::build_gangs(bench.profile)?;
    for (nodes, most) in SIZES {
        measure_gang(bench, &gangs, nodes, bench.samples.min(most))?;
    }
    measure_offers(bench)
}

fn measure_gang(bench: &Bench<'_>, program: &Path, nodes: u32, count: usize) -> Result<()> {
    let mut rows = ROWS.map(|(_, _, unit)| Samples::new(unit));
    for _ in 0..count {
        let line = shell::capture(bench.sandbox.command(program).arg(nodes.to_string()))?;
        let told: Value = serde_json::from_str(line.trim()).context("read what the gang took")?;
        for ((_, name, _), samples) in ROWS.iter().zip(&mut rows) {
            samples.add(told[*name].as_f64().with_context(|| format!("no `{name}` in {line}"))?);
        }
    }
    for ((what, ..), samples) in ROWS.iter().zip(rows) {
        show(format!("{nodes} nodes: {what}"), samples);
    }
    Ok(())
}

/// What the command line takes to show what a cloud sells, once the server has asked for it before.
fn measure_offers(bench: &Bench<'_>) -> Result<()> {
    let dstack = workspace::build_with_clouds(bench.profile)?;
    let (address, _) = cloud::start(bench.sandbox, bench.profile, &[])?;
    let mut place = Place::new(bench.sandbox, "offers", &Programs { dstack, ..bench.ours.clone() })?;
    cloud::configure(&mut place, address)?;
    let server = place.start()?;
    for args in [&["offer"][..], &["offer", "--gpu", "H100:8"]] {
        show(format!("`dstack {}`, warm", args.join(" ")), time(&place, args, bench.samples)?);
    }
    server.stop()
}
