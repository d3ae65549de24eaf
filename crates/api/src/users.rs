//! Users.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::UserId;

/// What a user may do on the whole server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GlobalRole {
    /// Everything.
    Admin,
    /// What their projects allow.
    User,
}

/// What a user may do beside their roles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserPermissions {
    /// Make projects.
    pub can_create_projects: bool,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// Their identifier.
    pub id: UserId,
    /// Their name.
    pub username: String,
    /// When they were made.
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// Their role.
    pub global_role: GlobalRole,
    /// Their address.
    #[serde(default)]
    pub email: Option<String>,
    /// They may log in.
    pub active: bool,
    /// What they may do.
    pub permissions: UserPermissions,
    /// Their public key.
    #[serde(default)]
    pub ssh_public_key: Option<String>,
}

/// A user's token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserTokenCreds {
    /// The bearer token.
    pub token: String,
}

impl std::fmt::Debug for UserTokenCreds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserTokenCreds(…)")
    }
}

/// A user with what they log in with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserWithCreds {
    /// Their identifier.
    pub id: UserId,
    /// Their name.
    pub username: String,
    /// When they were made.
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// Their role.
    pub global_role: GlobalRole,
    /// Their address.
    #[serde(default)]
    pub email: Option<String>,
    /// They may log in.
    pub active: bool,
    /// What they may do.
    pub permissions: UserPermissions,
    /// Their public key.
    #[serde(default)]
    pub ssh_public_key: Option<String>,
    /// Their token.
    pub creds: UserTokenCreds,
    /// Their private key.
    #[serde(default)]
    pub ssh_private_key: Option<String>,
}

impl std::fmt::Debug for UserWithCreds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserWithCreds").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The body of `users/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListUsersRequest {
    /// Answer with the total too.
    pub return_total_count: bool,
    /// Only names that contain this.
    pub name_pattern: Option<String>,
    /// The last page's last time.
    pub prev_created_at: Option<Timestamp>,
    /// The last page's last identifier.
    pub prev_id: Option<UserId>,
    /// At most this many, up to 2,000.
    pub limit: Option<u32>,
    /// Oldest first.
    pub ascending: bool,
}

/// The body of `users/get_user`, `refresh_token` and `refresh_ssh_key`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UsernameRequest {
    /// Who.
    pub username: String,
}

/// The body of `users/create` and `users/update`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateUserRequest {
    /// Their name.
    pub username: String,
    /// Their role.
    pub global_role: GlobalRole,
    /// Their address.
    #[serde(default)]
    pub email: Option<String>,
    /// They may log in.
    #[serde(default = "yes")]
    pub active: bool,
}

fn yes() -> bool {
    true
}

/// The body of `users/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteUsersRequest {
    /// Who.
    pub users: Vec<String>,
}

/// The answer of `users/list`: a list, or a page with the total where it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum UserList {
    /// The list.
    Plain(Vec<User>),
    /// The list and how many there are in all pages.
    Counted {
        /// How many.
        total_count: u64,
        /// The list.
        users: Vec<User>,
    },
}

/// A public key that a user added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublicKeyInfo {
    /// Its identifier.
    pub id: Uuid,
    /// When it was added.
    pub added_at: Timestamp,
    /// Its name.
    pub name: String,
    /// Its algorithm.
    pub r#type: String,
    /// Its fingerprint.
    pub fingerprint: String,
}

/// The body of `users/public_keys/add`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AddPublicKeyRequest {
    /// The key, as OpenSSH writes it.
    pub key: String,
    /// Its name; unset: its comment.
    #[serde(default)]
    pub name: Option<String>,
}

/// The body of `users/public_keys/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeletePublicKeysRequest {
    /// Which.
    pub ids: Vec<Uuid>,
}
