//! Where a gang's nodes are to each other. A cluster's fabric reaches neither beyond a zone nor from one type of machine
//! to another, and within a zone the way over one switch is shorter than the way over three: collectives go from each
//! rank to the next.

use std::collections::BTreeSet;

use api::configurations::RunConfiguration;
use api::runs::RunSpec;

use super::gang::{Candidacy, Gang, Node, PoolFleet, PoolInstance};

/// A place where a gang may be whole: the machines of one type in a zone, or what of them is under one switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Home<'a> {
    /// None: anywhere.
    zone: Option<(Option<&'a str>, Option<&'a str>)>,
    /// The type that all are of; none: the gang's nodes may be on any, or nobody sold these machines.
    kind: Option<&'a str>,
    is_of_one_type: bool,
    /// The switches above all of it, the highest first.
    switches: &'a [String],
}

impl Home<'_> {
    pub(super) fn has(&self, instance: &PoolInstance) -> bool {
        self.zone.is_none_or(|zone| zone == (instance.region.as_deref(), instance.zone.as_deref()))
            && (!self.is_of_one_type || self.kind == bought_type(instance))
            && instance.network_path.starts_with(self.switches)
    }

    /// Whether what the fleet would buy may stand beside the machines here.
    pub(super) fn may_grow(&self, fleet: &PoolFleet) -> bool {
        match (self.kind, &fleet.only_type) {
            (Some(kind), Some(only_type)) => kind == only_type,
            (None, _) | (_, None) => true,
        }
    }
}

fn bought_type(instance: &PoolInstance) -> Option<&str> {
    let kind = instance.instance_type.as_ref().filter(|_| instance.is_bought)?;
    Some(&kind.name)
}

/// The places where the gang may be whole, the closest first: of equal ones the first is taken. A job without peers may
/// be anywhere.
pub(super) fn homes<'a>(gang: &Gang, fleet: &'a PoolFleet) -> Vec<Home<'a>> {
    let is_of_one_type = gang.is_of_one_type();
    let anywhere = Home { zone: None, kind: None, is_of_one_type: false, switches: &[] };
    if gang.nodes.len() < 2 || fleet.instances.is_empty() {
        return vec![anywhere];
    }
    let of_instance = |instance: &'a PoolInstance| {
        let zone = Some((instance.region.as_deref(), instance.zone.as_deref()));
        let path = &instance.network_path[..];
        let kind = bought_type(instance).filter(|_| is_of_one_type);
        (0..=path.len()).map(move |depth| Home { zone, kind, is_of_one_type, switches: &path[..depth] })
    };
    let all: BTreeSet<Home<'a>> = fleet.instances.iter().flat_map(of_instance).collect();
    // Under a switch with too few machines nothing is whole but what would be bought, and nobody knows where that comes.
    let is_large_enough = |home: &Home<'_>| {
        home.switches.is_empty()
            || gang.nodes.len() <= fleet.instances.iter().filter(|instance| home.has(instance)).count()
    };
    let mut homes: Vec<Home<'a>> = all.into_iter().filter(is_large_enough).collect();
    homes.sort_by_key(|home| std::cmp::Reverse(home.switches.len()));
    homes
}

impl Gang {
    /// Whether its nodes are to be on machines of one type, where backends sell them: a fabric such as EFA does not
    /// reach from one type to another. Nodes that need different things have asked for different machines.
    pub fn is_of_one_type(&self) -> bool {
        self.nodes.len() > 1 && !self.has_unlike_nodes()
    }

    /// Whether its nodes need different things.
    pub fn has_unlike_nodes(&self) -> bool {
        !are_alike(&self.nodes)
    }
}

fn are_alike(nodes: &[Node]) -> bool {
    nodes.windows(2).all(|pair| pair[0].requirements == pair[1].requirements)
}

/// Whether nodes of a run need different machines, as its configuration says.
pub fn has_unlike_nodes(spec: &RunSpec) -> bool {
    let RunConfiguration::Task(task) = &spec.configuration else { return false };
    task.node_groups().windows(2).any(|pair| pair[0].resources != pair[1].resources)
}

/// Why a cluster buys nothing but one type, for people.
pub fn of_one_type(name: &str) -> String {
    format!(
        "The cluster's machines are `{name}`, and no other type is bought for it: types do not mix in a cluster"
    )
}

/// Gives neighbouring ranks to neighbouring machines, among nodes that need the same: any of them may have the place of
/// any other. Where nobody knows how machines are connected nothing changes.
pub(super) fn put_neighbours_together(nodes: &[Node], near: &[&PoolInstance], chosen: &mut [Option<&Candidacy>]) {
    let all_alike = are_alike(nodes);
    let is_known = |candidacy: &&Candidacy| !near[candidacy.instance].network_path.is_empty();
    if !all_alike || !chosen.iter().flatten().all(is_known) {
        return;
    }
    let key = |candidacy: &&Candidacy| {
        let instance = near[candidacy.instance];
        by_neighbourhood(&instance.network_path, instance.instance_num)
    };
    // Nodes without a machine stay where they are.
    let mut ordered: Vec<&Candidacy> = chosen.iter().flatten().copied().collect();
    ordered.sort_by(|left, right| key(left).cmp(&key(right)));
    for (place, candidacy) in chosen.iter_mut().filter(|place| place.is_some()).zip(ordered) {
        *place = Some(candidacy);
    }
}

/// What neighbouring machines are sorted by: the switches above a machine, and its number.
fn by_neighbourhood(path: &[String], number: u32) -> (&[String], u32) {
    (path, number)
}

/// For each rank the place of its machine in this list, so that neighbouring ranks are neighbouring machines; none if they
/// are so already, or nobody knows how the machines are connected. Each machine is told by the switches above it and its
/// number.
pub fn neighbours_together(machines: &[(&[String], u32)]) -> Option<Vec<usize>> {
    if machines.iter().any(|(path, _)| path.is_empty()) {
        return None;
    }
    let key = |place: &usize| by_neighbourhood(machines[*place].0, machines[*place].1);
    let mut order: Vec<usize> = (0..machines.len()).collect();
    order.sort_by(|left, right| key(left).cmp(&key(right)));
    (!order.is_sorted()).then_some(order)
}
