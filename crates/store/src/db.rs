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
use sqlx::{AssertSqlSafe, Postgres, Row as _, SqlSafeStr, Sqlite};
use uuid::Uuid;

use crate::durable::Durable;
use crate::error::{Error, Result};
use crate::points::{Point, reach};

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
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
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
                Ok(Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?, durable.clone()))
            }
            Db::Postgres(pool) => Ok(Tx::Postgres(pool.begin().await?)),
        }
    }

    /// Closes all connections; on SQLite the write-ahead log is folded into the file.
    pub async fn close(&self) {
        match self {
            Db::Sqlite { writer, reader, .. } => {
                reader.close().await;
                writer.close().await;
            }
            Db::Postgres(pool) => pool.close().await,
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
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Tx {
    /// Makes the transaction's changes last.
    pub async fn commit(self) -> Result<()> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, durable) => {
                tx.commit().await?;
                if let Some(durable) = durable {
                    durable.wait().await?;
                }
            }
            Tx::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
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
        let changed = self.execute_lightly(sql, values).await?;
        self.wait_until_durable().await?;
        Ok(changed)
    }

    async fn execute_lightly(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64> {
        reach(Point::Apart).await;
        match self {
            Db::Sqlite { writer, .. } => Ok(sqlite(sql, values).execute(writer).await?.rows_affected()),
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
        let rows = self.change_lightly(sql, values).await?;
        self.wait_until_durable().await?;
        Ok(rows)
    }

    async fn change_lightly(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Apart).await;
        match self {
            Db::Sqlite { writer, .. } => of_sqlite(sqlite(sql, values).fetch_all(writer).await),
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
    async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, _) => Ok(sqlite(sql, values).execute(&mut **tx).await?.rows_affected()),
            Tx::Postgres(tx) => Ok(postgres(sql, values).execute(&mut **tx).await?.rows_affected()),
        }
    }

    async fn rows(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, _) => of_sqlite(sqlite(sql, values).fetch_all(&mut **tx).await),
            Tx::Postgres(tx) => of_postgres(postgres(sql, values).fetch_all(&mut **tx).await),
        }
    }

    async fn change(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>> {
        self.rows(sql, values).await
    }

    async fn rows_of(&mut self, sql: String, values: Vec<Value>) -> Result<Vec<Row>> {
        reach(Point::Within).await;
        match self {
            Tx::Sqlite(tx, _) => of_sqlite(sqlite(AssertSqlSafe(sql), values).fetch_all(&mut **tx).await),
            Tx::Postgres(tx) => of_postgres(postgres(AssertSqlSafe(sql), values).fetch_all(&mut **tx).await),
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

/// A value bound to a placeholder. Booleans are 0 and 1, times are microseconds since the epoch.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text, or null.
    Text(Option<String>),
    /// A whole number, or null.
    Int(Option<i64>),
    /// A real number, or null.
    Real(Option<f64>),
    /// Bytes, or null.
    Blob(Option<Vec<u8>>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(Some(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(Some(text))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Value::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int(Some(number))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Int(Some(i64::from(number)))
    }
}

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        Value::Int(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Int(Some(i64::from(truth)))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Real(Some(number))
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Value::Blob(Some(bytes))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(bytes: Option<Vec<u8>>) -> Self {
        Value::Blob(bytes)
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Self {
        Value::Int(Some(time.as_microsecond()))
    }
}

impl From<Option<Timestamp>> for Value {
    fn from(time: Option<Timestamp>) -> Self {
        Value::Int(time.map(Timestamp::as_microsecond))
    }
}

impl From<Uuid> for Value {
    fn from(id: Uuid) -> Self {
        Value::Text(Some(id.to_string()))
    }
}

impl From<Option<Uuid>> for Value {
    fn from(id: Option<Uuid>) -> Self {
        Value::Text(id.map(|id| id.to_string()))
    }
}

macro_rules! value_from_id {
    ($($id:ty),*) => {$(
        impl From<$id> for Value {
            fn from(id: $id) -> Self {
                Value::from(id.0)
            }
        }

        impl From<Option<$id>> for Value {
            fn from(id: Option<$id>) -> Self {
                Value::from(id.map(|id| id.0))
            }
        }
    )*};
}

use api::ids::{
    BackendId, EventId, FileArchiveId, FleetId, InstanceId, JobId, LaunchId, ProjectId, RepoRowId, RunId,
    SecretId, ServerId, UserId, VolumeId,
};

value_from_id!(
    BackendId,
    EventId,
    FileArchiveId,
    FleetId,
    InstanceId,
    JobId,
    LaunchId,
    ProjectId,
    RepoRowId,
    RunId,
    SecretId,
    ServerId,
    UserId,
    VolumeId
);

/// The arguments of a statement: `values![id, name, now]`.
#[macro_export]
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::db::Value::from($value)),*] };
}

/// One row of an answer; columns are asked for by their place.
#[derive(Debug)]
pub enum Row {
    /// Of SQLite.
    Sqlite(SqliteRow),
    /// Of Postgres.
    Postgres(PgRow),
}

macro_rules! column {
    ($(#[$doc:meta])* $name:ident, $type:ty) => {
        $(#[$doc])*
        pub fn $name(&self, column: usize) -> Result<$type> {
            match self {
                Row::Sqlite(row) => Ok(row.try_get(column)?),
                Row::Postgres(row) => Ok(row.try_get(column)?),
            }
        }
    };
}

impl Row {
    column!(
        /// A text.
        text, String
    );
    column!(
        /// A text or null.
        text_or_null, Option<String>
    );
    column!(
        /// A whole number.
        int, i64
    );
    column!(
        /// A whole number or null.
        int_or_null, Option<i64>
    );
    column!(
        /// A real number.
        real, f64
    );
    column!(
        /// Bytes.
        blob, Vec<u8>
    );
    column!(
        /// Bytes or null.
        blob_or_null, Option<Vec<u8>>
    );

    /// A truth value.
    pub fn truth(&self, column: usize) -> Result<bool> {
        Ok(self.int(column)? != 0)
    }

    /// A time.
    pub fn time(&self, column: usize) -> Result<Timestamp> {
        timestamp(self.int(column)?)
    }

    /// A time or null.
    pub fn time_or_null(&self, column: usize) -> Result<Option<Timestamp>> {
        self.int_or_null(column)?.map(timestamp).transpose()
    }

    /// An identifier.
    pub fn id<T: From<Uuid>>(&self, column: usize) -> Result<T> {
        uuid(&self.text(column)?)
    }

    /// An identifier or null.
    pub fn id_or_null<T: From<Uuid>>(&self, column: usize) -> Result<Option<T>> {
        self.text_or_null(column)?.map(|text| uuid(&text)).transpose()
    }

    /// A typed document.
    pub fn json<T: serde::de::DeserializeOwned>(&self, column: usize) -> Result<T> {
        Ok(serde_json::from_str(&self.text(column)?)?)
    }

    /// A closed set of words, written by serde as a plain string.
    pub fn word<T: serde::de::DeserializeOwned>(&self, column: usize) -> Result<T> {
        Ok(serde_json::from_value(serde_json::Value::String(self.text(column)?))?)
    }

    /// A word or null.
    pub fn word_or_null<T: serde::de::DeserializeOwned>(&self, column: usize) -> Result<Option<T>> {
        let text = self.text_or_null(column)?;
        Ok(text.map(|text| serde_json::from_value(serde_json::Value::String(text))).transpose()?)
    }
}

fn timestamp(micros: i64) -> Result<Timestamp> {
    Timestamp::from_microsecond(micros).map_err(|error| Error::Corrupt(format!("time {micros}: {error}")))
}

fn uuid<T: From<Uuid>>(text: &str) -> Result<T> {
    Uuid::from_str(text).map(T::from).map_err(|error| Error::Corrupt(format!("identifier `{text}`: {error}")))
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
