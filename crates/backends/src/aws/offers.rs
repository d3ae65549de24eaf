//! What AWS would sell: every type that an agent can be put on, in each region and zone where it is offered and there is
//! a subnet for it, with its price, and with the reason where it cannot be had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::instances::{Disk, Gpu, InstanceAvailability, InstanceType, Resources};
use jiff::Timestamp;

use super::config::AwsConfig;
use super::layout::{efa_count, layout};
use super::network::RegionNetwork;
use super::prepare::{OfferData, wants_efa};
use super::prices::{Prices, SpotPrices};
use super::quotas::{ELASTIC_IPS, Quotas};
use super::reservations::ReservationFacts;
use super::types::{TypeFacts, Types, gpu_memory_mib, gpu_name};
use crate::{BackendOffer, OffersWanted};

/// The size of a disk unless a larger one is asked for, in MiB.
const DISK_MIB: u64 = 100 * 1024;

/// The largest disk: 16 TB.
const MOST_DISK_MIB: u64 = 16 * 1024 * 1024;

/// What is known of a region.
#[derive(Debug)]
pub(super) struct RegionFacts {
    pub(super) region: String,
    /// Its network, or what is missing in it.
    pub(super) network: Result<Arc<RegionNetwork>, String>,
    /// The zones where each type is offered.
    pub(super) offerings: Arc<BTreeMap<String, BTreeSet<String>>>,
    /// The prices of today, if spot machines are wanted and AWS could be asked.
    pub(super) spot_prices: Option<Arc<SpotPrices>>,
    /// None: they could not be asked for.
    pub(super) quotas: Option<Arc<Quotas>>,
    /// Public addresses that the account has there, whoever uses them; none: they were not asked for, or it is not known.
    pub(super) addresses_in_use: Option<u32>,
    /// What the reservation that is asked for has in this region; of a group that may be several.
    pub(super) reservations: Arc<Vec<ReservationFacts>>,
}

/// What a region offers, in no order.
pub(super) fn of_region(
    config: &AwsConfig,
    facts: &RegionFacts,
    types: &Types,
    prices: &Prices,
    wanted: &OffersWanted,
    now: Timestamp,
) -> Vec<BackendOffer> {
    let mut offers = vec![];
    for (name, zones) in facts.offerings.as_ref() {
        let Some(one) = types.get(name).filter(|one| is_usable(one)) else { continue };
        if wanted.reservation.is_some() {
            let reserved = facts.reservations.iter().filter(|found| found.instance_type == *name);
            offers.extend(reserved.map(|found| of_reservation(config, facts, (&one, found), prices, wanted, now)));
            continue;
        }
        if wanted.spot != Some(true)
            && one.is_sold_on_demand
            && let Some(price) = prices.on_demand(&facts.region, name)
        {
            let prices = zones.iter().map(|zone| (zone.clone(), price)).collect();
            offers.push(offer(config, facts, &one, wanted, (false, prices)));
        }
        if wanted.spot != Some(false) && one.is_sold_as_spot {
            let today = facts.spot_prices.as_ref().and_then(|prices| prices.find(&one));
            let old = || {
                let price = Prices::old_spot(&facts.region, name)?;
                Some(zones.iter().map(|zone| (zone.clone(), price)).collect())
            };
            if let Some(prices) = today.or_else(old) {
                offers.push(offer(config, facts, &one, wanted, (true, prices)));
            }
        }
    }
    offers
}

/// Types for which there is no agent, or whose accelerators no container of ours could use, are not offered, because
/// nobody could use what is paid for.
fn is_usable(facts: &TypeFacts) -> bool {
    let has_agent = facts.architecture == "x86_64";
    let gpus_work = facts.gpus.as_ref().is_none_or(|gpus| gpus.vendor == "nvidia");
    has_agent && gpus_work && !facts.has_other_accelerators
}

/// Offers a type: whether as spot, and what it costs in each zone. The cheapest is to be tried first.
fn offer(
    config: &AwsConfig,
    facts: &RegionFacts,
    one: &TypeFacts,
    wanted: &OffersWanted,
    (spot, prices): (bool, BTreeMap<String, f64>),
) -> BackendOffer {
    let data = OfferData { efa_interfaces: efa_interfaces(config, one, wanted), ..OfferData::default() };
    let mut zones: Vec<String> = prices.keys().cloned().collect();
    zones.sort_by(|one, other| prices[one].total_cmp(&prices[other]));
    let (zones, obstacle) = zones_or_obstacle(facts, one, wanted, zones);
    let price = zones.first().map_or(0.0, |zone| prices[zone]);
    let quotas = facts.quotas.as_ref();
    let quota = quotas.and_then(|quotas| quotas.obstacle(&one.name, spot, one.vcpus, wanted.least));
    let quota = quota.or_else(|| addresses_obstacle(config, facts, one, wanted));
    let zone_prices = if zones.iter().any(|zone| prices[zone] > price) { prices } else { BTreeMap::new() };
    let (availability, because) = match (quota, obstacle) {
        (Some(because), _) => (InstanceAvailability::NoQuota, Some(because)),
        (None, Some(because)) => (InstanceAvailability::NotAvailable, Some(because)),
        (None, None) => (InstanceAvailability::Unknown, None),
    };
    BackendOffer {
        instance_type: instance_type(one, spot),
        region: facts.region.clone(),
        zones: Some(zones),
        price_usd_per_hour: price,
        zone_prices,
        availability,
        unavailable_because: because,
        available_from: None,
        most_disk_mib: Some(MOST_DISK_MIB),
        backend_data: serde_json::to_value(&data).expect("numbers and text are JSON"),
    }
}

/// What a reservation offers: its own type, in its own zone.
fn of_reservation(
    config: &AwsConfig,
    facts: &RegionFacts,
    (one, found): (&TypeFacts, &ReservationFacts),
    prices: &Prices,
    wanted: &OffersWanted,
    now: Timestamp,
) -> BackendOffer {
    // A block is paid for as a whole, whether it is used or not.
    let on_demand = || prices.on_demand(&facts.region, &one.name).unwrap_or(0.0);
    let price = if found.reservation.is_block { 0.0 } else { on_demand() };
    let mut offer = offer(config, facts, one, wanted, (false, BTreeMap::from([(found.zone.clone(), price)])));
    if offer.availability == InstanceAvailability::NoQuota && found.reservation.is_block {
        // Blocks have a quota of their own, which was looked at when this one was bought.
        offer.availability = InstanceAvailability::Unknown;
        offer.unavailable_because = None;
    }
    if let Err(because) = found.check(now, wanted.least) {
        offer.availability = InstanceAvailability::NotAvailable;
        offer.unavailable_because = Some(because);
        offer.available_from = found.awaited_until();
    }
    let efa_interfaces = efa_interfaces(config, one, wanted);
    let data = OfferData {
        efa_interfaces,
        reservation: Some(found.reservation.clone()),
        ends_at: found.machines_end_at(),
    };
    offer.backend_data = serde_json::to_value(&data).expect("numbers and text are JSON");
    offer
}

/// Why machines cannot have the addresses that are bought for them, if so.
fn addresses_obstacle(
    config: &AwsConfig,
    facts: &RegionFacts,
    one: &TypeFacts,
    wanted: &OffersWanted,
) -> Option<String> {
    let interfaces = layout(&one.network, wants_efa(config, one, wanted.cluster));
    let (most, used) = (facts.quotas.as_ref()?.elastic_ips?, facts.addresses_in_use?);
    let is_short = config.public_ips && interfaces.len() > 1 && most < used.saturating_add(wanted.least);
    is_short.then(|| {
        format!(
            "the account's quota `{ELASTIC_IPS}` is {most}, of which {used} are used, and {} are needed: ask AWS for more \
             in Service Quotas, or use `public_ips: false`",
            wanted.least
        )
    })
}

fn efa_interfaces(config: &AwsConfig, one: &TypeFacts, wanted: &OffersWanted) -> u32 {
    efa_count(&layout(&one.network, wants_efa(config, one, wanted.cluster)))
}

fn zones_or_obstacle(
    facts: &RegionFacts,
    one: &TypeFacts,
    wanted: &OffersWanted,
    zones: Vec<String>,
) -> (Vec<String>, Option<String>) {
    if wanted.cluster && !one.may_cluster {
        let because = format!("machines of {} cannot be in a cluster placement group", one.name);
        return (zones, Some(because));
    }
    match &facts.network {
        Err(because) => (zones, Some(because.clone())),
        Ok(network) => {
            let usable: Vec<String> =
                zones.iter().filter(|zone| network.subnets.contains_key(*zone)).cloned().collect();
            if usable.is_empty() {
                let because = format!("no usable subnet is in the zones that offer it ({})", zones.join(", "));
                return (zones, Some(because));
            }
            (usable, None)
        }
    }
}

fn instance_type(facts: &TypeFacts, spot: bool) -> InstanceType {
    let gpus = facts.gpus.iter().flat_map(|gpus| {
        let name = gpu_name(&gpus.name);
        let memory_mib = gpu_memory_mib(&name, gpus.memory_mib);
        let gpu = Gpu { name, memory_mib, vendor: Some(gpus.vendor.clone()) };
        std::iter::repeat_n(gpu, gpus.count as usize)
    });
    let resources = Resources {
        cpus: facts.vcpus,
        memory_mib: facts.memory_mib,
        gpus: gpus.collect(),
        spot,
        disk: Disk { size_mib: DISK_MIB },
        cpu_arch: Some(if facts.architecture == "arm64" { "arm" } else { "x86" }.to_owned()),
        description: String::new(),
    };
    InstanceType { name: facts.name.clone(), resources }
}
