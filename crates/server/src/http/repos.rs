//! Repositories of projects.

use api::error::ErrorCode;
use api::repos::{DeleteReposRequest, GetRepoRequest, InitRepoRequest, RepoCreds, RepoData};
use axum::extract::{Query, Request, State};
use serde::Deserialize;
use serde_json::{Value, json};
use store::repos::{self, RepoRow};
use store::{Hold, Tx, blobs};

use super::auth::{Access, ProjectMember};
use super::error::{Error, Result, check_length};
use super::extract::Json;
use super::scope::hold_project;
use super::upload;
use crate::deps::Deps;

/// Tells the server of a repository, and how this user reads it.
pub async fn init(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<InitRepoRequest>,
) -> Result<Json<()>> {
    let mut tx = deps.db.begin().await?;
    hold_project(&mut tx, &member, Hold::Together).await?;
    let id = repos::upsert(&mut tx, &new_row(&deps, &member, request.repo_id, &request.repo_info)).await?;
    match &request.repo_creds {
        Some(creds) => {
            let sealed = deps.sealer.seal(&json!(creds).to_string());
            repos::set_creds(&mut tx, id, member.user.id, &sealed).await?;
        }
        None => repos::delete_creds(&mut tx, id, member.user.id).await?,
    }
    tx.commit().await?;
    Ok(Json(()))
}

fn new_row(deps: &Deps, access: &Access, name: String, info: &RepoData) -> RepoRow {
    // What a repository is, without the state that it had at some submission.
    let info = match info {
        RepoData::Remote { repo_name, .. } => json!({ "repo_type": "remote", "repo_name": repo_name }),
        RepoData::Local { repo_dir } => json!({ "repo_type": "local", "repo_dir": repo_dir }),
        RepoData::Virtual {} => json!({ "repo_type": "virtual" }),
    };
    RepoRow { id: deps.ids.id(), project_id: access.project.id, name, info, created_at: deps.clock.now() }
}

pub async fn list(State(deps): State<Deps>, member: ProjectMember) -> Result<Json<Vec<Value>>> {
    let rows = repos::list(&deps.db, member.project.id).await?;
    Ok(Json(rows.into_iter().map(|row| json!({ "repo_id": row.name, "repo_info": row.info })).collect()))
}

pub async fn get(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<GetRepoRequest>,
) -> Result<Json<Value>> {
    let row = repos::find(&deps.db, member.project.id, &request.repo_id).await?;
    let row = row.ok_or_else(Error::resource_not_found)?;
    let creds = if request.include_creds { creds(&deps, &member, &row).await? } else { None };
    Ok(Json(json!({ "repo_id": row.name, "repo_info": row.info, "repo_creds": creds })))
}

async fn creds(deps: &Deps, access: &Access, row: &RepoRow) -> Result<Option<RepoCreds>> {
    let Some(sealed) = repos::sealed_creds(&deps.db, row.id, access.user.id).await? else { return Ok(None) };
    let text = deps.sealer.unseal(&sealed)?;
    serde_json::from_str(&text).map(Some).map_err(Error::internal)
}

/// Forgets repositories; those that are unknown are forgotten already.
pub async fn delete(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<DeleteReposRequest>,
) -> Result<Json<()>> {
    check_length("repos_ids", request.repos_ids.len())?;
    let mut tx = deps.db.begin().await?;
    for name in &request.repos_ids {
        if let Some(row) = repos::find(&mut tx, member.project.id, name).await? {
            forget(&mut tx, &row).await?;
        }
    }
    tx.commit().await?;
    Ok(Json(()))
}

async fn forget(tx: &mut Tx, row: &RepoRow) -> Result<()> {
    repos::delete_all_creds(&mut *tx, row.id).await?;
    blobs::delete_code(&mut *tx, row.id).await?;
    repos::delete(&mut *tx, row.id).await?;
    Ok(())
}

/// What the address of an upload says.
#[derive(Debug, Deserialize)]
pub struct UploadQuery {
    #[serde(default)]
    repo_id: String,
}

/// Keeps the code that a run of this repository will be given.
pub async fn upload_code(
    State(deps): State<Deps>,
    member: ProjectMember,
    Query(query): Query<UploadQuery>,
    request: Request,
) -> Result<Json<()>> {
    let repo = repos::find(&deps.db, member.project.id, &query.repo_id).await?;
    let repo = repo.ok_or_else(|| {
        Error::coded(ErrorCode::RepoDoesNotExist, format!("Repo {} does not exist", query.repo_id))
    })?;
    let upload = upload::read(&deps, request, "Repo diff").await?;
    blobs::insert_code(&deps.db, repo.id, &upload.hash, upload.bytes, deps.clock.now()).await?;
    Ok(Json(()))
}
