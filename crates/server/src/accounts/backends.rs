//! The backends of projects.

use anyhow::Context as _;
use api::ids::ProjectId;
use backends::BackendConfig;
use store::backends::{self as rows, BackendRow};
use store::projects::ProjectRow;
use store::{Hold, Tx, instances, projects};

use crate::deps::Deps;

/// Gives a project a backend, or changes the one it has of that kind. Nothing is written where nothing changes.
/// [`store::Error::Stale`] if the project was deleted.
pub async fn set_backend(deps: &Deps, project: ProjectId, config: &BackendConfig) -> store::Result<()> {
    let mut tx = begin(deps, project).await?;
    let kept = rows::find(&mut tx, project, &config.kind).await?;
    match kept {
        Some(kept) => change(deps, tx, &kept, config).await,
        None => add(deps, tx, project, config).await,
    }
}

/// Gives a project a backend. [`store::Error::Taken`] if it has one of that kind, and [`store::Error::Stale`] if the
/// project was deleted.
///
/// One that was being let go is wanted again: its machines and its new ones belong together.
pub async fn add_backend(deps: &Deps, project: ProjectId, config: &BackendConfig) -> store::Result<()> {
    let tx = begin(deps, project).await?;
    add(deps, tx, project, config).await
}

/// A transaction that holds the project: what is written to one that is deleted would stay for ever.
async fn begin(deps: &Deps, project: ProjectId) -> store::Result<Tx> {
    let mut tx = deps.db.begin().await?;
    if projects::hold(&mut tx, project, Hold::Together).await? { Ok(tx) } else { Err(store::Error::Stale) }
}

async fn add(deps: &Deps, mut tx: Tx, project: ProjectId, config: &BackendConfig) -> store::Result<()> {
    if let Some(kept) = rows::find_draining(&mut tx, project, &config.kind).await? {
        return change(deps, tx, &kept, config).await;
    }
    let row = BackendRow {
        id: deps.ids.id(),
        project_id: project,
        kind: config.kind.clone(),
        config: config.without_creds(),
        sealed_config: deps.sealer.seal(&config.config.to_string()),
        draining: false,
        created_at: deps.clock.now(),
    };
    rows::insert(&mut tx, &row).await?;
    tx.commit().await?;
    deps.wake.ring_placement();
    Ok(())
}

async fn change(deps: &Deps, mut tx: Tx, kept: &BackendRow, config: &BackendConfig) -> store::Result<()> {
    let whole = config.config.to_string();
    // A sealed text differs each time, so that only the opened one can be compared.
    let is_same = deps.sealer.unseal(&kept.sealed_config).is_ok_and(|kept| kept == whole);
    if !is_same || kept.draining {
        rows::set_config(&mut tx, kept.id, &config.without_creds(), &deps.sealer.seal(&whole)).await?;
        tx.commit().await?;
        deps.wake.ring_placement();
    }
    Ok(())
}

/// The configuration of a backend, with credentials.
pub fn backend_config(deps: &Deps, row: &BackendRow) -> anyhow::Result<BackendConfig> {
    let text = deps.sealer.unseal(&row.sealed_config)?;
    let config = serde_json::from_str(&text).context("read a backend's configuration")?;
    Ok(BackendConfig { kind: row.kind.clone(), config })
}

/// Asks each backend whether it can be used as it is configured, and tells the log what is missing.
pub async fn check_backends(deps: Deps) {
    let rows = match rows::all(&deps.db).await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::warn!("cannot list the backends to check them: {error}");
            return;
        }
    };
    let checks = rows.iter().filter(|row| !row.draining).map(|row| check_backend(&deps, row));
    futures_util::future::join_all(checks).await;
}

async fn check_backend(deps: &Deps, row: &BackendRow) {
    let project = projects::get(&deps.db, row.project_id).await.ok().flatten();
    let project = project.map(|project| project.name).unwrap_or_default();
    let checked = match backend_config(deps, row) {
        Ok(config) => deps.backends.check(&config, row.id).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    match checked {
        Ok(()) => tracing::debug!("backend `{}` of project `{project}` can be used", row.kind),
        Err(error) => tracing::error!("backend `{}` of project `{project}` cannot be used: {error:#}", row.kind),
    }
}

/// Takes a backend from its project, and says whether its row stays until its machines are gone.
pub async fn remove_backend(deps: &Deps, row: &BackendRow) -> store::Result<bool> {
    let mut tx = deps.db.begin().await?;
    let stays = rows::is_in_use(&mut tx, row.id).await?;
    // Also a backend without machines may have things of ours in its cloud.
    rows::set_draining(&mut tx, row.id).await?;
    tx.commit().await?;
    Ok(stays)
}

/// What is said of a backend that is let go.
pub fn draining_note(kind: &str, project_name: &str, left: usize) -> String {
    let machines = if left == 1 { "machine" } else { "machines" };
    format!("backend {kind} of project {project_name} is draining: {left} {machines} left")
}

/// What the users of a project should know of its backends: which are let go, and which cannot be asked.
pub async fn backend_notes(deps: &Deps, project: &ProjectRow) -> store::Result<Vec<String>> {
    let mut notes = vec![];
    let leaving = rows::list_draining(&deps.db, project.id).await?;
    for row in &leaving {
        let left = instances::list_machines_by_backend(&deps.db, row.id).await?.len();
        notes.push(draining_note(&row.kind, &project.name, left));
    }
    for row in rows::list(&deps.db, project.id).await?.iter().chain(&leaving) {
        for trouble in deps.backends.troubles(row.id) {
            notes.push(format!("backend {} of project {} {}", row.kind, project.name, trouble.in_words()));
        }
    }
    Ok(notes)
}
