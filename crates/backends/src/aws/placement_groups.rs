//! Cluster placement groups: one for each fleet that asks for one, in each zone where its machines are launched. A group
//! is bound to a zone for as long as a machine of it is there, also one that is ending: the machines that are bought in
//! the next zone instead must not be in the same one.

use std::collections::BTreeMap;

use api::ids::FleetId;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::types::{PlacementGroup, PlacementGroupState, PlacementStrategy, ResourceType};

use super::errors::failure;
use super::tags::{self, Owner, filter, specification};
use crate::Result;
use crate::keys::invalid;

/// The name of a fleet's group in a zone. Always the same one, so that it is found again and never made twice.
pub(super) fn name(fleet_name: &str, fleet: FleetId, zone: &str) -> String {
    let fleet_name: String = fleet_name.chars().take(60).collect();
    format!("dstack-{fleet_name}-{fleet}-{zone}")
}

/// Makes a fleet's group. Does nothing if it is there.
pub(super) async fn ensure(ec2: &aws_sdk_ec2::Client, name: &str, tags: &BTreeMap<String, String>) -> Result<()> {
    let request = ec2
        .create_placement_group()
        .group_name(name)
        .strategy(PlacementStrategy::Cluster)
        .tag_specifications(specification(ResourceType::PlacementGroup, tags));
    match request.send().await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("InvalidPlacementGroup.Duplicate") => check(ec2, name).await,
        Err(error) => Err(failure("create a placement group", &error)),
    }
}

/// Whether a group with that name is one that a cluster can use.
async fn check(ec2: &aws_sdk_ec2::Client, name: &str) -> Result<()> {
    let request = ec2.describe_placement_groups().filters(filter("group-name", [name]));
    let answer = request.send().await.map_err(|error| failure("describe the placement group", &error))?;
    match answer.placement_groups().first().and_then(PlacementGroup::strategy) {
        // It is not shown yet, or not any more; the launch will tell.
        None | Some(PlacementStrategy::Cluster) => Ok(()),
        Some(other) => Err(invalid(format!("the placement group {name} is there, with strategy {other}"))),
    }
}

/// The groups of our making that still stand, with their fleets.
pub(super) async fn list(ec2: &aws_sdk_ec2::Client, owner: Owner) -> Result<Vec<(String, Option<FleetId>)>> {
    let request = ec2.describe_placement_groups().set_filters(Some(owner.filters()));
    let answer = request.send().await.map_err(|error| failure("describe placement groups", &error))?;
    let standing = answer.placement_groups().iter().filter(|group| {
        !matches!(group.state(), Some(PlacementGroupState::Deleted | PlacementGroupState::Deleting))
    });
    let named = standing.filter_map(|group| Some((group.group_name()?.to_owned(), tags::fleet_of(group.tags()))));
    Ok(named.collect())
}

/// Removes a group, and says whether it is gone. One that still has machines stays for now.
pub(super) async fn remove(ec2: &aws_sdk_ec2::Client, name: &str) -> Result<bool> {
    match ec2.delete_placement_group().group_name(name).send().await {
        Ok(_) => Ok(true),
        Err(error) => match error.code() {
            Some("InvalidPlacementGroup.Unknown") => Ok(true),
            Some("InvalidPlacementGroup.InUse") => Ok(false),
            _ => Err(failure("delete a placement group", &error)),
        },
    }
}
