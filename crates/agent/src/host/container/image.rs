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
use crate::host::container::{Trouble, failure, told};
use crate::host::runtime::Progress;

/// How long a pull may make no progress. There is no limit to the whole of it.
const STALL_TIMEOUT: Duration = Duration::from_mins(10);
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// How the engine's last word about a pull that came to its end begins.
const PULLED: &str = "Status: ";

/// The image, pulled unless it is here and its tag is not one that moves.
pub(super) async fn ensure(
    docker: &Docker,
    container: &ContainerSpec,
    progress: &mpsc::Sender<Progress>,
) -> Result<ImageInspect, Trouble> {
    let name = &container.image;
    let local = inspect(docker, name).await?;
    if let Some(local) = local.as_ref().filter(|_| !is_latest(name)) {
        return Ok(local.clone());
    }
    let error = match pull(docker, container, progress).await {
        Ok(end) => match (inspect(docker, name).await?, end) {
            (None, PullEnd::Told) => return Err(failure(format!("the image `{name}` is gone again")).into()),
            (None, PullEnd::Cut) => return Err(Trouble::Engine(format!("the pull of `{name}` was cut short"))),
            // The copy of before may not be what the tag means now.
            (Some(image), PullEnd::Cut) if local.as_ref().is_some_and(|local| local.id == image.id) => {
                "its pull was cut short".to_owned()
            }
            (Some(image), _) => return Ok(image),
        },
        Err(Trouble::Engine(error)) => return Err(Trouble::Engine(error)),
        Err(Trouble::Final(failure)) => failure.message,
    };
    match local {
        Some(local) => {
            let warning = format!("the copy of `{name}` here is used; it cannot be refreshed: {error}");
            let _ = progress.send(Progress::Warning(warning)).await;
            Ok(local)
        }
        None => Err(failure(format!("cannot pull the image `{name}`: {error}")).into()),
    }
}

async fn inspect(docker: &Docker, image: &str) -> Result<Option<ImageInspect>, Trouble> {
    match docker.inspect_image(image).await {
        Ok(found) => Ok(Some(found)),
        Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(told(error)),
    }
}

/// How the messages of a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PullEnd {
    /// The engine said that it has the image.
    Told,
    /// They only stopped: an engine that is told to end closes its connections in good order.
    Cut,
}

async fn pull(
    docker: &Docker,
    container: &ContainerSpec,
    progress: &mpsc::Sender<Progress>,
) -> Result<PullEnd, Trouble> {
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
    let mut moved_at = Instant::now();
    let mut end = PullEnd::Cut;
    loop {
        let next = tokio::time::timeout_at(moved_at + STALL_TIMEOUT, messages.next()).await;
        let next = next.map_err(|_| failure(format!("no progress for {} s", STALL_TIMEOUT.as_secs())))?;
        let Some(news) = next else {
            return Ok(end);
        };
        let news = news.map_err(told)?;
        if let Some(error) = news.error_detail.as_ref().and_then(|error| error.message.clone()) {
            return Err(failure(error).into());
        }
        if news.status.as_ref().is_some_and(|status| status.starts_with(PULLED)) {
            end = PullEnd::Told;
        }
        let now = Instant::now();
        if layers.note(&news) {
            moved_at = now;
        }
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
