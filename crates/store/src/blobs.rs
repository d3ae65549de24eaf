//! Bytes that clients uploaded: changes to repositories, and archives of files. Each is kept once.

use api::ids::{FileArchiveId, RepoRowId, UserId};
use jiff::Timestamp;

use crate::db::Executor;
use crate::error::{Error, Result};
use crate::values;

/// Keeps the code that a client uploaded for a repository. Does nothing if it is kept already.
pub async fn insert_code(
    mut db: impl Executor,
    repo: RepoRowId,
    hash: &str,
    bytes: Vec<u8>,
    now: Timestamp,
) -> Result<()> {
    db.execute(
        "INSERT INTO code_blobs (repo_id, hash, bytes, created_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (repo_id, hash) DO NOTHING",
        values![repo, hash, bytes, now],
    )
    .await?;
    Ok(())
}

/// Whether a repository has this code.
pub async fn has_code(mut db: impl Executor, repo: RepoRowId, hash: &str) -> Result<bool> {
    let row = db.row("SELECT 1 FROM code_blobs WHERE repo_id = $1 AND hash = $2", values![repo, hash]).await?;
    Ok(row.is_some())
}

/// The code of a repository.
pub async fn code(mut db: impl Executor, repo: RepoRowId, hash: &str) -> Result<Option<Vec<u8>>> {
    let row = db.row("SELECT bytes FROM code_blobs WHERE repo_id = $1 AND hash = $2", values![repo, hash]).await?;
    row.map(|row| row.blob(0)).transpose()
}

/// Forgets all code of a repository.
pub async fn delete_code(mut db: impl Executor, repo: RepoRowId) -> Result<()> {
    db.execute("DELETE FROM code_blobs WHERE repo_id = $1", values![repo]).await?;
    Ok(())
}

/// An archive of files, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRow {
    /// Its identifier.
    pub id: FileArchiveId,
    /// Who uploaded it.
    pub user_id: UserId,
    /// What the client calls it: the SHA-256 of the tar, in hex.
    pub hash: String,
}

/// Keeps an archive of files, and gives the identifier that it is kept by: an older one if the user has it already.
pub async fn insert_archive(
    mut db: impl Executor,
    archive: &ArchiveRow,
    bytes: Vec<u8>,
    now: Timestamp,
) -> Result<FileArchiveId> {
    // The update changes nothing; without it no row would be returned where one exists.
    let rows = db
        .change(
            "INSERT INTO file_archives (id, user_id, hash, bytes, created_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (user_id, hash) DO UPDATE SET hash = excluded.hash RETURNING id",
            values![archive.id, archive.user_id, archive.hash.as_str(), bytes, now],
        )
        .await?;
    rows.first().ok_or_else(|| Error::Corrupt(format!("archive `{}` was not kept", archive.hash)))?.id(0)
}

/// A user's archive.
pub async fn find_archive(mut db: impl Executor, user: UserId, hash: &str) -> Result<Option<ArchiveRow>> {
    let row = db
        .row("SELECT id, user_id, hash FROM file_archives WHERE user_id = $1 AND hash = $2", values![user, hash])
        .await?;
    row.map(|row| Ok(ArchiveRow { id: row.id(0)?, user_id: row.id(1)?, hash: row.text(2)? })).transpose()
}

/// An archive by its identifier.
pub async fn get_archive(mut db: impl Executor, id: FileArchiveId) -> Result<Option<ArchiveRow>> {
    let row = db.row("SELECT id, user_id, hash FROM file_archives WHERE id = $1", values![id]).await?;
    row.map(|row| Ok(ArchiveRow { id: row.id(0)?, user_id: row.id(1)?, hash: row.text(2)? })).transpose()
}

/// The bytes of an archive.
pub async fn archive_bytes(mut db: impl Executor, id: FileArchiveId) -> Result<Option<Vec<u8>>> {
    let row = db.row("SELECT bytes FROM file_archives WHERE id = $1", values![id]).await?;
    row.map(|row| row.blob(0)).transpose()
}
