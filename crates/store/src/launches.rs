//! Launches: purchases of machines.

use api::ids::{BackendId, FleetId, LaunchId, ProjectId};
use jiff::Timestamp;
use lifecycle::launch::Launch;

use crate::db::{Executor, Row};
use crate::error::{Error, Result};
use crate::{Versioned, values};

fn launch(row: &Row) -> Result<Versioned<Launch>> {
    Ok(Versioned {
        version: row.int(0)?,
        value: Launch {
            id: row.id(1)?,
            project_id: row.id(2)?,
            fleet_id: row.id(3)?,
            backend_id: row.id(4)?,
            created_at: row.time(5)?,
            status: row.word(6)?,
            cancelled: row.truth(7)?,
            state: row.json(8)?,
        },
    })
}

/// A launch.
pub async fn get(mut db: impl Executor, id: LaunchId) -> Result<Option<Versioned<Launch>>> {
    let row = db
        .row(
            "SELECT version, id, project_id, fleet_id, backend_id, created_at, status, cancelled, state \
             FROM launches WHERE id = $1",
            values![id],
        )
        .await?;
    row.as_ref().map(launch).transpose()
}

/// A fleet's launches that are not over.
pub async fn list_open(mut db: impl Executor, fleet: FleetId) -> Result<Vec<Versioned<Launch>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, backend_id, created_at, status, cancelled, state \
             FROM launches WHERE fleet_id = $1 AND status NOT IN ('done', 'failed') ORDER BY created_at, id",
            values![fleet],
        )
        .await?;
    rows.iter().map(launch).collect()
}

/// A fleet's launches since a time that came to nothing, the newest of them, oldest first.
pub async fn list_failed(
    mut db: impl Executor,
    fleet: FleetId,
    since: Timestamp,
    limit: u32,
) -> Result<Vec<Versioned<Launch>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, backend_id, created_at, status, cancelled, state \
             FROM launches WHERE fleet_id = $1 AND status = 'failed' AND created_at >= $2 \
             ORDER BY created_at DESC, id DESC LIMIT $3",
            values![fleet, since, limit],
        )
        .await?;
    rows.iter().rev().map(launch).collect()
}

/// A project's launches since a time that came to nothing, of whichever fleet, the newest of them, oldest first.
pub async fn list_failed_by_project(
    mut db: impl Executor,
    project: ProjectId,
    since: Timestamp,
    limit: u32,
) -> Result<Vec<Versioned<Launch>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, backend_id, created_at, status, cancelled, state \
             FROM launches WHERE project_id = $1 AND status = 'failed' AND created_at >= $2 \
             ORDER BY created_at DESC, id DESC LIMIT $3",
            values![project, since, limit],
        )
        .await?;
    rows.iter().rev().map(launch).collect()
}

/// A fleet's last launches, oldest first.
pub async fn list_last(mut db: impl Executor, fleet: FleetId, limit: u32) -> Result<Vec<Versioned<Launch>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, backend_id, created_at, status, cancelled, state \
             FROM launches WHERE fleet_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2",
            values![fleet, limit],
        )
        .await?;
    rows.iter().rev().map(launch).collect()
}

/// The launches of a backend that are not over.
pub async fn list_open_by_backend(mut db: impl Executor, backend: BackendId) -> Result<Vec<LaunchId>> {
    let rows = db
        .rows(
            "SELECT id FROM launches WHERE backend_id = $1 AND status NOT IN ('done', 'failed') ORDER BY id",
            values![backend],
        )
        .await?;
    rows.iter().map(|row| row.id(0)).collect()
}

/// The newest launches of a fleet from a backend that made machines, the newest first.
pub async fn list_done(
    mut db: impl Executor,
    fleet: FleetId,
    backend: BackendId,
    limit: u32,
) -> Result<Vec<Versioned<Launch>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, backend_id, created_at, status, cancelled, state \
             FROM launches WHERE fleet_id = $1 AND backend_id = $2 AND status = 'done' \
             ORDER BY created_at DESC, id LIMIT $3",
            values![fleet, backend, limit],
        )
        .await?;
    rows.iter().map(launch).collect()
}

/// Adds a launch, due now.
pub async fn insert(mut db: impl Executor, launch: &Launch, now: Timestamp) -> Result<()> {
    db.execute(
        "INSERT INTO launches (id, version, due_at, leased_until, leased_by, project_id, fleet_id, backend_id, \
         created_at, status, cancelled, state) VALUES ($1, 1, $2, 0, '', $3, $4, $5, $6, $7, $8, $9)",
        values![
            launch.id,
            now,
            launch.project_id,
            launch.fleet_id,
            launch.backend_id,
            launch.created_at,
            launch.status.as_str(),
            launch.cancelled,
            serde_json::to_string(&launch.state)?
        ],
    )
    .await?;
    Ok(())
}

/// Saves what the reconciler decided.
pub async fn save(mut db: impl Executor, launch: &Versioned<Launch>) -> Result<()> {
    let value = &launch.value;
    let changed = db
        .execute(
            "UPDATE launches SET version = version + 1, status = $1, state = $2 WHERE id = $3 AND version = $4",
            values![value.status.as_str(), serde_json::to_string(&value.state)?, value.id, launch.version],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Says that nobody wants the launch's machines any more, and makes it due.
pub async fn cancel(mut db: impl Executor, id: LaunchId, now: Timestamp) -> Result<()> {
    db.execute(
        "UPDATE launches SET version = version + 1, cancelled = 1, due_at = $1 WHERE id = $2 AND cancelled = 0",
        values![now, id],
    )
    .await?;
    Ok(())
}
