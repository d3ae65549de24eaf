//! Instances and the blocks of them that jobs hold.

use api::ids::{BackendId, FleetId, InstanceId, JobId, LaunchId, ProjectId, RunId};
use api::jobs::JobSpec;
use jiff::Timestamp;
use lifecycle::instance::{EndOrder, Host, Instance};

use crate::db::{Executor, Row, Value, after, placeholders};
use crate::error::{Error, Result};
use crate::{Versioned, values};

fn instance(row: &Row) -> Result<Versioned<Instance>> {
    let end: Option<String> = row.text_or_null(7)?;
    Ok(Versioned {
        version: row.int(0)?,
        value: Instance {
            id: row.id(1)?,
            project_id: row.id(2)?,
            fleet_id: row.id(3)?,
            instance_num: u32::try_from(row.int(4)?).unwrap_or_default(),
            created_at: row.time(5)?,
            status: row.word(6)?,
            end: end.map(|end| serde_json::from_str(&end)).transpose()?,
            launch_id: row.id_or_null(8)?,
            launch_index: row.int_or_null(9)?.and_then(|index| u32::try_from(index).ok()),
            state: row.json(10)?,
        },
    })
}

fn instances(rows: &[Row]) -> Result<Vec<Versioned<Instance>>> {
    rows.iter().map(instance).collect()
}

/// An instance, terminated ones too.
pub async fn get(mut db: impl Executor, id: InstanceId) -> Result<Option<Versioned<Instance>>> {
    let row = db
        .row(
            "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
             launch_index, state FROM instances WHERE id = $1",
            values![id],
        )
        .await?;
    row.as_ref().map(instance).transpose()
}

/// A fleet's instances that are not terminated, by number.
pub async fn list_by_fleet(mut db: impl Executor, fleet: FleetId) -> Result<Vec<Versioned<Instance>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
             launch_index, state FROM instances WHERE fleet_id = $1 AND status <> 'terminated' ORDER BY instance_num",
            values![fleet],
        )
        .await?;
    instances(&rows)
}

/// The newest instance in a slot of a fleet, also a terminated one.
pub async fn get_last(
    mut db: impl Executor,
    fleet: FleetId,
    instance_num: u32,
) -> Result<Option<Versioned<Instance>>> {
    let row = db
        .row(
            "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
             launch_index, state FROM instances WHERE fleet_id = $1 AND instance_num = $2 \
             ORDER BY created_at DESC, id LIMIT 1",
            values![fleet, instance_num],
        )
        .await?;
    row.as_ref().map(instance).transpose()
}

/// The numbers of a fleet's instances that are not terminated.
pub async fn list_numbers(mut db: impl Executor, fleet: FleetId) -> Result<Vec<u32>> {
    let rows = db
        .rows(
            "SELECT instance_num FROM instances WHERE fleet_id = $1 AND status <> 'terminated' ORDER BY instance_num",
            values![fleet],
        )
        .await?;
    rows.iter().map(|row| Ok(u32::try_from(row.int(0)?).unwrap_or_default())).collect()
}

/// Of each slot of some fleets what was there last, and all that is not terminated: by fleet, number and age.
pub async fn list_last_by_fleets(mut db: impl Executor, fleets: &[FleetId]) -> Result<Vec<Versioned<Instance>>> {
    if fleets.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!(
        "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
         launch_index, state FROM instances i WHERE fleet_id IN ({}) AND (status <> 'terminated' OR NOT EXISTS \
         (SELECT 1 FROM instances l WHERE l.fleet_id = i.fleet_id AND l.instance_num = i.instance_num \
         AND l.created_at > i.created_at)) ORDER BY fleet_id, instance_num, created_at, id",
        placeholders(1, fleets.len())
    );
    instances(&db.rows_of(sql, fleets.iter().map(|id| Value::from(*id)).collect()).await?)
}

/// A project's instances that are not terminated.
pub async fn list_by_project(mut db: impl Executor, project: ProjectId) -> Result<Vec<Versioned<Instance>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
             launch_index, state FROM instances WHERE project_id = $1 AND status <> 'terminated' \
             ORDER BY fleet_id, instance_num",
            values![project],
        )
        .await?;
    instances(&rows)
}

/// The instances that a run's submissions ever had, in no order.
pub async fn list_of_run(mut db: impl Executor, run: RunId) -> Result<Vec<Versioned<Instance>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
             launch_index, state FROM instances \
             WHERE id IN (SELECT instance_id FROM jobs WHERE run_id = $1 AND instance_id IS NOT NULL)",
            values![run],
        )
        .await?;
    instances(&rows)
}

/// A launch's instances by index, terminated ones too.
pub async fn list_by_launch(mut db: impl Executor, launch: LaunchId) -> Result<Vec<Versioned<Instance>>> {
    let rows = db
        .rows(
            "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
             launch_index, state FROM instances WHERE launch_id = $1 ORDER BY launch_index",
            values![launch],
        )
        .await?;
    instances(&rows)
}

/// Which instances are asked for.
#[derive(Debug, Clone, Default)]
pub struct InstanceFilter {
    /// Instances of these projects.
    pub projects: Vec<ProjectId>,
    /// Only of these fleets.
    pub fleets: Option<Vec<FleetId>>,
    /// Only those that are not terminated.
    pub only_active: bool,
    /// The last page's last instance.
    pub after: Option<(Timestamp, InstanceId)>,
    /// Oldest first.
    pub ascending: bool,
    /// At most this many.
    pub limit: u32,
}

/// The instances that match, newest first unless `ascending`.
pub async fn list(mut db: impl Executor, filter: &InstanceFilter) -> Result<Vec<Versioned<Instance>>> {
    let mut values: Vec<Value> = filter.projects.iter().map(|id| (*id).into()).collect();
    let fleets: &[FleetId] = filter.fleets.as_deref().unwrap_or_default();
    if values.is_empty() || (filter.fleets.is_some() && fleets.is_empty()) {
        return Ok(vec![]);
    }
    let mut conditions = format!("project_id IN ({})", placeholders(1, values.len()));
    if !fleets.is_empty() {
        conditions.push_str(&format!(" AND fleet_id IN ({})", placeholders(values.len() + 1, fleets.len())));
        values.extend(fleets.iter().map(|id| Value::from(*id)));
    }
    if filter.only_active {
        conditions.push_str(" AND status <> 'terminated'");
    }
    conditions.push_str(&after("created_at", filter.after, filter.ascending, &mut values));
    let order = if filter.ascending { "created_at ASC, id DESC" } else { "created_at DESC, id ASC" };
    values.push(filter.limit.into());
    let sql = format!(
        "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
         launch_index, state FROM instances WHERE {conditions} ORDER BY {order} LIMIT ${}",
        values.len()
    );
    self::instances(&db.rows_of(sql, values).await?)
}

/// Adds an instance, due now. `Taken` if it is a machine of the user's own that another one is.
pub async fn insert(mut db: impl Executor, instance: &Instance, now: Timestamp) -> Result<()> {
    db.execute(
        "INSERT INTO instances (id, version, due_at, leased_until, leased_by, project_id, fleet_id, instance_num, \
         created_at, status, end_order, launch_id, launch_index, state, host) \
         VALUES ($1, 1, $2, 0, '', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        values![
            instance.id,
            now,
            instance.project_id,
            instance.fleet_id,
            instance.instance_num,
            instance.created_at,
            instance.status.as_str(),
            instance.end.as_ref().map(serde_json::to_string).transpose()?,
            instance.launch_id,
            instance.launch_index.map(i64::from),
            serde_json::to_string(&instance.state)?,
            instance.state.host.as_ref().map(Host::key)
        ],
    )
    .await?;
    Ok(())
}

/// The instance that is a machine of the user's own, by its address, unless it is terminated.
pub async fn find_by_host(mut db: impl Executor, host: &str) -> Result<Option<Versioned<Instance>>> {
    let row = db
        .row(
            "SELECT version, id, project_id, fleet_id, instance_num, created_at, status, end_order, launch_id, \
             launch_index, state FROM instances WHERE host = $1 AND status <> 'terminated'",
            values![host],
        )
        .await?;
    row.as_ref().map(instance).transpose()
}

/// The instances that are machines of the users' own and that nobody has ended.
pub async fn list_hosts(mut db: impl Executor) -> Result<Vec<InstanceId>> {
    let rows = db
        .rows(
            "SELECT id FROM instances WHERE host IS NOT NULL AND status <> 'terminated' AND end_order IS NULL",
            vec![],
        )
        .await?;
    rows.iter().map(|row| row.id(0)).collect()
}

/// The sealed keys to a machine of the user's own.
pub async fn host_access(mut db: impl Executor, id: InstanceId) -> Result<Option<String>> {
    let row = db.row("SELECT host_access FROM instances WHERE id = $1", values![id]).await?;
    row.map_or(Ok(None), |row| row.text_or_null(0))
}

/// Sets the sealed keys to a machine of the user's own.
pub async fn set_host_access(mut db: impl Executor, id: InstanceId, sealed: &str) -> Result<()> {
    db.execute("UPDATE instances SET host_access = $1 WHERE id = $2", values![sealed, id]).await?;
    Ok(())
}

/// Saves what the reconciler decided.
pub async fn save(mut db: impl Executor, instance: &Versioned<Instance>) -> Result<()> {
    let value = &instance.value;
    let changed = db
        .execute(
            "UPDATE instances SET version = version + 1, status = $1, state = $2 WHERE id = $3 AND version = $4",
            values![value.status.as_str(), serde_json::to_string(&value.state)?, value.id, instance.version],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Says which machine of which launch an instance is to become, and makes it due.
pub async fn set_launch(
    mut db: impl Executor,
    instance: &Versioned<Instance>,
    launch: LaunchId,
    index: u32,
    now: Timestamp,
) -> Result<()> {
    let changed = db
        .execute(
            "UPDATE instances SET version = version + 1, launch_id = $1, launch_index = $2, due_at = $3 \
             WHERE id = $4 AND version = $5",
            values![launch, index, now, instance.value.id, instance.version],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Orders an instance's end, unless one is ordered already, and makes it due.
pub async fn set_end(mut db: impl Executor, id: InstanceId, end: &EndOrder, now: Timestamp) -> Result<()> {
    db.execute(
        "UPDATE instances SET version = version + 1, end_order = $1, due_at = $2 \
         WHERE id = $3 AND end_order IS NULL AND status <> 'terminated'",
        values![serde_json::to_string(end)?, now, id],
    )
    .await?;
    Ok(())
}

/// The blocks of an instance that are taken, and by which job.
pub async fn list_assignments(mut db: impl Executor, instance: InstanceId) -> Result<Vec<(u32, JobId)>> {
    let rows = db
        .rows("SELECT block, job_id FROM assignments WHERE instance_id = $1 ORDER BY block", values![instance])
        .await?;
    rows.iter().map(|row| Ok((u32::try_from(row.int(0)?).unwrap_or_default(), row.id(1)?))).collect()
}

/// The blocks of all instances of a project that are taken.
pub async fn list_project_assignments(
    mut db: impl Executor,
    project: ProjectId,
) -> Result<Vec<(InstanceId, u32, JobId)>> {
    let rows = db
        .rows(
            "SELECT a.instance_id, a.block, a.job_id FROM assignments a WHERE EXISTS \
             (SELECT 1 FROM instances i WHERE i.id = a.instance_id AND i.project_id = $1) \
             ORDER BY a.instance_id, a.block",
            values![project],
        )
        .await?;
    rows.iter().map(|row| Ok((row.id(0)?, u32::try_from(row.int(1)?).unwrap_or_default(), row.id(2)?))).collect()
}

/// How many blocks of each instance are taken; instances without any are left out.
pub async fn count_busy_blocks(mut db: impl Executor, instances: &[InstanceId]) -> Result<Vec<(InstanceId, u32)>> {
    if instances.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!(
        "SELECT instance_id, COUNT(*) FROM assignments WHERE instance_id IN ({}) GROUP BY instance_id",
        placeholders(1, instances.len())
    );
    let rows = db.rows_of(sql, instances.iter().map(|id| Value::from(*id)).collect()).await?;
    rows.iter().map(|row| Ok((row.id(0)?, u32::try_from(row.int(1)?).unwrap_or_default()))).collect()
}

/// How many blocks of each of a fleet's instances are taken; instances without any are left out.
pub async fn count_busy_blocks_by_fleet(mut db: impl Executor, fleet: FleetId) -> Result<Vec<(InstanceId, u32)>> {
    let rows = db
        .rows(
            "SELECT a.instance_id, COUNT(*) FROM assignments a JOIN instances i ON i.id = a.instance_id \
             WHERE i.fleet_id = $1 AND i.status <> 'terminated' GROUP BY a.instance_id",
            values![fleet],
        )
        .await?;
    rows.iter().map(|row| Ok((row.id(0)?, u32::try_from(row.int(1)?).unwrap_or_default()))).collect()
}

/// For which run and what each of a fleet's instances is that have no machines yet, by number: those for which nothing
/// is bought, or what was bought came to nothing. Those that no job holds are left out.
pub async fn list_unbought_needs(
    mut db: impl Executor,
    fleet: FleetId,
) -> Result<Vec<(InstanceId, RunId, JobSpec)>> {
    let rows = db
        .rows(
            "SELECT i.id, j.run_id, j.spec FROM instances i JOIN assignments a ON a.instance_id = i.id \
             JOIN jobs j ON j.id = a.job_id WHERE i.fleet_id = $1 AND i.status <> 'terminated' \
             AND i.status IN ('pending', 'provisioning') AND (i.launch_id IS NULL OR EXISTS \
             (SELECT 1 FROM launches l WHERE l.id = i.launch_id \
             AND (l.status = 'failed' OR (l.status = 'done' AND i.status = 'pending')))) \
             AND a.block = (SELECT MIN(f.block) FROM assignments f WHERE f.instance_id = i.id) \
             ORDER BY i.instance_num",
            values![fleet],
        )
        .await?;
    rows.iter().map(|row| Ok((row.id(0)?, row.id(1)?, row.json(2)?))).collect()
}

/// Gives a block to a job. `Taken` if another job holds it.
pub async fn assign(mut db: impl Executor, instance: InstanceId, block: u32, job: JobId) -> Result<()> {
    db.execute(
        "INSERT INTO assignments (instance_id, block, job_id) VALUES ($1, $2, $3)",
        values![instance, block, job],
    )
    .await?;
    Ok(())
}

/// Takes one block of an instance back from a job.
pub async fn unassign_block(mut db: impl Executor, instance: InstanceId, block: u32, job: JobId) -> Result<()> {
    db.execute(
        "DELETE FROM assignments WHERE instance_id = $1 AND block = $2 AND job_id = $3",
        values![instance, block, job],
    )
    .await?;
    Ok(())
}

/// Takes all blocks back that a job holds.
pub async fn unassign(mut db: impl Executor, job: JobId) -> Result<u64> {
    db.execute("DELETE FROM assignments WHERE job_id = $1", values![job]).await
}

/// The machines of a backend that its instances still want to know of: the launch and the index in it.
pub async fn list_machines_by_backend(
    mut db: impl Executor,
    backend: BackendId,
) -> Result<Vec<(LaunchId, Option<u32>)>> {
    let rows = db
        .rows(
            "SELECT i.launch_id, i.launch_index FROM instances i WHERE i.status <> 'terminated' \
             AND EXISTS (SELECT 1 FROM launches l WHERE l.id = i.launch_id AND l.backend_id = $1)",
            values![backend],
        )
        .await?;
    let index = |row: &Row| Ok::<_, Error>(row.int_or_null(1)?.and_then(|index| u32::try_from(index).ok()));
    rows.iter().map(|row| Ok((row.id(0)?, index(row)?))).collect()
}
