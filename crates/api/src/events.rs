//! Events: what happened, for users.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{EventId, FleetId, ProjectId, RunId, UserId};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum EventTargetType {
    Project,
    User,
    Fleet,
    Instance,
    Run,
    Job,
    Volume,
    Gateway,
    GatewayReplica,
    Secret,
    Preset,
}

impl EventTargetType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            EventTargetType::Project => "project",
            EventTargetType::User => "user",
            EventTargetType::Fleet => "fleet",
            EventTargetType::Instance => "instance",
            EventTargetType::Run => "run",
            EventTargetType::Job => "job",
            EventTargetType::Volume => "volume",
            EventTargetType::Gateway => "gateway",
            EventTargetType::GatewayReplica => "gateway-replica",
            EventTargetType::Secret => "secret",
            EventTargetType::Preset => "preset",
        }
    }
}

/// One thing that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventTarget {
    /// What it is; a free string on the wire.
    pub r#type: String,
    /// Its project.
    #[serde(default)]
    pub project_id: Option<ProjectId>,
    /// Its project's name.
    #[serde(default)]
    pub project_name: Option<String>,
    /// Its project was deleted.
    #[serde(default)]
    pub is_project_deleted: Option<bool>,
    /// Its identifier.
    pub id: Uuid,
    /// Its name.
    pub name: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its identifier.
    pub id: EventId,
    /// What happened.
    pub message: String,
    /// When.
    pub recorded_at: Timestamp,
    /// Who did it; unset: the server itself.
    #[serde(default)]
    pub actor_user_id: Option<UserId>,
    /// Their name.
    #[serde(default)]
    pub actor_user: Option<String>,
    /// They were deleted since.
    #[serde(default)]
    pub is_actor_user_deleted: Option<bool>,
    /// What it is about.
    pub targets: Vec<EventTarget>,
}

/// The body of `events/list`. At most one `target_*` and one `within_*` filter.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[expect(missing_docs, reason = "each filter is named for what it matches")]
pub struct ListEventsRequest {
    pub target_projects: Option<Vec<Uuid>>,
    pub target_users: Option<Vec<Uuid>>,
    pub target_fleets: Option<Vec<Uuid>>,
    pub target_instances: Option<Vec<Uuid>>,
    pub target_runs: Option<Vec<Uuid>>,
    pub target_jobs: Option<Vec<Uuid>>,
    pub target_volumes: Option<Vec<Uuid>>,
    pub target_gateways: Option<Vec<Uuid>>,
    pub target_gateway_replicas: Option<Vec<Uuid>>,
    pub target_secrets: Option<Vec<Uuid>>,
    pub target_presets: Option<Vec<Uuid>>,
    pub within_projects: Option<Vec<ProjectId>>,
    pub within_fleets: Option<Vec<FleetId>>,
    pub within_runs: Option<Vec<RunId>>,
    pub within_gateways: Option<Vec<Uuid>>,
    pub include_target_types: Option<Vec<EventTargetType>>,
    pub actors: Option<Vec<Option<UserId>>>,
    pub prev_recorded_at: Option<Timestamp>,
    pub prev_id: Option<EventId>,
    pub limit: Option<u32>,
    pub ascending: bool,
}
