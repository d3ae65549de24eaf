//! Users.

use api::ids::UserId;
use api::users::GlobalRole;
use lifecycle::events::NewEvent;
use store::users::UserRow;
use store::{members, users};
use uuid::Uuid;

use super::{KeyPair, is_plain_name, record, user_target};
use crate::deps::Deps;
use crate::sealing::token_hash;

const LONGEST_NAME: usize = 60;

/// A user to be made.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Their name.
    pub name: String,
    /// Their role.
    pub role: GlobalRole,
    /// Their address.
    pub email: Option<String>,
    /// They may log in.
    pub active: bool,
    /// Their token; unset: a random one.
    pub token: Option<String>,
}

/// Whether a user may have this name.
pub fn is_username(name: &str) -> bool {
    is_plain_name(name, LONGEST_NAME)
}

/// Makes a user with a token and a pair of keys. [`store::Error::Taken`] if there is one of that name.
pub async fn create_user(deps: &Deps, actor: Option<UserId>, new: NewUser) -> store::Result<UserRow> {
    let id: UserId = deps.ids.id();
    let token = new.token.unwrap_or_else(|| random_token(deps));
    let keys = KeyPair::generate(&deps.ids, &new.name);
    let user = UserRow {
        id,
        name: new.name,
        role: new.role,
        email: new.email,
        active: new.active,
        deleted: false,
        created_at: deps.clock.now(),
        token_hash: token_hash(&token),
        sealed_token: deps.sealer.seal(&token),
        ssh_public_key: keys.public,
        sealed_ssh_private_key: deps.sealer.seal(&keys.private),
    };
    let event = NewEvent::by_user(actor.unwrap_or(id), "User created", vec![user_target(&user)]);
    let mut tx = deps.db.begin().await?;
    users::insert(&mut tx, &user).await?;
    record(deps, &mut tx, &event).await?;
    tx.commit().await?;
    Ok(user)
}

/// Gives a user another token; the old one opens nothing from then on.
pub async fn refresh_token(deps: &Deps, actor: UserId, user: &mut UserRow) -> store::Result<()> {
    let token = random_token(deps);
    user.token_hash = token_hash(&token);
    user.sealed_token = deps.sealer.seal(&token);
    let event = NewEvent::by_user(actor, "User token refreshed", vec![user_target(user)]);
    let mut tx = deps.db.begin().await?;
    users::set_token(&mut tx, user.id, &user.token_hash, &user.sealed_token).await?;
    record(deps, &mut tx, &event).await?;
    tx.commit().await
}

/// Gives a user another pair of keys.
pub async fn refresh_ssh_key(deps: &Deps, actor: UserId, user: &mut UserRow) -> store::Result<()> {
    let keys = KeyPair::generate(&deps.ids, &user.name);
    user.sealed_ssh_private_key = deps.sealer.seal(&keys.private);
    user.ssh_public_key = keys.public;
    let event = NewEvent::by_user(actor, "User SSH key refreshed", vec![user_target(user)]);
    let mut tx = deps.db.begin().await?;
    users::set_ssh_key(&mut tx, user.id, &user.ssh_public_key, &user.sealed_ssh_private_key).await?;
    record(deps, &mut tx, &event).await?;
    tx.commit().await
}

/// Deletes users together: all of them or none. What they submitted goes on.
pub async fn delete_user(deps: &Deps, actor: UserId, deleted: &[UserRow]) -> store::Result<()> {
    let mut tx = deps.db.begin().await?;
    for user in deleted {
        users::delete(&mut tx, user.id).await?;
        members::remove_user(&mut tx, user.id).await?;
        record(deps, &mut tx, &NewEvent::by_user(actor, "User deleted", vec![user_target(user)])).await?;
    }
    tx.commit().await
}

// The official form of tokens, which some programs check.
fn random_token(deps: &Deps) -> String {
    deps.ids.id::<Uuid>().to_string()
}
