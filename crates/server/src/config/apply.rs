//! Brings the projects and backends of `config.yml` into the database.

use std::collections::HashSet;

use api::ids::UserId;
use store::projects;

use super::file::{BackendEntry, ProjectEntry, ServerConfig};
use crate::accounts::{self, NewProject};
use crate::deps::Deps;

/// Makes the projects that are missing, and gives each project exactly the backends that the file lists.
///
/// A backend that cannot be kept is told to the log; the others are kept all the same.
pub async fn apply(deps: &Deps, config: &ServerConfig, admin: UserId) -> anyhow::Result<()> {
    for entry in config.projects.iter().flatten() {
        apply_project(deps, entry, admin).await?;
    }
    Ok(())
}

async fn apply_project(deps: &Deps, entry: &ProjectEntry, admin: UserId) -> anyhow::Result<()> {
    let project = match projects::find_by_name(&deps.db, &entry.name).await? {
        Some(project) => project,
        None => accounts::create_project(deps, admin, NewProject::named(&entry.name)).await?,
    };
    let mut listed = HashSet::new();
    for backend in entry.backends.iter().flatten() {
        match backend {
            BackendEntry::Known(config) if listed.insert(config.kind.clone()) => {
                accounts::set_backend(deps, project.id, config).await?;
            }
            BackendEntry::Known(config) => {
                tracing::warn!(
                    "project `{}` lists backend `{}` twice; the first one counts",
                    entry.name,
                    config.kind
                );
            }
            BackendEntry::Unsupported(kind) => {
                tracing::warn!("backend `{kind}` of project `{}` is not supported by this server", entry.name);
            }
        }
    }
    for row in store::backends::list(&deps.db, project.id).await? {
        if !listed.contains(&row.kind) {
            let stays = accounts::remove_backend(deps, &row).await?;
            let fate = if stays { "is let go when its machines are gone" } else { "is removed" };
            tracing::info!("backend `{}` of project `{}` is not listed any more and {fate}", row.kind, entry.name);
        }
    }
    Ok(())
}
