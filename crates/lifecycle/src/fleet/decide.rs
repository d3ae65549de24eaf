//! What happens next to a fleet.

use api::fleets::FleetStatus;
use api::ids::{InstanceId, LaunchId, RunId};
use api::instances::{InstanceStatus, InstanceTerminationReason, Offer};
use jiff::{SignedDuration, Timestamp};

use super::{Fleet, Home};
use crate::events::status_changed;
use crate::instance::{EndOrder, Instance};
use crate::launch::Launch;

/// How often a fleet is looked at when nothing happens to it, in seconds.
const SAFETY_SECS: i64 = 300;

/// How long a fleet waits after a purchase came to nothing, by failures in a row, in seconds.
const FAILURE_DELAYS_SECS: [i64; 5] = [60, 120, 300, 600, 1800];

/// How long an instance may be idle unless the fleet says otherwise, in seconds: three days.
const IDLE_DURATION_SECS: i64 = 72 * 3600;

/// What is on offer for the fleet's next instances.
#[derive(Debug, Clone, PartialEq)]
pub enum OffersSeen {
    /// Nobody asked.
    NotAsked,
    /// No backend could be asked, which is never a reason to give up.
    Unknown,
    /// What suits, the best first, with the kind and row of the backend; and why others do not.
    Known {
        /// What can be bought.
        offers: Vec<LaunchPlan>,
        /// Why there is nothing, in words.
        obstacle: Option<String>,
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
}

/// What else a decision about a fleet depends on.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    /// Its instances that are not terminated, by number, each with the blocks that jobs hold.
    pub instances: &'a [(Instance, u32)],
    /// Which run each instance that is not bought yet is for; those that are for none are left out.
    pub runs: &'a [(InstanceId, RunId)],
    /// Its launches that are not over.
    pub open_launches: &'a [Launch],
    /// What is on offer.
    pub offers: OffersSeen,
}

/// What to do besides what is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Ask the backends what is on offer, and decide again.
    AskOffers,
}

/// What happens next to a fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetDecision {
    /// The fleet as it is from now on.
    pub fleet: Fleet,
    /// What to do first.
    pub effect: Option<Effect>,
    /// Instances that are to end, and why.
    pub end_instances: Vec<(InstanceId, EndOrder)>,
    /// Launches whose machines nobody wants any more.
    pub cancel_launches: Vec<LaunchId>,
    /// The purchase to make.
    pub buy: Option<Purchase>,
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
        end_instances: vec![],
        cancel_launches: vec![],
        buy: None,
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
    let kept: Vec<&(Instance, u32)> = around.instances.iter().filter(|(instance, _)| is_kept(instance)).collect();
    let kept_count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    let (min, max) = bounds(&decision.fleet);
    let surplus = max.map_or(0, |max| kept_count.saturating_sub(max));
    end_surplus(surplus, &kept, decision);
    end_idle(now, kept_count - surplus.min(kept_count), min, &kept, decision);
    cancel_unclaimed(around, decision);
    buy_missing(now, &kept, around, decision);
    add_missing(now, &kept, min, decision);
}

fn is_kept(instance: &Instance) -> bool {
    instance.end.is_none() && !matches!(instance.status, InstanceStatus::Terminating | InstanceStatus::Terminated)
}

/// The fleet's least and greatest number of instances. A fleet of given hosts buys nothing.
fn bounds(fleet: &Fleet) -> (u32, Option<u32>) {
    match &fleet.spec.configuration.nodes {
        Some(nodes) => (nodes.min, nodes.max),
        None => (0, Some(u32::MAX)),
    }
}

/// A cluster stays where its first machine is.
fn settle_home(around: &Surroundings<'_>, decision: &mut FleetDecision) {
    let first = around.instances.iter().map(|(instance, _)| instance).find(|instance| {
        is_kept(instance) && instance.state.provider_id.is_some() && instance.state.backend.is_some()
    });
    let is_cluster = crate::placement::is_cluster(decision.fleet.spec.configuration.placement);
    decision.fleet.state.home = first.filter(|_| is_cluster).and_then(|instance| {
        Some(Home {
            backend: instance.state.backend.clone()?,
            region: instance.state.region.clone()?,
            zone: instance.state.zone.clone(),
        })
    });
}

fn end_surplus(surplus: u32, kept: &[&(Instance, u32)], decision: &mut FleetDecision) {
    // Blocks are held from the moment of placement, so none held means that no job waits for the machine either.
    let spare = kept.iter().rev().filter(|(_, busy)| *busy == 0);
    for (instance, _) in spare.take(surplus as usize) {
        let end = EndOrder { reason: InstanceTerminationReason::MaxInstancesLimit, message: None };
        decision.end_instances.push((instance.id, end));
    }
}

fn end_idle(now: Timestamp, kept_count: u32, min: u32, kept: &[&(Instance, u32)], decision: &mut FleetDecision) {
    let mut spare = kept_count.saturating_sub(min);
    for (instance, busy) in kept {
        let Some(idle_since) = instance.state.idle_since.filter(|_| *busy == 0) else { continue };
        let ending = decision.end_instances.iter().any(|(id, _)| *id == instance.id);
        let secs = instance.state.idle_duration_secs.unwrap_or(IDLE_DURATION_SECS);
        if ending || secs < 0 {
            continue;
        }
        let until = idle_since.saturating_add(SignedDuration::from_secs(secs)).unwrap_or(Timestamp::MAX);
        if now < until {
            decision.look_again_at = Some(decision.look_again_at.map_or(until, |at| at.min(until)));
        } else if spare > 0 {
            spare -= 1;
            let message = Some(format!("Instance idle for {secs}s"));
            let end = EndOrder { reason: InstanceTerminationReason::IdleTimeout, message };
            decision.end_instances.push((instance.id, end));
        }
    }
}

/// A launch none of whose instances is wanted is not repeated.
fn cancel_unclaimed(around: &Surroundings<'_>, decision: &mut FleetDecision) {
    for launch in around.open_launches.iter().filter(|launch| !launch.cancelled) {
        let claimed = around
            .instances
            .iter()
            .any(|(instance, _)| instance.launch_id == Some(launch.id) && is_kept(instance));
        if !claimed {
            decision.cancel_launches.push(launch.id);
        }
    }
}

/// Buys machines for the instances that have none: those of one gang in one purchase, because it is worth nothing
/// without all its nodes, and those of another gang in another, because neither should fail with the other.
fn buy_missing(
    now: Timestamp,
    kept: &[&(Instance, u32)],
    around: &Surroundings<'_>,
    decision: &mut FleetDecision,
) {
    let missing: Vec<&Instance> = kept
        .iter()
        .map(|(instance, _)| instance)
        .filter(|instance| instance.status == InstanceStatus::Pending && instance.launch_id.is_none())
        .filter(|instance| !decision.end_instances.iter().any(|(id, _)| *id == instance.id))
        .collect();
    if missing.is_empty() {
        return;
    }
    if let Some(not_before) = decision.fleet.state.not_before.filter(|not_before| now < *not_before) {
        let wanted_by_job = kept.iter().any(|(instance, busy)| *busy > 0 && instance.launch_id.is_none());
        if !wanted_by_job {
            decision.look_again_at = Some(not_before);
            return;
        }
    }
    match &around.offers {
        OffersSeen::NotAsked => decision.effect = Some(Effect::AskOffers),
        OffersSeen::Unknown => decision.look_again_at = Some(now + SignedDuration::from_secs(15)),
        OffersSeen::Known { offers, obstacle } => match offers.first() {
            Some(plan) => buy(now, plan, &missing, around.runs, decision),
            None => give_up(now, &missing, obstacle.clone(), decision),
        },
    }
}

fn buy(
    now: Timestamp,
    plan: &LaunchPlan,
    missing: &[&Instance],
    runs: &[(InstanceId, RunId)],
    decision: &mut FleetDecision,
) {
    let run_of = |id: InstanceId| runs.iter().find(|(instance, _)| *instance == id).map(|(_, run)| *run);
    let ids = missing.iter().map(|instance| instance.id);
    // Who waits comes before what is only kept in store.
    let run = ids.clone().find_map(run_of);
    let instances: Vec<InstanceId> = ids.filter(|id| run_of(*id) == run).collect();
    if instances.len() < missing.len() {
        decision.look_again_at = Some(now);
    }
    let least = if run.is_some() { u32::try_from(instances.len()).unwrap_or(u32::MAX) } else { 1 };
    decision.buy = Some(Purchase { plan: plan.clone(), instances, least });
    // Counted as a failure until the machines have joined.
    put_off(now, decision);
}

fn give_up(now: Timestamp, missing: &[&Instance], obstacle: Option<String>, decision: &mut FleetDecision) {
    let message = obstacle.or_else(|| Some("No offers found".to_owned()));
    for instance in missing {
        let end = EndOrder { reason: InstanceTerminationReason::NoOffers, message: message.clone() };
        decision.end_instances.push((instance.id, end));
    }
    put_off(now, decision);
}

/// Puts the next purchase off, longer with each failure.
fn put_off(now: Timestamp, decision: &mut FleetDecision) {
    let state = &mut decision.fleet.state;
    let delay = FAILURE_DELAYS_SECS[(state.failures as usize).min(FAILURE_DELAYS_SECS.len() - 1)];
    state.failures = state.failures.saturating_add(1);
    state.not_before = Some(now + SignedDuration::from_secs(delay));
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
            if all_joined {
                decision.fleet.state.failures = 0;
                decision.fleet.state.not_before = None;
            }
        }
        (_, Some(not_before)) => {
            decision.look_again_at = Some(decision.look_again_at.map_or(not_before, |at| at.min(not_before)));
        }
        (missing, None) => decision.add_instances = missing,
    }
}
