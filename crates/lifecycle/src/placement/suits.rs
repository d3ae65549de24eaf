//! Whether an instance suits a node, how many of its blocks the node needs, or why it does not suit.

use api::configurations::{InstanceSelector, ProfileParams};
use api::instances::Resources;
use api::jobs::Requirements;

use super::requirements;
use super::{Gang, Node, PoolInstance};

/// The blocks that a node would take of an instance, if it suits and they are free.
pub(super) fn free_blocks(gang: &Gang, node: &Node, instance: &PoolInstance) -> Option<Vec<u32>> {
    // Most machines are busy most of the time, and why one does not suit takes words.
    if instance.unusable || instance.free_blocks.is_empty() {
        return None;
    }
    let needed = needed_blocks(gang, node, instance).ok()?;
    let free = instance.free_blocks.len() >= needed as usize;
    free.then(|| instance.free_blocks.iter().take(needed as usize).copied().collect())
}

/// How many blocks a node needs of an instance, free or not, or why the instance does not suit.
pub(super) fn needed_blocks(gang: &Gang, node: &Node, instance: &PoolInstance) -> Result<u32, String> {
    suits(gang, node, instance)?;
    let Some(instance_type) = &instance.instance_type else {
        return Err("its hardware is not known yet".to_owned());
    };
    blocks_for(&node.requirements, gang.nodes.len() > 1, &instance_type.resources, instance.total_blocks)
}

/// The fewest blocks of a machine that have what a job needs, or why not even the whole machine does.
pub fn blocks_for(needed: &Requirements, has_peers: bool, has: &Resources, total: u32) -> Result<u32, String> {
    // The nodes of a gang take whole machines: they share the host's network.
    let least = if has_peers { total } else { 1 };
    let mut last = String::new();
    for blocks in least..=total {
        match requirements::check(&needed.resources, &requirements::share(has, blocks, total)) {
            Ok(()) => return Ok(blocks),
            Err(mismatch) => last = mismatch,
        }
    }
    Err(last)
}

/// Whether a list has a name, in whatever letters; no list has all.
pub fn is_listed(list: Option<&Vec<String>>, name: &str) -> bool {
    list.is_none_or(|list| list.iter().any(|one| one.eq_ignore_ascii_case(name)))
}

fn suits(gang: &Gang, node: &Node, instance: &PoolInstance) -> Result<(), String> {
    if instance.unusable {
        return Err("it does not answer or is ending".to_owned());
    }
    if let Some(missing) = instance.incomplete_efa.as_ref().filter(|_| gang.nodes.len() > 1) {
        return Err(format!("it has {missing}, and a job with several nodes needs all of them"));
    }
    if instance.admins_only && !gang.user_is_admin {
        return Err("it is the server's own machine, which only global admins may use".to_owned());
    }
    if gang.needs_docker && instance.has_docker == Some(false) {
        return Err("it has no container engine".to_owned());
    }
    let profile = &gang.profile;
    let in_list = |wanted: &Option<Vec<String>>, has: Option<&String>| {
        wanted.is_none() || has.is_some_and(|has| is_listed(wanted.as_ref(), has))
    };
    if let (Some(backends), Some(backend)) = (&profile.backends, &instance.backend)
        && !backends.contains(backend)
    {
        return Err("its backend is not in `backends`".to_owned());
    }
    if !in_list(&profile.regions, instance.region.as_ref()) {
        return Err("its region is not in `regions`".to_owned());
    }
    if !in_list(&profile.availability_zones, instance.zone.as_ref()) {
        return Err("its zone is not in `availability_zones`".to_owned());
    }
    if !in_list(&profile.instance_types, instance.instance_type.as_ref().map(|kind| &kind.name)) {
        return Err("its type is not in `instance_types`".to_owned());
    }
    if let Some(max_price) = node.requirements.max_price
        && max_price < instance.price
    {
        return Err(format!("it costs ${} an hour, over `max_price`", instance.price));
    }
    if let Some(reservation) =
        profile.reservation.as_ref().filter(|wanted| instance.reservation.as_ref() != Some(wanted))
    {
        return Err(format!("it is not of `reservation` {reservation}"));
    }
    let spot = instance.instance_type.as_ref().is_some_and(|kind| kind.resources.spot);
    if node.requirements.spot.is_some_and(|wanted| wanted != spot) {
        return Err("it does not fit `spot_policy`".to_owned());
    }
    is_selected(profile, instance)
}

fn is_selected(profile: &ProfileParams, instance: &PoolInstance) -> Result<(), String> {
    let Some(selectors) = &profile.instances else { return Ok(()) };
    let selected = selectors.iter().any(|selector| match selector {
        InstanceSelector::Name { name } => *name == instance.name,
        InstanceSelector::Hostname { hostname } => Some(hostname) == instance.hostname.as_ref(),
        InstanceSelector::Fleet { fleet, instance: number } => {
            instance.instance_num == *number && instance.name == format!("{}-{number}", fleet.name)
        }
    });
    if selected { Ok(()) } else { Err("it is not in `instances`".to_owned()) }
}
