//! Dividing this machine: what there is, what is held already, and what a node gets. Pure arithmetic.

use std::collections::BTreeSet;

use api::agent::{HostGpu, HostInfo};
use serde::{Deserialize, Serialize};

use super::config::LocalConfig;

/// What one local machine holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share {
    /// CPUs.
    pub(super) cpus: u32,
    /// Memory in MiB.
    pub(super) memory_mib: u64,
    /// Disk in MiB.
    pub(super) disk_mib: u64,
    /// GPUs by UUID.
    pub(super) gpu_uuids: Vec<String>,
}

/// What each of several equal nodes is sold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Portion {
    /// Into how many nodes the room was split.
    pub(super) nodes: u32,
    /// CPUs of a node.
    pub(super) cpus: u32,
    /// Memory of a node in MiB.
    pub(super) memory_mib: u64,
    /// Disk of a node in MiB.
    pub(super) disk_mib: u64,
    /// GPUs of a node.
    pub(super) gpus: Vec<GpuCount>,
}

/// Some GPUs of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GpuCount {
    /// The vendor.
    pub(super) vendor: String,
    /// The model.
    pub(super) name: String,
    /// Memory of each in MiB.
    pub(super) memory_mib: u64,
    /// How many.
    pub(super) count: u32,
}

/// What there is, or what of it is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    /// CPUs.
    pub(super) cpus: u32,
    /// Memory in MiB.
    pub(super) memory_mib: u64,
    /// Disk in MiB.
    pub(super) disk_mib: u64,
    /// GPUs, in the order of their index.
    pub(super) gpus: Vec<HostGpu>,
}

impl Room {
    /// All that jobs may have of this machine.
    pub(super) fn of_host(host: &HostInfo, config: LocalConfig) -> Room {
        let memory_mib = host.memory_bytes >> 20;
        Room {
            cpus: host.cpus.min(config.cpus.unwrap_or(u32::MAX)),
            memory_mib: memory_mib.min(config.memory_mib.unwrap_or(u64::MAX)),
            disk_mib: host.disk_available_bytes >> 20,
            gpus: host.gpus.clone(),
        }
    }

    /// What is left beside what is held.
    pub(super) fn without<'s>(&self, held: impl IntoIterator<Item = &'s Share>) -> Room {
        let mut left = self.clone();
        let mut held_gpus = BTreeSet::new();
        for share in held {
            left.cpus = left.cpus.saturating_sub(share.cpus);
            left.memory_mib = left.memory_mib.saturating_sub(share.memory_mib);
            left.disk_mib = left.disk_mib.saturating_sub(share.disk_mib);
            held_gpus.extend(share.gpu_uuids.iter());
        }
        left.gpus.retain(|gpu| !held_gpus.contains(&gpu.uuid));
        left
    }

    /// An equal portion for each of that many nodes. What cannot be divided stays.
    pub(super) fn split(&self, nodes: u32) -> Portion {
        let nodes = nodes.max(1);
        let mut gpus: Vec<GpuCount> = Vec::new();
        for gpu in &self.gpus {
            match gpus.iter_mut().find(|counted| counted.is_model_of(gpu)) {
                Some(counted) => counted.count += 1,
                None => gpus.push(GpuCount {
                    vendor: gpu.vendor.clone(),
                    name: gpu.name.clone(),
                    memory_mib: gpu.memory_mib,
                    count: 1,
                }),
            }
        }
        for counted in &mut gpus {
            counted.count /= nodes;
        }
        gpus.retain(|counted| 0 < counted.count);
        Portion {
            nodes,
            cpus: self.cpus / nodes,
            memory_mib: self.memory_mib / u64::from(nodes),
            disk_mib: self.disk_mib / u64::from(nodes),
            gpus,
        }
    }

    /// Takes a portion out of the room. None: not enough is left, and nothing was taken.
    ///
    /// Disk is promised, not taken: it is free or not whatever the books say.
    pub(super) fn take(&mut self, portion: &Portion) -> Option<Share> {
        if self.cpus < portion.cpus || self.memory_mib < portion.memory_mib || !portion.is_enough() {
            return None;
        }
        let mut gpus = Vec::new();
        for wanted in &portion.gpus {
            let fitting = self.gpus.iter().filter(|gpu| wanted.is_model_of(gpu));
            let taken: Vec<&HostGpu> = fitting.take(wanted.count as usize).collect();
            if taken.len() < wanted.count as usize {
                return None;
            }
            gpus.extend(taken);
        }
        gpus.sort_by_key(|gpu| gpu.index);
        let gpu_uuids: Vec<String> = gpus.into_iter().map(|gpu| gpu.uuid.clone()).collect();
        self.cpus -= portion.cpus;
        self.memory_mib -= portion.memory_mib;
        self.disk_mib = self.disk_mib.saturating_sub(portion.disk_mib);
        self.gpus.retain(|gpu| !gpu_uuids.contains(&gpu.uuid));
        Some(Share { cpus: portion.cpus, memory_mib: portion.memory_mib, disk_mib: portion.disk_mib, gpu_uuids })
    }
}

impl Portion {
    /// Whether a node can live on it.
    pub(super) fn is_enough(&self) -> bool {
        1 <= self.cpus && 1 <= self.memory_mib
    }

    /// How many GPUs a node gets.
    pub(super) fn gpu_count(&self) -> u32 {
        self.gpus.iter().map(|gpu| gpu.count).sum()
    }

    /// Whether a node gets less than with the other portion.
    pub(super) fn is_less_than(&self, other: &Portion) -> bool {
        self.cpus < other.cpus || self.memory_mib < other.memory_mib || self.gpu_count() < other.gpu_count()
    }
}

impl GpuCount {
    fn is_model_of(&self, gpu: &HostGpu) -> bool {
        self.vendor == gpu.vendor && self.name == gpu.name && self.memory_mib == gpu.memory_mib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str, index: u32) -> HostGpu {
        HostGpu {
            vendor: "nvidia".to_owned(),
            name: name.to_owned(),
            memory_mib: 81_920,
            index,
            uuid: format!("GPU-{index}"),
            pci: None,
            numa_node: None,
        }
    }

    fn host(cpus: u32, gpus: Vec<HostGpu>) -> HostInfo {
        HostInfo { cpus, memory_bytes: 32 << 30, disk_available_bytes: 400 << 30, gpus, ..HostInfo::default() }
    }

    #[test]
    fn a_machine_is_divided_evenly_and_the_rest_stays() {
        let room = Room::of_host(&host(7, (0..5).map(|i| gpu("H100", i)).collect()), LocalConfig::default());
        let portion = room.split(2);
        assert_eq!((portion.cpus, portion.memory_mib, portion.disk_mib), (3, 16 << 10, 200 << 10));
        assert_eq!(portion.gpu_count(), 2);
        let mut left = room.clone();
        let first = left.take(&portion).unwrap();
        let second = left.take(&portion).unwrap();
        assert_eq!(first.gpu_uuids, ["GPU-0", "GPU-1"]);
        assert_eq!(second.gpu_uuids, ["GPU-2", "GPU-3"]);
        assert_eq!(left.take(&portion), None);
        assert_eq!((left.cpus, left.gpus.len()), (1, 1));
        assert_eq!(room.without([&first, &second]), left);
    }

    #[test]
    fn nodes_of_a_mixed_machine_are_alike() {
        let gpus = vec![gpu("H100", 0), gpu("A100", 1), gpu("H100", 2), gpu("A100", 3), gpu("T4", 4)];
        let mut room = Room::of_host(&host(8, gpus), LocalConfig::default());
        let portion = room.split(2);
        assert_eq!(room.take(&portion).unwrap().gpu_uuids, ["GPU-0", "GPU-1"]);
        assert_eq!(room.take(&portion).unwrap().gpu_uuids, ["GPU-2", "GPU-3"]);
    }

    #[test]
    fn the_configuration_may_give_less_but_never_more() {
        let less = LocalConfig { cpus: Some(2), memory_mib: Some(1024) };
        let more = LocalConfig { cpus: Some(64), memory_mib: Some(1 << 30) };
        let room = Room::of_host(&host(8, Vec::new()), less);
        assert_eq!((room.cpus, room.memory_mib), (2, 1024));
        let room = Room::of_host(&host(8, Vec::new()), more);
        assert_eq!((room.cpus, room.memory_mib), (8, 32 << 10));
    }

    #[test]
    fn a_failed_take_takes_nothing() {
        let mut room = Room::of_host(&host(8, vec![gpu("H100", 0)]), LocalConfig::default());
        let before = room.clone();
        let mut portion = room.split(1);
        portion.gpus[0].count = 2;
        assert_eq!(room.take(&portion), None);
        assert_eq!(room.take(&Portion::default()), None);
        assert_eq!(room, before);
    }
}
