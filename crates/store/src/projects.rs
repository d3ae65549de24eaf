//! Projects.

use api::ids::{ProjectId, UserId};
use jiff::Timestamp;

use crate::db::{Executor, Hold, Row, Tx, Value};
use crate::error::{Error, Result};
use crate::page::Page;
use crate::values;

/// A project as the database keeps it. What is secret is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRow {
    /// Its identifier.
    pub id: ProjectId,
    /// Its name; unique among those that are not deleted, in any letter case.
    pub name: String,
    /// Who made it.
    pub owner_id: UserId,
    /// Anyone may look and join.
    pub is_public: bool,
    /// The repository of its templates.
    pub templates_repo: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// It was deleted; the row stays for what it left behind.
    pub deleted: bool,
    /// The public key that its machines let in.
    pub ssh_public_key: String,
    /// The private key that opens its machines.
    pub sealed_ssh_private_key: String,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT p.id, p.name, p.owner_id, p.is_public, p.templates_repo, p.created_at, p.deleted, \
             p.ssh_public_key, p.sealed_ssh_private_key FROM projects p ",
            $rest
        )
    };
}

impl ProjectRow {
    fn from_row(row: &Row) -> Result<ProjectRow> {
        Ok(ProjectRow {
            id: row.id(0)?,
            name: row.text(1)?,
            owner_id: row.id(2)?,
            is_public: row.truth(3)?,
            templates_repo: row.text_or_null(4)?,
            created_at: row.time(5)?,
            deleted: row.truth(6)?,
            ssh_public_key: row.text(7)?,
            sealed_ssh_private_key: row.text(8)?,
        })
    }
}

/// Adds a project. [`Error::Taken`] if there is one of that name.
pub async fn insert(mut db: impl Executor, project: &ProjectRow) -> Result<()> {
    db.execute(
        "INSERT INTO projects (id, name, name_lower, owner_id, is_public, templates_repo, created_at, deleted, \
         ssh_public_key, sealed_ssh_private_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        values![
            project.id,
            project.name.as_str(),
            project.name.to_lowercase(),
            project.owner_id,
            project.is_public,
            project.templates_repo.clone(),
            project.created_at,
            project.deleted,
            project.ssh_public_key.as_str(),
            project.sealed_ssh_private_key.as_str()
        ],
    )
    .await?;
    Ok(())
}

/// A project, deleted or not.
pub async fn get(mut db: impl Executor, id: ProjectId) -> Result<Option<ProjectRow>> {
    db.row(select!("WHERE p.id = $1"), values![id]).await?.as_ref().map(ProjectRow::from_row).transpose()
}

/// A project that is not deleted, by a name in any letter case.
pub async fn find_by_name(mut db: impl Executor, name: &str) -> Result<Option<ProjectRow>> {
    let row = db.row(select!("WHERE p.name_lower = $1 AND p.deleted = 0"), values![name.to_lowercase()]).await?;
    row.as_ref().map(ProjectRow::from_row).transpose()
}

/// Holds a project until the transaction ends, so that it is not deleted meanwhile, and says whether there is one to
/// hold: none if it was deleted.
pub async fn hold(tx: &mut Tx, id: ProjectId, hold: Hold) -> Result<bool> {
    let rows = tx.rows_held("SELECT id FROM projects WHERE id = $1 AND deleted = 0", values![id], hold).await?;
    Ok(!rows.is_empty())
}

/// Every project that is not deleted, the oldest first.
pub async fn all(mut db: impl Executor) -> Result<Vec<ProjectRow>> {
    let rows = db.rows(select!("WHERE p.deleted = 0 ORDER BY p.created_at, p.id"), vec![]).await?;
    rows.iter().map(ProjectRow::from_row).collect()
}

/// Whose projects a list holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisibleTo {
    /// Everything: what global admins see.
    Everyone,
    /// Those that the user is a member of.
    Member(UserId),
    /// Those that the user is a member of, and public ones.
    MemberOrPublic(UserId),
}

impl VisibleTo {
    fn condition(self, values: &mut Vec<Value>) -> String {
        let (user, public) = match self {
            VisibleTo::Everyone => return String::new(),
            VisibleTo::Member(user) => (user, ""),
            VisibleTo::MemberOrPublic(user) => (user, "p.is_public = 1 OR "),
        };
        values.push(Value::from(user));
        format!(
            " AND ({public}EXISTS (SELECT 1 FROM members m WHERE m.project_id = p.id AND m.user_id = ${}))",
            values.len()
        )
    }
}

/// A page of the projects that are not deleted.
pub async fn list(mut db: impl Executor, visible: VisibleTo, page: &Page) -> Result<Vec<ProjectRow>> {
    let mut values = vec![];
    let visible = visible.condition(&mut values);
    let conditions = page.conditions("p.", &mut values);
    let order = page.order("p.", &mut values);
    let sql = format!("{}WHERE p.deleted = 0{visible}{conditions}{order}", select!(""));
    db.rows_of(sql, values).await?.iter().map(ProjectRow::from_row).collect()
}

/// How many projects the pages of a list hold together.
pub async fn count(mut db: impl Executor, visible: VisibleTo, page: &Page) -> Result<u64> {
    let mut values = vec![];
    let visible = visible.condition(&mut values);
    let pattern = page.name_condition("p.", &mut values);
    let sql = format!("SELECT COUNT(*) FROM projects p WHERE p.deleted = 0{visible}{pattern}");
    let rows = db.rows_of(sql, values).await?;
    rows.first().map_or(Ok(0), |row| Ok(row.int(0)? as u64))
}

/// The projects of a list that have no fleet, the newest first.
pub async fn list_without_fleets(mut db: impl Executor, visible: VisibleTo) -> Result<Vec<ProjectRow>> {
    let mut values = vec![];
    let visible = visible.condition(&mut values);
    let sql = format!(
        "{}WHERE p.deleted = 0{visible} AND NOT EXISTS \
         (SELECT 1 FROM fleets f WHERE f.project_id = p.id AND f.status NOT IN ('terminated', 'failed')) \
         ORDER BY p.created_at DESC, p.id",
        select!("")
    );
    db.rows_of(sql, values).await?.iter().map(ProjectRow::from_row).collect()
}

/// Changes what a project's admin may change.
pub async fn set_details(
    mut db: impl Executor,
    id: ProjectId,
    is_public: bool,
    templates_repo: Option<String>,
) -> Result<()> {
    db.execute(
        "UPDATE projects SET is_public = $1, templates_repo = $2 WHERE id = $3 AND deleted = 0",
        values![is_public, templates_repo, id],
    )
    .await?;
    Ok(())
}

/// Marks a project deleted: its name is free again. [`Error::Stale`] if it was before.
pub async fn delete(mut db: impl Executor, id: ProjectId) -> Result<()> {
    match db.execute("UPDATE projects SET deleted = 1 WHERE id = $1 AND deleted = 0", values![id]).await? {
        0 => Err(Error::Stale),
        _ => Ok(()),
    }
}

/// How many runs and fleets of a project are not finished.
pub async fn count_live(mut db: impl Executor, id: ProjectId) -> Result<(u64, u64)> {
    let row = db
        .row(
            "SELECT (SELECT COUNT(*) FROM runs WHERE project_id = $1 AND deleted = 0 \
             AND status NOT IN ('terminated', 'failed', 'done')), (SELECT COUNT(*) FROM fleets \
             WHERE project_id = $1 AND status NOT IN ('terminated', 'failed'))",
            values![id],
        )
        .await?;
    row.map_or(Ok((0, 0)), |row| Ok((row.int(0)? as u64, row.int(1)? as u64)))
}
