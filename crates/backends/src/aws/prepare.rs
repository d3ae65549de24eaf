//! What exactly a launch asks of AWS, found out before it is asked. It is recorded with the launch, so that the same
//! token always comes with the same request, whatever images or networks are there when it is repeated.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::{AwsConfig, RootVolume, check_tag};
use super::images::FoundImage;
use super::layout::{Interface, efa_count, layout};
use super::network::RegionNetwork;
use super::placement_groups;
use super::reservations::Reservation;
use super::types::TypeFacts;
use super::user_data;
use crate::keys::invalid;
use crate::{LaunchOrder, Result};

/// AWS takes so many tags on a resource.
const MOST_TAGS: usize = 50;

/// Those of a machine that each call adds.
const LATER_TAGS: [&str; 2] = ["Name", super::tags::FIRST_INDEX];

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
    let placement_group = group(order, facts, &zone, &interfaces, data.reservation.as_ref());
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
        placement_group,
        interfaces,
        market,
        reservation: data.reservation,
        iam_instance_profile: config.iam_instance_profile.clone(),
        // Containers on a bridge are one hop further away, and only a profile has anything for them.
        metadata_hop_limit: if config.iam_instance_profile.is_some() { 2 } else { 1 },
        root_volume: SavedVolume::of(&config.root_volume),
        tags: tags(config, order, &user, own_tags),
        name: format!("dstack-{}-{}", order.project_name, order.name),
        machines_per_call: config.machines_per_call,
    })
}

fn group(
    order: &LaunchOrder,
    facts: &TypeFacts,
    zone: &str,
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
    is_own.then(|| Group { name: placement_groups::name(&order.fleet_name, order.fleet_id, zone), is_own: true })
}

/// Our own marks win over the configuration's tags, and these over the order's: a key that is there stays as it is.
fn tags(
    config: &AwsConfig,
    order: &LaunchOrder,
    user: &str,
    own: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut tags = own;
    tags.extend([
        ("dstack_project".to_owned(), order.project_name.clone()),
        ("dstack_name".to_owned(), order.name.clone()),
        ("dstack_user".to_owned(), order.user_name.clone()),
        ("dstack_fleet".to_owned(), order.fleet_name.clone()),
        (super::tags::FLEET.to_owned(), order.fleet_id.to_string()),
        (super::tags::LAUNCH.to_owned(), order.launch_id.to_string()),
        (super::tags::LOGIN.to_owned(), user.to_owned()),
    ]);
    for (key, value) in config.tags.iter().chain(&order.tags) {
        if tags.contains_key(key) || LATER_TAGS.contains(&key.as_str()) {
            continue;
        }
        let checked = check_tag(key, value).and_then(|()| {
            let has_room = tags.len() + LATER_TAGS.len() < MOST_TAGS;
            has_room
                .then_some(())
                .ok_or_else(|| format!("AWS takes {MOST_TAGS} tags on a resource, ours included"))
        });
        match checked {
            Ok(()) => drop(tags.insert(key.clone(), value.clone())),
            Err(why) => tracing::warn!("the tag `{key}` of `{}` is left out: {why}", order.name),
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tags_with(config_tags: &serde_json::Value, more: &serde_json::Value) -> BTreeMap<String, String> {
        let config = json!({ "type": "aws", "creds": { "type": "default" }, "tags": config_tags });
        let config = super::super::config::parse(&config).unwrap();
        let order: LaunchOrder = serde_json::from_value(json!({
            "launch_id": "00000000-0000-4000-8000-000000000001", "fleet_id": "00000000-0000-4000-8000-000000000002",
            "fleet_name": "a-fleet", "project_name": "main", "name": "a-fleet-0", "user_name": "ann", "tags": more,
            "offer": {
                "instance_type": { "name": "m7i.large", "resources": { "cpus": 2, "memory_mib": 8192, "gpus": [], "spot": false } },
                "region": "us-west-2", "zones": null, "price_usd_per_hour": 0.1, "availability": "available",
                "unavailable_because": null, "backend_data": null,
            },
            "zone": "us-west-2a", "count": 1, "least": 1, "cluster": false, "authorized_keys": [], "prepared": null,
            "fleet_prepared": [],
        }))
        .unwrap();
        tags(&config, &order, "ubuntu", BTreeMap::from([("owner".to_owned(), "dstack".to_owned())]))
    }

    #[track_caller]
    fn check(tags: &BTreeMap<String, String>, key: &str, expected: Option<&str>) {
        assert_eq!(tags.get(key).map(String::as_str), expected, "{key}");
    }

    #[test]
    fn a_key_that_is_there_stays_as_it_is() {
        let more = json!({
            "team": "of the fleet", "cost": "12", "owner": "me", "dstack_launch_id": "none", "Name": "mine",
            "dstack_first_index": "7", "aws:x": "1",
        });
        let tags = tags_with(&json!({ "team": "of the backend", "dstack_fleet_id": "none" }), &more);
        check(&tags, "team", Some("of the backend"));
        check(&tags, "cost", Some("12"));
        check(&tags, "owner", Some("dstack"));
        check(&tags, "dstack_launch_id", Some("00000000-0000-4000-8000-000000000001"));
        check(&tags, "dstack_fleet_id", Some("00000000-0000-4000-8000-000000000002"));
        check(&tags, "dstack_name", Some("a-fleet-0"));
        check(&tags, "dstack_user", Some("ann"));
        for key in ["Name", "dstack_first_index", "aws:x"] {
            check(&tags, key, None);
        }
    }

    #[test]
    fn there_are_never_more_than_aws_takes() {
        let many: BTreeMap<String, String> =
            (0..60).map(|number| (format!("k{number:02}"), String::new())).collect();
        let tags = tags_with(&json!({}), &json!(many));
        assert_eq!(tags.len() + LATER_TAGS.len(), MOST_TAGS);
        check(&tags, "k00", Some(""));
        check(&tags, "dstack_user", Some("ann"));
    }
}
