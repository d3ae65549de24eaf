//! How many machines of a launch there are to be had: addresses, quotas and capacity.

use std::collections::BTreeMap;

use super::plan::Plan;
use super::reservations;
use crate::call::Call;
use crate::capacity::Market;
use crate::error::ApiError;
use crate::world::Region;
use crate::{interfaces, quotas, spot};

/// How many instances the launch gets, at least as many as it asks for.
pub(super) fn count(call: &mut Call<'_>, plan: &Plan) -> Result<usize, ApiError> {
    let (least, most) = plan.counts;
    let max_instances = call.world.settings.max_instances;
    let region = call.region();
    let mut count = most;
    let mut limit = |room: usize, refuse: &dyn Fn() -> ApiError| {
        if room < least {
            return Err(refuse());
        }
        count = count.min(room);
        Ok(())
    };
    if let Some(most) = max_instances {
        let running = region.instances.values().filter(|one| !one.is_over()).count();
        limit((most as usize).saturating_sub(running), &|| too_many(least, most))?;
    }
    if plan.market != Market::CapacityBlock {
        let (quota, room) = vcpu_room(region, plan);
        limit(room / plan.kind.vcpus.max(1) as usize, &|| match plan.market {
            Market::Spot => ApiError::client("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded"),
            _ => too_many_vcpus(quota),
        })?;
    }
    if let Some(room) = address_room(region, plan) {
        limit(room, &interfaces::no_address)?;
    }
    if let Some(most) = plan.max_price {
        let price = spot::price(&region.name, &plan.name, 0).unwrap_or_default();
        if most < price {
            let message = format!(
                "Your Spot request price of {most} is lower than the minimum required Spot request fulfillment price of {price:.4}."
            );
            return Err(ApiError::client("SpotMaxPriceTooLow", message));
        }
    }
    let now = call.now();
    let region = call.region();
    if !plan.reservations.is_empty() {
        let available = |id| region.reservations[id].available(region, now) as usize;
        limit(plan.reservations.iter().map(available).sum(), &reservations::no_room)?;
        return Ok(count);
    }
    let room = plan.zones.iter().map(|zone| zone_room(region, plan, zone)).max().unwrap_or(0);
    limit(room, &|| no_capacity(region, plan))?;
    Ok(count)
}

/// How many machines a zone has left.
pub(super) fn zone_room(region: &Region, plan: &Plan, zone: &str) -> usize {
    region.capacity.left(&plan.name, zone, plan.market).map_or(usize::MAX, |left| left as usize)
}

fn too_many(asked: usize, limit: u32) -> ApiError {
    let message = format!(
        "You have requested more instances ({asked}) than your current instance limit of {limit} allows for the specified \
         instance type. Please visit http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit."
    );
    ApiError::client("InstanceLimitExceeded", message)
}

fn too_many_vcpus(quota: usize) -> ApiError {
    let message = format!(
        "You have requested more vCPU capacity than your current vCPU limit of {quota} allows for the instance bucket that \
         the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request an \
         adjustment to this limit."
    );
    ApiError::client("VcpuLimitExceeded", message)
}

/// The quota of the type's bucket, and what is left of it.
fn vcpu_room(region: &Region, plan: &Plan) -> (usize, usize) {
    let is_spot = plan.market == Market::Spot;
    let code = quotas::vcpu_code(&plan.name, is_spot);
    let quota = quotas::value(region, code) as usize;
    let counts = |one: &&crate::instances::Instance| {
        !one.is_over() && one.market == plan.market && quotas::vcpu_code(&one.instance_type, is_spot) == code
    };
    let used: usize = region.instances.values().filter(counts).map(|one| one.vcpus as usize).sum();
    (quota, quota.saturating_sub(used))
}

/// How many instances the addresses of the subnets are enough for, where subnets are named.
fn address_room(region: &Region, plan: &Plan) -> Option<usize> {
    let mut needed: BTreeMap<&str, usize> = BTreeMap::new();
    for interface in plan.interfaces.iter().filter(|one| one.asked.interface_type != "efa-only") {
        *needed.entry(interface.subnet_id.as_deref()?).or_default() += 1;
    }
    let rooms = needed.iter().map(|(subnet, needed)| {
        region.network.subnets.get(*subnet).map_or(0, |subnet| subnet.free() as usize) / needed
    });
    rooms.min()
}

fn no_capacity(region: &Region, plan: &Plan) -> ApiError {
    if plan.market == Market::Spot {
        const MESSAGE: &str = "There is no Spot capacity available that matches your request.";
        return ApiError::with_status(500, "InsufficientInstanceCapacity", MESSAGE);
    }
    let name = &plan.name;
    let offered = crate::catalog::catalog().regions[&region.name].zones_with(&region.name, name);
    let others: Vec<String> = offered
        .into_iter()
        .filter(|zone| !plan.zones.contains(zone) && plan.counts.0 <= zone_room(region, plan, zone))
        .collect();
    let [zone] = &plan.zones[..] else {
        let message = format!(
            "We currently do not have sufficient {name} capacity in zones with support for 'gp3' volumes. Our system will be \
             working on provisioning additional capacity."
        );
        return ApiError::with_status(500, "InsufficientInstanceCapacity", message);
    };
    let hint = if others.is_empty() {
        String::new()
    } else {
        format!(
            " You can currently get {name} capacity by not specifying an Availability Zone in your request or choosing {}.",
            others.join(", ")
        )
    };
    let message = format!(
        "We currently do not have sufficient {name} capacity in the Availability Zone you requested ({zone}). Our system \
         will be working on provisioning additional capacity.{hint}"
    );
    ApiError::with_status(500, "InsufficientInstanceCapacity", message)
}
