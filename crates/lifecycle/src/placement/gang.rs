//! The placement of whole gangs.

use std::collections::BTreeMap;

use api::configurations::{InstanceGroupPlacement, ProfileParams};
use api::ids::{FleetId, InstanceId, RunId};
use api::instances::{InstanceStatus, InstanceType};
use api::jobs::Requirements;
use api::runs::RunSpec;

use super::suits::{free_blocks, needed_blocks};
use super::topology::{self, Home, homes};
use crate::planted::{self, Bug};

/// A run that waits for its nodes.
#[derive(Debug, Clone)]
pub struct Gang {
    /// The run.
    pub run_id: RunId,
    /// The keys of its configuration and profile, merged.
    pub profile: ProfileParams,
    /// The submitter may use machines that only admins may.
    pub user_is_admin: bool,
    /// It was told to run in containers.
    pub needs_docker: bool,
    /// Machines may be bought for it now. A run that got none a moment ago takes what is there, and waits to buy.
    pub may_buy: bool,
    /// It is to be told why it gets nothing. A run that was told so before only goes on waiting.
    pub wants_reason: bool,
    /// The fleet that it was in before it was resubmitted; preferred.
    pub previous_fleet: Option<FleetId>,
    /// What each node needs, by rank.
    pub nodes: Vec<Node>,
}

/// One node of a gang.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its rank.
    pub job_num: u32,
    /// What it needs.
    pub requirements: Requirements,
}

/// What a project has.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// Its fleets, in the order in which they are tried when nothing else tells them apart.
    pub fleets: Vec<PoolFleet>,
}

/// A fleet and its instances.
#[derive(Debug, Clone)]
pub struct PoolFleet {
    /// The fleet.
    pub id: FleetId,
    /// Its name.
    pub name: String,
    /// Its project's name.
    pub project_name: String,
    /// Its instances are close to each other.
    pub cluster: bool,
    /// How many more instances it may have.
    pub room: u32,
    /// It may buy more; otherwise it has only what it was given.
    pub can_grow: bool,
    /// It is not to be used: it ends.
    pub closing: bool,
    /// The only type that it would buy, because it is a cluster of machines of that type.
    pub only_type: Option<String>,
    /// What a machine that it would buy must have, beside what the run needs; for runs that would make it grow.
    pub limits: ProfileParams,
    /// Its instances by number.
    pub instances: Vec<PoolInstance>,
}

/// An instance and what of it is free.
#[derive(Debug, Clone)]
pub struct PoolInstance {
    /// The instance.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
    /// Its number in the fleet.
    pub instance_num: u32,
    /// Where it answers.
    pub hostname: Option<String>,
    /// Where it is in its life.
    pub status: InstanceStatus,
    /// It is to end, its agent does not answer, or it is broken.
    pub unusable: bool,
    /// It has fewer EFA devices than it was bought with, and how many; nodes of a gang need all of them.
    pub incomplete_efa: Option<String>,
    /// Only admins may use it.
    pub admins_only: bool,
    /// It runs containers; unknown while it is not joined.
    pub has_docker: Option<bool>,
    /// The kind of backend, as users name it.
    pub backend: Option<api::backends::BackendType>,
    /// Where it is.
    pub region: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// The switches above it, the highest first, where its backend tells them.
    pub network_path: Vec<String>,
    /// US dollars per hour.
    pub price: f64,
    /// What it has; unknown for a machine that nobody has seen yet.
    pub instance_type: Option<InstanceType>,
    /// A backend sold it. What users bring is for them to choose.
    pub is_bought: bool,
    /// The reservation that it is from, as it was asked for.
    pub reservation: Option<String>,
    /// Blocks that it is split into.
    pub total_blocks: u32,
    /// Blocks that no job holds, ascending.
    pub free_blocks: Vec<u32>,
}

/// A place for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The node's rank.
    pub job_num: u32,
    /// The instance; unset: a new one of the fleet.
    pub instance_id: Option<InstanceId>,
    /// The blocks of it.
    pub blocks: Vec<u32>,
}

/// What becomes of a gang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All nodes have a place in this fleet; some of them perhaps on instances that must be bought.
    Placed {
        /// The fleet.
        fleet_id: FleetId,
        /// One per node, by rank.
        slots: Vec<Slot>,
    },
    /// There is no place now.
    NoCapacity {
        /// Why, for people, if the gang wants to know.
        message: Option<String>,
    },
    /// It cannot be placed on what is there, and nobody has asked yet what these fleets could buy for it.
    AskOffers {
        /// The fleets.
        fleets: Vec<FleetId>,
    },
}

/// What a fleet could buy for a node that finds no place on what is there.
#[derive(Debug, Clone, PartialEq)]
pub enum Growth {
    /// Nobody has asked.
    NotAsked,
    /// Some backend could not be asked, which is no reason to refuse.
    Unknown,
    /// A machine for this price, in US dollars per hour.
    Price(f64),
    /// Nothing, and why.
    Nothing(String),
}

/// Knows what fleets could buy.
pub trait Market {
    /// What a fleet could buy for a node of a gang.
    fn growth(&self, gang: &Gang, node: &Node, fleet: &PoolFleet) -> Growth;
}

/// The same for every fleet and node.
impl Market for Growth {
    fn growth(&self, _gang: &Gang, _node: &Node, _fleet: &PoolFleet) -> Growth {
        self.clone()
    }
}

/// An instance that could serve a node, free or not: what a plan shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The fleet.
    pub fleet_id: FleetId,
    /// The instance.
    pub instance_id: InstanceId,
    /// How many blocks the node would take.
    pub blocks: u32,
    /// They are free now.
    pub free: bool,
}

const NO_FLEETS: &str = "No matching fleet found. Possible reasons: \
                         https://dstack.ai/docs/guides/troubleshooting/#no-fleets";

/// Places gangs in the order given; what one takes is gone for the next. Ends early at a gang for which offers must
/// be asked for: what the gangs after it get depends on it.
pub fn place(gangs: &[Gang], pool: &mut Pool, market: &dyn Market) -> Vec<(RunId, Outcome)> {
    let mut outcomes = Vec::with_capacity(gangs.len());
    for gang in gangs {
        let outcome = place_one(gang, pool, market);
        let is_open = matches!(outcome, Outcome::AskOffers { .. });
        outcomes.push((gang.run_id, outcome));
        if is_open {
            break;
        }
    }
    outcomes
}

fn place_one(gang: &Gang, pool: &mut Pool, market: &dyn Market) -> Outcome {
    let fleets: Vec<usize> = (0..pool.fleets.len()).filter(|index| admits(gang, &pool.fleets[*index])).collect();
    if fleets.is_empty() {
        return Outcome::NoCapacity { message: gang.wants_reason.then(|| why_no_fleet(gang, pool)) };
    }
    let mut tries: Vec<(usize, Try)> = vec![];
    let mut not_asked: Vec<FleetId> = vec![];
    for index in &fleets {
        let fleet = &pool.fleets[*index];
        match fit(gang, fleet, market) {
            Ok(found) => tries.push((*index, found)),
            Err(Misfit::NotAsked) => not_asked.push(fleet.id),
            Err(Misfit::NoPlace) => {}
        }
    }
    // What is there already comes before what must be bought, then the fleet that the run knows, then the cheapest.
    tries.sort_by(|(left_index, left), (right_index, right)| {
        let known = |index: usize| Some(pool.fleets[index].id) != gang.previous_fleet;
        (left.bought, left.waiting, known(*left_index))
            .cmp(&(right.bought, right.waiting, known(*right_index)))
            .then(left.price.total_cmp(&right.price))
            .then(left_index.cmp(right_index))
    });
    let needs_nothing = tries.first().is_some_and(|(_, best)| best.bought == 0);
    if !not_asked.is_empty() && !needs_nothing {
        return Outcome::AskOffers { fleets: not_asked };
    }
    let Some((index, chosen)) = tries.into_iter().next() else {
        return Outcome::NoCapacity {
            message: gang.wants_reason.then(|| why_no_place(gang, pool, &fleets, market)),
        };
    };
    let fleet = &mut pool.fleets[index];
    take(fleet, &chosen);
    Outcome::Placed { fleet_id: fleet.id, slots: chosen.slots }
}

/// Why a gang has no place in a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misfit {
    /// There is none.
    NoPlace,
    /// Nobody has asked yet what the fleet could buy.
    NotAsked,
}

struct Try {
    slots: Vec<Slot>,
    bought: u32,
    waiting: u32,
    price: f64,
}

fn take(fleet: &mut PoolFleet, chosen: &Try) {
    fleet.room = fleet.room.saturating_sub(chosen.bought);
    for slot in &chosen.slots {
        let Some(instance) = fleet.instances.iter_mut().find(|instance| Some(instance.id) == slot.instance_id)
        else {
            continue;
        };
        instance.free_blocks.retain(|block| !slot.blocks.contains(block));
    }
}

/// Whether a run may use a fleet at all.
fn admits(gang: &Gang, fleet: &PoolFleet) -> bool {
    let named = gang.profile.fleets.as_ref().is_none_or(|fleets| {
        fleets.iter().any(|reference| {
            let project =
                reference.project.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(&fleet.project_name));
            project && reference.name == fleet.name
        })
    });
    let close_enough = gang.nodes.len() < 2 || fleet.cluster;
    !fleet.closing && named && close_enough
}

/// Places every node of the gang in one fleet, or nothing.
fn fit(gang: &Gang, fleet: &PoolFleet, market: &dyn Market) -> Result<Try, Misfit> {
    let mut best: Result<Try, Misfit> = Err(Misfit::NoPlace);
    let cheapest = fleet.instances.iter().map(|instance| instance.price).fold(f64::INFINITY, f64::min);
    for home in homes(gang, fleet) {
        // Nothing that is further apart can be better.
        let is_best =
            |found: &Try| found.bought + found.waiting == 0 && found.price <= cheapest * gang.nodes.len() as f64;
        if best.as_ref().is_ok_and(is_best) {
            break;
        }
        best = match (best, fit_in(gang, fleet, home, market)) {
            (Ok(left), Ok(right)) => Ok(if is_better(&right, &left) { right } else { left }),
            // Nobody need ask what could be bought where nothing must be.
            (Ok(found), Err(_)) | (Err(Misfit::NoPlace), Ok(found)) => Ok(found),
            (Err(Misfit::NotAsked), Ok(found)) if found.bought == 0 => Ok(found),
            (Err(Misfit::NoPlace), Err(misfit)) => Err(misfit),
            (Err(Misfit::NotAsked), Ok(_) | Err(_)) => Err(Misfit::NotAsked),
        };
    }
    best
}

fn is_better(left: &Try, right: &Try) -> bool {
    let by_need = (left.bought, left.waiting).cmp(&(right.bought, right.waiting));
    by_need.then(left.price.total_cmp(&right.price)).is_lt()
}

fn fit_in(gang: &Gang, fleet: &PoolFleet, home: Home<'_>, market: &dyn Market) -> Result<Try, Misfit> {
    let near: Vec<&PoolInstance> = fleet.instances.iter().filter(|instance| home.has(instance)).collect();
    let options: Vec<Vec<Candidacy>> = gang.nodes.iter().map(|node| candidacies(gang, node, &near)).collect();
    let mut chosen = assign(&options, near.len());
    topology::put_neighbours_together(&gang.nodes, &near, &mut chosen);
    let mut result = Try { slots: vec![], bought: 0, waiting: 0, price: 0.0 };
    let mut prices = Prices { gang, fleet, market, known: vec![] };
    for (node, chosen) in gang.nodes.iter().zip(chosen) {
        if let Some(candidacy) = chosen {
            let instance = near[candidacy.instance];
            result.waiting += u32::from(!is_joined(instance.status));
            result.price += instance.price;
            let (instance_id, blocks) = (Some(instance.id), candidacy.blocks.clone());
            result.slots.push(Slot { job_num: node.job_num, instance_id, blocks });
        } else if home.may_grow(fleet) && may_buy(gang, fleet, result.bought) {
            result.price += prices.of(node)?;
            result.bought += 1;
            result.slots.push(Slot { job_num: node.job_num, instance_id: None, blocks: vec![0] });
        } else if planted::has(Bug::HalfAGangKept) && !result.slots.is_empty() {
            break;
        } else {
            return Err(Misfit::NoPlace);
        }
    }
    Ok(result)
}

/// What a fleet's machines would cost a gang, asked once for nodes that need the same.
struct Prices<'a> {
    gang: &'a Gang,
    fleet: &'a PoolFleet,
    market: &'a dyn Market,
    known: Vec<(&'a Requirements, Growth)>,
}

impl<'a> Prices<'a> {
    fn of(&mut self, node: &'a Node) -> Result<f64, Misfit> {
        let known = self.known.iter().position(|(requirements, _)| **requirements == node.requirements);
        let index = known.unwrap_or_else(|| {
            let growth = self.market.growth(self.gang, node, self.fleet);
            self.known.push((&node.requirements, growth));
            self.known.len() - 1
        });
        match &self.known[index].1 {
            Growth::Price(price) => Ok(*price),
            // A price that is known is preferred to one that is not.
            Growth::Unknown => Ok(f64::INFINITY),
            Growth::NotAsked => Err(Misfit::NotAsked),
            Growth::Nothing(_) => Err(Misfit::NoPlace),
        }
    }
}

/// An instance that could take a node, by its place among those that are near, and the blocks that it would give.
pub(super) struct Candidacy {
    pub(super) instance: usize,
    pub(super) blocks: Vec<u32>,
}

/// The instances that could take a node now, the best first.
fn candidacies(gang: &Gang, node: &Node, near: &[&PoolInstance]) -> Vec<Candidacy> {
    let mut options: Vec<Candidacy> = (0..near.len())
        .filter_map(|instance| Some(Candidacy { instance, blocks: free_blocks(gang, node, near[instance])? }))
        .collect();
    options.sort_by(|left, right| {
        let (a, b) = (near[left.instance], near[right.instance]);
        is_joined(b.status)
            .cmp(&is_joined(a.status))
            .then(a.price.total_cmp(&b.price))
            .then(left.blocks.len().cmp(&right.blocks.len()))
            .then(a.free_blocks.len().cmp(&b.free_blocks.len()))
            .then(a.instance_num.cmp(&b.instance_num))
    });
    options
}

/// Gives as many nodes as possible an instance of their own, each node its best one that is left. A node that finds
/// its options taken asks their holders to move on to another one of theirs.
fn assign(options: &[Vec<Candidacy>], instances: usize) -> Vec<Option<&Candidacy>> {
    let mut holders: Vec<Option<usize>> = vec![None; instances];
    for node in 0..options.len() {
        let free = options[node].iter().find(|candidacy| holders[candidacy.instance].is_none());
        match free {
            Some(candidacy) => holders[candidacy.instance] = Some(node),
            None => {
                make_room(node, options, &mut holders, &mut vec![false; instances]);
            }
        }
    }
    let held = |node: usize, candidacy: &&Candidacy| holders[candidacy.instance] == Some(node);
    (0..options.len()).map(|node| options[node].iter().find(|candidacy| held(node, candidacy))).collect()
}

fn make_room(
    node: usize,
    options: &[Vec<Candidacy>],
    holders: &mut Vec<Option<usize>>,
    asked: &mut Vec<bool>,
) -> bool {
    for candidacy in &options[node] {
        if std::mem::replace(&mut asked[candidacy.instance], true) {
            continue;
        }
        let freed = holders[candidacy.instance].is_none_or(|holder| make_room(holder, options, holders, asked));
        if freed {
            holders[candidacy.instance] = Some(node);
            return true;
        }
    }
    false
}

fn is_joined(status: InstanceStatus) -> bool {
    matches!(status, InstanceStatus::Idle | InstanceStatus::Busy)
}

fn may_buy(gang: &Gang, fleet: &PoolFleet, bought: u32) -> bool {
    use api::configurations::CreationPolicy;
    let reuse_only = gang.profile.creation_policy == Some(CreationPolicy::Reuse);
    fleet.can_grow && gang.may_buy && !reuse_only && gang.profile.instances.is_none() && bought < fleet.room
}

fn why_no_fleet(gang: &Gang, pool: &Pool) -> String {
    let any_open = pool.fleets.iter().any(|fleet| !fleet.closing);
    if !any_open {
        return NO_FLEETS.to_owned();
    }
    if let Some(fleets) = &gang.profile.fleets {
        let names: Vec<String> = fleets.iter().map(|fleet| format!("`{}`", fleet.name)).collect();
        let exists = pool.fleets.iter().any(|fleet| fleets.iter().any(|reference| reference.name == fleet.name));
        if !exists {
            return format!("{NO_FLEETS} (there is no fleet {})", names.join(" or "));
        }
    }
    if gang.nodes.len() > 1 {
        return format!("{NO_FLEETS} (a task with several nodes needs a fleet with `placement: cluster`)");
    }
    NO_FLEETS.to_owned()
}

/// Says of each instance of the fleets that were tried why it does not serve.
fn why_no_place(gang: &Gang, pool: &Pool, fleets: &[usize], market: &dyn Market) -> String {
    use api::configurations::CreationPolicy;
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut total = 0_u32;
    let mut not_sold: Vec<String> = vec![];
    for fleet in fleets.iter().map(|index| &pool.fleets[*index]) {
        not_sold.extend(why_not_sold(gang, fleet, market));
        for instance in &fleet.instances {
            total += 1;
            let reason = gang
                .nodes
                .first()
                .map_or(Ok(0), |node| needed_blocks(gang, node, instance))
                .map_or_else(|reason| reason, |needed| busy_reason(needed, instance));
            reasons.entry(reason).or_default().push(instance.name.clone());
        }
    }
    let head = if gang.profile.creation_policy == Some(CreationPolicy::Reuse) {
        "Could not reuse any instance for this job".to_owned()
    } else if gang.profile.instances.is_some() {
        "Failed to use specified instances".to_owned()
    } else if gang.profile.fleets.is_some() {
        "Failed to use specified fleets".to_owned()
    } else if !not_sold.is_empty() {
        "No matching instance is free and no offers found".to_owned()
    } else {
        "No matching instance is free and no fleet may grow".to_owned()
    };
    let needed = gang.nodes.len();
    let mut details: Vec<String> =
        reasons.iter().map(|(reason, names)| format!("{}: {reason}", names.join(", "))).collect();
    if needed > 1 {
        details.insert(0, format!("{needed} nodes are needed in one fleet at once, {total} exist"));
    }
    details.extend(not_sold);
    if details.is_empty() { head } else { format!("{head} ({})", details.join("; ")) }
}

/// Why a fleet that may grow buys nothing for the gang.
fn why_not_sold(gang: &Gang, fleet: &PoolFleet, market: &dyn Market) -> Option<String> {
    if !may_buy(gang, fleet, 0) {
        return None;
    }
    gang.nodes.iter().find_map(|node| match market.growth(gang, node, fleet) {
        Growth::Nothing(because) => Some(format!("fleet {}: {because}", fleet.name)),
        Growth::NotAsked | Growth::Unknown | Growth::Price(_) => None,
    })
}

fn busy_reason(needed: u32, instance: &PoolInstance) -> String {
    if instance.free_blocks.is_empty() || (instance.free_blocks.len() as u32) < needed {
        "busy".to_owned()
    } else {
        "free, but not enough of its peers are".to_owned()
    }
}

impl Gang {
    /// Whether the run may use a fleet at all, free or not.
    pub fn admits(&self, fleet: &PoolFleet) -> bool {
        admits(self, fleet)
    }

    /// Every instance that suits the gang's first node, free or not, the best first.
    pub fn candidates(&self, pool: &Pool) -> Vec<Candidate> {
        let Some(node) = self.nodes.first() else { return vec![] };
        let mut found = vec![];
        for fleet in pool.fleets.iter().filter(|fleet| admits(self, fleet)) {
            for instance in &fleet.instances {
                let Ok(blocks) = needed_blocks(self, node, instance) else { continue };
                let free = instance.free_blocks.len() >= blocks as usize;
                found.push(Candidate { fleet_id: fleet.id, instance_id: instance.id, blocks, free });
            }
        }
        found
    }

    /// Why no instance of the project suits, if none does; for plans.
    pub fn obstacle(&self, pool: &Pool) -> Option<String> {
        match place_one(self, &mut pool.clone(), &Growth::Unknown) {
            Outcome::Placed { .. } | Outcome::AskOffers { .. } => None,
            Outcome::NoCapacity { message } => message,
        }
    }
}

/// The profile keys of a run's configuration, filled from its profile.
pub fn profile_of(spec: &RunSpec) -> ProfileParams {
    api::configurations::merged_params(spec.configuration.profile_params(), spec.profile.as_ref())
}

/// Whether a fleet's instances are close to each other.
pub fn is_cluster(placement: Option<InstanceGroupPlacement>) -> bool {
    placement == Some(InstanceGroupPlacement::Cluster)
}
