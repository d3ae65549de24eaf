//! Fleets, their plans and their requests.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::configurations::{FleetConfiguration, Profile};
use crate::ids::FleetId;
use crate::instances::{Instance, Offer};
use crate::runs::ApplyAction;

/// What a user asks of a fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetSpec {
    /// The configuration.
    pub configuration: FleetConfiguration,
    /// The file that it came from.
    #[serde(default)]
    pub configuration_path: Option<String>,
    /// The profile whose keys fill what the configuration leaves out.
    #[serde(default)]
    pub profile: Profile,
    /// Made for one run. Clients drop it when they send a fleet back.
    #[serde(default)]
    pub autocreated: bool,
}

/// The life of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum FleetStatus {
    Submitted,
    Active,
    Terminating,
    Terminated,
    Failed,
}

impl FleetStatus {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            FleetStatus::Submitted => "submitted",
            FleetStatus::Active => "active",
            FleetStatus::Terminating => "terminating",
            FleetStatus::Terminated => "terminated",
            FleetStatus::Failed => "failed",
        }
    }
}

/// A fleet as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fleet {
    /// Its identifier.
    pub id: FleetId,
    /// Its name, unique in the project.
    pub name: String,
    /// The project's name.
    pub project_name: String,
    /// What is wanted, without private keys.
    pub spec: FleetSpec,
    /// When it was made.
    pub created_at: Timestamp,
    /// Where it is in its life.
    pub status: FleetStatus,
    /// Why, for people.
    #[serde(default)]
    pub status_message: Option<String>,
    /// Its instances by number, deleted ones left out.
    pub instances: Vec<Instance>,
}

/// The body of `fleets/get_plan`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetFleetPlanRequest {
    /// What would be asked.
    pub spec: FleetSpec,
}

/// What an apply would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetPlan {
    /// The project's name.
    pub project_name: String,
    /// The user's name.
    pub user: String,
    /// The request's spec, untouched: clients post it to apply.
    pub spec: FleetSpec,
    /// The spec with defaults, without private keys.
    #[serde(default)]
    pub effective_spec: Option<FleetSpec>,
    /// The fleet of that name, if there is one.
    #[serde(default)]
    pub current_resource: Option<Fleet>,
    /// At most 50 offers.
    pub offers: Vec<Offer>,
    /// How many offers there are.
    pub total_offers: u32,
    /// The highest price, in US dollars per hour.
    pub max_offer_price: Option<f64>,
    /// Whether the fleet would be made anew or changed in place.
    pub action: ApplyAction,
}

/// The part of a plan that is applied.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ApplyFleetPlanInput {
    /// What is wanted.
    pub spec: FleetSpec,
    /// The fleet as the plan saw it.
    #[serde(default)]
    pub current_resource: Option<Fleet>,
}

/// The body of `fleets/apply`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ApplyFleetPlanRequest {
    /// The plan.
    pub plan: ApplyFleetPlanInput,
    /// Apply even if the fleet has changed since the plan.
    pub force: bool,
}

/// The body of `fleets/get`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GetFleetRequest {
    /// By name.
    pub name: Option<String>,
    /// By identifier, deleted ones too.
    pub id: Option<FleetId>,
}

/// The body of the project's `fleets/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListProjectFleetsRequest {
    /// Imported fleets too.
    pub include_imported: bool,
}

/// The body of the root `fleets/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListFleetsRequest {
    /// Only this project.
    pub project_name: Option<String>,
    /// Only those that are not terminated.
    pub only_active: bool,
    /// Imported fleets too.
    pub include_imported: bool,
    /// The last page's last time.
    pub prev_created_at: Option<Timestamp>,
    /// The last page's last identifier.
    pub prev_id: Option<FleetId>,
    /// At most this many, up to 100.
    pub limit: Option<u32>,
    /// Oldest first.
    pub ascending: bool,
}

/// The body of `fleets/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteFleetsRequest {
    /// Which; unknown names are ignored.
    pub names: Vec<String>,
}

/// The body of `fleets/delete_instances`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteFleetInstancesRequest {
    /// Which fleet.
    pub name: String,
    /// Which of its instances.
    pub instance_nums: Vec<u32>,
}
