//! The supervisor of one job: it makes the job's files, waits for `go`, runs the command on a terminal,
//! keeps its output, ends it on order, and reaps whatever it left behind.
//!
//! One thread with one `poll` loop owns every wait. A supervisor that panics still says so.

pub(crate) mod account;
mod aside;
mod control;
mod delivery;
mod ending;
mod env;
mod launch;
mod logs;
mod oom;
pub(crate) mod peers;
mod prepare;
mod python;
mod ssh;
mod stay;
mod supervisor;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use api::agent::{ExitReason, TaskExit};

use crate::disk::{self, Heir};
pub(crate) use crate::job::account::Database;
use crate::job::control::Control;
pub(crate) use crate::job::peers::run as run_peers;
pub(crate) use crate::job::ssh::{run as run_ssh, run_sftp};
pub(crate) use crate::job::stay::run as run_stay;
use crate::job::supervisor::Supervisor;
use crate::sys::Detached;
use crate::wire::{self, JobFile, JobStatus, Stage};
use crate::{clock, failpoint, log_files, procs};

/// Space kept for the last status, so that a full disk cannot swallow it.
const EXIT_RESERVE: usize = 16 * 1024;

/// Runs the supervisor for the run folder `dir`. With `detach`, this process returns as soon as the
/// supervisor listens on its socket in a session of its own.
pub(crate) fn run(dir: &Path, detach: bool) -> ExitCode {
    match start(dir, detach) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("dstack-agent job: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn start(dir: &Path, detach: bool) -> io::Result<()> {
    if !detach {
        keep_last_words(dir)?;
    }
    let path = dir.join(wire::LOCK);
    let Some(lock) = disk::lock(&path)? else {
        // Another supervisor of the same job lives; it alone does the work.
        return Ok(());
    };
    let heir = Heir::of(dir)?;
    heir.give(&path)?;
    if dir.join(wire::EXIT_FILE).exists() {
        return Ok(());
    }
    let control = Control::listen(dir, heir)?;
    if detach && crate::sys::detach()? == Detached::Starter {
        return Ok(());
    }
    lock.sign()?;
    let reserve = ExitFile::reserve(dir, heir);
    let job = read_job_file(dir)?;
    if let Some(home) = &job.failpoint_home {
        failpoint::set_home(home.clone());
    }
    let id = job.spec.id;
    let outcome =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Supervisor::new(dir, job, control)?.supervise()));
    let failure = match outcome {
        Ok(Ok((status, mut control))) => {
            failpoint::failpoint("job:exited");
            reserve.fill(&status)?;
            failpoint::failpoint("job:sealed");
            control.report(&status);
            control.flush_before_end();
            return Ok(());
        }
        Ok(Err(error)) => format!("the job's supervisor failed: {error}"),
        Err(panic) => format!("the job's supervisor panicked: {}", panic_text(&*panic)),
    };
    say(&failure);
    procs::kill_all(id);
    reserve.fill(&failed(dir, failure))
}

/// Sends what is printed to where the agent finds it. A container's own log goes with the container.
fn keep_last_words(dir: &Path) -> io::Result<()> {
    let log = std::fs::OpenOptions::new().append(true).create(true).open(dir.join(wire::SUPERVISOR_LOG))?;
    Ok(nix::unistd::dup2_stderr(log)?)
}

/// Reads the orders and removes them, because they hold secrets.
fn read_job_file(dir: &Path) -> io::Result<JobFile> {
    let path = dir.join(wire::JOB_FILE);
    let bytes = std::fs::read(&path)?;
    let job = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    std::fs::remove_file(&path)?;
    Ok(job)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

fn failed(dir: &Path, message: String) -> JobStatus {
    JobStatus {
        stage: Stage::Ended,
        pid: nix::unistd::getpid().as_raw(),
        working_dir: None,
        username: None,
        ssh_port: None,
        started_at: None,
        log_end: log_files::end_on_disk(&dir.join(wire::LOGS)),
        warnings: Vec::new(),
        exit: Some(TaskExit {
            reason: ExitReason::ExecutorError,
            exit_status: None,
            signal: None,
            oom_killed: false,
            message: Some(message),
            finished_at: clock::now(),
        }),
        unvisited_millis: None,
        visits: 0,
    }
}

/// The place of the last status, taken while there is room.
struct ExitFile<'a> {
    dir: &'a Path,
    heir: Heir,
    reserved: Option<std::fs::File>,
}

impl ExitFile<'_> {
    fn reserve(dir: &Path, heir: Heir) -> ExitFile<'_> {
        let path = dir.join("exit.json.new");
        let reserved = std::fs::File::create(path).and_then(|mut file| {
            file.write_all(&[b' '; EXIT_RESERVE])?;
            file.sync_all()?;
            Ok(file)
        });
        ExitFile { dir, heir, reserved: reserved.ok() }
    }

    /// Writes the last status durably, and whole or not at all.
    fn fill(self, status: &JobStatus) -> io::Result<()> {
        let bytes = serde_json::to_vec(status).map_err(io::Error::other)?;
        let path = self.dir.join(wire::EXIT_FILE);
        let Some(file) = self.reserved else {
            disk::write_atomically(&path, &bytes)?;
            return self.heir.give(&path);
        };
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        self.heir.give(&self.dir.join("exit.json.new"))?;
        std::fs::rename(self.dir.join("exit.json.new"), &path)?;
        disk::sync_parent(&path)
    }
}

#[expect(clippy::print_stderr, reason = "the supervisor's standard error is its own log")]
fn say(text: &str) {
    eprintln!("{text}");
}
