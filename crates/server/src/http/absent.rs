//! Parts of the official API that this server does not have: each answers as the official one does where nothing
//! of that kind exists, or says in one sentence that it is not there.

use axum::extract::{OriginalUri, Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::{AuthUser, ProjectAdmin, ProjectMember, ProjectViewer};
use super::error::{Error, Result};
use super::extract::Json;
use crate::deps::Deps;

const NO_EXPORTS: &str = "This dstack server does not support exports. Export support is available in dstack Sky \
                          and dstack Factory.";
const NO_VOLUMES: &str = "This dstack server does not support volumes yet.";
const NO_GATEWAYS: &str = "This dstack server does not support gateways yet.";

/// There are no providers of identities.
pub async fn list_providers() -> Json<Vec<Value>> {
    Json(vec![])
}

/// Nobody waits to be sent anywhere.
pub async fn get_next_redirect() -> Json<Value> {
    Json(json!({ "redirect_url": null }))
}

/// An empty list for any user.
pub async fn none_for_users(_: AuthUser) -> Json<Vec<Value>> {
    Json(vec![])
}

/// An empty list for members.
pub async fn none_for_members(_: ProjectMember) -> Json<Vec<Value>> {
    Json(vec![])
}

/// An empty list for those who may look.
pub async fn none_for_viewers(_: ProjectViewer) -> Json<Vec<Value>> {
    Json(vec![])
}

/// There is none of that name, as members are told.
pub async fn not_found_for_members(_: ProjectMember) -> Error {
    Error::resource_not_found()
}

/// There is none of that name, as admins are told.
pub async fn not_found_for_admins(_: ProjectAdmin) -> Error {
    Error::resource_not_found()
}

/// The body of the requests that delete by names.
#[derive(Debug, Deserialize)]
pub struct Names {
    names: Vec<String>,
}

/// Nothing is deleted where nothing is named.
pub async fn delete_volumes(_: ProjectMember, Json(request): Json<Names>) -> Result<Json<()>> {
    if request.names.is_empty() { Ok(Json(())) } else { Err(Error::resource_not_found()) }
}

/// Nothing is deleted where nothing is named.
pub async fn delete_gateways(_: ProjectAdmin, Json(request): Json<Names>) -> Result<Json<()>> {
    if request.names.is_empty() { Ok(Json(())) } else { Err(Error::resource_not_found()) }
}

/// The body of `volumes/create`.
#[derive(Debug, Deserialize)]
pub struct CreateVolume {
    configuration: Value,
}

pub async fn create_volume(_: ProjectMember, Json(request): Json<CreateVolume>) -> Error {
    let has = |key: &str| request.configuration.get(key).is_some_and(|value| !value.is_null());
    if !has("size") && !has("volume_id") && !has("claim_name") {
        return Error::bad_request("Volume must specify either existing identifier or size");
    }
    Error::bad_request(NO_VOLUMES)
}

pub async fn no_gateways(_: ProjectAdmin) -> Error {
    Error::bad_request(NO_GATEWAYS)
}

pub async fn no_exports_for_members(_: ProjectMember) -> Error {
    Error::bad_request(NO_EXPORTS)
}

pub async fn no_exports_for_admins(_: ProjectAdmin) -> Error {
    Error::bad_request(NO_EXPORTS)
}

/// The SSH proxy's own token is not configured.
pub async fn no_sshproxy() -> Error {
    Error::access_denied()
}

/// A job that nothing was measured of, if there is such a run.
pub async fn job_metrics(
    State(deps): State<Deps>,
    member: ProjectMember,
    Path((_, run_name)): Path<(String, String)>,
) -> Result<Json<Value>> {
    match store::runs::get_by_name(&deps.db, member.project.id, &run_name).await? {
        Some(_) => Ok(Json(json!({ "metrics": [] }))),
        None => Err(Error::not_exists("Found no job with given parameters")),
    }
}

/// The address of a service ends with a slash.
pub async fn to_service_root(OriginalUri(uri): OriginalUri) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    match HeaderValue::try_from(format!("{}/{query}", uri.path())) {
        Ok(place) => (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, place)]).into_response(),
        Err(_) => Error::route_not_found().into_response(),
    }
}

pub async fn no_service(Path(path): Path<Vec<(String, String)>>) -> Error {
    let part = |name: &str| path.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    Error::not_found(format!("Service {}/{} not found", part("project_name"), part("run_name")))
}

pub async fn list_models(_: ProjectMember) -> Json<Value> {
    Json(json!({ "object": "list", "data": [] }))
}

/// The body of `chat/completions`.
#[derive(Debug, Deserialize)]
pub struct ChatRequest {
    model: String,
}

pub async fn no_model(
    _: ProjectMember,
    Path(project_name): Path<String>,
    Json(request): Json<ChatRequest>,
) -> Error {
    Error::not_found(format!("Model {} not found in project {project_name}", request.model))
}
