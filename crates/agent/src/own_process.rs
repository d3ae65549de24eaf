//! Parts of a job that are done by a process of ours, as the job's user: it gets its order by standard input, because
//! orders hold secrets, and answers on standard output.

use std::io;
use std::process::{ChildStdin, Command, Stdio};

use api::ids::JobId;
use serde::de::DeserializeOwned;

use crate::sys::{self, Credentials};

/// How much of what a failed process wrote is told.
const TOLD: usize = 1024;

/// What a process answers: what came of it, or why nothing did.
pub(crate) type Answer<T> = Result<T, String>;

/// Runs `dstack-agent SUBCOMMAND` for a job, gives it its order, and waits for its answer. `failed` begins the sentence
/// if it has none.
pub(crate) fn ask<T: DeserializeOwned>(
    subcommand: &str,
    job: JobId,
    credentials: Option<&Credentials>,
    failed: &str,
    give: impl FnOnce(ChildStdin) -> io::Result<()>,
) -> Answer<T> {
    let told = |error: io::Error| format!("{failed}: {error}");
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(subcommand)
        .env_clear()
        // It is a part of the job, and ends with it whatever happens to us.
        .env("DSTACK_JOB_ID", job.to_string())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    sys::prepare_child(&mut command, false, credentials.cloned());
    let mut child = command.spawn().map_err(told)?;
    // A process that ends early says why itself.
    let given = child.stdin.take().map(give);
    let output = child.wait_with_output().map_err(told)?;
    serde_json::from_slice::<Answer<T>>(&output.stdout).unwrap_or_else(|_| {
        let words = String::from_utf8_lossy(&output.stderr).trim().chars().take(TOLD).collect::<String>();
        let given = given.and_then(Result::err).map(|error| error.to_string()).unwrap_or_default();
        let told = format!("{failed}: its process ended ({}) {words} {given}", output.status);
        Err(told.trim_end().to_owned())
    })
}
