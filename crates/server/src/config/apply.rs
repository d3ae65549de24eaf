//! Brings the projects and backends of `config.yml` into the database.

use std::collections::HashSet;

use api::ids::{ProjectId, UserId};
use store::backends::BackendRow;
use store::projects;

use super::file::{BackendEntry, ProjectEntry, ServerConfig};
use crate::accounts::{self, NewProject};
use crate::deps::Deps;

/// Makes the projects that are missing, and gives each project exactly the backends that the file lists. A project that
/// the file lists no more stays, and the backends that it had from the file are let go.
///
/// A backend that cannot be kept is told to the log; the others are kept all the same.
pub async fn apply(deps: &Deps, config: &ServerConfig, admin: UserId) -> anyhow::Result<()> {
    let mut listed = HashSet::new();
    for entry in config.projects.iter().flatten() {
        listed.insert(apply_project(deps, entry, admin).await?);
    }
    for row in store::backends::list_from_file(&deps.db).await? {
        if !listed.contains(&row.project_id) {
            let project = projects::get(&deps.db, row.project_id).await?;
            let name = project.map(|project| project.name).unwrap_or_default();
            let fate = let_go(deps, &row).await?;
            tracing::warn!("project `{name}` is not listed any more, and its backend `{}` {fate}", row.kind);
        }
    }
    Ok(())
}

/// Lets a backend go that is not listed any more, and says what becomes of it.
async fn let_go(deps: &Deps, row: &BackendRow) -> store::Result<&'static str> {
    let stays = accounts::remove_backend(deps, row).await?;
    Ok(if stays { "is let go when its machines are gone" } else { "is removed" })
}

async fn apply_project(deps: &Deps, entry: &ProjectEntry, admin: UserId) -> anyhow::Result<ProjectId> {
    let project = match projects::find_by_name(&deps.db, &entry.name).await? {
        Some(project) => project,
        None => accounts::create_project(deps, admin, NewProject::named(&entry.name)).await?,
    };
    let mut listed = HashSet::new();
    for backend in entry.backends.iter().flatten() {
        match backend {
            BackendEntry::Known(config) if config.has_default_creds() && deps.settings.default_creds_disabled => {
                let (kind, why) = (&config.kind, accounts::DEFAULT_CREDS_DISABLED);
                tracing::error!("backend `{kind}` of project `{}` is not taken: {why}", entry.name);
            }
            BackendEntry::Known(config) if listed.insert(config.kind.clone()) => {
                accounts::set_backend(deps, project.id, config).await?;
                store::backends::set_from_file(&deps.db, project.id, &config.kind).await?;
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
            let fate = let_go(deps, &row).await?;
            tracing::info!("backend `{}` of project `{}` is not listed any more and {fate}", row.kind, entry.name);
        }
    }
    Ok(project.id)
}
