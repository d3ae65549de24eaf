//! How long the command line takes by itself.

use std::time::Instant;

use anyhow::Result;

use super::Bench;
use super::samples::{Samples, show};
use crate::dstack::Place;
use crate::shell;

pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    let place = bench.place("command-line")?;
    let server = place.start()?;
    for args in [&["--version"][..], &["ps"], &["fleet"]] {
        show(format!("`dstack {}`", args.join(" ")), time(&place, args, bench.samples)?);
    }
    server.stop()
}

/// How long the command line takes with these arguments.
pub(super) fn time(place: &Place<'_>, args: &[&str], count: usize) -> Result<Samples> {
    let mut samples = Samples::new("ms");
    // The first one pays for reading the program from the disk.
    for nth in 0..=count {
        let started = Instant::now();
        shell::capture(&mut place.cli(args))?;
        if nth > 0 {
            samples.add(started.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Ok(samples)
}
