//! How fast one job's output comes through, and how soon a `stop` overtakes it.

use std::fs;
use std::io::{self, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::samples::{Samples, show};
use crate::dstack::Place;

/// How much one job writes.
const MEGABYTES: usize = 200;

/// How long a flood runs before it is stopped.
const FLOOD: Duration = Duration::from_secs(2);

/// Reads a pseudo-terminal and does nothing with it: the least that any supervisor must do.
const BARE_READER: &str = "import os, pty, subprocess, sys
main, side = pty.openpty()
child = subprocess.Popen(['bash', '-c', sys.argv[1]], stdin=side, stdout=side, stderr=side)
os.close(side)
try:
    while os.read(main, 1 << 16):
        pass
except OSError:
    pass
sys.exit(child.wait())
";

pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    let (place, server) = bench.server_with_fleet("logs")?;
    let mut bare = Samples::new("MB/s");
    let mut ours = Samples::new("MB/s");
    let writer = writer();
    write_task(&place, "flood", None, &writer)?;
    for _ in 0..bench.samples.min(5) {
        let started = Instant::now();
        let status = Command::new("python3").args(["-c", BARE_READER, &writer]).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "the bare reader failed: {status}");
        bare.add(MEGABYTES as f64 / started.elapsed().as_secs_f64());
        ours.add(through_all(&place)?);
    }
    let share = Samples::of_one(100.0 * ours.quantile(0.5) / bare.quantile(0.5), "%");
    show("a pseudo-terminal's bare reader", bare);
    show("the same through supervisor, agent, server and `apply`", ours);
    show("share of the bare reader", share);

    write_task(&place, "endless", None, "yes")?;
    let stops = (0..bench.samples.min(5)).map(|_| stop_flood(&place)).collect::<Result<Vec<_>>>()?;
    show("`stop` during a flood, to the end of the attached `apply`", Samples::of_durations(stops));
    server.stop()
}

/// The same in a container of a machine that is reached over a certain way.
pub(super) fn measure_on(place: &Place<'_>, way: &str, image: &str, samples: usize) -> Result<()> {
    write_task(place, "flood", Some(image), &writer())?;
    let mut through = Samples::new("MB/s");
    for _ in 0..samples {
        through.add(through_all(place)?);
    }
    show(format!("log of one job, {way}"), through);
    write_task(place, "endless", Some(image), "yes")?;
    let stops = (0..samples).map(|_| stop_flood(place)).collect::<Result<Vec<_>>>()?;
    show(
        format!("`stop` during a flood, {way}, to the end of the attached `apply`"),
        Samples::of_durations(stops),
    );
    Ok(())
}

/// What writes the megabytes.
fn writer() -> String {
    format!("yes '{}' | head -c {}", "x".repeat(99), MEGABYTES * 1_000_000)
}

/// Writes a task of one command, in a container where an image is named.
pub(super) fn write_task(place: &Place<'_>, name: &str, image: Option<&str>, command: &str) -> Result<()> {
    let image = image.map(|image| format!("image: {image}\n")).unwrap_or_default();
    let text = format!(
        "type: task\nname: {name}\n{image}commands:\n  - |\n    {command}\n\
         resources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
    );
    fs::write(place.home.join(format!("{name}.dstack.yml")), text).context("write the task")
}

fn apply(place: &Place<'_>, name: &str) -> Result<Child> {
    let mut command = place.cli(&["apply", "-f", &format!("{name}.dstack.yml"), "-R", "-y"]);
    command.current_dir(&place.home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().context("start `dstack apply`")
}

/// Megabytes per second from the first to the last byte of the log.
fn through_all(place: &Place<'_>) -> Result<f64> {
    let mut child = apply(place, "flood")?;
    let mut stdout = child.stdout.take().expect("standard output is piped");
    let mut chunk = vec![0; 1 << 16];
    let mut total = 0;
    let mut first_at = None;
    loop {
        let read = stdout.read(&mut chunk).context("read what `dstack apply` prints")?;
        if read == 0 {
            break;
        }
        if first_at.is_none() && chunk[..read].windows(9).any(|window| window == b"xxxxxxxxx") {
            first_at = Some(Instant::now());
        }
        total += read;
    }
    let first_at = first_at.context("no log came")?;
    let took = first_at.elapsed();
    ensure!(child.wait()?.success(), "`dstack apply` failed");
    ensure!(MEGABYTES * 1_000_000 <= total, "only {total} bytes came");
    Ok(MEGABYTES as f64 / took.as_secs_f64())
}

fn stop_flood(place: &Place<'_>) -> Result<Duration> {
    let mut child = apply(place, "endless")?;
    let mut stdout = child.stdout.take().expect("standard output is piped");
    let mut some = vec![0; 1 << 20];
    stdout.read_exact(&mut some).context("read the flood's beginning")?;
    let reader = std::thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
    std::thread::sleep(FLOOD);
    let started = Instant::now();
    crate::shell::capture(&mut place.cli(&["stop", "endless", "-y"]))?;
    child.wait().context("wait for `dstack apply`")?;
    let took = started.elapsed();
    reader.join().expect("the reader does not panic").context("read the flood")?;
    Ok(took)
}
