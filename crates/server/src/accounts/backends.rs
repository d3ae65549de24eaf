//! The backends of projects.

use anyhow::Context as _;
use api::ids::ProjectId;
use backends::BackendConfig;
use store::backends::{self as rows, BackendRow};
use store::{Hold, Tx, projects};

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

/// Takes a backend from its project, and says whether its row stays until its machines are gone.
pub async fn remove_backend(deps: &Deps, row: &BackendRow) -> store::Result<bool> {
    let mut tx = deps.db.begin().await?;
    let stays = rows::is_in_use(&mut tx, row.id).await?;
    if stays {
        rows::set_draining(&mut tx, row.id).await?;
    } else {
        rows::delete(&mut tx, row.id).await?;
    }
    tx.commit().await?;
    Ok(stays)
}

/// Forgets the backends that were let go and have no machines any more.
pub async fn forget_drained_backends(deps: &Deps) -> store::Result<()> {
    for row in rows::all(&deps.db).await? {
        if row.draining && !rows::is_in_use(&deps.db, row.id).await? {
            rows::delete(&deps.db, row.id).await?;
        }
    }
    Ok(())
}
