//! Claiming rows that are due.
//!
//! A lease only spares work: two replicas that reconcile one row at once do no harm, because the version refuses
//! the second save and every effect carries a key.

use jiff::Timestamp;
use uuid::Uuid;

use crate::db::Executor;
use crate::error::Result;
use crate::values;

/// A table whose rows are reconciled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Fleets.
    Fleets,
    /// Launches.
    Launches,
    /// Instances.
    Instances,
    /// Runs.
    Runs,
    /// Jobs.
    Jobs,
}

/// The `due_at` of a row that nothing will happen to by itself.
pub const NEVER: i64 = i64::MAX;

/// How long a claim holds, unless it is released before, in seconds.
pub const LEASE_SECS: i64 = 30;

macro_rules! per_table {
    ($table:expr, $before:literal, $after:literal) => {
        match $table {
            Table::Fleets => concat!($before, "fleets", $after),
            Table::Launches => concat!($before, "launches", $after),
            Table::Instances => concat!($before, "instances", $after),
            Table::Runs => concat!($before, "runs", $after),
            Table::Jobs => concat!($before, "jobs", $after),
        }
    };
}

macro_rules! per_table_twice {
    ($table:expr, $before:literal, $between:literal, $after:literal) => {
        match $table {
            Table::Fleets => concat!($before, "fleets", $between, "fleets", $after),
            Table::Launches => concat!($before, "launches", $between, "launches", $after),
            Table::Instances => concat!($before, "instances", $between, "instances", $after),
            Table::Runs => concat!($before, "runs", $between, "runs", $after),
            Table::Jobs => concat!($before, "jobs", $between, "jobs", $after),
        }
    };
}

/// Claims at most `limit` due rows for `owner`, the longest due first.
///
/// A claimed row falls due again when the claim runs out, so a crash loses nothing.
pub async fn claim(
    mut db: impl Executor,
    table: Table,
    owner: &str,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Uuid>> {
    // The guard stands in the outer condition as well: on Postgres two replicas may select the same row before
    // either updates it.
    let sql = per_table_twice!(
        table,
        "UPDATE ",
        " SET leased_until = $1, due_at = $1, leased_by = $2 \
         WHERE leased_until < $3 AND due_at <= $3 AND id IN (SELECT id FROM ",
        " WHERE due_at <= $3 AND leased_until < $3 ORDER BY due_at, id LIMIT $4) RETURNING id"
    );
    let now = now.as_microsecond();
    let until = now + LEASE_SECS * 1_000_000;
    let rows = db.change_lightly(sql, values![until, owner, now, limit]).await?;
    let mut ids: Vec<Uuid> = rows.iter().map(|row| row.id(0)).collect::<Result<_>>()?;
    // No engine promises an order of what it returns, and simulations must repeat themselves.
    ids.sort_unstable();
    Ok(ids)
}

/// Makes a claim last longer. A row that was touched meanwhile stays due.
pub async fn renew(mut db: impl Executor, table: Table, id: Uuid, owner: &str, now: Timestamp) -> Result<()> {
    let sql = per_table!(
        table,
        "UPDATE ",
        " SET due_at = CASE WHEN due_at = leased_until THEN $1 ELSE due_at END, leased_until = $1 \
         WHERE id = $2 AND leased_by = $3"
    );
    let until = now.as_microsecond() + LEASE_SECS * 1_000_000;
    db.execute_lightly(sql, values![until, id, owner]).await?;
    Ok(())
}

/// When the next row falls due that nobody has claimed, if any will.
pub async fn next_due(mut db: impl Executor, table: Table, now: Timestamp) -> Result<Option<Timestamp>> {
    let sql =
        per_table!(table, "SELECT MIN(due_at) FROM ", " WHERE due_at < 9223372036854775807 AND leased_until < $1");
    match db.row(sql, values![now]).await? {
        Some(row) => row.time_or_null(0),
        None => Ok(None),
    }
}

/// Makes a row due now; its reconciler looks at it as soon as it is woken.
pub async fn touch(mut db: impl Executor, table: Table, id: Uuid, now: Timestamp) -> Result<()> {
    let sql = per_table!(table, "UPDATE ", " SET due_at = $1 WHERE id = $2 AND due_at > $1");
    db.wake(sql, values![now, id]).await
}

/// Gives a claimed row back and says when it is due again, in microseconds since the epoch or [`NEVER`].
///
/// A row that was touched while it was claimed keeps the earlier time: the claim put the end of the lease there,
/// so any other value is a touch.
pub async fn release(mut db: impl Executor, table: Table, id: Uuid, owner: &str, due_at: i64) -> Result<()> {
    let sql = per_table!(
        table,
        "UPDATE ",
        " SET due_at = CASE WHEN due_at <> leased_until AND due_at < $1 THEN due_at ELSE $1 END, \
         leased_until = 0, leased_by = '' WHERE id = $2 AND leased_by = $3"
    );
    db.execute_lightly(sql, values![due_at, id, owner]).await?;
    Ok(())
}

/// Makes every row due now that is not finished: what a server does when it starts.
pub async fn touch_all(mut db: impl Executor, table: Table, now: Timestamp) -> Result<u64> {
    let sql = per_table!(
        table,
        "UPDATE ",
        " SET due_at = $1, leased_until = 0, leased_by = '' WHERE due_at < 9223372036854775807"
    );
    db.execute(sql, values![now]).await
}
