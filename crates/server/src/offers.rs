//! What a project's backends would sell, compared with what is wanted.
//!
//! Every backend is asked at the same time. What does not suit is not lost: the reasons are told in words, because
//! "no offers" helps nobody.

use std::time::Duration;

use api::backends::BackendType;
use api::configurations::{Blocks, Memory, ProfileParams, ResourcesSpec};
use api::instances::{Offer, Resources};
use api::jobs::Requirements;
use backends::{BackendOffer, Capabilities, OffersWanted, SilentRegion};
use futures_util::future::join_all;
use jiff::Timestamp;
use lifecycle::fleet::{Home, LaunchPlan};
use lifecycle::instance::split;
use lifecycle::placement::is_listed;
use lifecycle::placement::requirements::check;

use crate::backend_pool::OpenBackend;
use crate::deps::Deps;

/// How many different reasons of one backend are told.
pub const MAX_REASONS: usize = 3;

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct OffersQuery<'a> {
    /// With fewer machines than this a launch would be worthless.
    pub least: u32,
    /// How many machines may be launched in time.
    pub most: u32,
    /// What each machine must have.
    pub requirements: &'a Requirements,
    /// Backends, regions, zones, types and price to consider.
    pub profile: &'a ProfileParams,
    /// The machines must be close to each other.
    pub cluster: bool,
    /// Machines that only global admins may use are offered too.
    pub user_is_admin: bool,
    /// Where the other machines are.
    pub home: Option<&'a Home>,
    /// Into how many equal parts each machine will be split.
    pub blocks: Blocks,
    /// How long backends may take to answer.
    pub patience: Duration,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// What can be bought, cheapest first.
    pub plans: Vec<LaunchPlan>,
    /// What suits and cannot be had now, cheapest first.
    pub unavailable: Vec<UnavailableOffer>,
    /// Why there is not more, in words.
    pub obstacles: Vec<String>,
    /// Some backend did not answer, so nobody knows what it has.
    pub unknown: bool,
    /// When something that would suit can be had, if a backend says so.
    pub opens_at: Option<Timestamp>,
}

/// Something that would suit, were it there.
#[derive(Debug, Clone, PartialEq)]
pub struct UnavailableOffer {
    /// The offer.
    pub offer: Offer,
    /// Why it cannot be had, in words.
    pub because: Option<String>,
    /// Only admins may use the machines.
    pub admins_only: bool,
}

impl Collected {
    /// Every offer on the wire: what can be had first, each part cheapest first.
    pub fn offers(&self) -> Vec<Offer> {
        let mut offers: Vec<Offer> = Vec::with_capacity(self.plans.len() + self.unavailable.len());
        for plan in &self.plans {
            // A plan for each zone is one offer for people, at the price of the cheapest, which comes first.
            if !offers.iter().any(|known| differ_in_zone(known, &plan.offer)) {
                offers.push(plan.offer.clone());
            }
        }
        offers.extend(self.unavailable.iter().map(|unavailable| unavailable.offer.clone()));
        offers
    }
}

/// Whether two offers are the same but for the price, which may differ from zone to zone.
fn differ_in_zone(one: &Offer, other: &Offer) -> bool {
    one.instance.name == other.instance.name
        && one.region == other.region
        && *one == Offer { price: one.price, ..other.clone() }
}

/// Asks every backend of a project.
pub async fn collect(deps: &Deps, opened: &[OpenBackend], query: &OffersQuery<'_>) -> Collected {
    let mut collected = Collected::default();
    if opened.is_empty() {
        collected.obstacles.push("the project has no backends".to_owned());
        return collected;
    }
    let mut asked = vec![];
    for open in opened {
        match exclusion(open, query) {
            Some(obstacle) => collected.obstacles.push(obstacle),
            None => asked.push(open),
        }
    }
    let wanted = OffersWanted {
        least: query.least.max(1),
        most: query.most.max(query.least).max(1),
        cluster: query.cluster,
        spot: query.requirements.spot,
        reservation: query.requirements.reservation.as_ref().or(query.profile.reservation.as_ref()).cloned(),
    };
    let answers = asked.iter().map(|open| deps.backends.offers(open, &wanted, query.patience));
    let answers = join_all(answers).await;
    for (open, offers) in asked.into_iter().zip(answers) {
        match offers {
            Ok(offers) => {
                judge(open, &offers.found, query, &mut collected);
                for SilentRegion { region, error } in
                    offers.silent.iter().filter(|silent| may_be(query, &silent.region))
                {
                    collected.unknown |= error.kind.is_transient();
                    collected.obstacles.push(format!("`{}` in {region}: {error}", open.kind));
                }
            }
            Err(error) => {
                collected.unknown |= error.kind.is_transient();
                collected.obstacles.push(format!("`{}`: {error}", open.kind));
            }
        }
    }
    collected.plans.sort_by(|left, right| left.offer.price.total_cmp(&right.offer.price));
    collected.unavailable.sort_by(|left, right| left.offer.price.total_cmp(&right.offer.price));
    collected
}

/// Whether machines may be in that region.
fn may_be(query: &OffersQuery<'_>, region: &str) -> bool {
    is_listed(query.profile.regions.as_ref(), region) && query.home.is_none_or(|home| home.region == region)
}

/// Why a backend need not be asked at all.
fn exclusion(open: &OpenBackend, query: &OffersQuery<'_>) -> Option<String> {
    let capabilities = open.backend.capabilities();
    let kind = &open.kind;
    if open.draining {
        return Some(format!("`{kind}` is draining: it is no longer in the project's configuration"));
    }
    let wire_type = backends::wire_type_of(kind);
    if let Some(listed) = &query.profile.backends
        && !listed.contains(&wire_type)
    {
        return Some(format!("`{kind}` is not in `backends`"));
    }
    if query.home.is_some_and(|home| home.backend != *kind) {
        return Some(format!("`{kind}` is not where the cluster's other machines are"));
    }
    cannot(capabilities, query).map(|reason| format!("`{kind}` {reason}"))
}

fn cannot(capabilities: Capabilities, query: &OffersQuery<'_>) -> Option<&'static str> {
    if !capabilities.launches {
        return Some("makes no machines");
    }
    if capabilities.admins_only && !query.user_is_admin {
        return Some("is the server's own machine, which only global admins may use");
    }
    if query.cluster && !capabilities.cluster {
        return Some("has no fast network between machines, which `placement: cluster` needs");
    }
    if query.requirements.spot == Some(true) && !capabilities.spot {
        return Some("has no spot machines, which `spot_policy: spot` asks for");
    }
    let reservation = query.requirements.reservation.as_ref().or(query.profile.reservation.as_ref());
    (reservation.is_some() && !capabilities.reservations)
        .then_some("has no reservations, which `reservation` needs")
}

/// Sorts a backend's offers into what can be bought, what cannot, and why the rest does not suit.
fn judge(open: &OpenBackend, offers: &[BackendOffer], query: &OffersQuery<'_>, collected: &mut Collected) {
    let wire_type = backends::wire_type_of(&open.kind);
    let Capabilities { admins_only, zonal, .. } = open.backend.capabilities();
    let mut reasons: Vec<(String, usize)> = vec![];
    let mut sold_out: Option<String> = None;
    let plans_before = collected.plans.len();
    for backend_offer in offers {
        let backend_offer = &with_disk(backend_offer.clone(), &query.requirements.resources);
        let zones = match suits(backend_offer, query, zonal) {
            Ok(zones) => zones,
            Err(reason) => {
                match reasons.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, count)) => *count += 1,
                    None => reasons.push((reason, 1)),
                }
                continue;
            }
        };
        let because = backend_offer.unavailable_because.clone();
        let offer = wire_offer(backend_offer.clone(), wire_type);
        if !offer.availability.is_usable() {
            sold_out = sold_out.or_else(|| because.clone());
            let opens_at = [collected.opens_at, backend_offer.available_from];
            collected.opens_at = opens_at.into_iter().flatten().min();
            collected.unavailable.push(UnavailableOffer { offer, because, admins_only });
            continue;
        }
        collected.plans.extend(zones.into_iter().map(|zone| LaunchPlan {
            backend_id: open.id,
            backend: open.kind.clone(),
            offer: Offer { price: price_in(backend_offer, zone.as_deref()), ..offer.clone() },
            zone,
            most_disk_mib: backend_offer.most_disk_mib,
            admins_only,
        }));
    }
    if collected.plans.len() > plans_before {
        return;
    }
    collected.obstacles.push(obstacle(&open.kind, sold_out, reasons));
}

fn obstacle(kind: &str, sold_out: Option<String>, mut reasons: Vec<(String, usize)>) -> String {
    if let Some(because) = sold_out {
        return format!("`{kind}`: {because}");
    }
    if reasons.is_empty() {
        return format!("`{kind}` offers nothing");
    }
    // The reason that most offers share comes first.
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let told: Vec<&str> = reasons.iter().take(MAX_REASONS).map(|(reason, _)| reason.as_str()).collect();
    format!("`{kind}`: {}", told.join(", or "))
}

/// The same offer with a disk as large as is asked for, where its size may be chosen.
fn with_disk(mut offer: BackendOffer, wanted: &ResourcesSpec) -> BackendOffer {
    let size = disk_mib(&offer.instance_type.resources, offer.most_disk_mib, wanted);
    offer.instance_type.resources.disk.size_mib = size;
    offer
}

/// The size of the disk for what is asked for: what there is, or the least that is wanted where it may be chosen.
pub fn disk_mib(has: &Resources, most_mib: Option<u64>, wanted: &ResourcesSpec) -> u64 {
    let least = wanted.disk.as_ref().and_then(|disk| disk.size.min).map_or(0, Memory::mib);
    match most_mib {
        Some(most_mib) => has.disk.size_mib.max(least.min(most_mib)),
        None => has.disk.size_mib,
    }
}

/// What a machine costs in a zone, in US dollars an hour.
fn price_in(offer: &BackendOffer, zone: Option<&str>) -> f64 {
    zone.and_then(|zone| offer.zone_prices.get(zone)).copied().unwrap_or(offer.price_usd_per_hour)
}

/// The zones to try, in order (`None`: any), or why the offer does not suit.
fn suits(offer: &BackendOffer, query: &OffersQuery<'_>, zonal: bool) -> Result<Vec<Option<String>>, String> {
    let profile = query.profile;
    if !is_listed(profile.regions.as_ref(), &offer.region) {
        return Err(format!("region `{}` is not in `regions`", offer.region));
    }
    if query.home.is_some_and(|home| home.region != offer.region) {
        return Err(format!("region `{}` is not where the cluster's other machines are", offer.region));
    }
    if !is_listed(profile.instance_types.as_ref(), &offer.instance_type.name) {
        return Err(format!("type `{}` is not in `instance_types`", offer.instance_type.name));
    }
    check(&query.requirements.resources, &offer.instance_type.resources)?;
    let price = offer.price_usd_per_hour;
    for max_price in [query.requirements.max_price, profile.max_price].into_iter().flatten() {
        if max_price < price {
            return Err(format!("${price} an hour is over `max_price` {max_price}"));
        }
    }
    match query.requirements.spot {
        Some(true) if !offer.instance_type.resources.spot => return Err("it is not spot".to_owned()),
        Some(false) if offer.instance_type.resources.spot => return Err("it is spot only".to_owned()),
        Some(true | false) | None => {}
    }
    blocks_of(query.blocks, &offer.instance_type.resources)?;
    zones_of(offer, query, zonal)
}

/// Into how many blocks a machine would be split, or why it cannot be.
pub fn blocks_of(blocks: Blocks, has: &Resources) -> Result<u32, String> {
    let count = match blocks {
        Blocks::Count(count) => Some(count),
        Blocks::Auto => None,
    };
    split(count, has.gpus.len(), has.cpus)
}

fn zones_of(offer: &BackendOffer, query: &OffersQuery<'_>, zonal: bool) -> Result<Vec<Option<String>>, String> {
    let allowed = |zone: &str| {
        let at_home = query.home.and_then(|home| home.zone.as_ref());
        is_listed(query.profile.availability_zones.as_ref(), zone) && at_home.is_none_or(|home| home == zone)
    };
    let is_restricted =
        query.profile.availability_zones.is_some() || query.home.is_some_and(|home| home.zone.is_some());
    let Some(zones) = offer.zones.as_ref().filter(|zones| !zones.is_empty()) else {
        if query.profile.availability_zones.is_some() {
            return Err("it has no zones, so `availability_zones` excludes it".to_owned());
        }
        return Ok(vec![None]);
    };
    // A cluster must be in one zone, so the zone is chosen before anything is bought.
    if !is_restricted && !query.cluster && !zonal {
        return Ok(vec![None]);
    }
    let most = [query.requirements.max_price, query.profile.max_price].into_iter().flatten().reduce(f64::min);
    let is_too_dear = |zone: &str| most.is_some_and(|most| most < price_in(offer, Some(zone)));
    let allowed = |zone: &&String| allowed(zone) && !is_too_dear(zone);
    let zones: Vec<Option<String>> = zones.iter().filter(allowed).cloned().map(Some).collect();
    if zones.is_empty() { Err("none of its zones is allowed".to_owned()) } else { Ok(zones) }
}

fn wire_offer(offer: BackendOffer, backend: BackendType) -> Offer {
    Offer {
        backend,
        unavailable_because: offer.unavailable_because,
        instance: offer.instance_type,
        region: offer.region,
        price: offer.price_usd_per_hour,
        backend_data: offer.backend_data,
        availability: offer.availability,
        availability_zones: offer.zones,
        instance_runtime: "shim".to_owned(),
        blocks: 1,
        total_blocks: 1,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use api::instances::{Disk, InstanceAvailability, InstanceType};
    use serde_json::json;

    use super::*;
    use crate::backend_pool::ANSWER_TIMEOUT;
    use crate::market::fleet_requirements;

    fn offer(zones: Option<&[&str]>) -> BackendOffer {
        BackendOffer {
            instance_type: InstanceType {
                name: "small".to_owned(),
                resources: Resources {
                    cpus: 4,
                    memory_mib: 16 * 1024,
                    disk: Disk { size_mib: 100 * 1024 },
                    ..Resources::default()
                },
            },
            region: "east".to_owned(),
            zones: zones.map(|zones| zones.iter().map(|&zone| zone.to_owned()).collect()),
            price_usd_per_hour: 2.0,
            availability: InstanceAvailability::Available,
            unavailable_because: None,
            available_from: None,
            zone_prices: BTreeMap::from([("east-b".to_owned(), 3.0)]),
            most_disk_mib: None,
            backend_data: json!(null),
        }
    }

    #[track_caller]
    fn check_zones(
        profile: serde_json::Value,
        cluster: bool,
        zones: Option<&[&str]>,
        expected: Result<&[Option<&str>], &str>,
    ) {
        let profile: ProfileParams = serde_json::from_value(profile).unwrap();
        check_suits(&profile, cluster, Blocks::default(), zones, expected);
    }

    #[track_caller]
    fn check_suits(
        profile: &ProfileParams,
        cluster: bool,
        blocks: Blocks,
        zones: Option<&[&str]>,
        expected: Result<&[Option<&str>], &str>,
    ) {
        let configuration = serde_json::from_value(json!({ "type": "fleet", "nodes": 1 })).unwrap();
        let requirements = fleet_requirements(&configuration, profile);
        let query = OffersQuery {
            least: 1,
            most: 1,
            requirements: &requirements,
            profile,
            cluster,
            user_is_admin: false,
            home: None,
            blocks,
            patience: ANSWER_TIMEOUT,
        };
        let expected = expected
            .map(|zones| zones.iter().map(|zone| zone.map(str::to_owned)).collect::<Vec<_>>())
            .map_err(str::to_owned);
        assert_eq!(suits(&offer(zones), &query, false), expected);
        if let (Ok(found), Some(zones)) = (suits(&offer(zones), &query, true), zones) {
            assert!(found.iter().all(|zone| zone.as_deref().is_some_and(|zone| zones.contains(&zone))));
        }
    }

    #[test]
    fn an_offer_suits_or_says_why_not() {
        check_zones(json!({}), false, None, Ok(&[None]));
        check_zones(json!({ "regions": ["EAST"] }), false, None, Ok(&[None]));
        check_zones(json!({ "regions": ["west"] }), false, None, Err("region `east` is not in `regions`"));
        check_zones(
            json!({ "instance_types": ["x"] }),
            false,
            None,
            Err("type `small` is not in `instance_types`"),
        );
        check_zones(json!({ "max_price": 1.5 }), false, None, Err("$2 an hour is over `max_price` 1.5"));
        check_zones(json!({ "spot_policy": "spot" }), false, None, Err("it is not spot"));
        check_zones(json!({ "spot_policy": "auto" }), false, None, Ok(&[None]));
    }

    #[test]
    fn a_machine_that_cannot_be_split_evenly_does_not_suit() {
        let check = |blocks, expected| check_suits(&ProfileParams::default(), false, blocks, None, expected);
        check(Blocks::Auto, Ok(&[None]));
        check(Blocks::Count(2), Ok(&[None]));
        check(Blocks::Count(3), Err("4 CPUs and 0 GPUs cannot be split into 3 equal `blocks`"));
        check(Blocks::Count(u32::MAX), Err("4 CPUs and 0 GPUs cannot be split into 4294967295 equal `blocks`"));
    }

    #[test]
    fn a_cluster_and_named_zones_are_tried_zone_by_zone() {
        let zones: Option<&[&str]> = Some(&["east-a", "east-b"]);
        check_zones(json!({}), false, zones, Ok(&[None]));
        check_zones(json!({}), true, zones, Ok(&[Some("east-a"), Some("east-b")]));
        check_zones(json!({ "availability_zones": ["east-B"] }), false, zones, Ok(&[Some("east-b")]));
        check_zones(json!({ "availability_zones": ["c"] }), false, zones, Err("none of its zones is allowed"));
        // A zone has a price of its own.
        check_zones(json!({ "max_price": 2.5 }), true, zones, Ok(&[Some("east-a")]));
        check_zones(json!({ "max_price": 3 }), true, zones, Ok(&[Some("east-a"), Some("east-b")]));
        assert!((price_in(&offer(zones), Some("east-b")) - 3.0).abs() < 1e-9);
        assert!((price_in(&offer(zones), Some("east-a")) - 2.0).abs() < 1e-9);
        check_zones(
            json!({ "availability_zones": ["c"] }),
            false,
            None,
            Err("it has no zones, so `availability_zones` excludes it"),
        );
    }
}
