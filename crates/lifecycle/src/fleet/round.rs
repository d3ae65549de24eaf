//! A round of buying: what was tried for some instances, what follows from it, and what is left to try.
//!
//! A round begins with the first purchase for instances that have no machines. When a purchase comes to nothing they
//! have none again, and the next offer is tried at once: the next zone, or else the next dearer offer. The round ends
//! with machines, or when nothing is left. The next one has new instances, so it begins anew; only a zone that was sold
//! out a moment ago comes after the others of its offer, whoever found that out.

use std::collections::{HashMap, HashSet};

use api::ids::{InstanceId, LaunchId};

use super::LaunchPlan;
use crate::instance::Instance;
use crate::launch::{Launch, LaunchStatus, Scope, Verdict};

/// How many purchases of the same are made in a round, when each is over before it has begun.
const MOST_LAUNCHES: usize = 3;

/// How many different refusals are told in one message.
const MAX_TOLD: usize = 6;

/// How long what a backend said may be in a message, in characters.
const MAX_SAID: usize = 200;

/// What was tried for some instances that have no machines.
#[derive(Debug)]
pub(super) struct Round<'a> {
    /// Oldest first.
    tried: Vec<&'a Launch>,
    /// What became of machines that were made.
    whys: HashMap<LaunchId, &'a str>,
}

/// What is an offer for people: a type at a place, for that kind of price.
type OfferKey<'a> = (api::ids::BackendId, &'a str, &'a str, bool);

/// What else the next purchase depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice<'a> {
    /// Nothing else is bought.
    pub(super) only_type: Option<&'a str>,
    /// How many offers are tried in a round.
    pub(super) most_offers: u32,
    /// Purchases that came to nothing a moment ago, for whomever.
    pub(super) failed_lately: &'a [Launch],
}

impl Choice<'_> {
    /// Whether somebody was told a moment ago that the plan's zone has none of its type.
    fn was_sold_out(&self, plan: &LaunchPlan) -> bool {
        let of_plan = |launch: &&Launch| {
            plan.zone.is_some() && launch.state.zone == plan.zone && key_of(launch) == key_of_plan(plan)
        };
        self.failed_lately
            .iter()
            .filter(of_plan)
            .any(|launch| verdict_of(launch) == Some(Verdict::Refused(Scope::Zone)))
    }
}

impl<'a> Round<'a> {
    /// The round of those instances, from the purchases that came to nothing.
    pub(super) fn of(failed: &'a [Launch], instances: &[&'a Instance]) -> Round<'a> {
        let ids: HashSet<InstanceId> = instances.iter().map(|instance| instance.id).collect();
        let bound: HashSet<LaunchId> = instances.iter().filter_map(|instance| instance.launch_id).collect();
        let is_theirs = |launch: &&Launch| {
            bound.contains(&launch.id) || launch.state.instances.iter().any(|instance| ids.contains(instance))
        };
        let in_vain = instances.iter().flat_map(|instance| &instance.state.in_vain);
        let whys = in_vain.filter_map(|one| Some((one.launch, one.why.as_deref()?))).collect();
        let mut tried: Vec<&Launch> = failed.iter().filter(is_theirs).collect();
        tried.sort_by_key(|launch| (launch.created_at, launch.id));
        Round { tried, whys }
    }

    /// Whether something was tried.
    pub(super) fn has_begun(&self) -> bool {
        !self.tried.is_empty()
    }

    /// How many offers were tried. All zones of one offer count as one.
    pub(super) fn offers_tried(&self) -> usize {
        self.tried.iter().map(|launch| key_of(launch)).collect::<HashSet<_>>().len()
    }

    /// The next purchase to make: of what nothing speaks against, the cheapest. Among those of one price a zone that
    /// its backend says has room comes first, then the type that was tried last, then its region.
    pub(super) fn next<'p>(&self, plans: &'p [LaunchPlan], choice: Choice<'_>) -> Option<&'p LaunchPlan> {
        let known: HashSet<OfferKey<'_>> = self.tried.iter().map(|launch| key_of(launch)).collect();
        let is_full = known.len() >= choice.most_offers as usize;
        let left = |plan: &&LaunchPlan| {
            let is_known = known.contains(&key_of_plan(plan));
            let is_of_type = choice.only_type.is_none_or(|name| name == plan.offer.instance.name);
            is_of_type && (is_known || !is_full) && !self.is_excluded(plan)
        };
        let left: Vec<&LaunchPlan> = plans.iter().filter(left).collect();
        let price = left.first()?.offer.price;
        let of_one_price = || left.iter().copied().take_while(|plan| plan.offer.price <= price);
        let last = self.tried.last().map(|launch| key_of(launch));
        let is_again = |plan: &&LaunchPlan| self.tried.last().is_some_and(|launch| is_used_up(launch, plan));
        if let Some(again) = of_one_price().find(is_again) {
            return Some(again);
        }
        // The first of equals.
        let best = of_one_price().min_by_key(|plan| {
            let key = key_of_plan(plan);
            let same_region = last.is_some_and(|last| (last.0, last.2) == (key.0, key.2));
            (!self.is_hinted(plan), last != Some(key), !same_region)
        })?;
        let (key, is_hinted) = (key_of_plan(best), self.is_hinted(best));
        let zones = of_one_price().filter(|plan| key_of_plan(plan) == key && self.is_hinted(plan) == is_hinted);
        zones.min_by_key(|plan| choice.was_sold_out(plan))
    }

    /// Whether what was tried says that the plan would come to nothing too.
    fn is_excluded(&self, plan: &LaunchPlan) -> bool {
        let used_up = self.tried.iter().filter(|launch| is_used_up(launch, plan)).count();
        MOST_LAUNCHES <= used_up || self.tried.iter().any(|launch| excludes(launch, plan))
    }

    /// Whether a backend said that the plan's zone has what is wanted.
    fn is_hinted(&self, plan: &LaunchPlan) -> bool {
        let key = key_of_plan(plan);
        let errors = self.tried.iter().filter(|launch| key_of(launch) == key);
        let mut hints = errors.filter_map(|launch| launch.state.error.as_ref());
        plan.zone.as_ref().is_some_and(|zone| hints.any(|error| error.zones_with_capacity.contains(zone)))
    }

    /// What was tried and why it came to nothing, in one sentence.
    pub(super) fn summary(&self, most_offers: u32) -> String {
        let offers = self.offers_tried();
        let plural = if offers == 1 { "" } else { "s" };
        let mut told: Vec<(String, Vec<&str>)> = vec![];
        for launch in &self.tried {
            let words = format!("{}{}", spot(launch), self.refusal(launch));
            let key = format!("{} in %: {words}", launch.state.offer.instance.name);
            match told.iter_mut().find(|(known, _)| *known == key) {
                Some((_, places)) if places.contains(&launch.state.place()) => {}
                Some((_, places)) => places.push(launch.state.place()),
                None => told.push((key, vec![launch.state.place()])),
            }
        }
        let more = told.len().saturating_sub(MAX_TOLD);
        let lines: Vec<String> =
            told.iter().take(MAX_TOLD).map(|(key, places)| key.replacen('%', &places.join(", "), 1)).collect();
        let mut summary = format!("Tried {offers} offer{plural} in vain: {}", lines.join("; "));
        if more > 0 {
            summary.push_str(&format!("; and {more} more"));
        }
        if offers >= most_offers as usize {
            summary.push_str(&format!(". No more than {most_offers} offers are tried in a row"));
        }
        summary
    }

    /// The backend that refused everything, and its words.
    pub(super) fn refused_by(&self) -> Option<String> {
        let of_backend = |launch: &&&Launch| verdict_of(launch) == Some(Verdict::Refused(Scope::Backend));
        let launch = self.tried.iter().find(of_backend)?;
        Some(format!("`{}` refuses to sell: {}", launch.state.backend, self.refusal(launch)))
    }

    /// Why a purchase came to nothing, in a few words.
    fn refusal(&self, launch: &Launch) -> String {
        let why = self.whys.get(&launch.id).map(|why| (*why).to_owned());
        why.unwrap_or_else(|| refusal(launch))
    }
}

fn key_of(launch: &Launch) -> OfferKey<'_> {
    let offer = &launch.state.offer;
    (launch.backend_id, &offer.instance.name, &offer.region, offer.instance.resources.spot)
}

fn key_of_plan(plan: &LaunchPlan) -> OfferKey<'_> {
    let offer = &plan.offer;
    (plan.backend_id, &offer.instance.name, &offer.region, offer.instance.resources.spot)
}

fn verdict_of(launch: &Launch) -> Option<Verdict> {
    launch.state.error.as_ref().map(|error| error.verdict)
}

/// Whether a purchase that came to nothing says that this one would too.
fn excludes(launch: &Launch, plan: &LaunchPlan) -> bool {
    if launch.backend_id != plan.backend_id {
        return false;
    }
    let same_offer = key_of(launch) == key_of_plan(plan);
    let same_region = launch.state.offer.region == plan.offer.region;
    let same_zone = launch.state.zone.is_none() || launch.state.zone == plan.zone;
    match verdict_of(launch) {
        // No error: only some of its machines were made, or none of those that were promised came.
        None | Some(Verdict::Refused(Scope::Zone)) => same_offer && same_zone,
        Some(Verdict::Refused(Scope::Network)) => {
            let names_a_zone = launch.state.zone.is_some();
            same_region && same_zone && (names_a_zone || same_offer)
        }
        Some(Verdict::Refused(Scope::Offer)) => same_offer,
        Some(Verdict::Refused(Scope::Region)) => {
            same_offer || (same_region && is_no_smaller_relative(launch, plan))
        }
        // A reservation is in one region. A backend that does not answer, or asks for patience for ever, does so there.
        Some(Verdict::Refused(Scope::Reservation | Scope::WholeRegion) | Verdict::Later | Verdict::Unanswered) => {
            same_region
        }
        Some(Verdict::Refused(Scope::Backend)) => true,
        // That one is over, and says nothing of the next.
        Some(Verdict::Refused(Scope::Launch)) => false,
    }
}

/// Whether a purchase was of exactly this, and nothing but itself was in its way.
fn is_used_up(launch: &Launch, plan: &LaunchPlan) -> bool {
    let of_plan = key_of(launch) == key_of_plan(plan) && launch.state.zone == plan.zone;
    of_plan && verdict_of(launch) == Some(Verdict::Refused(Scope::Launch))
}

/// Whether the plan's type counts against the same quota and needs no less of it. The families of a cloud's types are
/// told by the beginning of their names.
fn is_no_smaller_relative(launch: &Launch, plan: &LaunchPlan) -> bool {
    let (tried, next) = (&launch.state.offer.instance, &plan.offer.instance);
    let family = |name: &str| name.split_once('.').map_or(name, |(family, _)| family).to_owned();
    family(&tried.name) == family(&next.name)
        && tried.resources.spot == next.resources.spot
        && tried.resources.cpus <= next.resources.cpus
}

fn spot(launch: &Launch) -> &'static str {
    if launch.state.offer.instance.resources.spot { "spot, " } else { "" }
}

/// What its backend said of a purchase, in a few words.
fn refusal(launch: &Launch) -> String {
    let Some(error) = &launch.state.error else {
        return match (launch.status, launch.state.made) {
            (LaunchStatus::Done, Some(made)) => format!("only {made} of {} were made", launch.state.count),
            _ if launch.cancelled => "nobody wanted it any more".to_owned(),
            _ => "the machines never came".to_owned(),
        };
    };
    let word = error.word();
    let said: String = error.message.chars().take(MAX_SAID).collect();
    let cut = if said.len() < error.message.len() { "…" } else { "" };
    format!("{word} ({said}{cut})")
}
