//! Keeps a second server off the same Postgres database, as long as servers do not share their logs.

use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, PgConnection, Postgres, Row as _};
use tokio::sync::Mutex;

use crate::db::Db;
use crate::error::Result;

/// Held while the server runs. The database lets go of it when the connection ends, however that happens.
#[derive(Debug)]
pub struct ServerLock {
    // Nothing but its being open counts. None where files are locked by other means.
    connection: Mutex<Option<PgConnection>>,
}

impl ServerLock {
    /// Asks the database whether it still knows the connection that has the lock; after an error it is lost for good.
    pub async fn look(&self) -> Result<()> {
        match &mut *self.connection.lock().await {
            Some(connection) => Ok(connection.ping().await?),
            None => Ok(()),
        }
    }

    /// Lets go of the lock at once; without it, the database takes a moment to notice.
    pub async fn release(&self) -> Result<()> {
        match self.connection.lock().await.take() {
            Some(connection) => Ok(connection.close().await?),
            None => Ok(()),
        }
    }
}

/// Takes the lock of a database; none if another server holds it. An SQLite file is locked by a file beside it.
pub async fn take(db: &Db) -> Result<Option<ServerLock>> {
    let Db::Postgres(pool) = db else { return Ok(Some(ServerLock { connection: Mutex::new(None) })) };
    let connection: PoolConnection<Postgres> = pool.acquire().await?;
    // Out of the pool, which would hand it to others and close it one day.
    let mut connection = connection.detach();
    // The number only has to differ from those of other programs on the same database.
    let sql = "SELECT pg_try_advisory_lock(1685288803, hashtext(current_schema()))";
    if sqlx::query(sql).fetch_one(&mut connection).await?.try_get::<bool, _>(0)? {
        return Ok(Some(ServerLock { connection: Mutex::new(Some(connection)) }));
    }
    connection.close().await?;
    Ok(None)
}
