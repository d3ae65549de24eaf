//! Repositories of projects, and how each user reads them.

use api::ids::{ProjectId, RepoRowId, UserId};
use jiff::Timestamp;

use crate::db::{Executor, Row};
use crate::error::{Error, Result};
use crate::values;

/// A repository as the database keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct RepoRow {
    /// Its identifier.
    pub id: RepoRowId,
    /// Its project.
    pub project_id: ProjectId,
    /// The identifier that clients made; unique in a project.
    pub name: String,
    /// What it is, in the official wire form.
    pub info: serde_json::Value,
    /// When it was first told of.
    pub created_at: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, project_id, name, info, created_at FROM repos ", $rest)
    };
}

impl RepoRow {
    fn from_row(row: &Row) -> Result<RepoRow> {
        Ok(RepoRow {
            id: row.id(0)?,
            project_id: row.id(1)?,
            name: row.text(2)?,
            info: row.json(3)?,
            created_at: row.time(4)?,
        })
    }
}

/// Adds a repository, or changes what it is where the project has it; gives the identifier that it is kept by.
pub async fn upsert(mut db: impl Executor, repo: &RepoRow) -> Result<RepoRowId> {
    let rows = db
        .change(
            "INSERT INTO repos (id, project_id, name, info, created_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (project_id, name) DO UPDATE SET info = excluded.info RETURNING id",
            values![repo.id, repo.project_id, repo.name.as_str(), repo.info.to_string(), repo.created_at],
        )
        .await?;
    rows.first().ok_or_else(|| Error::Corrupt(format!("repository `{}` was not kept", repo.name)))?.id(0)
}

/// A repository of a project.
pub async fn find(mut db: impl Executor, project: ProjectId, name: &str) -> Result<Option<RepoRow>> {
    let row = db.row(select!("WHERE project_id = $1 AND name = $2"), values![project, name]).await?;
    row.as_ref().map(RepoRow::from_row).transpose()
}

/// The repositories of a project, the oldest first.
pub async fn list(mut db: impl Executor, project: ProjectId) -> Result<Vec<RepoRow>> {
    let rows = db.rows(select!("WHERE project_id = $1 ORDER BY created_at, id"), values![project]).await?;
    rows.iter().map(RepoRow::from_row).collect()
}

/// Forgets a repository.
pub async fn delete(mut db: impl Executor, id: RepoRowId) -> Result<()> {
    db.execute("DELETE FROM repos WHERE id = $1", values![id]).await?;
    Ok(())
}

/// How a user reads a repository.
pub async fn sealed_creds(mut db: impl Executor, repo: RepoRowId, user: UserId) -> Result<Option<String>> {
    let row = db
        .row("SELECT sealed_creds FROM repo_creds WHERE repo_id = $1 AND user_id = $2", values![repo, user])
        .await?;
    row.map(|row| row.text(0)).transpose()
}

/// Keeps how a user reads a repository, in place of what was kept.
pub async fn set_creds(mut db: impl Executor, repo: RepoRowId, user: UserId, sealed_creds: &str) -> Result<()> {
    db.execute(
        "INSERT INTO repo_creds (repo_id, user_id, sealed_creds) VALUES ($1, $2, $3) \
         ON CONFLICT (repo_id, user_id) DO UPDATE SET sealed_creds = excluded.sealed_creds",
        values![repo, user, sealed_creds],
    )
    .await?;
    Ok(())
}

/// Forgets how a user reads a repository.
pub async fn delete_creds(mut db: impl Executor, repo: RepoRowId, user: UserId) -> Result<()> {
    db.execute("DELETE FROM repo_creds WHERE repo_id = $1 AND user_id = $2", values![repo, user]).await?;
    Ok(())
}

/// Forgets how anybody reads a repository.
pub async fn delete_all_creds(mut db: impl Executor, repo: RepoRowId) -> Result<()> {
    db.execute("DELETE FROM repo_creds WHERE repo_id = $1", values![repo]).await?;
    Ok(())
}
