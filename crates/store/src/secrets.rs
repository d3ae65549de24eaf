//! The secrets of projects.

use api::ids::{ProjectId, SecretId};
use jiff::Timestamp;

use crate::db::{Executor, Row, Value, placeholders};
use crate::error::Result;
use crate::values;

/// A secret as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// Its identifier.
    pub id: SecretId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its name; unique in a project.
    pub name: String,
    /// Its value.
    pub sealed_value: String,
    /// When it was made.
    pub created_at: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, project_id, name, sealed_value, created_at FROM secrets ", $rest)
    };
}

impl SecretRow {
    fn from_row(row: &Row) -> Result<SecretRow> {
        Ok(SecretRow {
            id: row.id(0)?,
            project_id: row.id(1)?,
            name: row.text(2)?,
            sealed_value: row.text(3)?,
            created_at: row.time(4)?,
        })
    }
}

/// Adds a secret. [`crate::Error::Taken`] if the project has one of that name.
pub async fn insert(mut db: impl Executor, secret: &SecretRow) -> Result<()> {
    db.execute(
        "INSERT INTO secrets (id, project_id, name, sealed_value, created_at) VALUES ($1, $2, $3, $4, $5)",
        values![
            secret.id,
            secret.project_id,
            secret.name.as_str(),
            secret.sealed_value.as_str(),
            secret.created_at
        ],
    )
    .await?;
    Ok(())
}

/// Gives a secret another value.
pub async fn set_value(mut db: impl Executor, id: SecretId, sealed_value: &str) -> Result<()> {
    db.execute("UPDATE secrets SET sealed_value = $1 WHERE id = $2", values![sealed_value, id]).await?;
    Ok(())
}

/// A secret of a project.
pub async fn find(mut db: impl Executor, project: ProjectId, name: &str) -> Result<Option<SecretRow>> {
    let row = db.row(select!("WHERE project_id = $1 AND name = $2"), values![project, name]).await?;
    row.as_ref().map(SecretRow::from_row).transpose()
}

/// Those secrets of a list of names that the project has, by name.
pub async fn find_many(mut db: impl Executor, project: ProjectId, names: &[String]) -> Result<Vec<SecretRow>> {
    if names.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!(
        "{}WHERE project_id = $1 AND name IN ({}) ORDER BY name",
        select!(""),
        placeholders(2, names.len())
    );
    let mut values = values![project];
    values.extend(names.iter().map(|name| Value::from(name.as_str())));
    db.rows_of(sql, values).await?.iter().map(SecretRow::from_row).collect()
}

/// The secrets of a project, the newest first.
pub async fn list(mut db: impl Executor, project: ProjectId) -> Result<Vec<SecretRow>> {
    let rows = db.rows(select!("WHERE project_id = $1 ORDER BY created_at DESC, id"), values![project]).await?;
    rows.iter().map(SecretRow::from_row).collect()
}

/// Forgets a secret.
pub async fn delete(mut db: impl Executor, id: SecretId) -> Result<()> {
    db.execute("DELETE FROM secrets WHERE id = $1", values![id]).await?;
    Ok(())
}
