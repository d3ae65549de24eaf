//! Bringing a task's image to the host.

use std::time::Duration;

use api::agent::ContainerSpec;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error as DockerError;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::host::container::pull::Layers;
use crate::host::container::{failure, message};
use crate::host::runtime::{Failure, Progress};

/// How long a pull may make no progress. There is no limit to the whole of it.
const STALL_TIMEOUT: Duration = Duration::from_mins(10);
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// The image, pulled unless it is here and its tag is not one that moves.
pub(crate) async fn ensure(
    docker: &Docker,
    container: &ContainerSpec,
    progress: &mpsc::Sender<Progress>,
) -> Result<ImageInspect, Failure> {
    let local = inspect(docker, &container.image).await?;
    if let Some(local) = local.as_ref().filter(|_| !is_latest(&container.image)) {
        return Ok(local.clone());
    }
    let pulled = pull(docker, container, progress).await;
    match (pulled, local) {
        (Ok(()), _) => {
            let found = inspect(docker, &container.image).await?;
            found.ok_or_else(|| failure(format!("the image `{}` is gone again", container.image)))
        }
        (Err(error), Some(local)) => {
            let image = &container.image;
            let warning = format!("the copy of `{image}` here is used; it cannot be refreshed: {error}");
            let _ = progress.send(Progress::Warning(warning)).await;
            Ok(local)
        }
        (Err(error), None) => Err(failure(format!("cannot pull the image `{}`: {error}", container.image))),
    }
}

async fn inspect(docker: &Docker, image: &str) -> Result<Option<ImageInspect>, Failure> {
    match docker.inspect_image(image).await {
        Ok(found) => Ok(Some(found)),
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(failure(message(&error))),
    }
}

async fn pull(
    docker: &Docker,
    container: &ContainerSpec,
    progress: &mpsc::Sender<Progress>,
) -> Result<(), String> {
    let credentials = container.registry_auth.as_ref().map(|auth| DockerCredentials {
        username: Some(auth.username.clone()),
        password: Some(auth.password.clone()),
        serveraddress: Some(registry(&container.image).to_owned()),
        ..DockerCredentials::default()
    });
    let mut options = CreateImageOptionsBuilder::default().from_image(&container.image);
    if has_no_tag(&container.image) {
        // Without one the engine would pull every tag there is.
        options = options.tag("latest");
    }
    let mut messages = Box::pin(docker.create_image(Some(options.build()), None, credentials));
    let mut layers = Layers::default();
    let mut told_at: Option<Instant> = None;
    loop {
        let next = tokio::time::timeout(STALL_TIMEOUT, messages.next()).await;
        let next = next.map_err(|_| format!("no progress for {} s", STALL_TIMEOUT.as_secs()))?;
        let Some(news) = next else {
            return Ok(());
        };
        let news = news.map_err(|error| message(&error))?;
        if let Some(error) = news.error_detail.as_ref().and_then(|error| error.message.clone()) {
            return Err(error);
        }
        layers.note(&news);
        let now = Instant::now();
        if told_at.is_none_or(|told_at| told_at + PROGRESS_INTERVAL <= now) {
            told_at = Some(now);
            let _ = progress.send(Progress::Pull(layers.progress())).await;
        }
    }
}

/// Whether the reference means whatever is newest.
fn is_latest(image: &str) -> bool {
    has_no_tag(image) || (!image.contains('@') && image.ends_with(":latest"))
}

/// Whether the reference has neither tag nor digest. A colon before a slash belongs to a port.
fn has_no_tag(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !image.contains('@') && !last.contains(':')
}

/// The registry that the reference names; Docker's own if none.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "https://index.docker.io/v1/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_understood() {
        let check = |image: &str, latest: bool, host: &str| {
            assert_eq!((is_latest(image), registry(image)), (latest, host), "{image}");
        };
        let hub = "https://index.docker.io/v1/";
        check("debian", true, hub);
        check("debian:latest", true, hub);
        check("debian:bookworm", false, hub);
        check("dstackai/base:0.15", false, hub);
        check("localhost:5000/base", true, "localhost:5000");
        check("ghcr.io/a/b:1", false, "ghcr.io");
        check("debian@sha256:0123", false, hub);
        check("debian:latest@sha256:0123", false, hub);
    }
}
