//! A distributed task from nothing to its result, on this machine alone.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::dstack::Place;
use crate::sandbox::Sandbox;
use crate::shell;
use crate::workspace::{self, Profile};

const FLEET: &str = "examples/distributed/fleet.dstack.yml";
const TASK: &str = "examples/distributed/task.dstack.yml";

/// How long one command may take. All of them together take seconds.
const PATIENCE: Duration = Duration::from_mins(3);

/// What each node says when its part of the all-reduce came out right.
const PROOF: [&str; 2] = ["[0] rank 0 of 2: all-reduce is right", "[1] rank 1 of 2: all-reduce is right"];

/// Shows a distributed task on this machine, and that it does what it says.
pub(crate) fn run() -> Result<()> {
    check_prerequisites()?;
    let sandbox = Sandbox::new()?;
    println!("Building `dstack` and `dstack-agent`; the first time takes a few minutes.");
    let programs = workspace::build_programs(Profile::Dev)?;
    let place = Place::new(&sandbox, "demo", &programs)?;
    println!("Everything of this demo stays in `{}` and goes with it.", sandbox.dir().display());
    let result = show(&place);
    if result.is_err() {
        eprintln!("\nThe last lines of the server's log:\n{}\n", place.log_tail());
    }
    result
}

fn show(place: &Place<'_>) -> Result<()> {
    let started = Instant::now();
    println!("\n$ dstack server --port {} &", place.address.port());
    let server = place.start()?;
    println!("(answers at http://{} after {} ms)", place.address, started.elapsed().as_millis());

    let fleet = type_and_show(place, &["apply", "-f", FLEET, "-y"])?;
    ensure!(fleet.success, "the fleet was not made");

    let task = type_and_show(place, &["apply", "-f", TASK, "-R", "-y"])?;
    ensure!(task.success, "the task failed");
    for line in PROOF {
        ensure!(task.lines.iter().any(|seen| seen.starts_with(line)), "no line begins with `{line}`");
    }

    let deleted = type_and_show(place, &["delete", "-f", FLEET, "-y"])?;
    ensure!(deleted.success, "the fleet was not deleted");
    println!("\n(stopping the server)");
    server.stop()?;
    println!(
        "\nBoth nodes ran, talked to each other and agreed. The demo took {:.1} s.",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What a command printed and how it ended.
pub(crate) struct Shown {
    pub(crate) lines: Vec<String>,
    pub(crate) success: bool,
}

/// Runs a command of ours, prints it as a user would type it, and prints what it says as it says it.
pub(crate) fn type_and_show(place: &Place<'_>, args: &[&str]) -> Result<Shown> {
    println!("\n$ dstack {}", args.join(" "));
    let mut command = place.cli(args);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start `dstack`")?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let pid = child.id();
    let (done, is_done) = mpsc::channel::<()>();
    // A demo that hangs would show nothing at all.
    let watch = thread::spawn(move || {
        if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            eprintln!("(ended after {} s without an end of its own)", PATIENCE.as_secs());
            shell::signal(pid, "KILL");
        }
    });
    let mut lines = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read what `dstack` prints")?;
        println!("{line}");
        lines.push(line);
    }
    let success = child.wait().context("wait for `dstack`")?.success();
    drop(done);
    watch.join().expect("the watch does not panic");
    Ok(Shown { lines, success })
}

/// Says everything that is missing at once, before anything is built.
fn check_prerequisites() -> Result<()> {
    let mut missing = Vec::new();
    if shell::find("cc").is_none() {
        missing.push("a C compiler (`cc`; Debian: gcc and libc6-dev)");
    }
    if !shell::succeeds(Command::new("python3").args(["-c", "import array, socket"])) {
        missing.push("Python (`python3`), which the example task is written in");
    }
    if shell::find("bash").is_none() {
        missing.push("`bash`, which runs the commands of tasks");
    }
    if !missing.is_empty() {
        bail!("this machine lacks:\n  - {}", missing.join("\n  - "));
    }
    Ok(())
}
