//! What exactly a launch asks of AWS, found out before it is asked. It is recorded with the launch, so that the same
//! token always comes with the same request, whatever images or networks are there when it is repeated.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::{AwsConfig, RootVolume};
use super::images::FoundImage;
use super::layout::{Interface, efa_count, layout};
use super::network::RegionNetwork;
use super::placement_groups;
use super::reservations::Reservation;
use super::types::TypeFacts;
use super::user_data;
use crate::keys::invalid;
use crate::{LaunchOrder, Result};

/// What an offer carries for the launch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct OfferData {
    /// EFA interfaces that a machine gets; also read by whoever checks machines.
    pub(super) efa_interfaces: u32,
    /// The reservation that it would be bought from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reservation: Option<Reservation>,
    /// When AWS begins to end its machines; also read by whoever ends their jobs before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ends_at: Option<Timestamp>,
}

/// A request for machines, but for its token and their number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Prepared {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) instance_type: String,
    pub(super) image: FoundImage,
    pub(super) disk_gib: i32,
    pub(super) user_data: String,
    pub(super) subnet_id: String,
    pub(super) security_group_ids: Vec<String>,
    pub(super) interfaces: Vec<Interface>,
    /// AWS gives the one interface an address that the world can reach, or not. With several it may not be said.
    pub(super) public_address: Option<bool>,
    /// The group that the machines are close to each other in.
    pub(super) placement_group: Option<Group>,
    pub(super) market: Market,
    pub(super) reservation: Option<Reservation>,
    pub(super) iam_instance_profile: Option<String>,
    pub(super) metadata_hop_limit: i32,
    pub(super) root_volume: SavedVolume,
    pub(super) tags: BTreeMap<String, String>,
    /// The name of each machine begins with this.
    pub(super) name: String,
    pub(super) machines_per_call: u32,
}

/// A cluster placement group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) name: String,
    /// Made for this fleet, and removed with it.
    pub(super) is_own: bool,
}

/// How machines are paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Market {
    OnDemand,
    Spot,
    CapacityBlock,
}

/// The root disk as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedVolume {
    pub(super) volume_type: String,
    pub(super) encrypted: Option<bool>,
    pub(super) kms_key_id: Option<String>,
    pub(super) iops: Option<i32>,
    pub(super) throughput: Option<i32>,
}

impl SavedVolume {
    fn of(volume: &RootVolume) -> SavedVolume {
        let RootVolume { volume_type, encrypted, kms_key_id, iops, throughput } = volume.clone();
        // A key of one's own says that the disk is encrypted.
        let encrypted = encrypted.or(kms_key_id.is_some().then_some(true));
        SavedVolume { volume_type, encrypted, kms_key_id, iops, throughput }
    }
}

/// Whether machines get their EFA interfaces. They do wherever these cost nothing: with several interfaces AWS gives no
/// public address by itself, and those that are bought for it are few.
pub(super) fn wants_efa(config: &AwsConfig, facts: &TypeFacts, cluster: bool) -> bool {
    cluster || !config.public_ips || layout(&facts.network, true).len() == 1
}

/// What else is known for a launch.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) config: &'a AwsConfig,
    pub(super) facts: &'a TypeFacts,
    pub(super) network: &'a RegionNetwork,
    pub(super) image: FoundImage,
    pub(super) security_group_ids: Vec<String>,
    pub(super) data: OfferData,
    pub(super) own_tags: BTreeMap<String, String>,
}

/// Puts the request together.
pub(super) fn prepare(order: &LaunchOrder, around: Surroundings<'_>) -> Result<Prepared> {
    let Surroundings { config, facts, network, image, security_group_ids, data, own_tags } = around;
    let zone = order.zone.clone().ok_or_else(|| invalid("a launch on AWS needs a zone"))?;
    let subnet = network.subnet(&zone, order.least)?;
    let interfaces = layout(&facts.network, wants_efa(config, facts, order.cluster));
    let is_block = data.reservation.as_ref().is_some_and(|reservation| reservation.is_block);
    let market = match (is_block, order.offer.instance_type.resources.spot) {
        (true, _) => Market::CapacityBlock,
        (false, true) => Market::Spot,
        (false, false) => Market::OnDemand,
    };
    let disk_gib = order.offer.instance_type.resources.disk.size_mib.div_ceil(1024);
    let user_data = user_data::text(&order.authorized_keys, image.lacks_docker).map_err(invalid)?;
    let user = image.user.clone();
    Ok(Prepared {
        region: order.offer.region.clone(),
        zone,
        instance_type: facts.name.clone(),
        disk_gib: i32::try_from(disk_gib).unwrap_or(i32::MAX).max(image.least_disk_gib),
        image,
        user_data,
        subnet_id: subnet.id.clone(),
        security_group_ids,
        public_address: (interfaces.len() == 1).then_some(config.public_ips),
        placement_group: group(order, facts, &interfaces, data.reservation.as_ref()),
        interfaces,
        market,
        reservation: data.reservation,
        iam_instance_profile: config.iam_instance_profile.clone(),
        // Containers on a bridge are one hop further away, and only a profile has anything for them.
        metadata_hop_limit: if config.iam_instance_profile.is_some() { 2 } else { 1 },
        root_volume: SavedVolume::of(&config.root_volume),
        tags: tags(config, order, &user, own_tags),
        name: format!("dstack-{}-{}", order.project_name, order.fleet_name),
        machines_per_call: config.machines_per_call,
    })
}

fn group(
    order: &LaunchOrder,
    facts: &TypeFacts,
    interfaces: &[Interface],
    reservation: Option<&Reservation>,
) -> Option<Group> {
    if let Some(name) = reservation.and_then(|reservation| reservation.placement_group.clone()) {
        return Some(Group { name, is_own: false });
    }
    // A capacity block is close together already, and AWS refuses a group with it.
    let is_block = reservation.is_some_and(|reservation| reservation.is_block);
    let helps = facts.may_cluster && (order.count > 1 || order.cluster || efa_count(interfaces) > 1);
    let is_own = order.cluster && helps && !is_block;
    is_own.then(|| Group { name: placement_groups::name(&order.fleet_name, order.fleet_id), is_own: true })
}

fn tags(
    config: &AwsConfig,
    order: &LaunchOrder,
    user: &str,
    own: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut tags = config.tags.clone();
    tags.insert("dstack_project".to_owned(), order.project_name.clone());
    tags.insert("dstack_fleet".to_owned(), order.fleet_name.clone());
    tags.insert(super::tags::FLEET.to_owned(), order.fleet_id.to_string());
    tags.insert(super::tags::LAUNCH.to_owned(), order.launch_id.to_string());
    tags.insert(super::tags::LOGIN.to_owned(), user.to_owned());
    tags.extend(own);
    tags
}
