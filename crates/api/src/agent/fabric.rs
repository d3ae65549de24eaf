//! What a host has for traffic past the kernel: RDMA devices, and what programs need to use them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The kernel driver of Elastic Fabric Adapters.
pub const EFA_DRIVER: &str = "efa";

/// What a host has for RDMA. Devices may come late, so an agent looks again and tells what has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fabric {
    /// RDMA devices by name.
    pub devices: Vec<RdmaDevice>,
    /// The nodes through which programs use them, by number.
    pub uverbs: Vec<UverbsDevice>,
    /// The other nodes below `/dev/infiniband`, by name: `rdma_cm`, `umad0`, `issm0` and the like.
    pub other_nodes: Vec<String>,
    /// The driver of Elastic Fabric Adapters, if it is loaded.
    pub efa_module: Option<KernelModule>,
    /// There is `/dev/gdrdrv`, through which the CPU reaches the memory of GPUs.
    pub has_gdrdrv: bool,
    /// The module by which RDMA devices reach the memory of NVIDIA's GPUs is loaded.
    pub has_nvidia_peermem: bool,
    /// Huge pages of the default size; unset: not known.
    pub huge_pages: Option<HugePages>,
    /// The most memory that a job can be allowed to lock, in bytes, the highest number for any; unset: not known.
    pub memlock_bytes: Option<u64>,
}

impl Fabric {
    /// The nodes of Elastic Fabric Adapters.
    pub fn efa(&self) -> impl Iterator<Item = &UverbsDevice> {
        self.uverbs.iter().filter(|uverbs| uverbs.driver == EFA_DRIVER)
    }

    /// How many Elastic Fabric Adapters programs can use: those whose node is there.
    pub fn efa_count(&self) -> u32 {
        u32::try_from(self.efa().filter(|uverbs| uverbs.has_node).count()).unwrap_or(u32::MAX)
    }

    /// Whether the other one says something that matters beside this one. How many huge pages are free changes all
    /// the time.
    pub fn differs(&self, other: &Fabric) -> bool {
        let steady = |fabric: &Fabric| Fabric {
            huge_pages: fabric.huge_pages.map(|pages| HugePages { free: 0, ..pages }),
            ..fabric.clone()
        };
        steady(self) != steady(other)
    }
}

/// One RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RdmaDevice {
    /// The device's name, for instance `rdmap0s6`.
    pub name: String,
    /// The kernel driver, for instance `efa`.
    pub driver: String,
    /// State of each port by number, for instance `4: ACTIVE`.
    pub port_states: BTreeMap<u32, String>,
    /// `InfiniBand` or `Ethernet`.
    pub link_layer: String,
}

/// The node through which programs use one RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UverbsDevice {
    /// Its name below `/dev/infiniband`, for instance `uverbs0`.
    pub name: String,
    /// The name of the RDMA device.
    pub device: String,
    /// The RDMA device's kernel driver.
    pub driver: String,
    /// The node is there. A driver may be without it.
    pub has_node: bool,
}

/// A kernel module that is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelModule {
    /// Its version, if it tells.
    pub version: Option<String>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HugePages {
    /// The size of each in KiB.
    pub size_kib: u64,
    /// How many are set aside.
    pub total: u64,
    /// How many of them nobody uses.
    pub free: u64,
}
