//! What types of machines are: asked of AWS once, kept in a file, and read without a list of names.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use aws_sdk_ec2::types::{
    EfaInfo, InstanceTypeInfo, LocationType, PlacementGroupInfo, PlacementGroupStrategy, UsageClassType,
};
use serde::{Deserialize, Serialize};

use super::errors::failure;
use super::layout::{NetworkCard, NetworkFacts};
use super::tags::filter;
use crate::Result;

/// Types that AWS tells of in one call at the most.
const TYPES_PER_CALL: usize = 100;

/// What a type of machine is. It does not change while the type has that name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TypeFacts {
    pub(super) name: String,
    /// `x86_64` or `arm64`.
    pub(super) architecture: String,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) gpus: Option<GpuFacts>,
    /// It has accelerators that no agent of ours can give to a container.
    pub(super) has_other_accelerators: bool,
    pub(super) network: NetworkFacts,
    /// Machines of it may be in a cluster placement group.
    pub(super) may_cluster: bool,
    pub(super) is_sold_as_spot: bool,
    pub(super) is_sold_on_demand: bool,
    pub(super) is_sold_in_blocks: bool,
}

/// The GPUs of a type; all are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GpuFacts {
    pub(super) vendor: String,
    /// AWS's word for it.
    pub(super) name: String,
    pub(super) count: u32,
    /// Of one.
    pub(super) memory_mib: u64,
}

/// The types that are known, in memory and in a file.
#[derive(Debug)]
pub(super) struct Types {
    file: PathBuf,
    known: RwLock<HashMap<String, Arc<TypeFacts>>>,
    /// Types that were asked for, and of which nothing is told that could be used: with a part of a GPU, for instance.
    /// Held by whoever asks.
    strange: tokio::sync::Mutex<HashSet<String>>,
}

impl Types {
    /// What was learned before. A file that cannot be read is learned anew.
    pub(super) fn open(dir: &Path) -> Types {
        let file = dir.join("instance-types.json");
        let read = std::fs::read(&file).ok();
        let known: Vec<TypeFacts> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let known = known.into_iter().map(|facts| (facts.name.clone(), Arc::new(facts))).collect();
        Types { file, known: RwLock::new(known), strange: tokio::sync::Mutex::default() }
    }

    /// A type that is known.
    pub(super) fn get(&self, name: &str) -> Option<Arc<TypeFacts>> {
        self.known.read().expect("nobody panics while reading types").get(name).cloned()
    }

    /// Asks for those of the types that are not known yet, in a region that has them.
    pub(super) async fn learn(&self, ec2: &aws_sdk_ec2::Client, names: &BTreeSet<String>) -> Result<()> {
        let mut strange = self.strange.lock().await;
        let is_missing = |name: &&String| self.get(name).is_none() && !strange.contains(*name);
        let missing: Vec<&String> = names.iter().filter(is_missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut learned = vec![];
        for some in missing.chunks(TYPES_PER_CALL) {
            // By a filter, because a single unknown name in the list would be an error for all.
            let names = filter("instance-type", some.iter().map(|name| (*name).clone()));
            let mut pages = ec2.describe_instance_types().filters(names).into_paginator().send();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|error| failure("describe instance types", &error))?;
                learned.extend(page.instance_types().iter().filter_map(facts));
            }
        }
        let learned_names: HashSet<&String> = learned.iter().map(|facts| &facts.name).collect();
        let strange_now: Vec<String> =
            missing.iter().filter(|name| !learned_names.contains(*name)).map(|name| (*name).clone()).collect();
        strange.extend(strange_now);
        {
            let mut known = self.known.write().expect("nobody panics while reading types");
            known.extend(learned.into_iter().map(|facts| (facts.name.clone(), Arc::new(facts))));
        }
        self.save();
        Ok(())
    }

    fn save(&self) {
        let known = self.known.read().expect("nobody panics while reading types");
        let sorted: BTreeMap<&String, &TypeFacts> =
            known.iter().map(|(name, facts)| (name, facts.as_ref())).collect();
        let text = serde_json::to_vec(&sorted.values().collect::<Vec<_>>()).expect("facts are JSON");
        // Only the next start is slower without it.
        if let Err(error) = super::files::replace(&self.file, &text) {
            tracing::warn!("cannot keep what is known of instance types in `{}`: {error}", self.file.display());
        }
    }
}

/// The zones of a region in which each type is sold.
pub(super) async fn offerings(ec2: &aws_sdk_ec2::Client) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let request = ec2.describe_instance_type_offerings().location_type(LocationType::AvailabilityZone);
    let mut pages = request.into_paginator().send();
    let mut zones: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe where instance types are offered", &error))?;
        for offering in page.instance_type_offerings() {
            if let (Some(name), Some(zone)) = (offering.instance_type(), offering.location()) {
                zones.entry(name.as_str().to_owned()).or_default().insert(zone.to_owned());
            }
        }
    }
    Ok(zones)
}

fn facts(info: &InstanceTypeInfo) -> Option<TypeFacts> {
    let usage = info.supported_usage_classes();
    let architectures = info.processor_info()?.supported_architectures();
    let has = |architecture: &str| architectures.iter().any(|known| known.as_str() == architecture);
    let architecture = ["x86_64", "arm64"].into_iter().find(|architecture| has(architecture))?;
    let strategies = info.placement_group_info().map(PlacementGroupInfo::supported_strategies).unwrap_or_default();
    Some(TypeFacts {
        name: info.instance_type()?.as_str().to_owned(),
        architecture: architecture.to_owned(),
        vcpus: u32::try_from(info.v_cpu_info()?.default_v_cpus()?).ok()?,
        memory_mib: u64::try_from(info.memory_info()?.size_in_mib()?).ok()?,
        gpus: gpus(info)?,
        has_other_accelerators: info.neuron_info().is_some()
            || info.inference_accelerator_info().is_some()
            || info.fpga_info().is_some()
            || info.media_accelerator_info().is_some(),
        network: network(info),
        may_cluster: strategies.contains(&PlacementGroupStrategy::Cluster),
        is_sold_as_spot: usage.contains(&UsageClassType::Spot),
        is_sold_on_demand: usage.contains(&UsageClassType::OnDemand),
        is_sold_in_blocks: usage.contains(&UsageClassType::CapacityBlock),
    })
}

/// The GPUs; `None` within if there are none, and none at all for a type that has a part of one.
#[expect(clippy::option_option, reason = "a type without GPUs is not a type that cannot be used")]
fn gpus(info: &InstanceTypeInfo) -> Option<Option<GpuFacts>> {
    let Some(gpu) = info.gpu_info().and_then(|gpus| gpus.gpus().first()) else { return Some(None) };
    let count = gpu.count().and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0)?;
    Some(Some(GpuFacts {
        vendor: gpu.manufacturer()?.to_ascii_lowercase(),
        name: gpu.name()?.to_owned(),
        count,
        memory_mib: u64::try_from(gpu.memory_info()?.size_in_mib()?).ok()?,
    }))
}

fn network(info: &InstanceTypeInfo) -> NetworkFacts {
    let Some(network) = info.network_info() else { return NetworkFacts::default() };
    let cards = network.network_cards().iter().filter_map(|card| {
        Some(NetworkCard {
            index: card.network_card_index()?,
            most_interfaces: card.maximum_network_interfaces().unwrap_or(1),
            does_efa: card.interface_types().iter().any(|kind| kind.as_str() == "efa-only"),
        })
    });
    let most_efa = network.efa_info().and_then(EfaInfo::maximum_efa_interfaces).unwrap_or(0);
    NetworkFacts {
        cards: cards.collect(),
        default_card: network.default_network_card_index().unwrap_or(0),
        most_efa: u32::try_from(most_efa).unwrap_or(0),
    }
}

/// The name by which people know a GPU.
pub(super) fn gpu_name(aws_name: &str) -> String {
    // Workstation cards have long names at AWS; users of the original know them without blanks.
    let short = aws_name.replace("PRO Server", "PRO").replace(' ', "");
    match short.as_str() {
        "RadeonProV520" => "V520".to_owned(),
        _ => short,
    }
}

/// The memory that a GPU is sold with, in MiB, where AWS tells what is left of it.
pub(super) fn gpu_memory_mib(name: &str, told_mib: u64) -> u64 {
    const SOLD_GIB: &[(&str, u64)] = &[
        ("T4", 16),
        ("T4G", 16),
        ("A10G", 24),
        ("L4", 24),
        ("L40S", 48),
        ("RTXPRO4500", 32),
        ("RTXPRO6000", 96),
        ("H200", 141),
        ("V100", 16),
    ];
    let told = told_mib as f64 / 1024.0;
    let sold = SOLD_GIB.iter().find(|(known, gib)| *known == name && (told / *gib as f64 - 1.0).abs() < 0.1);
    sold.map_or(told_mib, |(_, gib)| gib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_have_the_names_and_sizes_that_people_know() {
        assert_eq!(gpu_name("H100"), "H100");
        assert_eq!(gpu_name("RTX PRO Server 6000"), "RTXPRO6000");
        assert_eq!(gpu_name("RTX PRO 4500"), "RTXPRO4500");
        assert_eq!(gpu_memory_mib("L4", 22_888), 24 * 1024);
        assert_eq!(gpu_memory_mib("A10G", 22_888), 24 * 1024);
        assert_eq!(gpu_memory_mib("H100", 81_920), 81_920);
        assert_eq!(gpu_memory_mib("A100", 40_960), 40_960);
        // Two sizes have one name, and only what is close is taken for it.
        assert_eq!(gpu_memory_mib("V100", 32_768), 32_768);
    }
}
