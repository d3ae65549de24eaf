//! What happens next to a fleet.

use std::collections::{HashMap, HashSet};

use api::fleets::FleetStatus;
use api::ids::{InstanceId, LaunchId, RunId};
use api::instances::{InstanceStatus, InstanceTerminationReason, Offer};
use jiff::{SignedDuration, Timestamp};

use super::pauses::{Nothing, give_up, put_off};
use super::round::{Choice, Round};
use super::{Fleet, Home};
use crate::events::status_changed;
use crate::instance::{EndOrder, Instance};
use crate::launch::Launch;

/// How often a fleet is looked at when nothing happens to it, in seconds.
const SAFETY_SECS: i64 = 300;

/// How soon backends that could not be asked are asked again, in seconds.
const ASK_AGAIN_SECS: i64 = 15;

/// For how many buyers something is bought at once, so that no transaction is long.
const BUYERS_AT_ONCE: usize = 50;

/// For how long a zone that was sold out comes after the others.
pub const LATELY: SignedDuration = SignedDuration::from_mins(5);

/// For whom a machine is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buyer {
    /// Nodes of one run that need the same.
    Run {
        /// The run.
        run_id: RunId,
        /// Which of the run's different needs it is.
        group: u32,
    },
    /// Nobody yet: the fleet keeps it in store.
    Fleet,
}

/// What is on offer for a buyer.
#[derive(Debug, Clone, PartialEq)]
pub enum OffersSeen {
    /// No backend could be asked, which is never a reason to give up.
    Unknown,
    /// What suits, the best first, with the kind and row of the backend; and why others do not.
    Known {
        /// What can be bought.
        offers: Vec<LaunchPlan>,
        /// Why there is nothing, in words.
        obstacle: Option<String>,
        /// When there will be something, if somebody says so.
        opens_at: Option<Timestamp>,
    },
}

/// A purchase that could be made.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchPlan {
    /// The backend's row.
    pub backend_id: api::ids::BackendId,
    /// The kind of backend.
    pub backend: String,
    /// What would be bought.
    pub offer: Offer,
    /// The zone, where it is fixed.
    pub zone: Option<String>,
    /// The disk may be chosen, up to this size.
    pub most_disk_mib: Option<u64>,
    /// Only admins may use the machines.
    pub admins_only: bool,
}

/// A purchase to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Purchase {
    /// What is bought.
    pub plan: LaunchPlan,
    /// The instances that it is for, in the order of its indexes.
    pub instances: Vec<InstanceId>,
    /// With fewer machines than this it is worthless.
    pub least: u32,
    /// What to tell users.
    pub event: String,
}

/// What else a decision about a fleet depends on.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    /// Its instances that are not terminated, by number, each with the blocks that jobs hold.
    pub instances: &'a [(Instance, u32)],
    /// For whom each instance is that is not bought yet; those for the fleet's own store may be left out.
    pub buyers: &'a [(InstanceId, Buyer)],
    /// Its launches that are not over.
    pub open_launches: &'a [Launch],
    /// Its launches that came to nothing, at least for some of the instances that have no machines now.
    pub failed_launches: &'a [Launch],
    /// Launches of its project that came to nothing in the last [`LATELY`], of whichever fleet: they say which zone to
    /// try last.
    pub failed_lately: &'a [Launch],
    /// Runs whose nodes need machines of different types, as they say themselves.
    pub unlike_runs: &'a [RunId],
    /// How many offers are tried for the same machines, at most.
    pub most_offers: u32,
    /// What is on offer for each buyer who asked.
    pub offers: &'a [(Buyer, OffersSeen)],
}

/// What to do besides what is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Ask the backends what is on offer for those in `ask_for`, and decide again.
    AskOffers,
}

/// What happens next to a fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetDecision {
    /// The fleet as it is from now on.
    pub fleet: Fleet,
    /// What to do first.
    pub effect: Option<Effect>,
    /// For whom offers are asked.
    pub ask_for: Vec<Buyer>,
    /// Instances that are to end, and why.
    pub end_instances: Vec<(InstanceId, EndOrder)>,
    /// Launches whose machines nobody wants any more.
    pub cancel_launches: Vec<LaunchId>,
    /// The purchases to make.
    pub buy: Vec<Purchase>,
    /// How many instances to add.
    pub add_instances: u32,
    /// What to tell users.
    pub events: Vec<String>,
    /// When to look again, unless something happens before.
    pub look_again_at: Option<Timestamp>,
}

/// Decides from the fleet and what surrounds it.
pub fn decide(now: Timestamp, fleet: &Fleet, around: &Surroundings<'_>) -> FleetDecision {
    let mut decision = FleetDecision {
        fleet: fleet.clone(),
        effect: None,
        ask_for: vec![],
        end_instances: vec![],
        cancel_launches: vec![],
        buy: vec![],
        add_instances: 0,
        events: vec![],
        look_again_at: None,
    };
    match fleet.status {
        FleetStatus::Terminated | FleetStatus::Failed => return decision,
        FleetStatus::Submitted | FleetStatus::Active if fleet.wanted => keep(now, around, &mut decision),
        FleetStatus::Submitted | FleetStatus::Active | FleetStatus::Terminating => close(around, &mut decision),
    }
    // Who deleted it has said so in an event of their own.
    let told = decision.fleet.status == FleetStatus::Terminating;
    if decision.fleet.status != fleet.status && !told {
        let (from, to) = (fleet.status.as_str(), decision.fleet.status.as_str());
        decision.events.push(status_changed("Fleet", from, to, None));
    }
    if decision.fleet.status != FleetStatus::Terminated {
        let safety = now + SignedDuration::from_secs(SAFETY_SECS);
        decision.look_again_at = Some(decision.look_again_at.map_or(safety, |at| at.min(safety)));
    }
    decision
}

/// Nobody wants the fleet: ends its instances and waits until they are gone.
fn close(around: &Surroundings<'_>, decision: &mut FleetDecision) {
    decision.fleet.status = FleetStatus::Terminating;
    for (instance, _) in around.instances.iter().filter(|(instance, _)| instance.end.is_none()) {
        let end = EndOrder { reason: InstanceTerminationReason::TerminatedByUser, message: None };
        decision.end_instances.push((instance.id, end));
    }
    for launch in around.open_launches.iter().filter(|launch| !launch.cancelled) {
        decision.cancel_launches.push(launch.id);
    }
    if around.instances.is_empty() && around.open_launches.is_empty() {
        decision.fleet.status = FleetStatus::Terminated;
    }
}

fn keep(now: Timestamp, around: &Surroundings<'_>, decision: &mut FleetDecision) {
    decision.fleet.status = FleetStatus::Active;
    settle_home(around, decision);
    let kept: Vec<&(Instance, u32)> = around.instances.iter().filter(|(instance, _)| instance.is_kept()).collect();
    let kept_count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    let (min, max) = bounds(&decision.fleet);
    let surplus = max.map_or(0, |max| kept_count.saturating_sub(max));
    end_surplus(surplus, &kept, decision);
    end_idle(now, kept_count - surplus.min(kept_count), min, &kept, around, decision);
    cancel_unclaimed(around, decision);
    buy_missing(now, &kept, around, decision);
    add_missing(now, &kept, min, decision);
}

/// Whether a machine is bought for the instance, or its host is given.
fn is_bought(instance: &Instance, around: &Surroundings<'_>) -> bool {
    if instance.state.host.is_some() {
        return true;
    }
    let Some(launch_id) = instance.launch_id else { return instance.status != InstanceStatus::Pending };
    let is_in_vain = |launch: &Launch| launch.id == launch_id && instance.has_given_up(launch);
    instance.state.unsold != Some(launch_id) && !around.failed_launches.iter().any(is_in_vain)
}

/// The fleet's least and greatest number of instances. A fleet of given hosts buys nothing.
fn bounds(fleet: &Fleet) -> (u32, Option<u32>) {
    match &fleet.spec.configuration.nodes {
        Some(nodes) => (nodes.min, nodes.max),
        None => (0, Some(u32::MAX)),
    }
}

/// A cluster stays where its first machine is, or will be.
fn settle_home(around: &Surroundings<'_>, decision: &mut FleetDecision) {
    let first = around.instances.iter().map(|(instance, _)| instance).find(|instance| {
        instance.is_kept() && instance.state.provider_id.is_some() && instance.state.backend.is_some()
    });
    let is_cluster = is_cluster(&decision.fleet);
    let there = first.and_then(|instance| {
        Some(Home {
            backend: instance.state.backend.clone()?,
            region: instance.state.region.clone()?,
            zone: instance.state.zone.clone(),
            instance_type: instance.bought_type().map(str::to_owned),
        })
    });
    let on_the_way = || {
        let launch = around.open_launches.iter().find(|launch| !launch.cancelled)?;
        let (backend, region) = (launch.state.backend.clone(), launch.state.offer.region.clone());
        let instance_type = Some(launch.state.offer.instance.name.clone());
        Some(Home { backend, region, zone: launch.state.zone.clone(), instance_type })
    };
    // The purchase is over a moment before it is known where the machine is. What is bought meanwhile must be near it.
    let is_awaited =
        around.instances.iter().any(|(instance, _)| instance.is_kept() && is_bought(instance, around));
    let before = decision.fleet.state.home.take().filter(|_| is_awaited);
    decision.fleet.state.home = there.or_else(on_the_way).or(before).filter(|_| is_cluster);
}

fn is_cluster(fleet: &Fleet) -> bool {
    crate::placement::is_cluster(fleet.spec.configuration.placement)
}

fn end_surplus(surplus: u32, kept: &[&(Instance, u32)], decision: &mut FleetDecision) {
    // Blocks are held from the moment of placement, so none held means that no job waits for the machine either.
    let spare = kept.iter().rev().filter(|(_, busy)| *busy == 0);
    for (instance, _) in spare.take(surplus as usize) {
        let end = EndOrder { reason: InstanceTerminationReason::MaxInstancesLimit, message: None };
        decision.end_instances.push((instance.id, end));
    }
}

fn end_idle(
    now: Timestamp,
    kept_count: u32,
    min: u32,
    kept: &[&(Instance, u32)],
    around: &Surroundings<'_>,
    decision: &mut FleetDecision,
) {
    let mut spare = kept_count.saturating_sub(min);
    let ending: HashSet<InstanceId> = decision.end_instances.iter().map(|(id, _)| *id).collect();
    for (instance, _) in kept.iter().filter(|(instance, busy)| *busy == 0 && !ending.contains(&instance.id)) {
        // Its job ended before anything was bought for it.
        if instance.state.made_for_job && !is_bought(instance, around) && spare > 0 {
            spare -= 1;
            let end = EndOrder { reason: InstanceTerminationReason::JobFinished, message: None };
            decision.end_instances.push((instance.id, end));
            continue;
        }
        let Some(until) = instance.idle_until() else { continue };
        if now < until {
            look_again(until, decision);
        } else if spare > 0 {
            spare -= 1;
            let message = Some(format!("Instance idle for {}s", instance.idle_duration_secs()));
            let end = EndOrder { reason: InstanceTerminationReason::IdleTimeout, message };
            decision.end_instances.push((instance.id, end));
        }
    }
}

/// A launch none of whose instances is wanted is not repeated.
fn cancel_unclaimed(around: &Surroundings<'_>, decision: &mut FleetDecision) {
    let kept = around.instances.iter().map(|(instance, _)| instance).filter(|instance| instance.is_kept());
    let claimed: HashSet<LaunchId> = kept.filter_map(|instance| instance.launch_id).collect();
    let unclaimed =
        around.open_launches.iter().filter(|launch| !launch.cancelled && !claimed.contains(&launch.id));
    decision.cancel_launches.extend(unclaimed.map(|launch| launch.id));
}

/// Buys machines for the instances that have none, for each buyer by itself: the nodes of a gang are worth nothing
/// without each other, what suits one run need not suit another, and none should fail with another.
fn buy_missing(
    now: Timestamp,
    kept: &[&(Instance, u32)],
    around: &Surroundings<'_>,
    decision: &mut FleetDecision,
) {
    let mut buyers = missing_by_buyer(kept, around, decision);
    let pause = decision.fleet.state.not_before.filter(|not_before| now < *not_before);
    if let Some(not_before) = pause {
        // Who waits is bought for without a pause, and a round that has begun goes on.
        let before = buyers.len();
        buyers.retain(|(buyer, missing)| {
            *buyer != Buyer::Fleet || Round::of(around.failed_launches, missing).has_begun()
        });
        if buyers.len() < before {
            look_again(not_before, decision);
        }
    }
    let turn = &buyers[..buyers.len().min(BUYERS_AT_ONCE)];
    let seen_by = |buyer: Buyer| around.offers.iter().find(|(asked, _)| *asked == buyer).map(|(_, seen)| seen);
    decision.ask_for = turn.iter().map(|(buyer, _)| *buyer).filter(|buyer| seen_by(*buyer).is_none()).collect();
    if !decision.ask_for.is_empty() {
        decision.effect = Some(Effect::AskOffers);
        return;
    }
    let most = if is_cluster(&decision.fleet) { 1 } else { BUYERS_AT_ONCE };
    let bought = kept.iter().filter(|(instance, _)| is_bought(instance, around)).count();
    let mut somebody_is_left = turn.len() < buyers.len();
    let ending_before = decision.end_instances.len();
    for (buyer, instances) in turn {
        // What is bought next for a cluster must be where this is.
        if decision.buy.len() == most {
            somebody_is_left = true;
            break;
        }
        match seen_by(*buyer) {
            None | Some(OffersSeen::Unknown) => {
                if *buyer == Buyer::Fleet {
                    let message = "A backend could not be asked for offers, trying again".to_owned();
                    decision.fleet.state.status_message = Some(message);
                }
                look_again(now + SignedDuration::from_secs(ASK_AGAIN_SECS), decision);
            }
            Some(OffersSeen::Known { offers, obstacle, opens_at }) => {
                let order =
                    Order { buyer: *buyer, instances, round: Round::of(around.failed_launches, instances) };
                match next_plan(&order, offers, kept, around, decision) {
                    Next::Buy(plan) => buy(now, &order, plan, bought, around.most_offers, decision),
                    // It is looked at again when that is over.
                    Next::Wait => {}
                    Next::Nothing => {
                        let only_type = only_type(&order, around, decision).map(str::to_owned);
                        let nothing = Nothing { obstacle: obstacle.clone(), opens_at: *opens_at, only_type };
                        give_up(now, &order, nothing, around.most_offers, decision);
                    }
                }
            }
        }
    }
    let moved = !decision.buy.is_empty() || ending_before < decision.end_instances.len();
    if moved && somebody_is_left {
        look_again(now, decision);
    }
}

fn look_again(at: Timestamp, decision: &mut FleetDecision) {
    decision.look_again_at = Some(decision.look_again_at.map_or(at, |known| known.min(at)));
}

/// The instances for which nothing is bought yet. Who waits comes before what is only kept in store.
fn missing_by_buyer<'a>(
    kept: &[&'a (Instance, u32)],
    around: &Surroundings<'_>,
    decision: &FleetDecision,
) -> Vec<(Buyer, Vec<&'a Instance>)> {
    let buyers: HashMap<InstanceId, Buyer> = around.buyers.iter().copied().collect();
    let ending: HashSet<InstanceId> = decision.end_instances.iter().map(|(id, _)| *id).collect();
    let mut places: HashMap<Buyer, usize> = HashMap::new();
    let mut missing: Vec<(Buyer, Vec<&Instance>)> = vec![];
    for (instance, _) in kept {
        if is_bought(instance, around) || ending.contains(&instance.id) {
            continue;
        }
        let buyer = buyers.get(&instance.id).copied().unwrap_or(Buyer::Fleet);
        let place = *places.entry(buyer).or_insert(missing.len());
        match missing.get_mut(place) {
            Some((_, instances)) => instances.push(instance),
            None => missing.push((buyer, vec![instance])),
        }
    }
    missing.sort_by_key(|(buyer, _)| *buyer == Buyer::Fleet);
    missing
}

/// Machines that are wanted together.
pub(super) struct Order<'a> {
    pub(super) buyer: Buyer,
    pub(super) instances: &'a [&'a Instance],
    pub(super) round: Round<'a>,
}

enum Next<'a> {
    Buy(&'a LaunchPlan),
    /// Another purchase must be over first.
    Wait,
    /// Nothing is left to try.
    Nothing,
}

/// Whether a machine boots that was bought with one that was taken back.
fn may_be_taken_back(instance: &Instance, order: &Order<'_>) -> bool {
    let boots = instance.status == InstanceStatus::Provisioning && instance.state.joined_at.is_none();
    let in_vain = order.instances.iter().flat_map(|one| &one.state.in_vain).filter(|one| one.why.is_some());
    boots && in_vain.map(|one| Some(one.launch)).any(|launch| launch == instance.launch_id)
}

fn next_plan<'a>(
    order: &Order<'_>,
    offers: &'a [LaunchPlan],
    kept: &[&(Instance, u32)],
    around: &Surroundings<'_>,
    decision: &FleetDecision,
) -> Next<'a> {
    // What is taken back of one purchase is seen one machine at a time. Until the others of it have joined or are gone as
    // well, they seem to say where the cluster is.
    if is_cluster(&decision.fleet) && kept.iter().any(|(instance, _)| may_be_taken_back(instance, order)) {
        return Next::Wait;
    }
    let only_type = only_type(order, around, decision);
    let choice = Choice { only_type, most_offers: around.most_offers, failed_lately: around.failed_lately };
    let Some(plan) = order.round.next(offers, choice) else {
        // The other purchase said what the cluster is to be and where, and may come to nothing as well.
        let home_is_open = is_cluster(&decision.fleet)
            && decision.fleet.state.home.is_some()
            && !kept.iter().any(|(instance, _)| instance.state.provider_id.is_some())
            && around.open_launches.iter().any(|launch| !launch.cancelled);
        let may_come = order.round.has_begun() || (only_type.is_some() && !offers.is_empty());
        return if may_come && home_is_open { Next::Wait } else { Next::Nothing };
    };
    Next::Buy(plan)
}

/// The type that is bought and no other. A cluster that is there does not become one of two types, because no fabric
/// reaches from one to the other, unless who waits asked for different machines.
fn only_type<'a>(order: &Order<'_>, around: &Surroundings<'_>, decision: &'a FleetDecision) -> Option<&'a str> {
    let asked_for_others = match order.buyer {
        Buyer::Run { run_id, .. } => around.unlike_runs.contains(&run_id),
        Buyer::Fleet => false,
    };
    let home = decision.fleet.state.home.as_ref().filter(|_| !asked_for_others)?;
    home.instance_type.as_deref()
}

fn buy(
    now: Timestamp,
    order: &Order<'_>,
    plan: &LaunchPlan,
    bought: usize,
    most_offers: u32,
    decision: &mut FleetDecision,
) {
    let count = u32::try_from(order.instances.len()).unwrap_or(u32::MAX);
    let least = match order.buyer {
        Buyer::Run { .. } => count,
        // Half a cluster is of no use to those who asked for a whole one.
        Buyer::Fleet if is_cluster(&decision.fleet) => {
            let (min, _) = bounds(&decision.fleet);
            min.saturating_sub(u32::try_from(bought).unwrap_or(u32::MAX)).clamp(1, count)
        }
        Buyer::Fleet => 1,
    };
    let instances = order.instances.iter().map(|instance| instance.id).collect();
    let event = told(count, plan, &order.round, most_offers);
    decision.buy.push(Purchase { plan: plan.clone(), instances, least, event });
    if !order.round.has_begun() {
        // Counted as a failure until the machines have joined.
        put_off(now, order.buyer, decision);
    }
}

/// What users are told of a purchase.
fn told(count: u32, plan: &LaunchPlan, round: &Round<'_>, most_offers: u32) -> String {
    let offer = &plan.offer;
    let place = plan.zone.as_deref().unwrap_or(&offer.region);
    let spot = if offer.instance.resources.spot { " (spot)" } else { "" };
    let tried = match round.offers_tried() {
        0 => String::new(),
        1 => format!(", after 1 offer of at most {most_offers} came to nothing"),
        tried => format!(", after {tried} offers of at most {most_offers} came to nothing"),
    };
    let (name, backend, price) = (&offer.instance.name, &plan.backend, offer.price);
    format!("Buying {count} × {name}{spot} on {backend} in {place} for ${price} an hour each{tried}")
}

/// Keeps the fleet at its least size. What is lost is replaced at once, but not faster than purchases fail.
fn add_missing(now: Timestamp, kept: &[&(Instance, u32)], min: u32, decision: &mut FleetDecision) {
    let kept_count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    let ending = u32::try_from(decision.end_instances.len()).unwrap_or(u32::MAX);
    let missing = min.saturating_sub(kept_count.saturating_sub(ending));
    let not_before = decision.fleet.state.not_before.filter(|not_before| now < *not_before);
    match (missing, not_before) {
        (0, _) => {
            let all_joined = kept.iter().all(|(instance, _)| instance.state.joined_at.is_some());
            // What a backend refused a run stays told until something is bought.
            if all_joined && (!kept.is_empty() || decision.fleet.state.failures > 0) {
                decision.fleet.state.failures = 0;
                decision.fleet.state.not_before = None;
                decision.fleet.state.status_message = None;
            }
        }
        (_, Some(not_before)) => {
            look_again(not_before, decision);
        }
        (missing, None) => decision.add_instances = missing,
    }
}
