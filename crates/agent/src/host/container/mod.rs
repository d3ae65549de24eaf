//! Tasks as containers of the host's Docker engine. The container is found by its label, never by memory;
//! the supervisor inside speaks over the same folder as that of a plain process.

mod body;
mod engine;
mod image;
mod pull;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use api::agent::{ContainerNetwork, ContainerSpec, ExitReason, Resolved, TaskSpec};
use api::ids::JobId;
use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::disk;
use crate::failpoint::failpoint;
use crate::host::container::body::{Extras, HOME_LABEL, TASK_LABEL};
pub(crate) use crate::host::container::engine::Engine;
use crate::host::runtime::{Failure, Gone, Liveness, Progress};
use crate::host::state::Host;
use crate::host::task_dir::TaskDir;
use crate::wire;

/// How long an engine that does not answer is waited for before a launch fails.
const ENGINE_WAIT: Duration = Duration::from_mins(1);
/// How soon it is asked again.
const ENGINE_RETRY: Duration = Duration::from_secs(1);
/// How often a launch begins again after the engine went away in the middle of it.
const INTERRUPTIONS_LIMIT: u32 = 10;

/// A container cannot be made.
pub(super) fn failure(message: impl Into<String>) -> Failure {
    Failure { reason: ExitReason::CreatingContainerError, message: message.into() }
}

/// Why a step of a launch did not come to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It never will.
    Final(Failure),
    /// The engine went away before it had answered; nobody knows what it has done.
    Engine(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Final(failure)
    }
}

/// What is to be launched.
struct Launch<'a> {
    host: &'a Host,
    dir: &'a TaskDir,
    spec: &'a TaskSpec,
    container: &'a ContainerSpec,
    gpus: Vec<String>,
    progress: &'a mpsc::Sender<Progress>,
    cancel: &'a CancellationToken,
}

/// Brings the task's container up: image, network, container, supervisor. What is there already stays, so an engine
/// that goes away in the middle only makes us begin again.
pub(crate) async fn launch(
    host: &Host,
    dir: &TaskDir,
    spec: &TaskSpec,
    container: &ContainerSpec,
    gpus: Vec<String>,
    progress: &mpsc::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let launch = Launch { host, dir, spec, container, gpus, progress, cancel };
    let mut interruptions = 0;
    loop {
        let docker = reach(host, cancel).await?;
        let error = match launch.attempt(&docker).await {
            Ok(()) => return Ok(()),
            Err(Trouble::Final(failure)) => return Err(failure),
            Err(Trouble::Engine(error)) => error,
        };
        interruptions += 1;
        if INTERRUPTIONS_LIMIT < interruptions {
            return Err(failure(format!("the container engine went away {interruptions} times: {error}")));
        }
        warn!(task.id = %spec.id, "the container engine went away: {error}");
        pause(cancel).await?;
    }
}

impl Launch<'_> {
    async fn attempt(&self, docker: &Docker) -> Result<(), Trouble> {
        if let Some(found) = find(docker, self.spec.id).await.map_err(told)? {
            let is_running = found.state.as_ref().and_then(|state| state.running).unwrap_or(false);
            if is_running || self.dir.read_exit().is_some() {
                self.tell_container(docker, found.id).await;
                return Ok(());
            }
            if self.dir.is_marked_started() {
                return Err(Failure::executor("the command was started before; it is not repeated").into());
            }
            // Made and never started, or ended before its command: made anew from the spec.
            remove_container(docker, &found.id.unwrap_or_default()).await.map_err(told)?;
        }
        let _ = self.progress.send(Progress::Pulling).await;
        failpoint("container:pull");
        let image = tokio::select! {
            image = image::ensure(docker, self.container, self.progress) => image?,
            () = self.cancel.cancelled() => return Err(cancelled().into()),
        };
        body::check_cuda(&image, &self.gpus, self.host).map_err(failure)?;
        let binary = self.host.install_binary().map_err(|error| {
            failure(format!("cannot put the agent's program where containers find it: {error}"))
        })?;
        if let ContainerNetwork::Named { name, subnet, .. } = &self.container.network {
            engine::ensure_network(docker, name, subnet).await.map_err(told)?;
        }
        let job = body::job_file(self.host, self.spec, &image, self.gpus.clone())?;
        self.dir
            .write_job_file(&job)
            .map_err(|error| Failure::executor(format!("cannot write the job's file: {error}")))?;
        let Launch { host, dir, spec, container, ref gpus, .. } = *self;
        let task = body::TaskContainer { host, dir, spec, container, gpus, binary: &binary };
        let id = create_and_start(docker, &task, self.progress).await?;
        failpoint("container:started");
        info!(task.id = %spec.id, container.id = %id, "started the container");
        self.tell_container(docker, Some(id)).await;
        Ok(())
    }

    async fn tell_container(&self, docker: &Docker, container_id: Option<String>) {
        let port = body::published_port(self.spec, &self.container.network);
        let ports = match (&port, &container_id) {
            (Some(port), Some(id)) => published(docker, id, port).await,
            _ => BTreeMap::new(),
        };
        let resolved = Resolved { container_id, ports, ..Resolved::default() };
        let _ = self.progress.send(Progress::Resolved(resolved)).await;
    }
}

/// The host's port for a published one of the container; empty where the engine does not say.
async fn published(docker: &Docker, id: &str, port: &str) -> BTreeMap<u16, u16> {
    let inspected = docker.inspect_container(id, None).await.ok();
    let ports = inspected.and_then(|container| container.network_settings?.ports).unwrap_or_default();
    let bindings = ports.get(port).cloned().flatten().unwrap_or_default();
    let theirs = port.trim_end_matches("/tcp").parse();
    let ours = bindings.into_iter().find_map(|binding| binding.host_port?.parse().ok());
    theirs.ok().zip(ours).into_iter().collect()
}

/// Whether the task's container runs.
pub(crate) async fn liveness(host: &Host, dir: &TaskDir, id: JobId) -> Liveness {
    let Ok(docker) = host.engine.connect().await else {
        return liveness_without_engine(dir);
    };
    let Ok(found) = find(&docker, id).await else {
        return liveness_without_engine(dir);
    };
    let Some(found) = found else {
        let interrupted = Some("the job's container was removed".to_owned());
        return Liveness::Gone(Gone { interrupted, oom_killed: false });
    };
    let state = found.state.unwrap_or_default();
    match state.status {
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::PAUSED
            | ContainerStateStatusEnum::RESTARTING,
        ) => Liveness::Alive,
        Some(
            ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::DEAD,
        ) => {
            let oom_killed = state.oom_killed.unwrap_or(false);
            let started_at = state.started_at.as_deref().unwrap_or_default();
            let by_engine = !oom_killed && host.engine.has_ended_what_runs_since(started_at).await;
            let interrupted = by_engine.then(|| wire::ENGINE_INTERRUPTED.to_owned());
            Liveness::Gone(Gone { interrupted, oom_killed })
        }
        _ => Liveness::Unknown,
    }
}

/// What the supervisor's lock says where the engine says nothing. The container's first process holds it for as long
/// as it lives, and it is the same file on both sides.
fn liveness_without_engine(dir: &TaskDir) -> Liveness {
    match disk::is_locked(&dir.lock()) {
        Ok(true) => Liveness::Alive,
        Ok(false) => {
            let interrupted = Some(wire::ENGINE_INTERRUPTED.to_owned());
            Liveness::Gone(Gone { interrupted, oom_killed: false })
        }
        Err(_) => Liveness::Unknown,
    }
}

/// Kills the task's container, if it runs. The error says that it may run on.
pub(crate) async fn kill(host: &Host, id: JobId) -> Result<(), String> {
    let docker = host.engine.connect().await?;
    let Some(found) = find(&docker, id).await.map_err(|error| message(&error))? else {
        return Ok(());
    };
    let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    match docker.kill_container(&found.id.unwrap_or_default(), Some(options)).await {
        // It had ended, or was removed meanwhile.
        Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
        result => result.map_err(|error| message(&error)),
    }
}

/// Removes the task's container.
pub(crate) async fn remove(host: &Host, id: JobId) -> Result<(), String> {
    let docker = host.engine.connect().await?;
    let found = find(&docker, id).await.map_err(|error| error.to_string())?;
    match found.and_then(|found| found.id) {
        Some(id) => remove_container(&docker, &id).await.map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

/// Removes containers of this agent whose tasks nobody knows any more.
pub(crate) async fn remove_strangers(host: &Host) {
    let Ok(docker) = host.engine.connect().await else {
        return;
    };
    let label = format!("{HOME_LABEL}={}", host.options.home.display());
    for container in list(&docker, label).await.unwrap_or_default() {
        let labels = container.labels.unwrap_or_default();
        let task = labels.get(TASK_LABEL).and_then(|id| id.parse::<JobId>().ok());
        let is_known = task.is_some_and(|id| host.task(id).is_ok());
        if let (false, Some(id)) = (is_known, container.id) {
            warn!(container.id = %id, "removing a container whose task is not known");
            let _ = remove_container(&docker, &id).await;
        }
    }
}

/// Removes every container of the agent with this home, and of those whose homes lay below `homes` and are gone.
/// Nothing is to do where there is no engine, unless it left a container alive and may come back to it.
pub(crate) async fn remove_all(home: &Path, homes: Option<&Path>) -> Result<(), String> {
    let engine = Engine::new(true);
    if !engine.exists() {
        return if may_live(home) { Err("the container engine is away".to_owned()) } else { Ok(()) };
    }
    let docker = engine.connect().await?;
    for container in list(&docker, HOME_LABEL.to_owned()).await.map_err(|error| message(&error))? {
        let labels = container.labels.unwrap_or_default();
        let of = labels.get(HOME_LABEL).map_or(Path::new(""), Path::new);
        let is_left = homes.is_some_and(|homes| of.starts_with(homes) && !of.exists());
        if let (true, Some(id)) = (of == home || is_left, container.id) {
            remove_container(&docker, &id).await.map_err(|error| message(&error))?;
        }
    }
    Ok(())
}

/// Whether a container of the agent with this home may be alive, as far as the supervisors' locks tell. A container
/// can outlive its engine.
pub(crate) fn may_live(home: &Path) -> bool {
    let tasks = home.join("tasks");
    let entries = match std::fs::read_dir(&tasks) {
        Ok(entries) => entries,
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    let mut ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<JobId>().ok());
    ids.any(|id| !matches!(disk::is_locked(&TaskDir::new(&tasks, id).lock()), Ok(false)))
}

/// Removes a network, unless somebody uses it or it is gone. Nothing is to do where there is no engine.
pub(crate) async fn remove_network(name: &str) -> Result<(), String> {
    let engine = Engine::new(true);
    if !engine.exists() {
        return Ok(());
    }
    let docker = engine.connect().await?;
    match docker.remove_network(name).await {
        Err(DockerError::DockerResponseServerError { status_code: 403 | 404 | 409, .. }) => Ok(()),
        result => result.map_err(|error| message(&error)),
    }
}

/// The engine, once it answers.
async fn reach(host: &Host, cancel: &CancellationToken) -> Result<Docker, Failure> {
    let deadline = tokio::time::Instant::now() + ENGINE_WAIT;
    loop {
        let error = match host.engine.connect().await {
            Ok(docker) => return Ok(docker),
            Err(error) => error,
        };
        if deadline < tokio::time::Instant::now() || host.engine.is_off() {
            return Err(failure(format!("the container engine does not answer: {error}")));
        }
        pause(cancel).await?;
    }
}

async fn pause(cancel: &CancellationToken) -> Result<(), Failure> {
    tokio::select! {
        () = tokio::time::sleep(ENGINE_RETRY) => Ok(()),
        () = cancel.cancelled() => Err(cancelled()),
    }
}

fn cancelled() -> Failure {
    failure("the task was told to end")
}

/// Creates and starts the container; what the host forbids is left out, and said.
async fn create_and_start(
    docker: &Docker,
    task: &body::TaskContainer<'_>,
    progress: &mpsc::Sender<Progress>,
) -> Result<String, Trouble> {
    let mut extras = Extras::default();
    loop {
        let body = body::container(task, extras).map_err(failure)?;
        let name = body::name(task.spec);
        failpoint("container:create");
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = match docker.create_container(Some(options), body).await {
            // An earlier one is still being made or removed.
            Err(DockerError::DockerResponseServerError { status_code: 409, message }) => {
                return Err(Trouble::Engine(message));
            }
            created => created.map_err(told)?,
        };
        failpoint("container:created");
        let Err(error) = docker.start_container(&created.id, None).await else {
            return Ok(created.id);
        };
        if !matches!(error, DockerError::DockerResponseServerError { .. }) {
            return Err(told(error));
        }
        let _ = remove_container(docker, &created.id).await;
        let Some((fewer, warning)) = extras.without_what_failed(&message(&error)) else {
            return Err(told(error));
        };
        extras = fewer;
        if let Some(warning) = warning {
            let _ = progress.send(Progress::Warning(warning.to_owned())).await;
        }
    }
}

async fn find(docker: &Docker, id: JobId) -> Result<Option<ContainerInspectResponse>, DockerError> {
    let listed = list(docker, format!("{TASK_LABEL}={id}")).await?;
    let Some(container) = listed.into_iter().find_map(|container| container.id) else {
        return Ok(None);
    };
    match docker.inspect_container(&container, None).await {
        Ok(found) => Ok(Some(found)),
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn list(docker: &Docker, label: String) -> Result<Vec<ContainerSummary>, DockerError> {
    let filters = std::collections::HashMap::from([("label", vec![label])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    docker.list_containers(Some(options)).await
}

async fn remove_container(docker: &Docker, id: &str) -> Result<(), DockerError> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match docker.remove_container(id, Some(options)).await {
        // Gone, or being removed by somebody else.
        Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
        result => result,
    }
}

fn message(error: &DockerError) -> String {
    match error {
        DockerError::DockerResponseServerError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// An error of the engine in the user's words. Whatever is not its answer means that it went away.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn told(error: DockerError) -> Trouble {
    let text = message(&error);
    let is_answer =
        matches!(error, DockerError::DockerResponseServerError { .. } | DockerError::DockerStreamError { .. });
    // The engine answers for the daemon behind it, which may be away as well.
    if !is_answer || text.contains("code = Unavailable") {
        return Trouble::Engine(text);
    }
    if text.contains("could not select device driver") {
        let advice = format!(
            "the container engine cannot give GPUs to containers; install nvidia-container-toolkit \
             on the host ({text})"
        );
        return failure(advice).into();
    }
    let is_port = text.contains("port is already allocated") || text.contains("address already in use");
    let reason = if is_port { ExitReason::PortsBindingFailed } else { ExitReason::CreatingContainerError };
    Failure { reason, message: text }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, reason: ExitReason, part: &str) {
        let message = text.to_owned();
        let error = DockerError::DockerResponseServerError { status_code: 500, message };
        let Trouble::Final(failure) = told(error) else { panic!("`{text}` is an answer") };
        assert_eq!(failure.reason, reason);
        assert!(failure.message.contains(part), "{}", failure.message);
    }

    #[test]
    fn errors_of_the_engine_become_advice() {
        check(
            "could not select device driver \"\" with capabilities: [[gpu]]",
            ExitReason::CreatingContainerError,
            "install nvidia-container-toolkit",
        );
        check("Bind for 0.0.0.0:80: port is already allocated", ExitReason::PortsBindingFailed, "80");
        check("no such image", ExitReason::CreatingContainerError, "no such image");
    }

    #[test]
    fn an_engine_that_is_away_has_not_answered() {
        let cut = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let message = "connection error: rpc error: code = Unavailable".to_owned();
        for error in [
            DockerError::IOError { err: cut() },
            DockerError::RequestTimeoutError,
            DockerError::DockerResponseServerError { status_code: 500, message },
        ] {
            assert!(matches!(told(error), Trouble::Engine(_)));
        }
    }

    #[test]
    fn a_lock_tells_of_life_where_the_engine_says_nothing() {
        let home = tempfile::tempdir().unwrap();
        assert!(!may_live(home.path()));
        let dir = TaskDir::new(&home.path().join("tasks"), JobId(uuid::Uuid::nil()));
        disk::create_private_dir(&dir.run()).unwrap();
        let gone = |found| matches!(found, Liveness::Gone(Gone { interrupted: Some(_), .. }));
        assert!(gone(liveness_without_engine(&dir)));
        let held = disk::lock(&dir.lock()).unwrap();
        assert_eq!(liveness_without_engine(&dir), Liveness::Alive);
        assert!(may_live(home.path()));
        drop(held);
        assert!(gone(liveness_without_engine(&dir)));
        assert!(!may_live(home.path()));
    }
}
