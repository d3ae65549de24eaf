//! Accelerators on offer, grouped.

use std::collections::BTreeMap;

use api::backends::BackendType;
use api::gpus::{CpuGroup, GpuGroup, GpuList, ListGpusRequest, MinMax};
use api::instances::{InstanceAvailability, Offer};
use axum::extract::State;

use super::auth::ProjectMember;
use super::error::{Error, Result};
use super::extract::Json;
use super::runs;
use crate::deps::Deps;

/// By what offers are told apart, beside the accelerator itself.
#[derive(Debug, Clone, Copy, Default)]
struct Grouping {
    backend: bool,
    region: bool,
    count: bool,
}

impl Grouping {
    fn parse(keys: &[String]) -> Result<Grouping> {
        let mut grouping = Grouping::default();
        for key in keys {
            match key.as_str() {
                "backend" => grouping.backend = true,
                "region" => grouping.region = true,
                "count" => grouping.count = true,
                other => return Err(Error::bad_request(format!("Cannot group by '{other}'"))),
            }
        }
        if grouping.region && !grouping.backend {
            return Err(Error::bad_request("Cannot group by 'region' without also grouping by 'backend'"));
        }
        Ok(grouping)
    }
}

pub async fn list(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<ListGpusRequest>,
) -> Result<Json<GpuList>> {
    let grouping = Grouping::parse(request.group_by.as_deref().unwrap_or_default())?;
    let offers = runs::all_offers(&deps, &member, &request.run_spec, request.unallocated_resources).await?;
    let wants_none = runs::wants_no_accelerator(&request.run_spec);
    Ok(Json(GpuList {
        gpus: groups(&offers, grouping, request.reverse),
        cpus: wants_none.then(|| cpu_groups(&offers, grouping, request.reverse)),
    }))
}

/// What the offers of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    accelerator: Option<(String, u64, Option<String>)>,
    backend: Option<BackendType>,
    region: Option<String>,
    count: Option<usize>,
}

fn by_key(offers: &[Offer], grouping: Grouping, with_accelerator: bool) -> Vec<(Key, Vec<&Offer>)> {
    let mut groups: BTreeMap<Key, Vec<&Offer>> = BTreeMap::new();
    for offer in offers {
        let first = offer.instance.resources.gpus.first();
        if first.is_some() != with_accelerator {
            continue;
        }
        let key = Key {
            accelerator: first.map(|gpu| (gpu.name.clone(), gpu.memory_mib, gpu.vendor.clone())),
            backend: grouping.backend.then_some(offer.backend),
            region: grouping.region.then(|| offer.region.clone()),
            count: (grouping.count && with_accelerator).then_some(offer.instance.resources.gpus.len()),
        };
        groups.entry(key).or_default().push(offer);
    }
    groups.into_iter().collect()
}

/// What is said of a group whatever it is of.
struct Facts {
    availability: Vec<InstanceAvailability>,
    spot: Vec<String>,
    offer_price: MinMax<f64>,
    backends: Option<Vec<BackendType>>,
    regions: Option<Vec<String>>,
}

impl Facts {
    fn of(key: &Key, offers: &[&Offer]) -> Facts {
        let mut availability = vec![];
        let mut spot: Vec<String> = vec![];
        let mut backends = vec![];
        let mut regions = vec![];
        for offer in offers {
            push_new(&mut availability, offer.availability);
            let word = if offer.instance.resources.spot { "spot" } else { "on-demand" };
            push_new(&mut spot, word.to_owned());
            push_new(&mut backends, offer.backend);
            push_new(&mut regions, offer.region.clone());
        }
        Facts {
            availability,
            spot,
            offer_price: range(offers.iter().map(|offer| offer.price)),
            backends: key.backend.is_none().then_some(backends),
            regions: (key.backend.is_some() && key.region.is_none()).then_some(regions),
        }
    }
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn range(values: impl Iterator<Item = f64> + Clone) -> MinMax<f64> {
    MinMax { min: values.clone().fold(f64::INFINITY, f64::min), max: values.fold(0.0, f64::max) }
}

fn groups(offers: &[Offer], grouping: Grouping, reverse: bool) -> Vec<GpuGroup> {
    let mut groups: Vec<GpuGroup> = by_key(offers, grouping, true)
        .into_iter()
        .filter_map(|(key, offers)| {
            let facts = Facts::of(&key, &offers);
            let (name, memory_mib, vendor) = key.accelerator?;
            let count = |offer: &&Offer| u32::try_from(offer.instance.resources.gpus.len()).unwrap_or(u32::MAX);
            let per_gpu = offers.iter().map(|offer| offer.price / f64::from(count(offer).max(1)));
            Some(GpuGroup {
                name,
                memory_mib,
                vendor,
                availability: facts.availability,
                spot: facts.spot,
                count: MinMax {
                    min: offers.iter().map(count).min().unwrap_or_default(),
                    max: offers.iter().map(count).max().unwrap_or_default(),
                },
                price: range(per_gpu),
                offer_price: facts.offer_price,
                backends: facts.backends,
                backend: key.backend,
                regions: facts.regions,
                region: key.region,
            })
        })
        .collect();
    groups.sort_by(|left, right| {
        let order = left.price.min.total_cmp(&right.price.min);
        let order = if reverse { order.reverse() } else { order };
        let unusable = |group: &GpuGroup| !group.availability.iter().any(|one| one.is_usable());
        unusable(left).cmp(&unusable(right)).then(order)
    });
    groups
}

fn cpu_groups(offers: &[Offer], grouping: Grouping, reverse: bool) -> Vec<CpuGroup> {
    let mut groups: Vec<CpuGroup> = by_key(offers, grouping, false)
        .into_iter()
        .map(|(key, offers)| {
            let facts = Facts::of(&key, &offers);
            let resources = || offers.iter().map(|offer| &offer.instance.resources);
            let mut cpu_arch: Vec<String> =
                resources().map(|has| has.cpu_arch.clone().unwrap_or_else(|| "x86".to_owned())).collect();
            cpu_arch.sort_unstable();
            cpu_arch.dedup();
            CpuGroup {
                cpu_arch,
                count: spread(resources().map(|has| has.cpus)),
                memory_mib: spread(resources().map(|has| has.memory_mib)),
                price: facts.offer_price,
                availability: facts.availability,
                spot: facts.spot,
                backends: facts.backends,
                backend: key.backend,
                regions: facts.regions,
                region: key.region,
            }
        })
        .collect();
    groups.sort_by(|left, right| {
        let order = left.price.min.total_cmp(&right.price.min);
        if reverse { order.reverse() } else { order }
    });
    groups
}

/// The least and the most of some numbers.
fn spread<T: Ord + Copy + Default>(numbers: impl Iterator<Item = T>) -> MinMax<T> {
    let numbers: Vec<T> = numbers.collect();
    let min = numbers.iter().min().copied().unwrap_or_default();
    MinMax { min, max: numbers.iter().max().copied().unwrap_or_default() }
}
