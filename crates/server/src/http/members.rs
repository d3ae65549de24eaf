//! Members of projects.

use api::ids::UserId;
use api::projects::{MemberSetting, Project, ProjectRole, RemoveMembersRequest, SetMembersRequest};
use axum::extract::State;
use lifecycle::events::NewEvent;
use store::users::{self, UserRow};
use store::{Hold, Tx, members};

use super::account_views as views;
use super::auth::{Access, ProjectManager, ProjectViewer};
use super::error::{Error, Result, check_length};
use super::extract::Json;
use super::scope::hold_project;
use crate::accounts;
use crate::deps::Deps;

/// Gives a project exactly these members.
pub async fn set(
    State(deps): State<Deps>,
    manager: ProjectManager,
    Json(request): Json<SetMembersRequest>,
) -> Result<Json<Project>> {
    check_length("members", request.members.len())?;
    let wanted = find_users(&deps, &request.members).await?;
    let access = &manager.0;
    let mut tx = deps.db.begin().await?;
    // Two who each remove another admin must not leave none.
    hold_project(&mut tx, access, Hold::Alone).await?;
    let before = members::list(&mut tx, access.project.id).await?;
    for (user, role) in &wanted {
        if role_of(&before, user.id) != Some(*role) {
            change(&deps, &mut tx, access, user, Some(*role)).await?;
        }
    }
    for (id, _) in &before {
        let leaves = wanted.iter().all(|(user, _)| user.id != *id);
        if leaves && let Some(user) = users::get(&mut tx, *id).await? {
            change(&deps, &mut tx, access, &user, None).await?;
        }
    }
    finish(&deps, tx, access, &before).await
}

/// Adds members to a project, or changes the roles of some. Anyone may join a public project by themselves.
pub async fn add(
    State(deps): State<Deps>,
    viewer: ProjectViewer,
    Json(request): Json<SetMembersRequest>,
) -> Result<Json<Project>> {
    let access = &viewer.0;
    let joins = matches!(request.members.as_slice(), [only] if only.project_role == ProjectRole::User
        && access.project.is_public && access.role.is_none() && names(&access.user, &only.username));
    if !joins && !access.is_manager() {
        return Err(Error::access_denied());
    }
    check_length("members", request.members.len())?;
    let added = find_users(&deps, &request.members).await?;
    let mut tx = deps.db.begin().await?;
    // Two who each remove another admin must not leave none.
    hold_project(&mut tx, access, Hold::Alone).await?;
    let before = members::list(&mut tx, access.project.id).await?;
    for (user, role) in &added {
        if role_of(&before, user.id) != Some(*role) {
            change(&deps, &mut tx, access, user, Some(*role)).await?;
        }
    }
    finish(&deps, tx, access, &before).await
}

/// Ends memberships. Anyone may leave by themselves.
pub async fn remove(
    State(deps): State<Deps>,
    viewer: ProjectViewer,
    Json(request): Json<RemoveMembersRequest>,
) -> Result<Json<Project>> {
    let access = &viewer.0;
    let themselves =
        !request.usernames.is_empty() && request.usernames.iter().all(|name| names(&access.user, name));
    let leaves = access.role.is_some() && themselves;
    if !leaves && !access.is_manager() {
        return Err(Error::access_denied());
    }
    check_length("usernames", request.usernames.len())?;
    let mut removed = Vec::new();
    for name in &request.usernames {
        removed.push(find_user(&deps, name).await?);
    }
    let mut tx = deps.db.begin().await?;
    // Two who each remove another admin must not leave none.
    hold_project(&mut tx, access, Hold::Alone).await?;
    let before = members::list(&mut tx, access.project.id).await?;
    for user in &removed {
        if role_of(&before, user.id).is_some() {
            change(&deps, &mut tx, access, user, None).await?;
        }
    }
    finish(&deps, tx, access, &before).await
}

fn names(user: &UserRow, name: &str) -> bool {
    user.name.eq_ignore_ascii_case(name) || user.email.as_deref() == Some(name)
}

fn role_of(list: &[(UserId, ProjectRole)], user: UserId) -> Option<ProjectRole> {
    list.iter().find(|(id, _)| *id == user).map(|(_, role)| *role)
}

async fn find_users(deps: &Deps, settings: &[MemberSetting]) -> Result<Vec<(UserRow, ProjectRole)>> {
    let mut found = Vec::new();
    for setting in settings {
        found.push((find_user(deps, &setting.username).await?, setting.project_role));
    }
    Ok(found)
}

async fn find_user(deps: &Deps, name: &str) -> Result<UserRow> {
    let user = match users::find_by_name(&deps.db, name).await? {
        Some(user) => Some(user),
        None => users::find_by_email(&deps.db, name).await?,
    };
    user.ok_or_else(|| Error::bad_request(format!("User not found: {name}")))
}

async fn change(
    deps: &Deps,
    tx: &mut Tx,
    access: &Access,
    user: &UserRow,
    role: Option<ProjectRole>,
) -> Result<()> {
    let project = &access.project;
    let message = if let Some(role) = role {
        members::set(&mut *tx, project.id, user.id, role).await?;
        format!("Project member set. Role: {}", format!("{role:?}").to_uppercase())
    } else {
        members::remove(&mut *tx, project.id, user.id).await?;
        "Project member removed".to_owned()
    };
    let targets = vec![accounts::project_target(project), accounts::user_target(user)];
    accounts::record(deps, tx, &NewEvent::by_user(access.user.id, message, targets)).await?;
    Ok(())
}

/// Keeps the changes, unless they are more than the user may do.
async fn finish(
    deps: &Deps,
    mut tx: Tx,
    access: &Access,
    before: &[(UserId, ProjectRole)],
) -> Result<Json<Project>> {
    let admins = |list: &[(UserId, ProjectRole)]| -> Vec<UserId> {
        let mut admins: Vec<UserId> =
            list.iter().filter(|(_, role)| *role == ProjectRole::Admin).map(|(id, _)| *id).collect();
        admins.sort_unstable();
        admins
    };
    let before = admins(before);
    let after = admins(&members::list(&mut tx, access.project.id).await?);
    if after.is_empty() {
        return Err(Error::bad_request("Cannot remove the last project admin"));
    }
    let leaves_alone = before.iter().all(|id| after.contains(id) || *id == access.user.id);
    let is_allowed = access.is_project_admin() || after.iter().all(|id| before.contains(id)) && leaves_alone;
    if !is_allowed {
        return Err(Error::access_denied());
    }
    tx.commit().await?;
    views::whole_project(deps, access.project.clone()).await.map(Json)
}
