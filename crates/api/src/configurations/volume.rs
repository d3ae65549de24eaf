//! Volumes: disks that outlive jobs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::checked::constant;
use super::durations::Seconds;
use super::names::check_resource_name;
use super::resources::Memory;
use crate::backends::BackendType;

constant! {
    /// The `type` of a [`VolumeConfiguration`].
    pub struct VolumeType = "volume";
}

/// A disk that outlives jobs. Which keys there are depends on `backend`; those that a backend does
/// not have are unset.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct VolumeConfiguration {
    /// Says that this is a volume.
    #[schemars(rename = "type", default)]
    pub kind: VolumeType,
    /// Where it is: `aws`, `gcp`, `runpod`, `kubernetes`, `daytona` or `lium`.
    pub backend: BackendType,
    /// The name; null is one that the server makes up.
    pub name: Option<String>,
    /// How long it stays unattached until it is deleted; negative and null are forever.
    pub auto_cleanup_duration: Option<Seconds>,
    /// Tags of the resource at the cloud.
    pub tags: Option<BTreeMap<String, String>>,
    /// The size in GB of a new volume.
    pub size: Option<Memory>,
    /// The cloud's name of an existing volume.
    pub volume_id: Option<String>,
    /// The region; empty where the backend needs none.
    #[schemars(default)]
    pub region: String,
    /// The availability zone; null is any.
    pub availability_zone: Option<String>,
    /// The existing claim, for `kubernetes`.
    pub claim_name: Option<String>,
    /// The storage class, for `kubernetes`.
    pub storage_class_name: Option<String>,
    /// The access modes, for `kubernetes`.
    #[schemars(default)]
    pub access_modes: Vec<String>,
    /// Whether it is mounted read-only, for `kubernetes`.
    #[schemars(default)]
    pub read_only: bool,
}

/// What the volumes of a backend are described by, after the common keys.
fn keys_of(backend: BackendType) -> Option<&'static [&'static str]> {
    match backend {
        BackendType::Aws | BackendType::Gcp | BackendType::Runpod => {
            Some(&["size", "volume_id", "region", "availability_zone"])
        }
        BackendType::Kubernetes => {
            Some(&["size", "region", "claim_name", "storage_class_name", "access_modes", "read_only"])
        }
        BackendType::Daytona | BackendType::Lium => Some(&["volume_id"]),
        _ => None,
    }
}

const DEFAULT_ACCESS_MODE: &str = "ReadWriteOnce";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
struct Fields {
    #[serde(rename = "type", default)]
    kind: VolumeType,
    backend: BackendType,
    #[serde(default)]
    name: Option<String>,
    #[serde(default, deserialize_with = "super::durations::never_or_seconds")]
    auto_cleanup_duration: Option<Seconds>,
    #[serde(default, deserialize_with = "super::profile::optional_tags")]
    tags: Option<BTreeMap<String, String>>,
    #[serde(default)]
    size: Option<Memory>,
    #[serde(default)]
    volume_id: Option<String>,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    availability_zone: Option<String>,
    #[serde(default)]
    claim_name: Option<String>,
    #[serde(default)]
    storage_class_name: Option<String>,
    #[serde(default)]
    access_modes: Option<Vec<String>>,
    #[serde(default)]
    read_only: Option<bool>,
}

impl Fields {
    fn check(&self) -> Result<(), String> {
        let backend = self.backend;
        let allowed = keys_of(backend).ok_or_else(|| {
            format!(
                "`backend: {backend}` has no volumes; they are for `aws`, `gcp`, `runpod`, `kubernetes`, `daytona` and `lium`"
            )
        })?;
        let used = [
            ("size", self.size.is_some()),
            ("volume_id", self.volume_id.is_some()),
            ("region", self.region.is_some()),
            ("availability_zone", self.availability_zone.is_some()),
            ("claim_name", self.claim_name.is_some()),
            ("storage_class_name", self.storage_class_name.is_some()),
            ("access_modes", self.access_modes.is_some()),
            ("read_only", self.read_only.is_some()),
        ];
        for (key, is_set) in used {
            if is_set && !allowed.contains(&key) {
                return Err(format!("`{key}` is not for volumes of `backend: {backend}`"));
            }
        }
        let needs_region = allowed.contains(&"region") && backend != BackendType::Kubernetes;
        if needs_region && self.region.is_none() {
            return Err(format!("missing key `region`, which `backend: {backend}` needs"));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for VolumeConfiguration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(deserializer)?;
        fields.check().map_err(serde::de::Error::custom)?;
        let default_access_modes = || match fields.backend {
            BackendType::Kubernetes => vec![DEFAULT_ACCESS_MODE.to_owned()],
            _ => Vec::new(),
        };
        Ok(VolumeConfiguration {
            kind: fields.kind,
            backend: fields.backend,
            name: fields.name,
            auto_cleanup_duration: fields.auto_cleanup_duration,
            tags: fields.tags,
            size: fields.size,
            volume_id: fields.volume_id,
            region: fields.region.unwrap_or_default(),
            availability_zone: fields.availability_zone,
            claim_name: fields.claim_name,
            storage_class_name: fields.storage_class_name,
            access_modes: fields.access_modes.unwrap_or_else(default_access_modes),
            read_only: fields.read_only.unwrap_or_default(),
        })
    }
}

impl Serialize for VolumeConfiguration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &self.kind)?;
        map.serialize_entry("backend", &self.backend)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("auto_cleanup_duration", &self.auto_cleanup_duration)?;
        map.serialize_entry("tags", &self.tags)?;
        for key in keys_of(self.backend).unwrap_or_default() {
            match *key {
                "size" => map.serialize_entry(key, &self.size)?,
                "volume_id" => map.serialize_entry(key, &self.volume_id)?,
                "region" => map.serialize_entry(key, &self.region)?,
                "availability_zone" => map.serialize_entry(key, &self.availability_zone)?,
                "claim_name" => map.serialize_entry(key, &self.claim_name)?,
                "storage_class_name" => map.serialize_entry(key, &self.storage_class_name)?,
                "access_modes" => map.serialize_entry(key, &self.access_modes)?,
                _ => map.serialize_entry(key, &self.read_only)?,
            }
        }
        map.end()
    }
}

impl VolumeConfiguration {
    /// Checks what the official server checks only when a volume is submitted; the errors are the
    /// official ones.
    pub fn check_submission(&self) -> Result<(), String> {
        if let Some(name) = &self.name {
            check_resource_name(name)?;
        }
        let is_existing = self.volume_id.is_some() || self.claim_name.is_some();
        let can_have_size = keys_of(self.backend).is_some_and(|keys| keys.contains(&"size"));
        if can_have_size && self.size.is_none() && !is_existing {
            return Err("Volume must specify either existing identifier or size".to_owned());
        }
        Ok(())
    }
}
