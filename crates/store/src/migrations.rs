//! The schema, in steps that the previous release can live with.

use std::borrow::Cow;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use crate::db::Db;
use crate::error::Result;

/// Every step: number, name, text. Steps are only ever added.
const STEPS: &[(i64, &str, &str)] = &[
    (1, "accounts", include_str!("../migrations/0001_accounts.sql")),
    (2, "runs and fleets", include_str!("../migrations/0002_runs_and_fleets.sql")),
    (3, "events", include_str!("../migrations/0003_events.sql")),
    (4, "fleet indexes", include_str!("../migrations/0004_fleet_indexes.sql")),
    (5, "active indexes", include_str!("../migrations/0005_active_indexes.sql")),
    (6, "hosts", include_str!("../migrations/0006_hosts.sql")),
    (7, "failed launches", include_str!("../migrations/0007_failed_launches.sql")),
    (8, "failed launches of projects", include_str!("../migrations/0008_failed_launches_of_projects.sql")),
    (9, "backends from the file", include_str!("../migrations/0009_backends_from_file.sql")),
];

/// The last step.
pub const LAST_STEP: i64 = STEPS[STEPS.len() - 1].0;

/// Brings the schema up to this release. Does nothing if it is there already.
pub async fn migrate(db: &Db) -> Result<()> {
    migrate_until(db, LAST_STEP).await
}

/// Brings the schema up to a step: what a release had whose last step that was. For tests of the later ones.
pub async fn migrate_until(db: &Db, last: i64) -> Result<()> {
    match db {
        Db::Sqlite { writer, .. } => migrator(last, str::to_owned).run(writer).await?,
        Db::Postgres(pool) => migrator(last, for_postgres).run(pool).await?,
    }
    Ok(())
}

fn migrator(last: i64, dialect: fn(&str) -> String) -> Migrator {
    let steps = STEPS.iter().filter(|(number, ..)| *number <= last).map(|(number, name, sql)| {
        let sql = sqlx::AssertSqlSafe(dialect(sql)).into_sql_str();
        Migration::new(*number, Cow::Borrowed(*name), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(steps.collect())
}

// The texts are written for SQLite. Postgres has another word for bytes, and sorts text by the database's locale
// unless it is told not to.
fn for_postgres(sql: &str) -> String {
    sql.replace(" BLOB", " BYTEA").replace(" TEXT", " TEXT COLLATE \"C\"").replace(" REAL", " DOUBLE PRECISION")
}
