//! Fleets.

use api::ids::{FleetId, ProjectId};
use jiff::Timestamp;
use lifecycle::fleet::Fleet;

use crate::db::{Executor, Row};
use crate::error::{Error, Result};
use crate::{Versioned, values};

const GET: &str = "SELECT version, id, project_id, user_id, name, created_at, status, wanted, spec, state \
                   FROM fleets WHERE id = $1";

fn fleet(row: &Row) -> Result<Versioned<Fleet>> {
    Ok(Versioned {
        version: row.int(0)?,
        value: Fleet {
            id: row.id(1)?,
            project_id: row.id(2)?,
            user_id: row.id(3)?,
            name: row.text(4)?,
            created_at: row.time(5)?,
            status: row.word(6)?,
            wanted: row.truth(7)?,
            spec: row.json(8)?,
            state: row.json(9)?,
        },
    })
}

fn fleets(rows: &[Row]) -> Result<Vec<Versioned<Fleet>>> {
    rows.iter().map(fleet).collect()
}

/// A fleet, terminated ones too.
pub async fn get(mut db: impl Executor, id: FleetId) -> Result<Option<Versioned<Fleet>>> {
    db.row(GET, values![id]).await?.as_ref().map(fleet).transpose()
}

/// The fleet of that name that is not terminated.
pub async fn get_by_name(
    mut db: impl Executor,
    project: ProjectId,
    name: &str,
) -> Result<Option<Versioned<Fleet>>> {
    let row = db
        .row(
            "SELECT version, id, project_id, user_id, name, created_at, status, wanted, spec, state \
             FROM fleets WHERE project_id = $1 AND name = $2 AND status <> 'terminated'",
            values![project, name],
        )
        .await?;
    row.as_ref().map(fleet).transpose()
}

/// A project's fleets that are not terminated, newest first.
pub async fn list_by_project(mut db: impl Executor, project: ProjectId) -> Result<Vec<Versioned<Fleet>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, user_id, name, created_at, status, wanted, spec, state \
             FROM fleets WHERE project_id = $1 AND status <> 'terminated' ORDER BY created_at DESC, id",
            values![project],
        )
        .await?;
    fleets(&rows)
}

/// A page of fleets of some projects, newest first unless `ascending`.
#[derive(Debug, Clone, Default)]
pub struct FleetFilter {
    /// Fleets of these projects.
    pub projects: Vec<ProjectId>,
    /// Only those that are not terminated.
    pub only_active: bool,
    /// The last page's last fleet.
    pub after: Option<(Timestamp, FleetId)>,
    /// Oldest first.
    pub ascending: bool,
    /// At most this many.
    pub limit: u32,
}

/// The fleets that match, in the order asked for.
pub async fn list(mut db: impl Executor, filter: &FleetFilter) -> Result<Vec<Versioned<Fleet>>> {
    let mut values: Vec<crate::db::Value> = filter.projects.iter().map(|id| (*id).into()).collect();
    if values.is_empty() {
        return Ok(vec![]);
    }
    let mut conditions = format!("project_id IN ({})", crate::db::placeholders(1, values.len()));
    if filter.only_active {
        conditions.push_str(" AND status <> 'terminated'");
    }
    conditions.push_str(&crate::db::after("created_at", filter.after, filter.ascending, &mut values));
    let order = if filter.ascending { "created_at ASC, id DESC" } else { "created_at DESC, id ASC" };
    values.push(filter.limit.into());
    let sql = format!(
        "SELECT version, id, project_id, user_id, name, created_at, status, wanted, spec, state \
         FROM fleets WHERE {conditions} ORDER BY {order} LIMIT ${}",
        values.len()
    );
    fleets(&db.rows_of(sql, values).await?)
}

/// The fleets that still may have machines.
pub async fn list_living(mut db: impl Executor) -> Result<Vec<FleetId>> {
    let rows =
        db.rows("SELECT id FROM fleets WHERE status NOT IN ('terminated', 'failed') ORDER BY id", vec![]).await?;
    rows.iter().map(|row| row.id(0)).collect()
}

/// Adds a fleet, due now. `Taken` if the name is.
pub async fn insert(mut db: impl Executor, fleet: &Fleet, now: Timestamp) -> Result<()> {
    db.execute(
        "INSERT INTO fleets (id, version, due_at, leased_until, leased_by, project_id, user_id, name, created_at, \
         status, wanted, spec, state) VALUES ($1, 1, $2, 0, '', $3, $4, $5, $6, $7, $8, $9, $10)",
        values![
            fleet.id,
            now,
            fleet.project_id,
            fleet.user_id,
            fleet.name.as_str(),
            fleet.created_at,
            fleet.status.as_str(),
            fleet.wanted,
            serde_json::to_string(&fleet.spec)?,
            serde_json::to_string(&fleet.state)?
        ],
    )
    .await?;
    Ok(())
}

/// Saves what the reconciler decided.
pub async fn save(mut db: impl Executor, fleet: &Versioned<Fleet>) -> Result<()> {
    let value = &fleet.value;
    let changed = db
        .execute(
            "UPDATE fleets SET version = version + 1, status = $1, state = $2 WHERE id = $3 AND version = $4",
            values![value.status.as_str(), serde_json::to_string(&value.state)?, value.id, fleet.version],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Changes nothing but the version: what was decided from the fleet and its instances as they were is stale.
pub async fn move_on(mut db: impl Executor, fleet: &Versioned<Fleet>) -> Result<()> {
    let changed = db
        .execute(
            "UPDATE fleets SET version = version + 1 WHERE id = $1 AND version = $2",
            values![fleet.value.id, fleet.version],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Changes nothing but the version, whatever it is, and within a transaction holds the fleet until its end: whoever
/// decides about it at the same time has saved before, or is stale.
pub async fn overtake(mut db: impl Executor, id: FleetId) -> Result<()> {
    db.execute("UPDATE fleets SET version = version + 1 WHERE id = $1", values![id]).await?;
    Ok(())
}

/// Says that nobody wants the fleet any more, and makes it due.
pub async fn set_unwanted(mut db: impl Executor, id: FleetId, now: Timestamp) -> Result<()> {
    db.execute("UPDATE fleets SET version = version + 1, wanted = 0, due_at = $1 WHERE id = $2", values![now, id])
        .await?;
    Ok(())
}

/// Changes what is wanted, and makes the fleet due.
pub async fn set_spec(mut db: impl Executor, fleet: &Versioned<Fleet>, now: Timestamp) -> Result<()> {
    let value = &fleet.value;
    let changed = db
        .execute(
            "UPDATE fleets SET version = version + 1, spec = $1, state = $2, due_at = $3 \
             WHERE id = $4 AND version = $5",
            values![
                serde_json::to_string(&value.spec)?,
                serde_json::to_string(&value.state)?,
                now,
                value.id,
                fleet.version
            ],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}
