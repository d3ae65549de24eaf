//! Projects.

use api::ids::UserId;
use api::projects::ProjectRole;
use lifecycle::events::NewEvent;
use store::projects::ProjectRow;
use store::{Hold, Tx, backends, members, projects};

use super::{KeyPair, is_plain_name, project_target, record};
use crate::deps::Deps;

const LONGEST_NAME: usize = 50;

/// A project to be made.
#[derive(Debug, Clone)]
pub struct NewProject {
    /// Its name.
    pub name: String,
    /// Anyone may look and join.
    pub is_public: bool,
    /// The repository of its templates.
    pub templates_repo: Option<String>,
}

impl NewProject {
    /// A private project without templates.
    pub fn named(name: &str) -> NewProject {
        NewProject { name: name.to_owned(), is_public: false, templates_repo: None }
    }
}

/// Whether a project may have this name.
pub fn is_project_name(name: &str) -> bool {
    is_plain_name(name, LONGEST_NAME)
}

/// Makes a project with its owner as the admin of it. [`store::Error::Taken`] if there is one of that name.
pub async fn create_project(deps: &Deps, owner: UserId, new: NewProject) -> store::Result<ProjectRow> {
    let keys = KeyPair::generate(&deps.ids, &format!("{}@dstack", new.name));
    let project = ProjectRow {
        id: deps.ids.id(),
        name: new.name,
        owner_id: owner,
        is_public: new.is_public,
        templates_repo: new.templates_repo,
        created_at: deps.clock.now(),
        deleted: false,
        ssh_public_key: keys.public,
        sealed_ssh_private_key: deps.sealer.seal(&keys.private),
    };
    let event = NewEvent::by_user(owner, "Project created", vec![project_target(&project)]);
    let mut tx = deps.db.begin().await?;
    projects::insert(&mut tx, &project).await?;
    members::set(&mut tx, project.id, owner, ProjectRole::Admin).await?;
    record(deps, &mut tx, &event).await?;
    tx.commit().await?;
    Ok(project)
}

/// Why a project cannot be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Its name.
    pub project: String,
    /// Its runs that are not finished.
    pub runs: u64,
    /// Its fleets that are not gone.
    pub fleets: u64,
}

/// Deletes projects together: all of them, or none if one is in use. Those that are gone are deleted already.
pub async fn delete_projects(
    deps: &Deps,
    actor: UserId,
    deleted: &[ProjectRow],
) -> store::Result<Result<(), InUse>> {
    let mut deleted: Vec<&ProjectRow> = deleted.iter().collect();
    // Two who delete the same projects hold them in the same order.
    deleted.sort_by_key(|project| project.id);
    let mut tx = deps.db.begin().await?;
    for project in deleted {
        // Whoever submits something holds the project too, so that nothing comes between the count and the end.
        if !projects::hold(&mut tx, project.id, Hold::Alone).await? {
            continue;
        }
        // A project that is gone could not give its machines back.
        let (runs, fleets) = projects::count_live(&mut tx, project.id).await?;
        if 0 < runs || 0 < fleets {
            return Ok(Err(InUse { project: project.name.clone(), runs, fleets }));
        }
        delete_project(deps, &mut tx, actor, project).await?;
    }
    tx.commit().await?;
    Ok(Ok(()))
}

/// Deletes a project. Its secrets are forgotten at once, and its backends once nothing of ours is in their clouds.
async fn delete_project(deps: &Deps, tx: &mut Tx, actor: UserId, project: &ProjectRow) -> store::Result<()> {
    projects::delete(&mut *tx, project.id).await?;
    for secret in store::secrets::list(&mut *tx, project.id).await? {
        store::secrets::delete(&mut *tx, secret.id).await?;
    }
    for backend in backends::list(&mut *tx, project.id).await? {
        // Also a backend without machines may have things of ours in its cloud.
        backends::set_draining(&mut *tx, backend.id).await?;
    }
    let event = NewEvent::by_user(actor, "Project deleted", vec![project_target(project)]);
    record(deps, tx, &event).await
}
