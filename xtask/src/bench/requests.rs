//! How many requests the server answers.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::Bench;
use super::samples::{Samples, show};
use crate::dstack::Place;

/// How many runs are submitted.
pub(super) const RUNS: usize = 1000;

/// How long lists are asked for.
const LISTING: Duration = Duration::from_secs(5);

pub(super) fn measure(bench: &Bench<'_>) -> Result<()> {
    for (name, place) in bench.contestants("requests")? {
        let server = place.start()?;
        let what = format!("{name}: `runs/apply`, 8 clients, {RUNS} runs");
        rate_and_tail(&what, &fill(&place, 8)?);
        for clients in [1, 32] {
            let what = format!("{name}: `runs/list` of 100 among {RUNS} runs, {clients} client(s)");
            rate_and_tail(&what, &list(&place, clients)?);
        }
        let size = place.client()?.post("/api/runs/list", &list_body())?.body.len();
        show(format!("{name}: size of that list"), Samples::of_one(size as f64 / 1000.0, "kB"));
        // The official server may take minutes to end with so much to do.
        server.kill()?;
    }
    Ok(())
}

/// Requests that were answered, and how long all of them took together.
#[derive(Debug, Default)]
pub(super) struct Answered {
    took: Vec<Duration>,
    wall: Duration,
}

fn rate_and_tail(what: &str, answered: &Answered) {
    let per_second = answered.took.len() as f64 / answered.wall.as_secs_f64();
    let samples = Samples::of_durations(answered.took.iter().copied());
    show(format!("{what}: rate"), Samples::of_one(per_second, "/s"));
    show(format!("{what}: 99 of 100 within"), Samples::of_one(samples.quantile(0.99), "ms"));
}

/// Submits a thousand runs that no machine can take, so that they wait.
pub(super) fn fill(place: &Place<'_>, clients: usize) -> Result<Answered> {
    side_by_side(clients, |nth| {
        let mut client = place.client()?;
        let mut took = Vec::new();
        for run in (nth..RUNS).step_by(clients) {
            let started = Instant::now();
            client.call("/api/project/main/runs/apply", &apply_body(run))?;
            took.push(started.elapsed());
        }
        Ok(took)
    })
}

fn list(place: &Place<'_>, clients: usize) -> Result<Answered> {
    let deadline = Instant::now() + LISTING;
    side_by_side(clients, |_| {
        let mut client = place.client()?;
        let mut took = Vec::new();
        while Instant::now() < deadline {
            let started = Instant::now();
            let answer = client.post("/api/runs/list", &list_body())?;
            anyhow::ensure!(answer.status == 200, "`runs/list` answered {}", answer.status);
            took.push(started.elapsed());
        }
        Ok(took)
    })
}

/// Runs clients beside each other, each told its number.
fn side_by_side(clients: usize, work: impl Fn(usize) -> Result<Vec<Duration>> + Sync) -> Result<Answered> {
    let started = Instant::now();
    let took = thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..clients).map(|nth| scope.spawn(move || work(nth))).collect();
        let results = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?);
        results.collect::<Result<Vec<_>>>()
    })?;
    Ok(Answered { took: took.into_iter().flatten().collect(), wall: started.elapsed() })
}

fn apply_body(run: usize) -> Value {
    let name = format!("waiting-{run}");
    json!({
        "plan": {
            "run_spec": {
                "run_name": name,
                "configuration": {
                    "type": "task",
                    "name": name,
                    "commands": ["echo never"],
                    "resources": { "cpu": "1000..", "memory": "256MB..", "disk": "1GB.." },
                    "retry": { "on_events": ["no-capacity"], "duration": "1d" },
                },
            },
            "current_resource": null,
        },
        "force": false,
    })
}

fn list_body() -> Value {
    json!({
        "project_name": "main", "repo_id": null, "username": null, "only_active": false, "include_jobs": true,
        "job_submissions_limit": 1, "prev_submitted_at": null, "prev_run_id": null, "limit": 100, "ascending": false,
    })
}
