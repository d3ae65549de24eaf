//! Repositories.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state of a repository at submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "repo_type", rename_all = "snake_case")]
pub enum RepoData {
    /// A Git repository.
    Remote {
        /// Its name.
        #[serde(default)]
        repo_name: Option<String>,
        /// The branch.
        #[serde(default)]
        repo_branch: Option<String>,
        /// The commit.
        #[serde(default)]
        repo_hash: Option<String>,
        /// `user.name`.
        #[serde(default)]
        repo_config_name: Option<String>,
        /// `user.email`.
        #[serde(default)]
        repo_config_email: Option<String>,
    },
    /// A directory.
    Local {
        /// Its path on the user's machine.
        #[serde(default)]
        repo_dir: Option<String>,
    },
    /// No repository.
    Virtual {},
}

/// Credentials of a Git repository.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepoCreds {
    /// The URL to clone.
    pub clone_url: String,
    /// A private key.
    #[serde(default)]
    pub private_key: Option<String>,
    /// A token.
    #[serde(default)]
    pub oauth_token: Option<String>,
}

impl std::fmt::Debug for RepoCreds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepoCreds").field("clone_url", &self.clone_url).finish_non_exhaustive()
    }
}

/// The body of `repos/init`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct InitRepoRequest {
    /// Its identifier, made by the client.
    pub repo_id: String,
    /// What it is.
    pub repo_info: RepoData,
    /// How to read it.
    #[serde(default)]
    pub repo_creds: Option<RepoCreds>,
}

/// The body of `repos/get`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetRepoRequest {
    /// Which.
    pub repo_id: String,
    /// With its credentials.
    #[serde(default)]
    pub include_creds: bool,
}

/// The body of `repos/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteReposRequest {
    /// Which.
    pub repos_ids: Vec<String>,
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepoHead {
    /// Its identifier.
    pub repo_id: String,
    /// What it is.
    pub repo_info: RepoData,
}

/// A repository and how to read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepoHeadWithCreds {
    /// Its identifier.
    pub repo_id: String,
    /// What it is.
    pub repo_info: RepoData,
    /// How to read it.
    pub repo_creds: Option<RepoCreds>,
}
