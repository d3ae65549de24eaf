//! What can go wrong between the server and its database.

use std::{fmt, io};

use sqlx::migrate::MigrateError;

/// The result of a store function.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The row moved since it was loaded: drop this pass, the next one sees both changes.
    #[error("the row has changed since it was loaded")]
    Stale,
    /// A unique index refused the row: somebody else was first.
    #[error("taken: {0}")]
    Taken(String),
    /// The database holds something that this release does not understand.
    #[error("the database holds something unreadable: {0}")]
    Corrupt(String),
    /// Something outside of this program stands in the way, and once it is gone the same works. After `Unreachable`
    /// and `NotDurable` nobody knows whether the change was made; after the others nothing was written.
    #[error("database: {1} ({0})")]
    Obstructed(Obstacle, sqlx::Error),
    /// The database did not do what it was asked.
    #[error("database: {0}")]
    Database(sqlx::Error),
}

/// What stands in the way of a database. Its `Display` says what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// Another program holds it.
    Locked,
    /// It may not be written.
    ReadOnly,
    /// There is no room.
    Full,
    /// It does not answer.
    Unreachable,
    /// Something that was written could not be made to last, so that nothing more is written.
    NotDurable,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Obstacle::Locked => "another program holds the server's database; end that program",
            Obstacle::ReadOnly => {
                "the server may not write to its database; see the permissions of the file and its folder, and how \
                 its disk is mounted"
            }
            Obstacle::Full => "the disk of the server's database is full; make room on it",
            Obstacle::Unreachable => "the server's database does not answer in time; see whether it runs, and whether another program holds it",
            Obstacle::NotDurable => {
                "the disk of the server's database failed to keep what was written; see the disk, then restart the \
                 server"
            }
        })
    }
}

impl Obstacle {
    /// The obstacle that an error tells of, if it is one.
    fn of(error: &sqlx::Error) -> Option<Obstacle> {
        let database = match error {
            sqlx::Error::Database(database) => database,
            sqlx::Error::Io(error) => return Some(Obstacle::of_io(error)),
            sqlx::Error::PoolTimedOut => return Some(Obstacle::Unreachable),
            _ => return None,
        };
        let code = database.code()?;
        match code.parse::<u32>() {
            // SQLite's codes are numbers, whose lowest byte is the kind. Postgres' have five characters.
            Ok(number) if code.len() < 5 => match number & 0xff {
                SQLITE_BUSY | SQLITE_LOCKED => Some(Obstacle::Locked),
                SQLITE_READONLY | SQLITE_CANTOPEN => Some(Obstacle::ReadOnly),
                SQLITE_FULL => Some(Obstacle::Full),
                _ => None,
            },
            _ => match code.as_ref() {
                "25006" => Some(Obstacle::ReadOnly),
                "53100" => Some(Obstacle::Full),
                "55P03" => Some(Obstacle::Locked),
                "53300" | "57P01" | "57P02" | "57P03" => Some(Obstacle::Unreachable),
                _ => None,
            },
        }
    }

    fn of_io(error: &io::Error) -> Obstacle {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Obstacle::Full,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Obstacle::ReadOnly,
            _ => Obstacle::Unreachable,
        }
    }
}

const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;
const SQLITE_READONLY: u32 = 8;
const SQLITE_FULL: u32 = 13;
const SQLITE_CANTOPEN: u32 = 14;

impl Error {
    /// What stands in the way, where something does.
    pub fn obstacle(&self) -> Option<Obstacle> {
        match self {
            Error::Obstructed(obstacle, _) => Some(*obstacle),
            Error::Stale | Error::Taken(_) | Error::Corrupt(_) | Error::Database(_) => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Error::Taken(database.message().to_owned()),
            _ => match Obstacle::of(&error) {
                Some(obstacle) => Error::Obstructed(obstacle, error),
                None => Error::Database(error),
            },
        }
    }
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Error::from(error),
            other => Error::Database(sqlx::Error::Migrate(Box::new(other))),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::Corrupt(error.to_string())
    }
}
