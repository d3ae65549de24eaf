//! Secrets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::SecretId;

/// A secret. Its value is set only where it was asked for by name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Secret {
    /// Its identifier.
    pub id: SecretId,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Option<String>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The body of `secrets/get`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetSecretRequest {
    /// Which.
    pub name: String,
}

/// The body of `secrets/create_or_update`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct SetSecretRequest {
    /// Which.
    pub name: String,
    /// At most 5,000 characters.
    pub value: String,
}

impl std::fmt::Debug for SetSecretRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetSecretRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The body of `secrets/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteSecretsRequest {
    /// Which.
    pub secrets_names: Vec<String>,
}
