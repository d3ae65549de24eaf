//! Runs.

use api::ids::{FleetId, ProjectId, RunId, UserId};
use jiff::Timestamp;
use lifecycle::run::{Run, StopRequest};

use crate::db::{Executor, Row, Value, after, placeholders};
use crate::error::{Error, Result};
use crate::{Versioned, values};

/// The columns of [`run`], in its order.
const COLUMNS: &str = "version, id, project_id, user_id, name, submitted_at, priority, status, deleted, \
                       stop_request, fleet_id, spec, state";

fn run(row: &Row) -> Result<Versioned<Run>> {
    Ok(Versioned {
        version: row.int(0)?,
        value: Run {
            id: row.id(1)?,
            project_id: row.id(2)?,
            user_id: row.id(3)?,
            name: row.text(4)?,
            submitted_at: row.time(5)?,
            priority: row.int(6)?,
            status: row.word(7)?,
            deleted: row.truth(8)?,
            stop: row.word_or_null(9)?,
            fleet_id: row.id_or_null(10)?,
            spec: row.json(11)?,
            state: row.json(12)?,
        },
    })
}

fn runs(rows: &[Row]) -> Result<Vec<Versioned<Run>>> {
    rows.iter().map(run).collect()
}

/// A run, deleted ones too.
pub async fn get(mut db: impl Executor, id: RunId) -> Result<Option<Versioned<Run>>> {
    let row = db
        .row(
            "SELECT version, id, project_id, user_id, name, submitted_at, priority, status, deleted, stop_request, \
             fleet_id, spec, state FROM runs WHERE id = $1",
            values![id],
        )
        .await?;
    row.as_ref().map(run).transpose()
}

/// The run of that name that is not deleted.
pub async fn get_by_name(mut db: impl Executor, project: ProjectId, name: &str) -> Result<Option<Versioned<Run>>> {
    let row = db
        .row(
            "SELECT version, id, project_id, user_id, name, submitted_at, priority, status, deleted, stop_request, \
             fleet_id, spec, state FROM runs WHERE project_id = $1 AND name = $2 AND deleted = 0",
            values![project, name],
        )
        .await?;
    row.as_ref().map(run).transpose()
}

/// Which runs are asked for.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Runs of these projects.
    pub projects: Vec<ProjectId>,
    /// Only of this user.
    pub user: Option<UserId>,
    /// Only of this repository.
    pub repo_id: Option<String>,
    /// Only those that are neither finished nor deleted.
    pub only_active: bool,
    /// The last page's last run.
    pub after: Option<(Timestamp, RunId)>,
    /// Oldest first.
    pub ascending: bool,
    /// At most this many.
    pub limit: u32,
}

fn filter_conditions(filter: &RunFilter, values: &mut Vec<Value>) -> String {
    values.extend(filter.projects.iter().map(|id| Value::from(*id)));
    let mut conditions = format!("project_id IN ({})", placeholders(1, values.len()));
    if let Some(user) = filter.user {
        values.push(user.into());
        conditions.push_str(&format!(" AND user_id = ${}", values.len()));
    }
    if let Some(repo_id) = &filter.repo_id {
        values.push(repo_id.as_str().into());
        conditions.push_str(&format!(" AND repo_id = ${}", values.len()));
    }
    if filter.only_active {
        conditions.push_str(
            " AND deleted = 0 AND status IN ('pending', 'submitted', 'provisioning', 'running', 'terminating')",
        );
    }
    conditions.push_str(&after("submitted_at", filter.after, filter.ascending, values));
    conditions
}

/// The runs that match, newest first unless `ascending`.
pub async fn list(mut db: impl Executor, filter: &RunFilter) -> Result<Vec<Versioned<Run>>> {
    if filter.projects.is_empty() {
        return Ok(vec![]);
    }
    let mut values = vec![];
    let conditions = filter_conditions(filter, &mut values);
    let order = if filter.ascending { "submitted_at ASC, id DESC" } else { "submitted_at DESC, id ASC" };
    values.push(filter.limit.into());
    let sql = format!("SELECT {COLUMNS} FROM runs WHERE {conditions} ORDER BY {order} LIMIT ${}", values.len());
    runs(&db.rows_of(sql, values).await?)
}

/// The identifiers and versions of the runs that match, in the same order as [`list`].
pub async fn list_versions(mut db: impl Executor, filter: &RunFilter) -> Result<Vec<(RunId, i64)>> {
    if filter.projects.is_empty() {
        return Ok(vec![]);
    }
    let mut values = vec![];
    let conditions = filter_conditions(filter, &mut values);
    let order = if filter.ascending { "submitted_at ASC, id DESC" } else { "submitted_at DESC, id ASC" };
    values.push(filter.limit.into());
    let sql = format!("SELECT id, version FROM runs WHERE {conditions} ORDER BY {order} LIMIT ${}", values.len());
    let rows = db.rows_of(sql, values).await?;
    rows.iter().map(|row| Ok((row.id(0)?, row.int(1)?))).collect()
}

/// Runs by identifier, in no order.
pub async fn list_by_ids(mut db: impl Executor, ids: &[RunId]) -> Result<Vec<Versioned<Run>>> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!("SELECT {COLUMNS} FROM runs WHERE id IN ({})", placeholders(1, ids.len()));
    runs(&db.rows_of(sql, ids.iter().map(|id| Value::from(*id)).collect()).await?)
}

/// Every project with a run that waits for a place.
pub async fn list_waiting_projects(mut db: impl Executor) -> Result<Vec<ProjectId>> {
    let rows = db
        .rows(
            "SELECT DISTINCT project_id FROM runs WHERE status IN ('submitted', 'pending') AND deleted = 0 \
             AND stop_request IS NULL ORDER BY project_id",
            vec![],
        )
        .await?;
    rows.iter().map(|row| row.id(0)).collect()
}

/// A fleet's runs that are not finished.
pub async fn list_active_by_fleet(mut db: impl Executor, fleet: FleetId) -> Result<Vec<RunId>> {
    let rows = db
        .rows(
            "SELECT id FROM runs WHERE fleet_id = $1 AND deleted = 0 \
             AND status IN ('pending', 'submitted', 'provisioning', 'running', 'terminating') ORDER BY id",
            values![fleet],
        )
        .await?;
    rows.iter().map(|row| row.id(0)).collect()
}

/// Adds a run, due now. `Taken` if the name is.
pub async fn insert(mut db: impl Executor, run: &Run, now: Timestamp) -> Result<()> {
    db.execute(
        "INSERT INTO runs (id, version, due_at, leased_until, leased_by, project_id, user_id, name, submitted_at, \
         priority, status, deleted, repo_id, stop_request, fleet_id, spec, state) \
         VALUES ($1, 1, $2, 0, '', $3, $4, $5, $6, $7, $8, $9, $10, NULL, $11, $12, $13)",
        values![
            run.id,
            now,
            run.project_id,
            run.user_id,
            run.name.as_str(),
            run.submitted_at,
            run.priority,
            run.status.as_str(),
            run.deleted,
            run.spec.repo_id.clone(),
            run.fleet_id,
            serde_json::to_string(&run.spec)?,
            serde_json::to_string(&run.state)?
        ],
    )
    .await?;
    Ok(())
}

/// Saves what the reconciler decided.
pub async fn save(mut db: impl Executor, run: &Versioned<Run>) -> Result<()> {
    let value = &run.value;
    let changed = db
        .execute(
            "UPDATE runs SET version = version + 1, status = $1, fleet_id = $2, state = $3 \
             WHERE id = $4 AND version = $5",
            values![
                value.status.as_str(),
                value.fleet_id,
                serde_json::to_string(&value.state)?,
                value.id,
                run.version
            ],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Changes what was submitted, in place, and makes the run due.
pub async fn set_spec(mut db: impl Executor, run: &Versioned<Run>, now: Timestamp) -> Result<()> {
    let value = &run.value;
    let changed = db
        .execute(
            "UPDATE runs SET version = version + 1, spec = $1, priority = $2, state = $3, due_at = $4 \
             WHERE id = $5 AND version = $6",
            values![
                serde_json::to_string(&value.spec)?,
                value.priority,
                serde_json::to_string(&value.state)?,
                now,
                value.id,
                run.version
            ],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Asks for a run's end, and makes it due. An abort wins over a stop.
pub async fn set_stop(mut db: impl Executor, id: RunId, stop: StopRequest, now: Timestamp) -> Result<bool> {
    let word = match stop {
        StopRequest::Stop => "stop",
        StopRequest::Abort => "abort",
    };
    let changed = db
        .execute(
            "UPDATE runs SET version = version + 1, stop_request = $1, due_at = $2 \
             WHERE id = $3 AND (stop_request IS NULL OR (stop_request = 'stop' AND $1 = 'abort')) \
             AND status NOT IN ('done', 'failed', 'terminated')",
            values![word, now, id],
        )
        .await?;
    Ok(changed > 0)
}

/// Hides a finished run.
pub async fn set_deleted(mut db: impl Executor, id: RunId) -> Result<()> {
    db.execute("UPDATE runs SET version = version + 1, deleted = 1 WHERE id = $1", values![id]).await?;
    Ok(())
}

/// Whether any run of the project, deleted ones too, has or had that name.
pub async fn name_is_used(mut db: impl Executor, project: ProjectId, name: &str) -> Result<bool> {
    let row =
        db.row("SELECT 1 FROM runs WHERE project_id = $1 AND name = $2 LIMIT 1", values![project, name]).await?;
    Ok(row.is_some())
}

/// The identifiers and versions of a project's runs that wait for a place, in the order of urgency.
pub async fn list_waiting_versions(
    mut db: impl Executor,
    project: ProjectId,
    limit: u32,
) -> Result<Vec<(RunId, i64)>> {
    let rows = db
        .rows(
            "SELECT id, version FROM runs WHERE status IN ('submitted', 'pending') AND project_id = $1 \
             AND deleted = 0 AND stop_request IS NULL ORDER BY priority DESC, submitted_at, id LIMIT $2",
            values![project, limit],
        )
        .await?;
    rows.iter().map(|row| Ok((row.id(0)?, row.int(1)?))).collect()
}

/// How many runs a user has in a project, those that were deleted among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunCounts {
    /// The project's name.
    pub project: String,
    /// The user's name.
    pub user: String,
    /// All of them.
    pub all: u64,
    /// Those that somebody ended.
    pub terminated: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that succeeded.
    pub done: u64,
}

/// The runs of each user in each project, by the names of both.
pub async fn count_by_owner(mut db: impl Executor) -> Result<Vec<RunCounts>> {
    let rows = db
        .rows(
            "SELECT p.name, u.name, COUNT(*), SUM(CASE r.status WHEN 'terminated' THEN 1 ELSE 0 END), \
             SUM(CASE r.status WHEN 'failed' THEN 1 ELSE 0 END), SUM(CASE r.status WHEN 'done' THEN 1 ELSE 0 END) \
             FROM runs r JOIN projects p ON p.id = r.project_id JOIN users u ON u.id = r.user_id \
             GROUP BY p.name, u.name ORDER BY p.name, u.name",
            vec![],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(RunCounts {
                project: row.text(0)?,
                user: row.text(1)?,
                all: row.int(2)? as u64,
                terminated: row.int(3)? as u64,
                failed: row.int(4)? as u64,
                done: row.int(5)? as u64,
            })
        })
        .collect()
}
