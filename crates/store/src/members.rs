//! Who may do what in which project.

use api::ids::{ProjectId, UserId};
use api::projects::ProjectRole;

use crate::db::Executor;
use crate::error::Result;
use crate::values;

fn role_word(role: ProjectRole) -> &'static str {
    match role {
        ProjectRole::Admin => "admin",
        ProjectRole::Manager => "manager",
        ProjectRole::User => "user",
    }
}

/// A user's role in a project, if they are a member.
pub async fn role(mut db: impl Executor, project: ProjectId, user: UserId) -> Result<Option<ProjectRole>> {
    let row =
        db.row("SELECT role FROM members WHERE project_id = $1 AND user_id = $2", values![project, user]).await?;
    row.map(|row| row.word(0)).transpose()
}

/// The members of a project who are not deleted, by name.
pub async fn list(mut db: impl Executor, project: ProjectId) -> Result<Vec<(UserId, ProjectRole)>> {
    let rows = db
        .rows(
            "SELECT m.user_id, m.role FROM members m JOIN users u ON u.id = m.user_id \
             WHERE m.project_id = $1 AND u.deleted = 0 ORDER BY u.name_lower, m.user_id",
            values![project],
        )
        .await?;
    rows.iter().map(|row| Ok((row.id(0)?, row.word(1)?))).collect()
}

/// The projects of a user that are not deleted, with their role.
pub async fn list_of_user(mut db: impl Executor, user: UserId) -> Result<Vec<(ProjectId, ProjectRole)>> {
    let rows = db
        .rows(
            "SELECT m.project_id, m.role FROM members m JOIN projects p ON p.id = m.project_id \
             WHERE m.user_id = $1 AND p.deleted = 0 ORDER BY p.created_at, p.id",
            values![user],
        )
        .await?;
    rows.iter().map(|row| Ok((row.id(0)?, row.word(1)?))).collect()
}

/// Makes a user a member, or gives a member another role.
pub async fn set(mut db: impl Executor, project: ProjectId, user: UserId, role: ProjectRole) -> Result<()> {
    db.execute(
        "INSERT INTO members (project_id, user_id, role) VALUES ($1, $2, $3) \
         ON CONFLICT (project_id, user_id) DO UPDATE SET role = excluded.role",
        values![project, user, role_word(role)],
    )
    .await?;
    Ok(())
}

/// Ends a membership, and says whether there was one.
pub async fn remove(mut db: impl Executor, project: ProjectId, user: UserId) -> Result<bool> {
    let removed =
        db.execute("DELETE FROM members WHERE project_id = $1 AND user_id = $2", values![project, user]).await?;
    Ok(removed > 0)
}

/// Ends every membership of a user.
pub async fn remove_user(mut db: impl Executor, user: UserId) -> Result<()> {
    db.execute("DELETE FROM members WHERE user_id = $1", values![user]).await?;
    Ok(())
}
