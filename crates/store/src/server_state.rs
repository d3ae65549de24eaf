//! Facts about this installation: who it is, how often it was started, which keys seal its secrets.

use api::ids::ServerId;

use crate::db::Executor;
use crate::error::{Error, Result};
use crate::values;

/// The installation's identity, kept with its database.
pub const SERVER_ID: &str = "server_id";

/// How often the server was started.
pub const EPOCH: &str = "epoch";

/// The identity of this installation: the one that is kept, or `proposed` where none is.
pub async fn server_id(mut db: impl Executor, proposed: ServerId) -> Result<ServerId> {
    // The update changes nothing; without it no row would be returned where one exists.
    let rows = db
        .change(
            "INSERT INTO server_state (name, content) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET content = server_state.content RETURNING content",
            values![SERVER_ID, proposed],
        )
        .await?;
    rows.first().ok_or_else(|| Error::Corrupt("the server has no identity".to_owned()))?.id(0)
}

/// Counts a start of the server and gives the new count. Agents refuse orders of a lower one.
pub async fn next_epoch(mut db: impl Executor) -> Result<u64> {
    let rows = db
        .change(
            "INSERT INTO server_state (name, content) VALUES ($1, '1') ON CONFLICT (name) DO UPDATE \
             SET content = CAST(CAST(server_state.content AS BIGINT) + 1 AS TEXT) RETURNING content",
            values![EPOCH],
        )
        .await?;
    let text = rows.first().ok_or_else(|| Error::Corrupt("the server has no epoch".to_owned()))?.text(0)?;
    text.parse().map_err(|_| Error::Corrupt(format!("epoch `{text}`")))
}

/// A fact by its name.
pub async fn get(mut db: impl Executor, name: &str) -> Result<Option<String>> {
    let row = db.row("SELECT content FROM server_state WHERE name = $1", values![name]).await?;
    row.map(|row| row.text(0)).transpose()
}

/// Keeps a fact, in place of what was kept by that name.
pub async fn set(mut db: impl Executor, name: &str, content: &str) -> Result<()> {
    db.execute(
        "INSERT INTO server_state (name, content) VALUES ($1, $2) \
         ON CONFLICT (name) DO UPDATE SET content = excluded.content",
        values![name, content],
    )
    .await?;
    Ok(())
}
