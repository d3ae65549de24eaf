//! The backends of projects.
//!
//! A backend that is no longer wanted while machines of it live is kept as `draining`: nothing new is bought from
//! it, and its credentials stay until the machines are gone.

use api::ids::{BackendId, ProjectId};
use jiff::Timestamp;

use crate::db::{Executor, Row};
use crate::error::Result;
use crate::values;

/// A backend as the database keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendRow {
    /// Its identifier.
    pub id: BackendId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its kind; unique in a project among those that do not drain.
    pub kind: String,
    /// Its configuration, without credentials.
    pub config: serde_json::Value,
    /// Its configuration, with credentials.
    pub sealed_config: String,
    /// It only lives for the machines that it still has.
    pub draining: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, project_id, kind, config, sealed_config, draining, created_at FROM backends ", $rest)
    };
}

impl BackendRow {
    fn from_row(row: &Row) -> Result<BackendRow> {
        Ok(BackendRow {
            id: row.id(0)?,
            project_id: row.id(1)?,
            kind: row.text(2)?,
            config: row.json(3)?,
            sealed_config: row.text(4)?,
            draining: row.truth(5)?,
            created_at: row.time(6)?,
        })
    }
}

/// Adds a backend. [`crate::Error::Taken`] if the project has one of that kind.
pub async fn insert(mut db: impl Executor, backend: &BackendRow) -> Result<()> {
    db.execute(
        "INSERT INTO backends (id, project_id, kind, config, sealed_config, draining, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        values![
            backend.id,
            backend.project_id,
            backend.kind.as_str(),
            backend.config.to_string(),
            backend.sealed_config.as_str(),
            backend.draining,
            backend.created_at
        ],
    )
    .await?;
    Ok(())
}

/// A backend, draining or not.
pub async fn get(mut db: impl Executor, id: BackendId) -> Result<Option<BackendRow>> {
    db.row(select!("WHERE id = $1"), values![id]).await?.as_ref().map(BackendRow::from_row).transpose()
}

/// The backend of a kind that a project may buy from.
pub async fn find(mut db: impl Executor, project: ProjectId, kind: &str) -> Result<Option<BackendRow>> {
    let row =
        db.row(select!("WHERE project_id = $1 AND kind = $2 AND draining = 0"), values![project, kind]).await?;
    row.as_ref().map(BackendRow::from_row).transpose()
}

/// A draining backend of a kind, the newest one.
pub async fn find_draining(mut db: impl Executor, project: ProjectId, kind: &str) -> Result<Option<BackendRow>> {
    let row = db
        .row(
            select!("WHERE project_id = $1 AND kind = $2 AND draining = 1 ORDER BY created_at DESC, id LIMIT 1"),
            values![project, kind],
        )
        .await?;
    row.as_ref().map(BackendRow::from_row).transpose()
}

/// The backends that a project may buy from, by kind.
pub async fn list(mut db: impl Executor, project: ProjectId) -> Result<Vec<BackendRow>> {
    let rows =
        db.rows(select!("WHERE project_id = $1 AND draining = 0 ORDER BY kind, id"), values![project]).await?;
    rows.iter().map(BackendRow::from_row).collect()
}

/// The backends that a project lets go, by kind.
pub async fn list_draining(mut db: impl Executor, project: ProjectId) -> Result<Vec<BackendRow>> {
    let rows =
        db.rows(select!("WHERE project_id = $1 AND draining = 1 ORDER BY kind, id"), values![project]).await?;
    rows.iter().map(BackendRow::from_row).collect()
}

/// Every backend of every project, draining ones too.
pub async fn all(mut db: impl Executor) -> Result<Vec<BackendRow>> {
    let rows = db.rows(select!("ORDER BY created_at, id"), vec![]).await?;
    rows.iter().map(BackendRow::from_row).collect()
}

/// The backends that a project may buy from and that came from `config.yml`, of all projects.
pub async fn list_from_file(mut db: impl Executor) -> Result<Vec<BackendRow>> {
    let rows = db.rows(select!("WHERE from_file = 1 AND draining = 0 ORDER BY created_at, id"), vec![]).await?;
    rows.iter().map(BackendRow::from_row).collect()
}

/// Remembers that `config.yml` lists the backend that a project may buy from.
pub async fn set_from_file(mut db: impl Executor, project: ProjectId, kind: &str) -> Result<()> {
    db.execute(
        "UPDATE backends SET from_file = 1 WHERE project_id = $1 AND kind = $2 AND draining = 0 AND from_file = 0",
        values![project, kind],
    )
    .await?;
    Ok(())
}

/// Changes a backend's configuration; it no longer drains, and is not that of `config.yml` unless that is said again.
pub async fn set_config(
    mut db: impl Executor,
    id: BackendId,
    config: &serde_json::Value,
    sealed_config: &str,
) -> Result<()> {
    db.execute(
        "UPDATE backends SET config = $1, sealed_config = $2, draining = 0, from_file = 0 WHERE id = $3",
        values![config.to_string(), sealed_config, id],
    )
    .await?;
    Ok(())
}

/// Lets nothing new be bought from a backend.
pub async fn set_draining(mut db: impl Executor, id: BackendId) -> Result<()> {
    db.execute("UPDATE backends SET draining = 1 WHERE id = $1", values![id]).await?;
    Ok(())
}

/// The launches of the backend $1 whose machines live, or may yet come to life.
macro_rules! uses {
    () => {
        "FROM launches l WHERE l.backend_id = $1 AND (l.status NOT IN ('done', 'failed') \
         OR EXISTS (SELECT 1 FROM instances i WHERE i.launch_id = l.id AND i.status <> 'terminated'))"
    };
}

/// Whether machines of a backend live, or may yet come to life.
pub async fn is_in_use(mut db: impl Executor, id: BackendId) -> Result<bool> {
    let row = db.row(concat!("SELECT COUNT(*) ", uses!()), values![id]).await?;
    row.map_or(Ok(false), |row| row.truth(0))
}

/// Forgets a backend that is neither wanted again nor used meanwhile, and its credentials.
pub async fn delete_drained(mut db: impl Executor, id: BackendId) -> Result<()> {
    let unused =
        concat!("DELETE FROM backends WHERE id = $1 AND draining = 1 AND NOT EXISTS (SELECT 1 ", uses!(), ")");
    db.execute(unused, values![id]).await?;
    Ok(())
}
