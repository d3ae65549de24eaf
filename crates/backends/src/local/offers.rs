//! What this machine offers: what is left of it, and, where that is less than an empty machine would give, also
//! what it would give, with the reason why it cannot.

use std::collections::BTreeMap;

use api::agent::HostInfo;
use api::instances::{Disk, Gpu, InstanceAvailability, InstanceType, Resources};

use super::REGION;
use super::shares::{Portion, Room};
use crate::BackendOffer;

/// The offers for that many nodes; `left` is what of `whole` nobody holds.
pub(super) fn offers(host: &HostInfo, whole: &Room, left: &Room, nodes: u32) -> Vec<BackendOffer> {
    let sold = left.split(nodes);
    let would_be = whole.split(nodes);
    let mut offers = Vec::new();
    if sold.is_enough() {
        offers.push(offer(host, &sold));
    }
    if !sold.is_enough() || sold.is_less_than(&would_be) {
        let mut offer = offer(host, &would_be);
        // Nobody would look for less than one CPU, and so nobody would see the reason.
        offer.instance_type.resources.cpus = would_be.cpus.max(1);
        offer.availability = InstanceAvailability::NotAvailable;
        offer.unavailable_because = Some(why_not(whole, left, &would_be));
        offers.push(offer);
    }
    offers
}

fn offer(host: &HostInfo, portion: &Portion) -> BackendOffer {
    let gpus = portion.gpus.iter().flat_map(|counted| {
        let gpu = Gpu {
            name: counted.name.clone(),
            memory_mib: counted.memory_mib,
            vendor: Some(counted.vendor.clone()),
        };
        std::iter::repeat_n(gpu, counted.count as usize)
    });
    let resources = Resources {
        cpus: portion.cpus,
        memory_mib: portion.memory_mib,
        gpus: gpus.collect(),
        spot: false,
        disk: Disk { size_mib: portion.disk_mib },
        cpu_arch: (!host.cpu_arch.is_empty()).then(|| host.cpu_arch.clone()),
        description: String::new(),
    };
    BackendOffer {
        instance_type: InstanceType { name: "local".to_owned(), resources },
        region: REGION.to_owned(),
        zones: None,
        price_usd_per_hour: 0.0,
        availability: InstanceAvailability::Available,
        unavailable_because: None,
        available_from: None,
        zone_prices: BTreeMap::new(),
        most_disk_mib: None,
        backend_data: serde_json::to_value(portion).expect("numbers and text are JSON"),
    }
}

fn why_not(whole: &Room, left: &Room, would_be: &Portion) -> String {
    if !would_be.is_enough() {
        let cpus = count(whole.cpus as usize, "CPU");
        return format!("this machine has {cpus}, and {} nodes need at least 1 each", would_be.nodes);
    }
    let mut held = vec![
        format!("{} of {}", whole.cpus - left.cpus, count(whole.cpus as usize, "CPU")),
        format!("{} of {} GB of memory", gb(whole.memory_mib - left.memory_mib), gb(whole.memory_mib)),
    ];
    if !whole.gpus.is_empty() {
        let gpus = count(whole.gpus.len(), "GPU");
        held.push(format!("{} of {gpus}", whole.gpus.len() - left.gpus.len()));
    }
    format!("other instances on this machine hold {}", held.join(", "))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// GB, rounded to one digit.
fn gb(mib: u64) -> f64 {
    (mib as f64 / 102.4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use api::agent::HostGpu;

    use super::*;
    use crate::local::config::LocalConfig;

    fn host() -> HostInfo {
        let gpu = |index| HostGpu {
            vendor: "nvidia".to_owned(),
            name: "H100".to_owned(),
            memory_mib: 81_920,
            index,
            uuid: format!("GPU-{index}"),
            pci: None,
            numa_node: None,
        };
        HostInfo {
            cpu_arch: "x86".to_owned(),
            cpus: 8,
            memory_bytes: 32 << 30,
            disk_available_bytes: 100 << 30,
            gpus: vec![gpu(0), gpu(1)],
            ..HostInfo::default()
        }
    }

    fn check(takes: u32, nodes: u32, expected: &[(u32, usize, Option<&str>)]) {
        let host = host();
        let whole = Room::of_host(&host, LocalConfig::default());
        let mut left = whole.clone();
        let half = whole.split(2);
        for _ in 0..takes {
            left.take(&half).unwrap();
        }
        let offers = offers(&host, &whole, &left, nodes);
        let seen: Vec<(u32, usize, Option<&str>)> = offers
            .iter()
            .map(|offer| {
                let is_usable = offer.availability.is_usable();
                assert_eq!(is_usable, offer.unavailable_because.is_none());
                let resources = &offer.instance_type.resources;
                (resources.cpus, resources.gpus.len(), offer.unavailable_because.as_deref())
            })
            .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_empty_machine_offers_itself_once() {
        check(0, 1, &[(8, 2, None)]);
        check(0, 2, &[(4, 1, None)]);
        check(0, 4, &[(2, 0, None)]);
    }

    #[test]
    fn what_is_held_is_not_offered_and_the_reason_is_said() {
        let half = "other instances on this machine hold 4 of 8 CPUs, 16 of 32 GB of memory, 1 of 2 GPUs";
        let all = "other instances on this machine hold 8 of 8 CPUs, 32 of 32 GB of memory, 2 of 2 GPUs";
        check(1, 1, &[(4, 1, None), (8, 2, Some(half))]);
        check(2, 1, &[(8, 2, Some(all))]);
    }

    #[test]
    fn more_nodes_than_cpus_cannot_be() {
        check(0, 9, &[(1, 0, Some("this machine has 8 CPUs, and 9 nodes need at least 1 each"))]);
    }
}
