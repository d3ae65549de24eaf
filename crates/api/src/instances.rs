//! Instances, instance types and offers.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backends::BackendType;
use crate::ids::{FleetId, InstanceId};

/// One accelerator of an instance type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// The marketing name, for instance `H100`.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The vendor.
    #[serde(default)]
    pub vendor: Option<String>,
}

/// The disk of an instance type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Disk {
    /// Size in MiB.
    pub size_mib: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Disk { size_mib: 102_400 }
    }
}

/// What an instance type has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// One entry per accelerator.
    pub gpus: Vec<Gpu>,
    /// The machine may be taken back at any time.
    pub spot: bool,
    /// The root disk.
    #[serde(default)]
    pub disk: Disk,
    /// `x86` or `arm`.
    #[serde(default)]
    pub cpu_arch: Option<String>,
    /// Kept for old clients; always empty.
    #[serde(default)]
    pub description: String,
}

/// A kind of machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceType {
    /// The backend's own name for it.
    pub name: String,
    /// What it has.
    pub resources: Resources,
}

/// Whether an offer can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceAvailability {
    /// The backend does not say.
    Unknown,
    /// It can be bought.
    Available,
    /// It is sold out.
    NotAvailable,
    /// The account's quota forbids it.
    NoQuota,
    /// The account's balance forbids it.
    NoBalance,
    /// An instance of ours that is free.
    Idle,
    /// An instance of ours that is taken.
    Busy,
}

impl InstanceAvailability {
    /// Whether a job may be placed on it now.
    pub fn is_usable(self) -> bool {
        match self {
            InstanceAvailability::Unknown | InstanceAvailability::Available | InstanceAvailability::Idle => true,
            InstanceAvailability::NotAvailable
            | InstanceAvailability::NoQuota
            | InstanceAvailability::NoBalance
            | InstanceAvailability::Busy => false,
        }
    }
}

/// Something a backend would sell, or an instance that a run could reuse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Offer {
    /// Who sells it.
    pub backend: BackendType,
    /// The kind of machine.
    pub instance: InstanceType,
    /// Where.
    pub region: String,
    /// Price in US dollars per hour.
    pub price: f64,
    /// What the backend needs to know to launch it.
    #[serde(default)]
    pub backend_data: serde_json::Value,
    /// Whether it can be had.
    pub availability: InstanceAvailability,
    /// Why it cannot be had, in words. Ours: the original does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable_because: Option<String>,
    /// The zones where it is sold.
    #[serde(default)]
    pub availability_zones: Option<Vec<String>>,
    /// `shim` or `runner`.
    #[serde(default = "default_instance_runtime")]
    pub instance_runtime: String,
    /// Blocks that the job would take.
    #[serde(default = "one")]
    pub blocks: u32,
    /// Blocks that the machine is split into.
    #[serde(default = "one")]
    pub total_blocks: u32,
}

impl Offer {
    /// The reservation that it is bought from, as it was asked for, where its backend says so.
    pub fn reservation(&self) -> Option<&str> {
        self.backend_data.get("reservation")?.get("id")?.as_str()
    }
}

fn default_instance_runtime() -> String {
    "shim".to_owned()
}

fn one() -> u32 {
    1
}

/// The life of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceStatus {
    /// Wanted; no machine yet.
    Pending,
    /// A machine was asked for.
    Provisioning,
    /// The machine is joined and free.
    Idle,
    /// The machine runs a job.
    Busy,
    /// The machine is being given back.
    Terminating,
    /// The machine is gone.
    Terminated,
}

impl InstanceStatus {
    /// Whether nothing will happen to it any more.
    pub fn is_final(self) -> bool {
        self == InstanceStatus::Terminated
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            InstanceStatus::Pending => "pending",
            InstanceStatus::Provisioning => "provisioning",
            InstanceStatus::Idle => "idle",
            InstanceStatus::Busy => "busy",
            InstanceStatus::Terminating => "terminating",
            InstanceStatus::Terminated => "terminated",
        }
    }
}

/// Why an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum InstanceTerminationReason {
    TerminatedByUser,
    IdleTimeout,
    ProvisioningTimeout,
    Error,
    JobFinished,
    Unreachable,
    NoOffers,
    MasterFailed,
    MaxInstancesLimit,
    FleetSpecMismatch,
    NoBalance,
}

impl InstanceTerminationReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            InstanceTerminationReason::TerminatedByUser => "terminated_by_user",
            InstanceTerminationReason::IdleTimeout => "idle_timeout",
            InstanceTerminationReason::ProvisioningTimeout => "provisioning_timeout",
            InstanceTerminationReason::Error => "error",
            InstanceTerminationReason::JobFinished => "job_finished",
            InstanceTerminationReason::Unreachable => "unreachable",
            InstanceTerminationReason::NoOffers => "no_offers",
            InstanceTerminationReason::MasterFailed => "master_failed",
            InstanceTerminationReason::MaxInstancesLimit => "max_instances_limit",
            InstanceTerminationReason::FleetSpecMismatch => "fleet_spec_mismatch",
            InstanceTerminationReason::NoBalance => "no_balance",
        }
    }
}

/// The driver of an instance's accelerators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuDriver {
    /// The vendor.
    pub vendor: Option<String>,
    /// The driver's version.
    pub version: String,
}

/// An instance as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// Its identifier.
    pub id: InstanceId,
    /// The project's name.
    pub project_name: String,
    /// Who sold it; unset while pending.
    pub backend: Option<BackendType>,
    /// The kind of machine; unset while pending.
    pub instance_type: Option<InstanceType>,
    /// `{fleet}-{instance_num}`.
    pub name: String,
    /// The fleet that it belongs to.
    pub fleet_id: Option<FleetId>,
    /// The fleet's name.
    pub fleet_name: Option<String>,
    /// Its number in the fleet.
    pub instance_num: u32,
    /// Always unset; kept for old clients.
    #[serde(default)]
    pub job_name: Option<String>,
    /// Where it answers.
    pub hostname: Option<String>,
    /// Where it is in its life.
    pub status: InstanceStatus,
    /// Its agent does not answer.
    #[serde(default)]
    pub unreachable: bool,
    /// `healthy`, `warning` or `failure`.
    #[serde(default = "healthy")]
    pub health_status: String,
    /// Why it ended.
    #[serde(default)]
    pub termination_reason: Option<String>,
    /// Why it ended, for people.
    #[serde(default)]
    pub termination_reason_message: Option<String>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it was gone.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// Where it is.
    pub region: Option<String>,
    /// The zone where it is.
    #[serde(default)]
    pub availability_zone: Option<String>,
    /// Price in US dollars per hour.
    pub price: Option<f64>,
    /// Blocks that it is split into.
    #[serde(default)]
    pub total_blocks: Option<u32>,
    /// Blocks that are taken.
    #[serde(default)]
    pub busy_blocks: u32,
    /// Its accelerators' driver.
    #[serde(default)]
    pub gpu_driver: Option<GpuDriver>,
    /// What was found when it was last looked at, if anything was looked for. Only our server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// How far it is joined, while it is not. Only our server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<JoinProgress>,
    /// What was said to its purchase and what is asked next, where something was refused. Only our server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purchase: Option<String>,
}

/// How an instance is. Later ones are worse.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// It has all that it should have.
    #[default]
    Healthy,
    /// It works, and something is not as it should be.
    Warning,
    /// It lacks something that jobs count on.
    Failure,
}

impl HealthStatus {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Warning => "warning",
            HealthStatus::Failure => "failure",
        }
    }
}

/// What was found when an instance was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthCheck {
    /// When.
    pub collected_at: Timestamp,
    /// The worst of what was found.
    pub status: HealthStatus,
    /// What was found, each by itself.
    pub events: Vec<HealthEvent>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthEvent {
    /// When it was found.
    pub timestamp: Timestamp,
    /// How it is.
    pub status: HealthStatus,
    /// What it is, for people: `efa 31/32`.
    pub message: String,
}

/// The body of `instances/get_instance_health_checks`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetInstanceHealthChecksRequest {
    /// The fleet's name.
    pub fleet_name: String,
    /// The instance's number in the fleet.
    pub instance_num: u32,
    /// Only what was found after this.
    #[serde(default)]
    pub after: Option<Timestamp>,
    /// Only what was found before this.
    #[serde(default)]
    pub before: Option<Timestamp>,
    /// At most this many, the newest first.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// The answer to `instances/get_instance_health_checks`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetInstanceHealthChecksResponse {
    /// The newest first.
    pub health_checks: Vec<HealthCheck>,
}

/// How far a machine is joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinProgress {
    /// What is being done.
    pub step: JoinStep,
    /// Why it is done again, for people; unset if it is done for the first time.
    #[serde(default)]
    pub message: Option<String>,
}

/// What is done one after the other until a machine is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinStep {
    /// Logging in.
    Connecting,
    /// Looking at what the machine has and permits.
    Checking,
    /// Bringing the agent.
    Delivering,
    /// Starting the agent.
    Starting,
    /// Talking to the agent for the first time.
    Greeting,
    /// What a newer server does, under a name of which nothing is known.
    #[serde(other)]
    Joining,
}

impl JoinStep {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            JoinStep::Connecting => "connecting",
            JoinStep::Checking => "checking",
            JoinStep::Delivering => "delivering",
            JoinStep::Starting => "starting",
            JoinStep::Greeting => "greeting",
            JoinStep::Joining => "joining",
        }
    }
}

fn healthy() -> String {
    "healthy".to_owned()
}

/// The body of `instances/list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListInstancesRequest {
    /// Only these projects.
    pub project_names: Option<Vec<String>>,
    /// Only these fleets.
    pub fleet_ids: Option<Vec<FleetId>>,
    /// Only those that are not terminated.
    pub only_active: bool,
    /// Those of imported fleets too.
    pub include_imported: bool,
    /// The last page's last time.
    pub prev_created_at: Option<Timestamp>,
    /// The last page's last identifier.
    pub prev_id: Option<InstanceId>,
    /// At most this many, up to 1,000.
    pub limit: Option<u32>,
    /// Oldest first.
    pub ascending: bool,
}

/// The body of `instances/get`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetInstanceRequest {
    /// The instance.
    pub id: InstanceId,
}
