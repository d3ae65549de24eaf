//! Secrets.

use api::events::EventTargetType;
use api::secrets::{DeleteSecretsRequest, GetSecretRequest, Secret, SetSecretRequest};
use axum::extract::State;
use lifecycle::events::{NewEvent, Target};
use store::secrets::{self, SecretRow};
use store::{Hold, projects};

use super::auth::{Access, SecretsManager};
use super::error::{Error, Result, check_length};
use super::extract::Json;
use crate::accounts::{self, is_plain_name};
use crate::deps::Deps;

const LONGEST_NAME: usize = 200;
const LONGEST_VALUE: usize = 5000;

pub async fn list(State(deps): State<Deps>, manager: SecretsManager) -> Result<Json<Vec<Secret>>> {
    let rows = secrets::list(&deps.db, manager.project.id).await?;
    Ok(Json(rows.into_iter().map(|row| Secret { id: row.id, name: row.name, value: None }).collect()))
}

pub async fn get(
    State(deps): State<Deps>,
    manager: SecretsManager,
    Json(request): Json<GetSecretRequest>,
) -> Result<Json<Secret>> {
    let row = secrets::find(&deps.db, manager.project.id, &request.name).await?;
    let row = row.ok_or_else(Error::resource_not_found)?;
    let value = deps.sealer.unseal(&row.sealed_value)?;
    Ok(Json(Secret { id: row.id, name: row.name, value: Some(value) }))
}

pub async fn create_or_update(
    State(deps): State<Deps>,
    manager: SecretsManager,
    Json(request): Json<SetSecretRequest>,
) -> Result<Json<Secret>> {
    if !is_plain_name(&request.name, LONGEST_NAME) {
        // The official text lacks the last quote too.
        return Err(Error::bad_request("Secret name should match regex '^[A-Za-z0-9-_]{1,200}$"));
    }
    if LONGEST_VALUE < request.value.chars().count() {
        return Err(Error::bad_request(format!("Secret value length must not exceed {LONGEST_VALUE}")));
    }
    let row = match keep(&deps, &manager, &request).await {
        // Somebody else made it at the same moment, so that now there is one to change.
        Err(store::Error::Taken(_)) => keep(&deps, &manager, &request).await?,
        kept => kept?,
    };
    let row = row.ok_or_else(Error::project_not_found)?;
    Ok(Json(Secret { id: row.id, name: row.name, value: Some(request.value) }))
}

/// Keeps a secret, unless the project was deleted since the request came.
async fn keep(deps: &Deps, access: &Access, request: &SetSecretRequest) -> store::Result<Option<SecretRow>> {
    let sealed_value = deps.sealer.seal(&request.value);
    let mut tx = deps.db.begin().await?;
    if !projects::hold(&mut tx, access.project.id, Hold::Together).await? {
        return Ok(None);
    }
    let kept = secrets::find(&mut tx, access.project.id, &request.name).await?;
    let (row, message) = if let Some(row) = kept {
        secrets::set_value(&mut tx, row.id, &sealed_value).await?;
        (row, "Secret updated")
    } else {
        let row = SecretRow {
            id: deps.ids.id(),
            project_id: access.project.id,
            name: request.name.clone(),
            sealed_value,
            created_at: deps.clock.now(),
        };
        secrets::insert(&mut tx, &row).await?;
        (row, "Secret created")
    };
    accounts::record(deps, &mut tx, &NewEvent::by_user(access.user.id, message, vec![target(&row)])).await?;
    tx.commit().await?;
    Ok(Some(row))
}

pub async fn delete(
    State(deps): State<Deps>,
    manager: SecretsManager,
    Json(request): Json<DeleteSecretsRequest>,
) -> Result<Json<()>> {
    check_length("secrets_names", request.secrets_names.len())?;
    let mut tx = deps.db.begin().await?;
    let rows = secrets::find_many(&mut tx, manager.project.id, &request.secrets_names).await?;
    let is_known = |name: &String| rows.iter().any(|row| row.name == *name);
    let unknown: Vec<&str> =
        request.secrets_names.iter().filter(|name| !is_known(name)).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(Error::not_exists(format!("Secrets not found: {}", unknown.join(", "))));
    }
    for row in rows {
        secrets::delete(&mut tx, row.id).await?;
        let event = NewEvent::by_user(manager.user.id, "Secret deleted", vec![target(&row)]);
        accounts::record(&deps, &mut tx, &event).await?;
    }
    tx.commit().await?;
    Ok(Json(()))
}

fn target(row: &SecretRow) -> Target {
    Target::other(EventTargetType::Secret, Some(row.project_id), row.id.0, &row.name)
}
