//! Gateways, their plans and their requests.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backends::BackendType;
use crate::configurations::GatewayConfiguration;
use crate::runs::ApplyAction;

/// The life of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum GatewayStatus {
    Submitted,
    Provisioning,
    Running,
    Failed,
}

impl GatewayStatus {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            GatewayStatus::Submitted => "submitted",
            GatewayStatus::Provisioning => "provisioning",
            GatewayStatus::Running => "running",
            GatewayStatus::Failed => "failed",
        }
    }
}

/// A gateway as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gateway {
    /// Its identifier.
    pub id: Uuid,
    /// Its name, unique in the project.
    pub name: String,
    /// The project's name.
    pub project_name: String,
    /// What is wanted.
    pub configuration: GatewayConfiguration,
    /// When it was made.
    pub created_at: Timestamp,
    /// Where it is in its life.
    pub status: GatewayStatus,
    /// Why, for people.
    #[serde(default)]
    pub status_message: Option<String>,
    /// Where it answers.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The domain of its services.
    #[serde(default)]
    pub wildcard_domain: Option<String>,
    /// Services that name none use it.
    pub default: bool,
    /// Its machines.
    #[serde(default)]
    pub replicas: Vec<serde_json::Value>,
    /// Kept for old clients.
    #[serde(default)]
    pub backend: Option<BackendType>,
    /// Kept for old clients.
    #[serde(default)]
    pub region: Option<String>,
    /// Kept for old clients.
    #[serde(default)]
    pub ip_address: Option<String>,
    /// Kept for old clients.
    #[serde(default)]
    pub instance_id: Option<String>,
}

/// What a user asks of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GatewaySpec {
    /// The configuration.
    pub configuration: GatewayConfiguration,
    /// The file that it came from.
    #[serde(default)]
    pub configuration_path: Option<String>,
}

/// The body of `gateways/get_plan`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetGatewayPlanRequest {
    /// What would be asked.
    pub spec: GatewaySpec,
}

/// What an apply would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GatewayPlan {
    /// The project's name.
    pub project_name: String,
    /// The user's name.
    pub user: String,
    /// The request's spec, untouched.
    pub spec: GatewaySpec,
    /// The spec with defaults.
    pub effective_spec: GatewaySpec,
    /// The gateway of that name, if there is one.
    #[serde(default)]
    pub current_resource: Option<Gateway>,
    /// Whether the gateway would be made anew or changed in place.
    pub action: ApplyAction,
}

/// The body of `gateways/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListGatewaysRequest {
    /// Imported gateways too.
    pub include_imported: bool,
}

/// The body of `gateways/get`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetGatewayRequest {
    /// Which.
    pub name: String,
}

/// The body of `gateways/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteGatewaysRequest {
    /// Which.
    pub names: Vec<String>,
}

/// The body of `gateways/set_default`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SetDefaultGatewayRequest {
    /// Which.
    pub name: String,
    /// Whose it is, if it is another project's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_project: Option<String>,
}

/// The body of `gateways/set_wildcard_domain`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SetWildcardDomainRequest {
    /// Which.
    pub name: String,
    /// The domain of its services.
    pub wildcard_domain: String,
}
