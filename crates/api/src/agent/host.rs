//! What a host has, as the agent found it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CloudMachine, Fabric, Interruption};

/// A host, or the share of it that the agent was given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostInfo {
    /// The host's own name.
    pub hostname: String,
    /// The kernel's release.
    pub kernel: String,
    /// `x86` or `arm`.
    pub cpu_arch: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Bytes available where containers keep their data.
    pub disk_available_bytes: u64,
    /// Accelerators, in the order of their index.
    pub gpus: Vec<HostGpu>,
    /// The version of the accelerators' driver.
    pub gpu_driver: Option<String>,
    /// The newest CUDA version that the driver can run, for instance `13.0`.
    pub cuda_version: Option<String>,
    /// Every address of the host that is not loopback, without prefix length.
    pub addresses: Vec<String>,
    /// The address that peers use for this node.
    pub internal_ip: Option<String>,
    /// The container engine, if one answers.
    pub docker: Option<DockerInfo>,
    /// Why there is no container engine, if none answers.
    pub docker_error: Option<String>,
    /// What it has for RDMA, and between its GPUs.
    pub fabric: Fabric,
    /// The machine's name as its maker wrote it, for instance `p5.48xlarge`.
    pub product_name: Option<String>,
    /// What its cloud says that it is, where the agent was told to ask.
    pub cloud: Option<CloudMachine>,
    /// Its cloud takes it back.
    pub interruption: Option<Interruption>,
    /// Since when its cloud says that it is likely to take it back soon.
    pub rebalance_at: Option<Timestamp>,
    /// What is wrong with the host, in words; empty when nothing is.
    pub warnings: Vec<String>,
}

impl HostInfo {
    /// Takes over what has changed.
    pub fn learn(&mut self, news: HostNews) {
        let HostNews { fabric, cloud, interruption, rebalance_at } = news;
        self.fabric = fabric;
        self.cloud = cloud;
        self.interruption = interruption;
        self.rebalance_at = rebalance_at;
    }
}

/// The part of a host that changes while its agent runs; the whole of it is told whenever it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostNews {
    /// What it has for RDMA, and between its GPUs.
    pub fabric: Fabric,
    /// What its cloud says that it is.
    pub cloud: Option<CloudMachine>,
    /// Its cloud takes it back.
    pub interruption: Option<Interruption>,
    /// Since when its cloud says that it is likely to take it back soon.
    pub rebalance_at: Option<Timestamp>,
}

/// One accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGpu {
    /// `nvidia`, `amd`, `intel`, `google` or `tenstorrent`.
    pub vendor: String,
    /// The marketing name without the vendor, for instance `H100`.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The driver's index.
    pub index: u32,
    /// The identifier that survives a change of order: NVIDIA's UUID, or AMD's render node.
    pub uuid: String,
    /// The PCI address, if known.
    pub pci: Option<String>,
    /// The NUMA node, if known.
    pub numa_node: Option<u32>,
}

/// The container engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerInfo {
    /// The engine's version.
    pub version: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Whether containers outlive the engine.
    pub live_restore: bool,
    /// Runtimes by name, for instance `nvidia`.
    pub runtimes: Vec<String>,
    /// Where it keeps images and containers; unset: not known.
    #[serde(default)]
    pub root_dir: Option<String>,
    /// It finds NVIDIA's container toolkit, by which it gives GPUs to containers; unset: not known.
    #[serde(default)]
    pub has_nvidia_toolkit: Option<bool>,
}
