//! Volumes and their requests.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backends::BackendType;
use crate::configurations::VolumeConfiguration;
use crate::ids::VolumeId;

/// The life of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the official names say it")]
pub enum VolumeStatus {
    Submitted,
    Provisioning,
    Active,
    Failed,
}

impl VolumeStatus {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            VolumeStatus::Submitted => "submitted",
            VolumeStatus::Provisioning => "provisioning",
            VolumeStatus::Active => "active",
            VolumeStatus::Failed => "failed",
        }
    }
}

/// What a backend made of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeProvisioningData {
    /// The backend.
    #[serde(default)]
    pub backend: Option<BackendType>,
    /// The backend's own identifier.
    pub volume_id: String,
    /// Size in GB.
    pub size_gb: Option<u64>,
    /// Its zone.
    #[serde(default)]
    pub availability_zone: Option<String>,
    /// US dollars per month.
    #[serde(default)]
    pub price: Option<f64>,
    /// Instances can have it.
    #[serde(default = "yes")]
    pub attachable: bool,
    /// Instances can give it back.
    #[serde(default = "yes")]
    pub detachable: bool,
    /// What the backend keeps.
    #[serde(default)]
    pub backend_data: Option<String>,
}

fn yes() -> bool {
    true
}

/// A volume as clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Volume {
    /// Its identifier.
    pub id: VolumeId,
    /// Its name, unique in the project.
    pub name: String,
    /// Who made it.
    pub user: String,
    /// The project's name.
    pub project_name: String,
    /// What is wanted.
    pub configuration: VolumeConfiguration,
    /// It was there before.
    pub external: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When something last happened to it.
    pub last_processed_at: Timestamp,
    /// Where it is in its life.
    pub status: VolumeStatus,
    /// Why, for people.
    #[serde(default)]
    pub status_message: Option<String>,
    /// It was deleted.
    pub deleted: bool,
    /// When it was deleted.
    #[serde(default)]
    pub deleted_at: Option<Timestamp>,
    /// The backend's own identifier.
    #[serde(default)]
    pub volume_id: Option<String>,
    /// What the backend made of it.
    #[serde(default)]
    pub provisioning_data: Option<VolumeProvisioningData>,
    /// US dollars so far.
    #[serde(default)]
    pub cost: f64,
    /// The instances that have it.
    #[serde(default)]
    pub attachments: Option<Vec<serde_json::Value>>,
    /// Kept for old clients.
    #[serde(default)]
    pub attachment_data: Option<serde_json::Value>,
}

/// The body of `volumes/get`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetVolumeRequest {
    /// Which.
    pub name: String,
}

/// The body of `volumes/create`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateVolumeRequest {
    /// What is wanted.
    pub configuration: VolumeConfiguration,
}

/// The body of `volumes/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteVolumesRequest {
    /// Which.
    pub names: Vec<String>,
}
