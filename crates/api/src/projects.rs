//! Projects and their members.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backends::BackendType;
use crate::ids::ProjectId;
use crate::users::User;

/// What a member may do in a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProjectRole {
    /// Everything.
    Admin,
    /// Members too, and what users may.
    Manager,
    /// Runs and fleets.
    User,
}

/// What a member may do beside their role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberPermissions {
    /// Make SSH fleets.
    pub can_manage_ssh_fleets: bool,
    /// Read and write secrets.
    #[serde(default)]
    pub can_manage_secrets: bool,
}

/// A member of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// Who.
    pub user: User,
    /// Their role.
    pub project_role: ProjectRole,
    /// What they may do.
    pub permissions: MemberPermissions,
}

/// A backend of a project, without credentials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendInfo {
    /// Which.
    pub name: BackendType,
    /// Its configuration.
    pub config: serde_json::Value,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Project {
    /// Its identifier.
    pub project_id: ProjectId,
    /// Its name.
    pub project_name: String,
    /// Who made it.
    pub owner: User,
    /// When.
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// Its backends.
    pub backends: Vec<BackendInfo>,
    /// Its members.
    pub members: Vec<Member>,
    /// Anyone may look and join.
    #[serde(default)]
    pub is_public: bool,
    /// The repository of its templates.
    #[serde(default)]
    pub templates_repo: Option<String>,
}

/// The body of `projects/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListProjectsRequest {
    /// Public projects that the user has not joined too; true unless told.
    pub include_not_joined: Option<bool>,
    /// Only projects of this member.
    pub username: Option<String>,
    /// Answer with the total too.
    pub return_total_count: bool,
    /// Only names that contain this.
    pub name_pattern: Option<String>,
    /// The last page's last time.
    pub prev_created_at: Option<Timestamp>,
    /// The last page's last identifier.
    pub prev_id: Option<ProjectId>,
    /// At most this many, up to 2,000.
    pub limit: Option<u32>,
    /// Oldest first.
    pub ascending: bool,
}

/// The body of `projects/create`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateProjectRequest {
    /// Its name.
    pub project_name: String,
    /// Anyone may look and join.
    #[serde(default)]
    pub is_public: bool,
    /// The repository of its templates.
    #[serde(default)]
    pub templates_repo: Option<String>,
}

/// The body of `projects/{p}/update`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpdateProjectRequest {
    /// Anyone may look and join.
    pub is_public: Option<bool>,
    /// The repository of its templates.
    pub templates_repo: Option<String>,
    /// Forget the repository of its templates.
    pub reset_templates_repo: bool,
}

/// The body of `projects/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteProjectsRequest {
    /// Which.
    pub projects_names: Vec<String>,
}

/// A user and the role they are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberSetting {
    /// Who: a name or an address.
    pub username: String,
    /// Their role.
    pub project_role: ProjectRole,
}

/// The body of `projects/{p}/set_members` and `add_members`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SetMembersRequest {
    /// Who.
    pub members: Vec<MemberSetting>,
}

/// The body of `projects/{p}/remove_members`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RemoveMembersRequest {
    /// Who.
    pub usernames: Vec<String>,
}

/// The answer of `projects/list`: a list, or a page with the total where it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ProjectList {
    /// The list.
    Plain(Vec<Project>),
    /// The list and how many there are in all pages.
    Counted {
        /// How many.
        total_count: u64,
        /// The list.
        projects: Vec<Project>,
    },
}
