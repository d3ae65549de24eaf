//! What a host has for traffic past the kernel: RDMA devices, what programs need to use them, and what joins its GPUs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The kernel driver of Elastic Fabric Adapters.
pub const EFA_DRIVER: &str = "efa";

/// How the kernel's word for a port ends that carries traffic: `4: ACTIVE`.
const PORT_ACTIVE: &str = ": ACTIVE";

/// What a host has for RDMA, and between its GPUs. Devices may come late, so an agent looks again and tells what has
/// changed.
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
    /// How many Elastic Fabric Adapters are on the PCI bus, with a driver or without; unset: not known.
    pub efa_pci_functions: Option<u32>,
    /// There is `/dev/gdrdrv`, through which the CPU reaches the memory of GPUs.
    pub has_gdrdrv: bool,
    /// The module by which RDMA devices reach the memory of NVIDIA's GPUs is loaded.
    pub has_nvidia_peermem: bool,
    /// Huge pages of the default size; unset: not known.
    pub huge_pages: Option<HugePages>,
    /// The most memory that a job can be allowed to lock, in bytes, the highest number for any; unset: not known.
    pub memlock_bytes: Option<u64>,
    /// NVIDIA's switches between GPUs that are the host's own.
    pub nvswitches: u32,
    /// The daemon that sets these switches up runs. It is looked for only where there are some.
    pub has_fabric_manager: bool,
    /// How GPUs that are joined by a fabric have come to be part of it; those that are not are left out.
    pub gpu_fabrics: Vec<GpuFabric>,
}

impl Fabric {
    /// The nodes of Elastic Fabric Adapters.
    pub fn efa(&self) -> impl Iterator<Item = &UverbsDevice> {
        self.uverbs.iter().filter(|uverbs| uverbs.driver == EFA_DRIVER)
    }

    /// How many Elastic Fabric Adapters programs can use: those whose node is there, and whose port is not known to be
    /// down.
    pub fn efa_count(&self) -> u32 {
        let usable = self.efa().filter(|uverbs| uverbs.has_node && !self.is_down(uverbs));
        u32::try_from(usable.count()).unwrap_or(u32::MAX)
    }

    /// Whether a port of a node's device is known to carry no traffic.
    pub fn is_down(&self, uverbs: &UverbsDevice) -> bool {
        self.devices.iter().any(|device| device.name == uverbs.device && device.has_port_down())
    }

    /// Whether the GPUs are joined by something that has to be set up, so that it is worth asking their driver.
    pub fn joins_gpus(&self) -> bool {
        0 < self.nvswitches || !self.gpu_fabrics.is_empty()
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

impl RdmaDevice {
    /// Whether a port is known to carry no traffic.
    pub fn has_port_down(&self) -> bool {
        self.port_states.values().any(|state| !state.is_empty() && !state.ends_with(PORT_ACTIVE))
    }
}

/// How one GPU has come to be part of the fabric between GPUs, in the words of its driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuFabric {
    /// The driver's index of the GPU.
    pub index: u32,
    /// How far it has come: `Not Started`, `In Progress` or `Completed`.
    pub state: String,
    /// How it has ended: `Success`, or what is wrong.
    pub status: String,
}

impl GpuFabric {
    /// Whether the GPU reaches the others.
    pub fn is_ready(&self) -> bool {
        self.state == "Completed" && ["Success", ""].contains(&self.status.as_str())
    }
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
