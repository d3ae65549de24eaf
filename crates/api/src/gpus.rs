//! Accelerators on offer, grouped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backends::BackendType;
use crate::instances::InstanceAvailability;
use crate::runs::RunSpec;

/// The body of `gpus/list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ListGpusRequest {
    /// The requirements.
    pub run_spec: RunSpec,
    /// `backend`, `region`, `count`.
    #[serde(default)]
    pub group_by: Option<Vec<String>>,
    /// Dearest first.
    #[serde(default)]
    pub reverse: bool,
    /// Offers that cannot be had too.
    #[serde(default)]
    pub full_offers: bool,
    /// Only what no job holds.
    #[serde(default)]
    pub unallocated_resources: bool,
}

/// A closed range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MinMax<T> {
    /// The least.
    pub min: T,
    /// The most.
    pub max: T,
}

/// Offers with the same accelerator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuGroup {
    /// The accelerator's name.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The vendor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Whether any can be had.
    pub availability: Vec<InstanceAvailability>,
    /// `spot`, `on-demand`.
    pub spot: Vec<String>,
    /// Accelerators per machine.
    pub count: MinMax<u32>,
    /// US dollars per accelerator and hour.
    pub price: MinMax<f64>,
    /// US dollars per machine and hour.
    pub offer_price: MinMax<f64>,
    /// Backends, unless grouped by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<BackendType>>,
    /// The backend, when grouped by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendType>,
    /// Regions, when grouped by backend only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    /// The region, when grouped by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// Offers without accelerators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuGroup {
    /// `x86`, `arm`.
    pub cpu_arch: Vec<String>,
    /// CPUs per machine.
    pub count: MinMax<u32>,
    /// Memory per machine in MiB.
    pub memory_mib: MinMax<u64>,
    /// US dollars per machine and hour.
    pub price: MinMax<f64>,
    /// Whether any can be had.
    pub availability: Vec<InstanceAvailability>,
    /// `spot`, `on-demand`.
    pub spot: Vec<String>,
    /// Backends, unless grouped by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<BackendType>>,
    /// The backend, when grouped by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendType>,
    /// Regions, when grouped by backend only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    /// The region, when grouped by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// The answer of `gpus/list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuList {
    /// The groups.
    pub gpus: Vec<GpuGroup>,
    /// Only if no accelerator was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Vec<CpuGroup>>,
}
