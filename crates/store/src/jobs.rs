//! Jobs: each row is one submission.

use api::ids::{InstanceId, JobId, RunId};
use jiff::Timestamp;
use lifecycle::job::{EndOrder, Job};

use crate::db::{Executor, Row, Value, placeholders};
use crate::error::{Error, Result};
use crate::{Versioned, values};

fn number(value: i64) -> u32 {
    u32::try_from(value).unwrap_or_default()
}

fn job(row: &Row) -> Result<Versioned<Job>> {
    let end: Option<String> = row.text_or_null(10)?;
    Ok(Versioned {
        version: row.int(0)?,
        value: Job {
            id: row.id(1)?,
            run_id: row.id(2)?,
            project_id: row.id(3)?,
            replica_num: number(row.int(4)?),
            job_num: number(row.int(5)?),
            submission_num: number(row.int(6)?),
            submitted_at: row.time(7)?,
            status: row.word(8)?,
            instance_id: row.id_or_null(9)?,
            end: end.map(|end| serde_json::from_str(&end)).transpose()?,
            released_at: row.time_or_null(11)?,
            spec: row.json(12)?,
            state: row.json(13)?,
        },
    })
}

fn jobs(rows: &[Row]) -> Result<Vec<Versioned<Job>>> {
    rows.iter().map(job).collect()
}

/// A submission.
pub async fn get(mut db: impl Executor, id: JobId) -> Result<Option<Versioned<Job>>> {
    let row = db
        .row(
            "SELECT version, id, run_id, project_id, replica_num, job_num, submission_num, submitted_at, status, \
             instance_id, end_order, released_at, spec, state FROM jobs WHERE id = $1",
            values![id],
        )
        .await?;
    row.as_ref().map(job).transpose()
}

/// The latest submission of each of a run's jobs, by replica and number.
pub async fn list_latest(mut db: impl Executor, run: RunId) -> Result<Vec<Versioned<Job>>> {
    let rows = db
        .rows(
            "SELECT version, id, run_id, project_id, replica_num, job_num, submission_num, submitted_at, status, \
             instance_id, end_order, released_at, spec, state FROM jobs j WHERE run_id = $1 AND submission_num = \
             (SELECT MAX(submission_num) FROM jobs l WHERE l.run_id = j.run_id AND l.replica_num = j.replica_num \
             AND l.job_num = j.job_num) ORDER BY replica_num, job_num",
            values![run],
        )
        .await?;
    jobs(&rows)
}

/// The submission of a replica's first node that belongs to one try of it.
pub async fn get_first(
    mut db: impl Executor,
    run: RunId,
    replica_num: u32,
    submission_num: u32,
) -> Result<Option<Versioned<Job>>> {
    let row = db
        .row(
            "SELECT version, id, run_id, project_id, replica_num, job_num, submission_num, submitted_at, status, \
             instance_id, end_order, released_at, spec, state FROM jobs WHERE run_id = $1 AND replica_num = $2 \
             AND job_num = 0 AND submission_num = $3",
            values![run, replica_num, submission_num],
        )
        .await?;
    row.as_ref().map(job).transpose()
}

/// How many nodes of a try of a replica have no machine that has joined.
pub async fn count_without_machine(
    mut db: impl Executor,
    run: RunId,
    replica_num: u32,
    submission_num: u32,
) -> Result<u64> {
    let row = db
        .row(
            "SELECT COUNT(*) FROM jobs j LEFT JOIN instances i ON i.id = j.instance_id WHERE j.run_id = $1 \
             AND j.replica_num = $2 AND j.submission_num = $3 \
             AND (i.id IS NULL OR i.status IN ('pending', 'provisioning'))",
            values![run, replica_num, submission_num],
        )
        .await?;
    let count = row.map_or(Ok(0), |row| row.int(0))?;
    Ok(u64::try_from(count).unwrap_or_default())
}

/// All submissions of some runs, by run, replica, number and submission.
pub async fn list_by_runs(mut db: impl Executor, runs: &[RunId]) -> Result<Vec<Versioned<Job>>> {
    if runs.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!(
        "SELECT version, id, run_id, project_id, replica_num, job_num, submission_num, submitted_at, status, \
         instance_id, end_order, released_at, spec, state FROM jobs WHERE run_id IN ({}) \
         ORDER BY run_id, replica_num, job_num, submission_num",
        placeholders(1, runs.len())
    );
    jobs(&db.rows_of(sql, runs.iter().map(|id| Value::from(*id)).collect()).await?)
}

/// The sum of the versions of each run's jobs: it grows with every change of any of them.
pub async fn list_version_sums(mut db: impl Executor, runs: &[RunId]) -> Result<Vec<(RunId, i64)>> {
    if runs.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!(
        "SELECT run_id, CAST(SUM(version) AS BIGINT) FROM jobs WHERE run_id IN ({}) GROUP BY run_id",
        placeholders(1, runs.len())
    );
    let rows = db.rows_of(sql, runs.iter().map(|id| Value::from(*id)).collect()).await?;
    rows.iter().map(|row| Ok((row.id(0)?, row.int(1)?))).collect()
}

/// An instance's jobs that are not finished.
pub async fn list_active_by_instance(mut db: impl Executor, instance: InstanceId) -> Result<Vec<Versioned<Job>>> {
    let rows = db
        .rows(
            "SELECT version, id, run_id, project_id, replica_num, job_num, submission_num, submitted_at, status, \
             instance_id, end_order, released_at, spec, state FROM jobs WHERE instance_id = $1 \
             AND status IN ('submitted', 'provisioning', 'pulling', 'running', 'terminating') ORDER BY id",
            values![instance],
        )
        .await?;
    jobs(&rows)
}

/// Which of some submissions are finished, and whether their run is deleted.
pub async fn list_finished(mut db: impl Executor, ids: &[JobId]) -> Result<Vec<(JobId, bool)>> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!(
        "SELECT j.id, r.deleted FROM jobs j JOIN runs r ON r.id = j.run_id WHERE j.id IN ({}) \
         AND j.status IN ('done', 'failed', 'terminated', 'aborted') ORDER BY j.id",
        placeholders(1, ids.len())
    );
    let rows = db.rows_of(sql, ids.iter().map(|id| Value::from(*id)).collect()).await?;
    rows.iter().map(|row| Ok((row.id(0)?, row.truth(1)?))).collect()
}

/// Adds a submission, due now.
pub async fn insert(mut db: impl Executor, job: &Job, now: Timestamp) -> Result<()> {
    db.execute(
        "INSERT INTO jobs (id, version, due_at, leased_until, leased_by, run_id, project_id, replica_num, job_num, \
         submission_num, submitted_at, status, instance_id, end_order, released_at, spec, state) \
         VALUES ($1, 1, $2, 0, '', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        values![
            job.id,
            now,
            job.run_id,
            job.project_id,
            job.replica_num,
            job.job_num,
            job.submission_num,
            job.submitted_at,
            job.status.as_str(),
            job.instance_id,
            job.end.as_ref().map(serde_json::to_string).transpose()?,
            job.released_at,
            serde_json::to_string(&job.spec)?,
            serde_json::to_string(&job.state)?
        ],
    )
    .await?;
    Ok(())
}

/// Saves what the job's reconciler decided.
pub async fn save(mut db: impl Executor, job: &Versioned<Job>) -> Result<()> {
    let value = &job.value;
    let changed = db
        .execute(
            "UPDATE jobs SET version = version + 1, status = $1, state = $2 WHERE id = $3 AND version = $4",
            values![value.status.as_str(), serde_json::to_string(&value.state)?, value.id, job.version],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Saves where a job was placed, and makes it due.
pub async fn save_placed(mut db: impl Executor, job: &Versioned<Job>, now: Timestamp) -> Result<()> {
    let value = &job.value;
    let changed = db
        .execute(
            "UPDATE jobs SET version = version + 1, status = $1, instance_id = $2, released_at = $3, state = $4, \
             due_at = $5 WHERE id = $6 AND version = $7",
            values![
                value.status.as_str(),
                value.instance_id,
                value.released_at,
                serde_json::to_string(&value.state)?,
                now,
                value.id,
                job.version
            ],
        )
        .await?;
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Lets a job's command start, and makes it due.
pub async fn set_released(mut db: impl Executor, id: JobId, now: Timestamp) -> Result<()> {
    db.execute(
        "UPDATE jobs SET version = version + 1, released_at = $1, due_at = $1 WHERE id = $2 AND released_at IS NULL",
        values![now, id],
    )
    .await?;
    Ok(())
}

/// Orders a job's end, or changes the order, and makes it due.
pub async fn set_end(mut db: impl Executor, id: JobId, end: &EndOrder, now: Timestamp) -> Result<()> {
    db.execute(
        "UPDATE jobs SET version = version + 1, end_order = $1, due_at = $2 WHERE id = $3 \
         AND status IN ('submitted', 'provisioning', 'pulling', 'running', 'terminating')",
        values![serde_json::to_string(end)?, now, id],
    )
    .await?;
    Ok(())
}

/// Orders the end of a job that got no place, unless it has one by now, and makes it due.
pub async fn refuse(mut db: impl Executor, id: JobId, end: &EndOrder, now: Timestamp) -> Result<()> {
    db.execute(
        "UPDATE jobs SET version = version + 1, end_order = $1, due_at = $2 WHERE id = $3 \
         AND status = 'submitted' AND instance_id IS NULL AND end_order IS NULL",
        values![serde_json::to_string(end)?, now, id],
    )
    .await?;
    Ok(())
}

/// Makes every unfinished job of a run due now.
pub async fn touch_by_run(mut db: impl Executor, run: RunId, now: Timestamp) -> Result<()> {
    db.wake(
        "UPDATE jobs SET due_at = $1 WHERE run_id = $2 AND due_at > $1 \
         AND status IN ('submitted', 'provisioning', 'pulling', 'running', 'terminating')",
        values![now, run],
    )
    .await
}

/// Makes the first node of every replica of a run due now, if it is not finished.
pub async fn touch_first(mut db: impl Executor, run: RunId, now: Timestamp) -> Result<()> {
    db.wake(
        "UPDATE jobs SET due_at = $1 WHERE run_id = $2 AND job_num = 0 AND due_at > $1 \
         AND status IN ('submitted', 'provisioning', 'pulling', 'running', 'terminating')",
        values![now, run],
    )
    .await
}

/// Makes every unfinished job of an instance due now.
pub async fn touch_by_instance(mut db: impl Executor, instance: InstanceId, now: Timestamp) -> Result<()> {
    db.wake(
        "UPDATE jobs SET due_at = $1 WHERE instance_id = $2 AND due_at > $1 \
         AND status IN ('submitted', 'provisioning', 'pulling', 'running', 'terminating')",
        values![now, instance],
    )
    .await
}
