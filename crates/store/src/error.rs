//! What can go wrong between the server and its database.

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
    /// The database did not do what it was asked.
    #[error("database: {0}")]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Error::Taken(database.message().to_owned()),
            _ => Error::Database(error),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for Error {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Error::Database(sqlx::Error::Migrate(Box::new(error)))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::Corrupt(error.to_string())
    }
}
