//! Where a gang's nodes are to each other. A cluster's fabric does not reach beyond a zone, and within a zone the way
//! over one switch is shorter than the way over three: collectives go from each rank to the next.

use std::collections::BTreeSet;

use super::gang::{Candidacy, Gang, Node, PoolFleet, PoolInstance};

/// A place where a gang may be whole: a zone, or what is under one switch of it; none: anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Home<'a> {
    zone: Option<(Option<&'a str>, Option<&'a str>)>,
    /// The switches above all of it, the highest first.
    switches: &'a [String],
}

impl Home<'_> {
    pub(super) fn has(&self, instance: &PoolInstance) -> bool {
        self.zone.is_none_or(|zone| zone == (instance.region.as_deref(), instance.zone.as_deref()))
            && instance.network_path.starts_with(self.switches)
    }
}

/// The places where the gang may be whole, the closest first: of equal ones the first is taken. A job without peers may
/// be anywhere.
pub(super) fn homes<'a>(gang: &Gang, fleet: &'a PoolFleet) -> Vec<Home<'a>> {
    let anywhere = Home { zone: None, switches: &[] };
    if gang.nodes.len() < 2 || fleet.instances.is_empty() {
        return vec![anywhere];
    }
    let of_instance = |instance: &'a PoolInstance| {
        let zone = Some((instance.region.as_deref(), instance.zone.as_deref()));
        let path = &instance.network_path[..];
        (0..=path.len()).map(move |depth| Home { zone, switches: &path[..depth] })
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

/// Gives neighbouring ranks to neighbouring machines, among nodes that need the same: any of them may have the place of
/// any other. Where nobody knows how machines are connected nothing changes.
pub(super) fn put_neighbours_together(nodes: &[Node], near: &[&PoolInstance], chosen: &mut [Option<&Candidacy>]) {
    let all_alike = nodes.windows(2).all(|pair| pair[0].requirements == pair[1].requirements);
    let is_known = |candidacy: &&Candidacy| !near[candidacy.instance].network_path.is_empty();
    if !all_alike || !chosen.iter().flatten().all(is_known) {
        return;
    }
    let key = |candidacy: &&Candidacy| {
        let instance = near[candidacy.instance];
        (&instance.network_path, instance.instance_num)
    };
    // Nodes without a machine stay where they are.
    let mut ordered: Vec<&Candidacy> = chosen.iter().flatten().copied().collect();
    ordered.sort_by(|left, right| key(left).cmp(&key(right)));
    for (place, candidacy) in chosen.iter_mut().filter(|place| place.is_some()).zip(ordered) {
        *place = Some(candidacy);
    }
}
