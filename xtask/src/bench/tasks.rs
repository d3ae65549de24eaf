//! How long a user waits for a task: from the command to the first line, and from the task's end to the prompt.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::samples::{Samples, show};
use crate::dstack::Place;
use crate::shell;

/// The image that `cargo xtask test` makes.
pub(super) const IMAGE: &str = "dstack-test:latest";

/// As plain processes.
pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    measure_with(bench, "tasks", "process", "")
}

/// In containers, where an engine answers and has the image.
pub(super) fn measure_containers(bench: &Bench<'_>) -> Result<()> {
    if !shell::succeeds(Command::new("docker").args(["image", "inspect", IMAGE])) {
        println!("(left out: no engine has `{IMAGE}`; `cargo xtask test` makes it)");
        return Ok(());
    }
    measure_with(bench, "containers", "container", &format!("image: {IMAGE}\n"))
}

fn measure_with(bench: &Bench<'_>, name: &str, kind: &str, image: &str) -> Result<()> {
    let (place, server) = bench.server_with_fleet(name)?;
    for nodes in [1, 2] {
        let what = format!("{kind}, {nodes} node{}", if nodes == 1 { "" } else { "s" });
        measure_task(&place, &what, nodes, image, bench.samples)?;
    }
    server.stop()
}

/// A task of one node in a container, where there is an idle machine.
pub(super) fn measure_one(place: &Place<'_>, what: &str, image: &str, samples: usize) -> Result<()> {
    measure_task(place, what, 1, &format!("image: {image}\n"), samples)
}

fn measure_task(place: &Place<'_>, what: &str, nodes: usize, image: &str, samples: usize) -> Result<()> {
    let file = format!("task-{nodes}.dstack.yml");
    let text = format!(
        "type: task\nname: task-{nodes}\nnodes: {nodes}\n{image}commands:\n  - echo TASK-BEGIN\n  - sleep 0.2\n  \
         - echo TASK-END $(date +%s%N)\nresources: {{cpu: 1.., memory: 256MB.., disk: 1GB..}}\n"
    );
    fs::write(place.home.join(&file), text).context("write the task")?;
    // The first task starts agents and warms caches.
    apply(place, &file, nodes)?;
    let waits: Vec<Waits> = (0..samples).map(|_| apply(place, &file, nodes)).collect::<Result<_>>()?;
    let begin = waits.iter().map(|waits| waits.until_begin);
    show(format!("{what}: `apply` to the first line of every node"), Samples::of_durations(begin));
    let exit = waits.iter().map(|waits| waits.until_exit);
    show(format!("{what}: the task's end to the prompt"), Samples::of_durations(exit));
    Ok(())
}

/// What a user waited for.
struct Waits {
    until_begin: Duration,
    until_exit: Duration,
}

fn apply(place: &Place<'_>, file: &str, nodes: usize) -> Result<Waits> {
    let mut command = place.cli(&["apply", "-f", file, "-R", "-y"]);
    command.current_dir(&place.home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn().context("start `dstack apply`")?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let mut begun = 0;
    let mut until_begin = None;
    let mut ended_at = Duration::ZERO;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read what `dstack apply` prints")?;
        if line.trim_end().ends_with("TASK-BEGIN") {
            begun += 1;
            if begun == nodes {
                until_begin = Some(started.elapsed());
            }
        }
        if let Some((_, nanos)) = line.split_once("TASK-END ") {
            let nanos: u64 = nanos.trim().parse().context("read the task's clock")?;
            ended_at = ended_at.max(Duration::from_nanos(nanos));
        }
    }
    let status = child.wait().context("wait for `dstack apply`")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
    ensure!(status.success(), "`dstack apply` failed: {status}");
    let until_begin = until_begin.context("the task printed no `TASK-BEGIN`")?;
    Ok(Waits { until_begin, until_exit: now.saturating_sub(ended_at) })
}
