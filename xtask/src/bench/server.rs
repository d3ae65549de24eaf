//! What the server itself takes: time to start, memory, and CPU while a thousand runs wait.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Bench;
use super::requests::{self, RUNS};
use super::samples::{Samples, show};
use crate::dstack::Place;

/// How long the server is left alone before its memory is looked at.
const REST: Duration = Duration::from_secs(5);

/// How long its use of the CPU is looked at: the time in which every run is tried for the first times, and then a time
/// in which they do nothing but wait.
const BUSY: Duration = Duration::from_secs(30);
const WAITING: Duration = Duration::from_mins(1);

/// Ticks of the kernel's accounting in a second, the same on every Linux that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    starts(bench)?;
    for (name, place) in bench.contestants("waiting")? {
        let server = place.start()?;
        thread::sleep(REST);
        show(format!("{name}: memory, idle"), memory(server.pid())?);
        requests::fill(&place, 8)?;
        show(
            format!("{name}: CPU in the {} s after {RUNS} submissions", BUSY.as_secs()),
            cpu(server.pid(), BUSY)?,
        );
        show(format!("{name}: CPU while {RUNS} runs wait"), cpu(server.pid(), WAITING)?);
        show(format!("{name}: memory, {RUNS} runs wait"), memory(server.pid())?);
        // The official server may take minutes to end with so much to do.
        server.kill()?;
    }
    Ok(())
}

fn starts(bench: &Bench<'_>) -> Result<()> {
    let names: Vec<&str> = bench.contestants("names")?.into_iter().map(|(name, _)| name).collect();
    for (index, name) in names.into_iter().enumerate() {
        let mut first = Vec::new();
        let mut again = Vec::new();
        // The official server takes seconds; a few samples say enough.
        for nth in 0..bench.samples.min(5) {
            let (_, place) = bench.contestants(&format!("start-{nth}"))?.remove(index);
            first.push(time_start(&place)?);
            again.push(time_start(&place)?);
        }
        show(format!("{name}: first start to the first answer"), Samples::of_durations(first));
        show(format!("{name}: later start to the first answer"), Samples::of_durations(again));
    }
    Ok(())
}

fn time_start(place: &Place<'_>) -> Result<Duration> {
    let started = Instant::now();
    let server = place.start()?;
    let took = started.elapsed();
    server.stop()?;
    Ok(took)
}

fn memory(pid: u32) -> Result<Samples> {
    Ok(Samples::of_one(resident_mib(pid)?, "MiB"))
}

/// The resident memory of a process.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the server's status")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kib: f64 = kib.context("the kernel tells no `VmRSS`")?;
    Ok(kib / 1024.0)
}

/// The share of one core that a process takes in a time.
fn cpu(pid: u32, look: Duration) -> Result<Samples> {
    let before = cpu_seconds(pid)?;
    let started = Instant::now();
    thread::sleep(look);
    let seconds = cpu_seconds(pid)? - before;
    Ok(Samples::of_one(100.0 * seconds / started.elapsed().as_secs_f64(), "% of a core"))
}

/// The CPU time that a process has taken, user and system.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read the server's times")?;
    let fields = stat.rsplit_once(')').context("read the server's times")?.1.split_whitespace();
    // They are the 14th and 15th field; the name and the number before it are cut off.
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}
