//! What the lists of all projects have in common: whose things a user sees, and pages of them.

use std::collections::HashMap;

use api::ids::ProjectId;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use store::projects::{self, ProjectRow};
use store::{Hold, Tx, members};
use uuid::Uuid;

use super::auth::{Access, AuthUser};
use super::error::{Error, Result};
use crate::deps::Deps;

/// The projects whose things a user sees, or that one of them: all for a global admin, their own for others. An
/// unknown project is an empty list.
pub async fn projects_of(
    deps: &Deps,
    asking: &AuthUser,
    only: Option<&str>,
) -> Result<HashMap<ProjectId, String>> {
    let rows: Vec<ProjectRow> = match only {
        Some(name) => projects::find_by_name(&deps.db, name).await?.into_iter().collect(),
        None => projects::all(&deps.db).await?,
    };
    let mut names: HashMap<ProjectId, String> = rows.into_iter().map(|row| (row.id, row.name)).collect();
    if !asking.is_global_admin() {
        let own = members::list_of_user(&deps.db, asking.0.id).await?;
        names.retain(|id, _| own.iter().any(|(project, _)| project == id));
    }
    Ok(names)
}

/// Holds the project that a request writes to until its transaction ends: it may have been deleted since the request
/// came, and must not be deleted before it is written.
pub async fn hold_project(tx: &mut Tx, access: &Access, hold: Hold) -> Result<()> {
    if projects::hold(tx, access.project.id, hold).await? { Ok(()) } else { Err(Error::project_not_found()) }
}

/// Where a page begins: behind an item, or, without its identifier, behind everything of its time.
pub fn behind<I: From<Uuid>>(time: Option<Timestamp>, id: Option<I>, ascending: bool) -> Option<(Timestamp, I)> {
    // Within one moment identifiers run against time, and none is beyond these.
    let beyond_all = if ascending { Uuid::nil() } else { Uuid::max() };
    time.map(|time| (time, id.unwrap_or_else(|| I::from(beyond_all))))
}

/// The keys in which two values of one type differ.
pub fn changed_keys<T: Serialize>(left: &T, right: &T) -> Result<Vec<String>> {
    let object = |value: &T| match serde_json::to_value(value) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Ok(serde_json::Map::new()),
        Err(error) => Err(Error::internal(error)),
    };
    let (left, right) = (object(left)?, object(right)?);
    let mut keys: Vec<String> = vec![];
    for key in left.keys().chain(right.keys()) {
        if left.get(key) != right.get(key) && !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    Ok(keys)
}

/// The refusal of a change in place.
pub fn cannot_update(changed: &[String], updatable: &[&str]) -> String {
    let list = |items: &mut dyn Iterator<Item = &str>| {
        items.map(|item| format!("'{item}'")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "Failed to update fields [{}]. Can only update [{}].",
        list(&mut changed.iter().map(String::as_str)),
        list(&mut updatable.iter().copied())
    )
}
