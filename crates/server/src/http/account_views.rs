//! Users and projects in the official wire form.

use std::collections::HashMap;

use api::ids::UserId;
use api::projects::{BackendInfo, Member, MemberPermissions, Project, ProjectRole};
use api::users::{GlobalRole, User, UserPermissions, UserTokenCreds, UserWithCreds};
use backends::BackendConfig;
use store::projects::ProjectRow;
use store::users::UserRow;
use store::{backends as backend_rows, members, users};

use super::error::{Error, Result};
use crate::deps::Deps;
use crate::settings::DefaultPermissions;

/// A user.
pub fn user(row: &UserRow, allowed: DefaultPermissions) -> User {
    let is_admin = row.role == GlobalRole::Admin;
    User {
        id: row.id,
        username: row.name.clone(),
        created_at: Some(row.created_at),
        global_role: row.role,
        email: row.email.clone(),
        active: row.active,
        permissions: UserPermissions { can_create_projects: is_admin || allowed.allow_non_admins_create_projects },
        ssh_public_key: Some(row.ssh_public_key.clone()),
    }
}

/// A user with what they log in with.
pub fn user_with_creds(deps: &Deps, row: &UserRow) -> Result<UserWithCreds> {
    let user = user(row, deps.settings.default_permissions);
    Ok(UserWithCreds {
        id: user.id,
        username: user.username,
        created_at: user.created_at,
        global_role: user.global_role,
        email: user.email,
        active: user.active,
        permissions: user.permissions,
        ssh_public_key: user.ssh_public_key,
        creds: UserTokenCreds { token: deps.sealer.unseal(&row.sealed_token)? },
        ssh_private_key: Some(deps.sealer.unseal(&row.sealed_ssh_private_key)?),
    })
}

/// Projects as lists show them: without members and backends.
pub async fn listed_projects(deps: &Deps, rows: Vec<ProjectRow>) -> Result<Vec<Project>> {
    let owners = users_by_id(deps, rows.iter().map(|row| row.owner_id).collect()).await?;
    rows.into_iter().map(|row| project(deps, row, &owners)).collect()
}

/// A project with its members and backends.
pub async fn whole_project(deps: &Deps, row: ProjectRow) -> Result<Project> {
    let of_project = members::list(&deps.db, row.id).await?;
    let backends = backend_rows::list(&deps.db, row.id).await?;
    let mut ids: Vec<UserId> = of_project.iter().map(|(user, _)| *user).collect();
    ids.push(row.owner_id);
    let people = users_by_id(deps, ids).await?;
    let mut project = project(deps, row, &people)?;
    let allowed = deps.settings.default_permissions;
    let found = of_project.iter().filter_map(|(id, role)| Some((people.get(id)?, *role)));
    project.members = found.map(|(row, role)| member(row, role, allowed)).collect();
    for row in backends {
        let backend = BackendConfig { kind: row.kind, config: row.config };
        if !backend.is_hidden()
            && let Ok(name) = backend.wire_type()
        {
            project.backends.push(BackendInfo { name, config: backend.config });
        }
    }
    Ok(project)
}

fn project(deps: &Deps, row: ProjectRow, people: &HashMap<UserId, UserRow>) -> Result<Project> {
    let owner = people.get(&row.owner_id);
    let owner = owner.ok_or_else(|| Error::internal(anyhow::anyhow!("project {} has no owner", row.id)))?;
    Ok(Project {
        project_id: row.id,
        project_name: row.name,
        owner: user(owner, deps.settings.default_permissions),
        created_at: Some(row.created_at),
        backends: vec![],
        members: vec![],
        is_public: row.is_public,
        templates_repo: row.templates_repo,
    })
}

fn member(row: &UserRow, role: ProjectRole, allowed: DefaultPermissions) -> Member {
    let is_admin = row.role == GlobalRole::Admin || role == ProjectRole::Admin;
    let manages_secrets = role == ProjectRole::Manager && allowed.allow_managers_manage_secrets;
    Member {
        user: user(row, allowed),
        project_role: role,
        permissions: MemberPermissions {
            can_manage_ssh_fleets: is_admin || allowed.allow_non_admins_manage_ssh_fleets,
            can_manage_secrets: is_admin || manages_secrets,
        },
    }
}

async fn users_by_id(deps: &Deps, mut ids: Vec<UserId>) -> Result<HashMap<UserId, UserRow>> {
    ids.sort_unstable();
    ids.dedup();
    Ok(users::get_many(&deps.db, &ids).await?.into_iter().map(|row| (row.id, row)).collect())
}
