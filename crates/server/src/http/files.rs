//! Archives of files that runs are given.

use api::files::{FileArchive, GetArchiveByHashRequest};
use axum::extract::{Request, State};
use store::blobs::{self, ArchiveRow};

use super::auth::AuthUser;
use super::error::{Error, Result};
use super::extract::Json;
use super::upload;
use crate::deps::Deps;

/// Keeps an archive; the same one again is the one that is kept.
pub async fn upload_archive(
    State(deps): State<Deps>,
    AuthUser(user): AuthUser,
    request: Request,
) -> Result<Json<FileArchive>> {
    let upload = upload::read(&deps, request, "Archive").await?;
    let row = ArchiveRow { id: deps.ids.id(), user_id: user.id, hash: upload.hash };
    let id = blobs::insert_archive(&deps.db, &row, upload.bytes, deps.clock.now()).await?;
    Ok(Json(FileArchive { id, hash: row.hash }))
}

pub async fn get_archive_by_hash(
    State(deps): State<Deps>,
    AuthUser(user): AuthUser,
    Json(request): Json<GetArchiveByHashRequest>,
) -> Result<Json<FileArchive>> {
    let row = blobs::find_archive(&deps.db, user.id, &request.hash).await?;
    let row = row.ok_or_else(Error::resource_not_found)?;
    Ok(Json(FileArchive { id: row.id, hash: row.hash }))
}
