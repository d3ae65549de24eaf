//! The backends of projects.

use api::backends::{BackendType, BackendYaml, BackendYamlRequest, DeleteBackendsRequest};
use api::error::ErrorCode;
use axum::extract::{Path, State};
use backends::{BackendConfig, ErrorKind};
use serde_json::{Map, Value};
use store::backends::{self as rows, BackendRow};

use super::auth::{Access, ProjectAdmin};
use super::error::{Error, Result, check_length};
use super::extract::Json;
use crate::deps::Deps;
use crate::{accounts, yaml_text};

/// The kinds of backends that projects may have.
pub async fn list_types() -> Json<Vec<BackendType>> {
    Json(backends::wire_types())
}

pub async fn create(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Json(body): Json<Value>,
) -> Result<Json<Value>> {
    let config = checked(&deps, &admin, &body).await?;
    create_backend(&deps, &admin, &config).await?;
    Ok(Json(config.config))
}

pub async fn update(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Json(body): Json<Value>,
) -> Result<Json<Value>> {
    let config = checked(&deps, &admin, &body).await?;
    update_backend(&deps, &admin, &config).await?;
    Ok(Json(config.config))
}

pub async fn create_yaml(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Json(request): Json<BackendYamlRequest>,
) -> Result<Json<()>> {
    let config = checked(&deps, &admin, &read_yaml(&request)?).await?;
    create_backend(&deps, &admin, &config).await?;
    Ok(Json(()))
}

pub async fn update_yaml(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Json(request): Json<BackendYamlRequest>,
) -> Result<Json<()>> {
    let config = checked(&deps, &admin, &read_yaml(&request)?).await?;
    update_backend(&deps, &admin, &config).await?;
    Ok(Json(()))
}

pub async fn delete(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Json(request): Json<DeleteBackendsRequest>,
) -> Result<Json<()>> {
    check_length("backends_names", request.backends_names.len())?;
    let mut removed = Vec::new();
    for name in &request.backends_names {
        removed.push(find(&deps, &admin, name).await?);
    }
    for row in removed {
        accounts::remove_backend(&deps, &row).await?;
    }
    Ok(Json(()))
}

pub async fn config_info(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<Value>> {
    let row = find(&deps, &admin, &name).await?;
    Ok(Json(accounts::backend_config(&deps, &row)?.config))
}

pub async fn get_yaml(
    State(deps): State<Deps>,
    admin: ProjectAdmin,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<BackendYaml>> {
    let row = find(&deps, &admin, &name).await?;
    let config = accounts::backend_config(&deps, &row)?;
    let mut written = Map::new();
    if let Value::Object(map) = config.config {
        written.extend(map.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Ok(Json(BackendYaml { name: row.kind, config_yaml: yaml_text::write(&written, &["type", "regions"]) }))
}

/// Reads what a request says about a backend, checks that the user may say it, and asks the backend whether it can be
/// used so.
async fn checked(deps: &Deps, access: &Access, body: &Value) -> Result<BackendConfig> {
    let config = backends::parse_config(body).map_err(refused)?;
    if config.is_for_tests() && !deps.settings.test_backends {
        return Err(Error::bad_request(format!("no backend of type `{}`", config.kind)));
    }
    // What clients are not told of runs on the server's own machine.
    if config.is_hidden() && !access.is_global_admin() {
        return Err(Error::access_denied());
    }
    // Otherwise the server connects for a project's admin to what only the server reaches.
    if config.has_own_endpoint() && !access.is_global_admin() {
        let message = "`endpoint_url` is for global admins and `config.yml`";
        return Err(Error::in_fields(ErrorCode::Error, message, &[&["endpoint_url"]]));
    }
    if config.has_default_creds() && deps.settings.default_creds_disabled {
        return Err(Error::in_fields(
            ErrorCode::InvalidCredentials,
            accounts::DEFAULT_CREDS_DISABLED,
            &[&["creds"]],
        ));
    }
    deps.backends.check(&config, deps.ids.id()).await.map_err(refused)?;
    Ok(config)
}

/// What the user is told of a backend's refusal.
fn refused(error: backends::Error) -> Error {
    match error.kind {
        ErrorKind::InvalidCredentials | ErrorKind::PermissionDenied => {
            let fields: &[&[&str]] = &[&["creds", "access_key"], &["creds", "secret_key"]];
            Error::in_fields(ErrorCode::InvalidCredentials, error.message, fields)
        }
        ErrorKind::NoCapacity
        | ErrorKind::ReservationUsedUp
        | ErrorKind::NoAddresses
        | ErrorKind::QuotaExceeded
        | ErrorKind::RegionLimit
        | ErrorKind::RegionClosed
        | ErrorKind::LaunchUsedUp
        | ErrorKind::InvalidRequest
        | ErrorKind::RateLimited
        | ErrorKind::Unavailable => Error::bad_request(error.message),
    }
}

fn read_yaml(request: &BackendYamlRequest) -> Result<Value> {
    api::yaml::parse(&request.config_yaml, "config.yml").map_err(|error| Error::bad_request(error.to_string()))
}

async fn create_backend(deps: &Deps, access: &Access, config: &BackendConfig) -> Result<()> {
    if rows::find(&deps.db, access.project.id, &config.kind).await?.is_some() {
        return Err(Error::resource_exists());
    }
    accounts::add_backend(deps, access.project.id, config).await.map_err(overtaken)
}

async fn update_backend(deps: &Deps, access: &Access, config: &BackendConfig) -> Result<()> {
    if rows::find(&deps.db, access.project.id, &config.kind).await?.is_none() {
        return Err(Error::resource_not_found());
    }
    accounts::set_backend(deps, access.project.id, config).await.map_err(overtaken)
}

/// The refusal where somebody else was faster: who made the same backend, or deleted the project.
fn overtaken(error: store::Error) -> Error {
    match error {
        store::Error::Taken(_) => Error::resource_exists(),
        store::Error::Stale => Error::project_not_found(),
        other => Error::from(other),
    }
}

/// A backend by the name that configurations use, or the one on the wire.
async fn find(deps: &Deps, access: &Access, name: &str) -> Result<BackendRow> {
    for row in rows::list(&deps.db, access.project.id).await? {
        let config = BackendConfig { kind: row.kind.clone(), config: row.config.clone() };
        let on_the_wire = config.wire_type().is_ok_and(|wire| wire.as_str() == name);
        if row.kind == name || on_the_wire {
            return Ok(row);
        }
    }
    Err(Error::coded(ErrorCode::BackendNotAvailable, "Backend not available"))
}
