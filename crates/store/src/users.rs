//! Users and the public keys that they added.

use api::ids::UserId;
use api::users::GlobalRole;
use jiff::Timestamp;
use uuid::Uuid;

use crate::db::{Executor, Row, Value, placeholders};
use crate::error::{Error, Result};
use crate::page::Page;
use crate::values;

/// A user as the database keeps them. What is secret is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// Their identifier.
    pub id: UserId,
    /// Their name; unique among those who are not deleted, in any letter case.
    pub name: String,
    /// Their role on the whole server.
    pub role: GlobalRole,
    /// Their address.
    pub email: Option<String>,
    /// They may log in.
    pub active: bool,
    /// They were deleted; the row stays for what they left behind.
    pub deleted: bool,
    /// When they were made.
    pub created_at: Timestamp,
    /// The SHA-256 of their token, in hex.
    pub token_hash: String,
    /// Their token.
    pub sealed_token: String,
    /// Their public key.
    pub ssh_public_key: String,
    /// Their private key.
    pub sealed_ssh_private_key: String,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, role, email, active, deleted, created_at, token_hash, sealed_token, ssh_public_key, \
             sealed_ssh_private_key FROM users ",
            $rest
        )
    };
}

impl UserRow {
    fn from_row(row: &Row) -> Result<UserRow> {
        Ok(UserRow {
            id: row.id(0)?,
            name: row.text(1)?,
            role: row.word(2)?,
            email: row.text_or_null(3)?,
            active: row.truth(4)?,
            deleted: row.truth(5)?,
            created_at: row.time(6)?,
            token_hash: row.text(7)?,
            sealed_token: row.text(8)?,
            ssh_public_key: row.text(9)?,
            sealed_ssh_private_key: row.text(10)?,
        })
    }
}

fn role_word(role: GlobalRole) -> &'static str {
    match role {
        GlobalRole::Admin => "admin",
        GlobalRole::User => "user",
    }
}

/// Adds a user. [`Error::Taken`] if there is one of that name.
pub async fn insert(mut db: impl Executor, user: &UserRow) -> Result<()> {
    db.execute(
        "INSERT INTO users (id, name, name_lower, role, email, active, deleted, created_at, token_hash, sealed_token, \
         ssh_public_key, sealed_ssh_private_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        values![
            user.id,
            user.name.as_str(),
            user.name.to_lowercase(),
            role_word(user.role),
            user.email.clone(),
            user.active,
            user.deleted,
            user.created_at,
            user.token_hash.as_str(),
            user.sealed_token.as_str(),
            user.ssh_public_key.as_str(),
            user.sealed_ssh_private_key.as_str()
        ],
    )
    .await?;
    Ok(())
}

/// A user, deleted or not.
pub async fn get(mut db: impl Executor, id: UserId) -> Result<Option<UserRow>> {
    db.row(select!("WHERE id = $1"), values![id]).await?.as_ref().map(UserRow::from_row).transpose()
}

/// Those users of a list that exist, deleted or not, in no order.
pub async fn get_many(mut db: impl Executor, ids: &[UserId]) -> Result<Vec<UserRow>> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let sql = format!("{}WHERE id IN ({})", select!(""), placeholders(1, ids.len()));
    let values = ids.iter().map(|id| Value::from(*id)).collect();
    db.rows_of(sql, values).await?.iter().map(UserRow::from_row).collect()
}

/// A user who is not deleted, by a name in any letter case.
pub async fn find_by_name(mut db: impl Executor, name: &str) -> Result<Option<UserRow>> {
    let row = db.row(select!("WHERE name_lower = $1 AND deleted = 0"), values![name.to_lowercase()]).await?;
    row.as_ref().map(UserRow::from_row).transpose()
}

/// A user who is not deleted, by an address.
pub async fn find_by_email(mut db: impl Executor, email: &str) -> Result<Option<UserRow>> {
    let row = db
        .row(select!("WHERE email = $1 AND deleted = 0 ORDER BY created_at, id LIMIT 1"), values![email])
        .await?;
    row.as_ref().map(UserRow::from_row).transpose()
}

/// The user who may log in with the token of this hash.
pub async fn find_by_token_hash(mut db: impl Executor, hash: &str) -> Result<Option<UserRow>> {
    let row = db.row(select!("WHERE token_hash = $1 AND active = 1 AND deleted = 0"), values![hash]).await?;
    row.as_ref().map(UserRow::from_row).transpose()
}

/// A page of the users who are not deleted.
pub async fn list(mut db: impl Executor, page: &Page) -> Result<Vec<UserRow>> {
    let mut values = vec![];
    let conditions = page.conditions("", &mut values);
    let order = page.order("", &mut values);
    let sql = format!("{}WHERE deleted = 0{conditions}{order}", select!(""));
    db.rows_of(sql, values).await?.iter().map(UserRow::from_row).collect()
}

/// How many users the pages of a list hold together.
pub async fn count(mut db: impl Executor, page: &Page) -> Result<u64> {
    let mut values = vec![];
    let condition = page.name_condition("", &mut values);
    let rows = db.rows_of(format!("SELECT COUNT(*) FROM users WHERE deleted = 0{condition}"), values).await?;
    rows.first().map_or(Ok(0), |row| Ok(row.int(0)? as u64))
}

/// Changes what an admin may change about a user who is not deleted.
pub async fn set_details(
    mut db: impl Executor,
    id: UserId,
    role: GlobalRole,
    email: Option<String>,
    active: bool,
) -> Result<()> {
    db.execute(
        "UPDATE users SET role = $1, email = $2, active = $3 WHERE id = $4 AND deleted = 0",
        values![role_word(role), email, active, id],
    )
    .await?;
    Ok(())
}

/// Gives a user another token.
pub async fn set_token(mut db: impl Executor, id: UserId, hash: &str, sealed: &str) -> Result<()> {
    db.execute("UPDATE users SET token_hash = $1, sealed_token = $2 WHERE id = $3", values![hash, sealed, id])
        .await?;
    Ok(())
}

/// Gives a user another pair of keys.
pub async fn set_ssh_key(mut db: impl Executor, id: UserId, public: &str, sealed_private: &str) -> Result<()> {
    db.execute(
        "UPDATE users SET ssh_public_key = $1, sealed_ssh_private_key = $2 WHERE id = $3",
        values![public, sealed_private, id],
    )
    .await?;
    Ok(())
}

/// Marks a user deleted: they cannot log in and their name is free again. [`Error::Stale`] if they were before.
pub async fn delete(mut db: impl Executor, id: UserId) -> Result<()> {
    match db.execute("UPDATE users SET deleted = 1, active = 0 WHERE id = $1 AND deleted = 0", values![id]).await?
    {
        0 => Err(Error::Stale),
        _ => Ok(()),
    }
}

/// A public key that a user added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKeyRow {
    /// Its identifier.
    pub id: Uuid,
    /// Whose.
    pub user_id: UserId,
    /// When it was added.
    pub added_at: Timestamp,
    /// Its name, chosen by the user.
    pub name: String,
    /// Its algorithm, as OpenSSH names it.
    pub kind: String,
    /// Its fingerprint, as OpenSSH prints it.
    pub fingerprint: String,
    /// The key, as OpenSSH writes it.
    pub public_key: String,
}

/// Adds a public key. [`Error::Taken`] if the user has it.
pub async fn insert_public_key(mut db: impl Executor, key: &PublicKeyRow) -> Result<()> {
    db.execute(
        "INSERT INTO public_keys (id, user_id, added_at, name, kind, fingerprint, public_key) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        values![
            key.id,
            key.user_id,
            key.added_at,
            key.name.as_str(),
            key.kind.as_str(),
            key.fingerprint.as_str(),
            key.public_key.as_str()
        ],
    )
    .await?;
    Ok(())
}

/// A user's public keys, the newest first.
pub async fn list_public_keys(mut db: impl Executor, user: UserId) -> Result<Vec<PublicKeyRow>> {
    let rows = db
        .rows(
            "SELECT id, user_id, added_at, name, kind, fingerprint, public_key FROM public_keys \
             WHERE user_id = $1 ORDER BY added_at DESC, id",
            values![user],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(PublicKeyRow {
                id: row.id(0)?,
                user_id: row.id(1)?,
                added_at: row.time(2)?,
                name: row.text(3)?,
                kind: row.text(4)?,
                fingerprint: row.text(5)?,
                public_key: row.text(6)?,
            })
        })
        .collect()
}

/// Forgets one of a user's public keys, and says how many that were.
pub async fn delete_public_key(mut db: impl Executor, user: UserId, id: Uuid) -> Result<u64> {
    db.execute("DELETE FROM public_keys WHERE user_id = $1 AND id = $2", values![user, id]).await
}
