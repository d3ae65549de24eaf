//! Removes what belongs to nobody any more, but for machines, which are ended one by one.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use aws_sdk_ec2::error::ProvideErrorMetadata;

use super::addresses;
use super::errors::failure;
use super::placement_groups;
use super::tags::{self, Owner, filter};
use crate::{Living, MachineKey, Result};

/// The groups of each region that no living fleet had when it was last looked.
pub(super) type Unclaimed = Mutex<HashSet<(String, String)>>;

/// Looks once at everything of ours in a region. What still stands and is to go, and what could not be looked at, is
/// told in words. No failure keeps the rest from being removed.
pub(super) async fn tidy(
    ec2: &aws_sdk_ec2::Client,
    owner: Owner,
    region: &str,
    living: &Living,
    unclaimed: &Unclaimed,
) -> Vec<String> {
    let parts = [
        ("placement groups", groups(ec2, owner, region, living, unclaimed).await),
        ("public addresses", public_addresses(ec2, owner, living).await),
        ("network interfaces", interfaces(ec2, owner, living).await),
        ("volumes", volumes(ec2, owner, living).await),
    ];
    let mut left = vec![];
    for (what, part) in parts {
        match part {
            Ok(more) => left.extend(more),
            Err(error) => {
                tracing::warn!("{region}: {what} cannot be tidied: {error}");
                left.push(format!("{what} ({error})"));
            }
        }
    }
    left
}

/// Addresses of machines that are gone, and those that a machine has too many.
async fn public_addresses(ec2: &aws_sdk_ec2::Client, owner: Owner, living: &Living) -> Result<Vec<String>> {
    let all = addresses::list(ec2, owner, None).await?;
    let in_use: HashSet<MachineKey> =
        all.iter().filter(|one| one.association_id.is_some()).filter_map(|one| one.key.clone()).collect();
    let mut left = vec![];
    for address in &all {
        let is_wanted = address.key.as_ref().is_some_and(|key| {
            let has_another = address.association_id.is_none() && in_use.contains(key);
            living.has(key) && !has_another
        });
        if is_wanted {
            continue;
        }
        if let Err(error) = addresses::release(ec2, address).await {
            tracing::warn!("{error}");
            left.push(format!("public address {}", address.public_ip));
        }
    }
    Ok(left)
}

/// Placement groups of fleets that are over. What lives was read before the groups were listed, so a group may be of a
/// fleet that is younger than that: it is removed only if it was nobody's the last time too.
async fn groups(
    ec2: &aws_sdk_ec2::Client,
    owner: Owner,
    region: &str,
    living: &Living,
    unclaimed: &Unclaimed,
) -> Result<Vec<String>> {
    let mut left = vec![];
    for (name, fleet) in placement_groups::list(ec2, owner).await? {
        let key = (region.to_owned(), name);
        let is_wanted = fleet.is_some_and(|fleet| living.fleets.contains(&fleet));
        let is_known = {
            let mut unclaimed = unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
            if is_wanted {
                unclaimed.remove(&key);
                continue;
            }
            !unclaimed.insert(key.clone())
        };
        let is_gone = is_known
            && placement_groups::remove(ec2, &key.1).await.unwrap_or_else(|error| {
                tracing::warn!("{error}");
                false
            });
        if is_gone {
            unclaimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        } else {
            left.push(format!("placement group {}", key.1));
        }
    }
    Ok(left)
}

/// Interfaces that a machine's end has left behind.
async fn interfaces(ec2: &aws_sdk_ec2::Client, owner: Owner, living: &Living) -> Result<Vec<String>> {
    let mut request = ec2.describe_network_interfaces().filters(filter("status", ["available"]));
    for condition in owner.filters() {
        request = request.filters(condition);
    }
    let mut pages = request.into_paginator().send();
    let mut left = vec![];
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe network interfaces", &error))?;
        for interface in page.network_interfaces() {
            let launch = tags::launch_of(interface.tag_set());
            let Some(id) = interface.network_interface_id() else { continue };
            if launch.is_none_or(|launch| living.launches.contains(&launch)) {
                continue;
            }
            if let Err(error) = ec2.delete_network_interface().network_interface_id(id).send().await
                && error.code() != Some("InvalidNetworkInterfaceID.NotFound")
            {
                tracing::warn!("{}", failure("delete a network interface", &error));
                left.push(format!("network interface {id}"));
            }
        }
    }
    Ok(left)
}

/// Root disks that a machine's end has left behind. Volumes of users carry no launch.
async fn volumes(ec2: &aws_sdk_ec2::Client, owner: Owner, living: &Living) -> Result<Vec<String>> {
    let mut request = ec2.describe_volumes().filters(filter("status", ["available"]));
    for condition in owner.filters() {
        request = request.filters(condition);
    }
    let mut pages = request.into_paginator().send();
    let mut left = vec![];
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe volumes", &error))?;
        for volume in page.volumes() {
            let launch = tags::launch_of(volume.tags());
            let Some(id) = volume.volume_id() else { continue };
            if launch.is_none_or(|launch| living.launches.contains(&launch)) {
                continue;
            }
            if let Err(error) = ec2.delete_volume().volume_id(id).send().await
                && error.code() != Some("InvalidVolume.NotFound")
            {
                tracing::warn!("{}", failure("delete a volume", &error));
                left.push(format!("volume {id}"));
            }
        }
    }
    Ok(left)
}
