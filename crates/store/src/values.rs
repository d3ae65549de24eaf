//! What goes into statements and what comes out of them.

use std::str::FromStr;

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::error::{Error, Result};

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
