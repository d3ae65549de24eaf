//! The two ways to run a task, behind one set of verbs. Every verb may be repeated.

use api::agent::{ExitReason, PullProgress, Resolved, Runtime as WantedRuntime, TaskSpec};
use api::ids::JobId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::disk;
use crate::failpoint::failpoint;
use crate::host::state::Host;
use crate::host::task_dir::TaskDir;
use crate::host::{container, process};
use crate::wire::JobFile;

/// Whether a task's supervisor lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// It does.
    Alive,
    /// It does not.
    Gone(Gone),
    /// Nobody could say; ask again.
    Unknown,
}

/// What is known about a supervisor's end beside what it said itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Gone {
    /// It ended because the host did something to it.
    pub(crate) interrupted: Option<String>,
    /// The kernel ended it for want of memory.
    pub(crate) oom_killed: bool,
}

/// Why a task could not be brought to `ready`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What kind of failure it is.
    pub(crate) reason: ExitReason,
    /// What happened, for people.
    pub(crate) message: String,
}

impl Failure {
    /// Something of ours failed.
    pub(crate) fn executor(message: impl Into<String>) -> Failure {
        Failure { reason: ExitReason::ExecutorError, message: message.into() }
    }
}

/// What happens while a task is being launched.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Progress {
    /// The image is about to be pulled.
    Pulling,
    /// The pull went on.
    Pull(PullProgress),
    /// The user should know.
    Warning(String),
    /// Something was found out.
    Resolved(Resolved),
}

/// Launches the task's supervisor unless it lives already: job file, and for a container image and container.
pub(crate) async fn launch(
    host: &Host,
    dir: &TaskDir,
    spec: &TaskSpec,
    gpus: Vec<String>,
    progress: &mpsc::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let mut spec = spec.clone();
    if let Some(ssh) = &mut spec.ssh {
        // What stands on the host is none of the job's business.
        ssh.over_host = None;
    }
    let spec = &spec;
    match &spec.runtime {
        WantedRuntime::Process => {
            if process::liveness(dir) == Liveness::Alive || dir.read_exit().is_some() {
                return Ok(());
            }
            if dir.is_marked_started() {
                return Err(Failure::executor("the command was started before; it is not repeated"));
            }
            if spec.user.is_some() {
                dir.let_others_through(&host.options.home)
                    .map_err(|error| Failure::executor(format!("cannot open the task's folder: {error}")))?;
            }
            for warning in unenforced(spec) {
                let _ = progress.send(Progress::Warning(warning)).await;
            }
            let job = process_job_file(host, dir, spec, gpus);
            dir.write_job_file(&job)
                .map_err(|error| Failure::executor(format!("cannot write the job's file: {error}")))?;
            failpoint("launch:job-file-written");
            process::launch(dir).await.map_err(Failure::executor)
        }
        WantedRuntime::Docker(wanted) => container::launch(host, dir, spec, wanted, gpus, progress, cancel).await,
    }
}

/// Whether the task's supervisor lives.
pub(crate) async fn liveness(host: &Host, dir: &TaskDir, id: JobId, is_container: bool) -> Liveness {
    if is_container { container::liveness(host, dir, id).await } else { process::liveness(dir) }
}

/// Ends everything of the task at once; answers what the user should know about it. The error says why something of
/// it may still run.
pub(crate) async fn destroy(
    host: &Host,
    dir: &TaskDir,
    id: JobId,
    is_container: bool,
) -> Result<Vec<String>, String> {
    let told = if is_container { container::kill(host, id).await } else { Ok(()) };
    let destroyed = dir.clone();
    let destroy = move || process::destroy(&destroyed, id, is_container);
    let warnings = tokio::task::spawn_blocking(destroy).await.unwrap_or_default();
    // Without its engine a container ends with its supervisor, which only root can reach from outside.
    match told {
        Err(error) if !matches!(disk::is_locked(&dir.lock()), Ok(false)) => {
            Err(format!("the job's container cannot be ended: {error}"))
        }
        _ => Ok(warnings),
    }
}

/// Removes what a task keeps outside its folder.
pub(crate) async fn remove(host: &Host, id: JobId, is_container: bool) -> Result<(), String> {
    if is_container { container::remove(host, id).await } else { Ok(()) }
}

/// Limits that cannot be held for plain processes.
fn unenforced(spec: &TaskSpec) -> Vec<String> {
    let share = &spec.share;
    let cpus = share.cpus.map(|cpus| format!("`cpus: {cpus}`"));
    let memory = share.memory_bytes.map(|bytes| format!("a memory limit of {bytes} bytes"));
    [cpus, memory]
        .into_iter()
        .flatten()
        .map(|limit| format!("{limit} cannot be enforced for a process without a container"))
        .collect()
}

fn process_job_file(host: &Host, dir: &TaskDir, spec: &TaskSpec, gpus: Vec<String>) -> JobFile {
    JobFile {
        spec: spec.clone(),
        container: false,
        default_working_dir: dir.work(),
        home_dir: std::env::var_os("HOME").map(Into::into),
        venv_dir: dir.venv(),
        hostfile: dir.root().join("hostfile"),
        git_dir: dir.root().join("git"),
        peers_dir: dir.peers(),
        blobs_dir: host.blobs_dir(),
        gpu_env: host.gpu_env(&gpus),
        gpu_uuids: gpus,
        log_cap_bytes: host.options.log_cap_bytes,
        failpoint_home: cfg!(debug_assertions).then(|| host.options.home.clone()),
    }
}
