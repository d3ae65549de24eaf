//! One way to speak to two database engines.
//!
//! Every statement is written once, with `$1` placeholders, in SQL that SQLite and Postgres both understand.
//! A statement takes [`Value`]s and gives [`Row`]s, so that no other file of this crate names an engine.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::{PgArguments, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection as _, Postgres, SqlSafeStr, Sqlite};

use crate::durable::{Commit, Durable};
use crate::error::Result;
use crate::points::{Point, reach};
pub use crate::values::{Row, Value};

/// How long a statement waits for another process that holds the SQLite file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Readers of the SQLite file at the same time.
const SQLITE_READERS: u32 = 4;

/// Connections to Postgres at the same time.
const POSTGRES_CONNECTIONS: u32 = 16;

/// A database.
#[derive(Debug, Clone)]
pub enum Db {
    /// A file of this server's own: one writer, several readers.
    Sqlite {
        /// The only connection that writes.
        writer: SqlitePool,
        /// Connections that read.
        reader: SqlitePool,
        /// Makes what was written last; none in memory.
        durable: Option<Arc<Durable>>,
    },
    /// A server that several replicas may share.
    Postgres(PgPool),
}

impl Db {
    /// Opens the SQLite file, and makes it if it is missing.
    pub async fn open_sqlite(path: &Path) -> Result<Db> {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let options = sqlite_options(options);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            // A full disk makes SQLite undo a transaction by itself. What undoes it afterwards finds none, and the
            // connection would take itself to be in one for ever.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.clone())
            .await?;
        let reader = SqlitePoolOptions::new()
            .max_connections(SQLITE_READERS)
            .min_connections(0)
            .connect_lazy_with(options.read_only(true).create_if_missing(false));
        Ok(Db::Sqlite { writer, reader, durable: Some(Durable::new(path)) })
    }

    /// Opens a database in memory with a single connection, so that a simulation repeats itself.
    pub async fn open_memory() -> Result<Db> {
        let options = SqliteConnectOptions::from_str("sqlite::memory:")?.foreign_keys(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await?;
        Ok(Db::Sqlite { writer: pool.clone(), reader: pool, durable: None })
    }

    /// Opens a Postgres database by its URL.
    pub async fn open_postgres(url: &str) -> Result<Db> {
        // Drivers of other languages are written into the URLs of existing installations.
        let url = url.replacen("postgresql+asyncpg://", "postgresql://", 1);
        let pool = PgPoolOptions::new().max_connections(POSTGRES_CONNECTIONS).connect(&url).await?;
        Ok(Db::Postgres(pool))
    }

    /// Begins a transaction that writes. Nothing is kept unless [`Tx::commit`] is called.
    pub async fn begin(&self) -> Result<Tx> {
        reach(Point::Apart).await;
        match self {
            Db::Sqlite { writer, durable, .. } => {
                check_durable(durable.as_deref())?;
                Ok(Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?, durable.clone()))
            }
            Db::Postgres(pool) => Ok(Tx::Postgres(pool.begin().await?, Wakes::new(pool.clone()))),
        }
    }

    /// Closes all connections; on SQLite the write-ahead log is folded into the file.
    pub async fn close(&self) {
        match self {
            Db::Sqlite { writer, reader, .. } => {
                reader.close().await;
                // SQLite does this by itself only when the last connection that closes is one that may write; one that
                // reads can be later than that, where a query was given up. What is not folded in here stays in the log.
                if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(writer).await {
                    tracing::warn!(%error, "the write-ahead log stays beside the database");
                }
                writer.close().await;
            }
            Db::Postgres(pool) => pool.close().await,
        }
    }

    /// Returns when everything lasts that was read so far: what others wrote can be read a moment before it does. For
    /// those who act on what they read without having written anything, because a power cut must not undo the reason.
    pub async fn settle(&self) -> Result<()> {
        match self {
            Db::Sqlite { durable: Some(durable), .. } => durable.settle().await,
            // Postgres shows a commit when it lasts.
            Db::Sqlite { durable: None, .. } | Db::Postgres(_) => Ok(()),
        }
    }

    /// Announces a commit, where there is a log that must be made to last.
    fn commit(&self) -> Option<Commit<'_>> {
        match self {
            Db::Sqlite { durable, .. } => durable.as_deref().map(Durable::commit),
            Db::Postgres(_) => None,
        }
    }

    /// Returns when what was written so far lasts.
    async fn wait_until_durable(&self) -> Result<()> {
        match self {
            Db::Sqlite { durable: Some(durable), .. } => durable.wait().await,
            Db::Sqlite { durable: None, .. } | Db::Postgres(_) => Ok(()),
        }
    }

    /// Whether several servers may use it at the same time.
    pub fn is_shared(&self) -> bool {
        matches!(self, Db::Postgres(_))
    }
}

/// Nothing is written on top of what was lost.
fn check_durable(durable: Option<&Durable>) -> Result<()> {
    durable.map_or(Ok(()), Durable::check)
}

fn sqlite_options(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .journal_mode(SqliteJournalMode::Wal)
        // Record-before-act means nothing if a power cut can undo the record: whoever commits waits for the disk,
        // but together with others.
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .statement_cache_capacity(256)
}

/// An open transaction. Dropping it undoes it.
#[derive(Debug)]
pub enum Tx {
    /// On SQLite.
    Sqlite(sqlx::Transaction<'static, Sqlite>, Option<Arc<Durable>>),
    /// On Postgres.
    Postgres(sqlx::Transaction<'static, Postgres>, Wakes),
}

/// Statements that wait for the end of a transaction, see [`Executor::wake`].
#[derive(Debug)]
pub struct Wakes {
    pool: PgPool,
    statements: Vec<(&'static str, Vec<Value>)>,
}

impl Wakes {
    fn new(pool: PgPool) -> Wakes {
        Wakes { pool, statements: vec![] }
    }

    /// Runs them. One that fails is a wake-up that is lost: the row is looked at later.
    async fn run(self) {
        for (sql, values) in self.statements {
            let Err(error) = postgres(sql, values).execute(&self.pool).await else { continue };
            tracing::warn!("cannot make rows due, they are looked at later: {error}");
            // Whoever commits must not wait for a database that does not answer once for each row.
            if !matches!(error, sqlx::Error::Database(_)) {
                return;
            }
        }
    }
}

impl Tx {
    /// Makes the transaction's changes last.
    pub async fn commit(self) -> Result<()> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, durable) => {
                let Some(durable) = durable else { return Ok(tx.commit().await?) };
                let commit = durable.commit();
                tx.commit().await?;
                drop(commit);
                durable.wait().await?;
            }
            Tx::Postgres(tx, wakes) => {
                tx.commit().await?;
                wakes.run().await;
            }
        }
        Ok(())
    }
}

/// How a row is held until the end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Others may hold it like this too; nobody may change it.
    Together,
    /// Nobody else may hold it.
    Alone,
}

impl Tx {
    /// Like [`Executor::rows`], and the rows are held until the transaction ends.
    pub async fn rows_held(&mut self, sql: &'static str, values: Vec<Value>, hold: Hold) -> Result<Vec<Row>> {
        let mut tx = self;
        match (&*tx, hold) {
            // Nobody else writes while this transaction does.
            (Tx::Sqlite(..), _) => tx.rows(sql, values).await,
            (Tx::Postgres(..), Hold::Together) => tx.rows_of(format!("{sql} FOR SHARE"), values).await,
            (Tx::Postgres(..), Hold::Alone) => tx.rows_of(format!("{sql} FOR UPDATE"), values).await,
        }
    }
}

/// What can run statements: a database (each statement alone) or a transaction.
pub trait Executor: Send {
    /// Runs a statement and says how many rows it changed.
    fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> impl Future<Output = Result<u64>> + Send;

    /// Runs a statement and gives its rows. One that changes rows needs [`Executor::change`].
    fn rows(&mut self, sql: &'static str, values: Vec<Value>) -> impl Future<Output = Result<Vec<Row>>> + Send;

    /// Runs a statement that changes rows and gives those it returns.
    fn change(&mut self, sql: &'static str, values: Vec<Value>) -> impl Future<Output = Result<Vec<Row>>> + Send;

    /// Runs a statement that only makes rows due, so that somebody looks at them.
    ///
    /// Where transactions run beside each other it waits for the commit: whoever looked before would see the world as
    /// it was, and two transactions that each wake the other's row would wait for each other.
    fn wake(&mut self, sql: &'static str, values: Vec<Value>) -> impl Future<Output = Result<()>> + Send {
        async move { self.execute(sql, values).await.map(|_| ()) }
    }

    /// Like [`Executor::execute`], for what may be undone by a power cut, such as leases.
    fn execute_lightly(
        &mut self,
        sql: &'static str,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<u64>> + Send {
        self.execute(sql, values)
    }

    /// Like [`Executor::change`], for what may be undone by a power cut, such as leases.
    fn change_lightly(
        &mut self,
        sql: &'static str,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<Row>>> + Send {
        self.change(sql, values)
    }

    /// Like [`Executor::rows`] for a text that was put together; it must hold no value, only placeholders.
    fn rows_of(&mut self, sql: String, values: Vec<Value>) -> impl Future<Output = Result<Vec<Row>>> + Send;

    /// Like [`Executor::rows`], for at most one row.
    fn row(&mut self, sql: &'static str, values: Vec<Value>) -> impl Future<Output = Result<Option<Row>>> + Send {
        async move { Ok(self.rows(sql, values).await?.into_iter().next()) }
    }
}

impl Executor for &Db {
    async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64> {
        let db: &Db = self;
        let commit = db.commit();
        let changed = self.execute_lightly(sql, values).await?;
        drop(commit);
        self.wait_until_durable().await?;
        Ok(changed)
    }

    async fn execute_lightly(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64> {
        reach(Point::Apart).await;
        match self {
            Db::Sqlite { writer, durable, .. } => {
                check_durable(durable.as_deref())?;
                Ok(sqlite(sql, values).execute(writer).await?.rows_affected())
            }
            Db::Postgres(pool) => Ok(postgres(sql, values).execute(pool).await?.rows_affected()),
        }
    }

    async fn rows(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Apart).await;
        match self {
            Db::Sqlite { reader, .. } => of_sqlite(sqlite(sql, values).fetch_all(reader).await),
            Db::Postgres(pool) => of_postgres(postgres(sql, values).fetch_all(pool).await),
        }
    }

    async fn change(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        let db: &Db = self;
        let commit = db.commit();
        let rows = self.change_lightly(sql, values).await?;
        drop(commit);
        self.wait_until_durable().await?;
        Ok(rows)
    }

    async fn change_lightly(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Apart).await;
        match self {
            Db::Sqlite { writer, durable, .. } => {
                check_durable(durable.as_deref())?;
                of_sqlite(sqlite(sql, values).fetch_all(writer).await)
            }
            Db::Postgres(pool) => of_postgres(postgres(sql, values).fetch_all(pool).await),
        }
    }

    async fn rows_of(&mut self, sql: String, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Apart).await;
        match self {
            Db::Sqlite { reader, .. } => of_sqlite(sqlite(AssertSqlSafe(sql), values).fetch_all(reader).await),
            Db::Postgres(pool) => of_postgres(postgres(AssertSqlSafe(sql), values).fetch_all(pool).await),
        }
    }
}

impl Executor for &mut Tx {
    async fn wake(&mut self, sql: &'static str, values: Vec<Value>) -> Result<()> {
        if let Tx::Postgres(_, wakes) = self {
            reach(Point::Within).await;
            wakes.statements.push((sql, values));
            return Ok(());
        }
        self.execute(sql, values).await.map(|_| ())
    }

    async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, _) => Ok(sqlite(sql, values).execute(&mut **tx).await?.rows_affected()),
            Tx::Postgres(tx, _) => Ok(postgres(sql, values).execute(&mut **tx).await?.rows_affected()),
        }
    }

    async fn rows(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, _) => of_sqlite(sqlite(sql, values).fetch_all(&mut **tx).await),
            Tx::Postgres(tx, _) => of_postgres(postgres(sql, values).fetch_all(&mut **tx).await),
        }
    }

    async fn change(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        self.rows(sql, values).await
    }

    async fn rows_of(&mut self, sql: String, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, _) => of_sqlite(sqlite(AssertSqlSafe(sql), values).fetch_all(&mut **tx).await),
            Tx::Postgres(tx, _) => of_postgres(postgres(AssertSqlSafe(sql), values).fetch_all(&mut **tx).await),
        }
    }
}

fn sqlite(sql: impl SqlSafeStr, values: Vec<Value>) -> Query<'static, Sqlite, SqliteArguments> {
    let mut query = sqlx::query::<Sqlite>(sql);
    for value in values {
        query = match value {
            Value::Text(text) => query.bind(text),
            Value::Int(number) => query.bind(number),
            Value::Real(number) => query.bind(number),
            Value::Blob(bytes) => query.bind(bytes),
        };
    }
    query
}

fn postgres(sql: impl SqlSafeStr, values: Vec<Value>) -> Query<'static, Postgres, PgArguments> {
    let mut query = sqlx::query::<Postgres>(sql);
    for value in values {
        query = match value {
            Value::Text(text) => query.bind(text),
            Value::Int(number) => query.bind(number),
            Value::Real(number) => query.bind(number),
            Value::Blob(bytes) => query.bind(bytes),
        };
    }
    query
}

fn of_sqlite(rows: sqlx::Result<Vec<SqliteRow>>) -> Result<Vec<Row>> {
    Ok(rows?.into_iter().map(Row::Sqlite).collect())
}

fn of_postgres(rows: sqlx::Result<Vec<PgRow>>) -> Result<Vec<Row>> {
    Ok(rows?.into_iter().map(Row::Postgres).collect())
}

/// `$from, $from+1, …`: the placeholders of an `IN` list.
pub(crate) fn placeholders(from: usize, count: usize) -> String {
    (from..from + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

/// The condition of a page that goes on after `after`. Within one moment identifiers run against the order of time:
/// the official paging.
pub(crate) fn after<I: Into<Value>>(
    time_column: &str,
    after: Option<(Timestamp, I)>,
    ascending: bool,
    values: &mut Vec<Value>,
) -> String {
    let Some((time, id)) = after else { return String::new() };
    let (beyond, id_beyond) = if ascending { (">", "<") } else { ("<", ">") };
    values.push(time.into());
    let time = values.len();
    values.push(id.into());
    let id = values.len();
    format!(" AND ({time_column} {beyond} ${time} OR ({time_column} = ${time} AND id {id_beyond} ${id}))")
}
