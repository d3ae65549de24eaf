//! All SQL of the project, one file per table, for two engines with one text.
//!
//! Functions are free, take an executor first, and are named for their result. Nothing here decides, and nothing
//! here speaks to the network. Every table's rows move forward by version: [`Error::Stale`] means that somebody
//! else wrote first.

pub mod db;
mod durable;
mod error;
mod migrations;
mod page;
pub mod points;
mod values;

pub mod backends;
pub mod blobs;
pub mod events;
pub mod fleets;
pub mod instances;
pub mod jobs;
pub mod launches;
pub mod leases;
pub mod members;
pub mod projects;
pub mod repos;
pub mod runs;
pub mod secrets;
pub mod server_lock;
pub mod server_state;
pub mod users;

pub use db::{Db, Executor, Hold, Tx, Value};
pub use error::{Error, Obstacle, Result};
pub use migrations::{LAST_STEP, migrate, migrate_until};
pub use page::Page;

/// A row and the version that it had when it was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// Grows with each save.
    pub version: i64,
    /// The row.
    pub value: T,
}
