//! Tasks as containers of the host's Docker engine. The container is found by its label, never by memory;
//! the supervisor inside speaks over the same folder as that of a plain process.

mod body;
mod engine;
mod image;
mod pull;

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

use crate::failpoint::failpoint;
use crate::host::container::body::{Limits, TASK_LABEL};
pub(crate) use crate::host::container::engine::Engine;
use crate::host::runtime::{Failure, Gone, Liveness, Progress};
use crate::host::state::Host;
use crate::host::task_dir::TaskDir;
use crate::wire;

/// How long an engine that does not answer is waited for before a launch fails.
const ENGINE_WAIT: Duration = Duration::from_mins(1);

/// A container cannot be made.
pub(super) fn failure(message: impl Into<String>) -> Failure {
    Failure { reason: ExitReason::CreatingContainerError, message: message.into() }
}

/// Brings the task's container up: image, network, container, supervisor. What is there already stays.
pub(crate) async fn launch(
    host: &Host,
    dir: &TaskDir,
    spec: &TaskSpec,
    container: &ContainerSpec,
    gpus: Vec<String>,
    progress: &mpsc::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let docker = reach(host, cancel).await?;
    if let Some(found) = find(&docker, spec.id).await.map_err(told)? {
        let is_running = found.state.as_ref().and_then(|state| state.running).unwrap_or(false);
        if is_running || dir.read_exit().is_some() {
            let resolved = Resolved { container_id: found.id, ..Resolved::default() };
            let _ = progress.send(Progress::Resolved(resolved)).await;
            return Ok(());
        }
        if dir.is_marked_started() {
            return Err(Failure::executor("the command was started before; it is not repeated"));
        }
        // Made and never started, or ended before its command: made anew from the spec.
        remove_container(&docker, &found.id.unwrap_or_default()).await.map_err(told)?;
    }
    let _ = progress.send(Progress::Pulling).await;
    failpoint("container:pull");
    let image = tokio::select! {
        image = image::ensure(&docker, container, progress) => image?,
        () = cancel.cancelled() => return Err(failure("the task was told to end")),
    };
    body::check_cuda(&image, &gpus, host).map_err(failure)?;
    let binary = host
        .install_binary()
        .map_err(|error| failure(format!("cannot put the agent's program where containers find it: {error}")))?;
    if let ContainerNetwork::Named { name, subnet, .. } = &container.network {
        engine::ensure_network(&docker, name, subnet).await.map_err(told)?;
    }
    let job = body::job_file(host, spec, &image, gpus.clone())?;
    dir.write_job_file(&job)
        .map_err(|error| Failure::executor(format!("cannot write the job's file: {error}")))?;
    let task = body::TaskContainer { host, dir, spec, container, gpus: &gpus, binary: &binary };
    let id = create_and_start(&docker, &task, progress).await?;
    failpoint("container:started");
    info!(task.id = %spec.id, container.id = %id, "started the container");
    let resolved = Resolved { container_id: Some(id), ..Resolved::default() };
    let _ = progress.send(Progress::Resolved(resolved)).await;
    Ok(())
}

/// Whether the task's container runs.
pub(crate) async fn liveness(host: &Host, id: JobId) -> Liveness {
    let Ok(docker) = host.engine.connect().await else {
        return Liveness::Unknown;
    };
    let Ok(found) = find(&docker, id).await else {
        return Liveness::Unknown;
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
            let started_at = state.started_at.as_deref().unwrap_or_default();
            let restarted = host.engine.was_restarted_since(started_at);
            let oom_killed = state.oom_killed.unwrap_or(false);
            let by_engine = restarted && !oom_killed;
            let interrupted = by_engine.then(|| wire::ENGINE_INTERRUPTED.to_owned());
            Liveness::Gone(Gone { interrupted, oom_killed })
        }
        _ => Liveness::Unknown,
    }
}

/// Kills the task's container, if it runs.
pub(crate) async fn kill(host: &Host, id: JobId) {
    let Ok(docker) = host.engine.connect().await else {
        return;
    };
    let Ok(Some(found)) = find(&docker, id).await else {
        return;
    };
    let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
    // It may have ended meanwhile.
    let _ = docker.kill_container(&found.id.unwrap_or_default(), Some(options)).await;
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

/// Removes containers of this instance whose tasks nobody knows any more.
pub(crate) async fn remove_strangers(host: &Host) {
    let Some(instance) = host.options.instance_id else {
        return;
    };
    let Ok(docker) = host.engine.connect().await else {
        return;
    };
    let label = format!("{}={instance}", body::INSTANCE_LABEL);
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
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = cancel.cancelled() => return Err(failure("the task was told to end")),
        }
    }
}

/// Creates and starts the container; what the host forbids is left out, and said.
async fn create_and_start(
    docker: &Docker,
    task: &body::TaskContainer<'_>,
    progress: &mpsc::Sender<Progress>,
) -> Result<String, Failure> {
    let mut limits = Limits::default();
    loop {
        let body = body::container(task, limits).map_err(failure)?;
        let name = body::name(task.spec);
        failpoint("container:create");
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = docker.create_container(Some(options), body).await.map_err(told)?;
        failpoint("container:created");
        let Err(error) = docker.start_container(&created.id, None).await else {
            return Ok(created.id);
        };
        let text = message(&error);
        let _ = remove_container(docker, &created.id).await;
        // The kernel's numbers: 7 is the count of open files, 8 is locked memory.
        if limits.memlock && text.contains("rlimit type 8") {
            limits.memlock = false;
            let warning = "the host forbids unlimited locked memory; RDMA may fail".to_owned();
            let _ = progress.send(Progress::Warning(warning)).await;
        } else if limits.nofile && text.contains("rlimit type 7") {
            limits.nofile = false;
        } else if limits.nofile && text.contains("rlimit") {
            limits = Limits { nofile: false, memlock: false };
        } else {
            return Err(told(error));
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

/// An error of the engine in the user's words.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn told(error: DockerError) -> Failure {
    let text = message(&error);
    if text.contains("could not select device driver") {
        return failure(format!(
            "the container engine cannot give GPUs to containers; install nvidia-container-toolkit \
             on the host ({text})"
        ));
    }
    let is_port = text.contains("port is already allocated") || text.contains("address already in use");
    if is_port { Failure { reason: ExitReason::PortsBindingFailed, message: text } } else { failure(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, reason: ExitReason, part: &str) {
        let message = text.to_owned();
        let error = DockerError::DockerResponseServerError { status_code: 500, message };
        let failure = told(error);
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
}
