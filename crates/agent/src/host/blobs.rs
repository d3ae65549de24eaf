//! Uploaded code and files on the host, by their SHA-256; shared by all tasks.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use api::agent::{AgentError, AgentErrorCode, TaskSpec};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::host::http::{Refusal, internal};
use crate::host::state::{Host, refuse};
use crate::host::task_dir::TaskDir;

/// How long a blob that no task waits for is kept.
const UNUSED_LIFETIME: Duration = Duration::from_hours(24);

static UPLOADS: AtomicU64 = AtomicU64::new(0);

/// Answers whether the blob is here.
pub(crate) async fn head(State(host): State<Arc<Host>>, Path(sha256): Path<String>) -> StatusCode {
    let Ok(path) = path(&host, &sha256) else {
        return StatusCode::BAD_REQUEST;
    };
    let kept = tokio::task::spawn_blocking(move || keep(&path, crate::clock::now().into())).await;
    if kept.is_ok_and(|kept| kept.is_ok()) { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

/// Makes a blob young again: who asked for it is about to need it.
fn keep(path: &std::path::Path, now: SystemTime) -> std::io::Result<()> {
    std::fs::File::options().write(true).open(path)?.set_modified(now)
}

/// Takes a blob in, if its bytes are what its name says.
pub(crate) async fn put(
    State(host): State<Arc<Host>>,
    Path(sha256): Path<String>,
    body: Body,
) -> Result<Json<()>, Refusal> {
    let target = path(&host, &sha256)?;
    let number = UPLOADS.fetch_add(1, Ordering::Relaxed);
    let partial = Partial(host.blobs_dir().join(format!("{sha256}.{number}.part")));
    let found = receive(body, &partial.0).await?;
    if found != sha256 {
        let message = format!("the blob's SHA-256 is {found}, not {sha256}");
        return Err(refuse(AgentErrorCode::InvalidRequest, message).into());
    }
    tokio::fs::rename(&partial.0, &target).await.map_err(internal)?;
    Ok(Json(()))
}

/// An upload that goes away unless it is renamed, also where the one who sends it does.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn receive(body: Body, partial: &std::path::Path) -> Result<String, AgentError> {
    let mut file = tokio::fs::File::create(partial).await.map_err(internal)?;
    let mut hasher = Sha256::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(internal)?;
        hasher.update(&chunk);
        file.write_all(&chunk).await.map_err(internal)?;
    }
    file.sync_all().await.map_err(internal)?;
    Ok(hex::encode(hasher.finalize()))
}

fn path(host: &Host, sha256: &str) -> Result<PathBuf, AgentError> {
    let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash && sha256 == sha256.to_ascii_lowercase() {
        Ok(host.blobs_dir().join(sha256))
    } else {
        Err(refuse(AgentErrorCode::InvalidRequest, "a blob's name is its SHA-256"))
    }
}

/// The blobs that a spec needs.
pub(crate) fn of_spec(spec: &TaskSpec) -> impl Iterator<Item = &String> {
    let code = spec.code.iter().filter_map(|code| code.blob_sha256.as_ref());
    code.chain(spec.files.iter().map(|file| &file.blob_sha256))
}

/// Removes uploads that were cut short, and blobs that no waiting task needs and that are old.
pub(crate) fn prune(host: &Host, now: SystemTime) {
    let needed: BTreeSet<String> = host
        .tasks()
        .iter()
        .filter_map(|task| TaskDir::new(&host.tasks_dir(), task.id).read_spec().ok())
        .flat_map(|spec| of_spec(&spec).cloned().collect::<Vec<_>>())
        .collect();
    let Ok(entries) = std::fs::read_dir(host.blobs_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| now.duration_since(modified).ok())
            .unwrap_or_default();
        if !needed.contains(&name) && UNUSED_LIFETIME < age {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_was_asked_for_is_kept_another_day() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::for_tests(dir.path(), &[], None);
        let now: SystemTime = crate::clock::now().into();
        let blobs = ["asked", "not-asked"].map(|name| host.blobs_dir().join(name));
        for blob in &blobs {
            std::fs::write(blob, "").unwrap();
            keep(blob, now - 2 * UNUSED_LIFETIME).unwrap();
        }
        keep(&blobs[0], now).unwrap();
        prune(&host, now);
        assert_eq!(blobs.map(|blob| blob.exists()), [true, false]);
        assert!(keep(&host.blobs_dir().join("missing"), now).is_err());
    }
}
