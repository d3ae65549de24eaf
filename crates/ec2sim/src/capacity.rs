//! How many machines there are to be had, and those that were bought ahead.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::call::Call;
use crate::catalog::catalog;
use crate::error::ApiError;
use crate::filters::{Filter, Page, TagSpecification, Tags, tag_set, tags_by_kind};
use crate::ledger::Kind;
use crate::world::Region;
use crate::xml;

/// How long before the end of a capacity block its instances are ended.
pub(crate) const BLOCK_ENDS_EARLY: SignedDuration = SignedDuration::from_mins(30);

/// How a machine is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    /// By the hour, for as long as it is wanted.
    OnDemand,
    /// By the hour, until it is taken away.
    Spot,
    /// Ahead, for a fixed time.
    CapacityBlock,
}

/// How many machines are left, where that is limited.
#[derive(Debug, Default)]
pub(crate) struct Capacity(BTreeMap<(String, String, Market), u32>);

impl Capacity {
    /// Sets how many machines of a type are left in a zone; without a number, there are enough.
    pub(crate) fn set(&mut self, instance_type: &str, zone: &str, market: Market, left: Option<u32>) {
        let key = (instance_type.to_owned(), zone.to_owned(), market);
        match left {
            Some(left) => drop(self.0.insert(key, left)),
            None => drop(self.0.remove(&key)),
        }
    }

    /// How many are left, or nothing where there are enough.
    pub(crate) fn left(&self, instance_type: &str, zone: &str, market: Market) -> Option<u32> {
        self.0.get(&(instance_type.to_owned(), zone.to_owned(), market)).copied()
    }

    /// Takes machines; what is given back is a negative number.
    pub(crate) fn take(&mut self, instance_type: &str, zone: &str, market: Market, count: i64) {
        if let Some(left) = self.0.get_mut(&(instance_type.to_owned(), zone.to_owned(), market)) {
            *left = u32::try_from(i64::from(*left) - count).unwrap_or_default();
        }
    }
}

/// Capacity that was bought.
#[derive(Debug, Clone)]
pub(crate) struct Reservation {
    pub(crate) id: String,
    pub(crate) instance_type: String,
    pub(crate) zone: String,
    pub(crate) count: u32,
    pub(crate) is_block: bool,
    pub(crate) starts_at: Timestamp,
    pub(crate) ends_at: Option<Timestamp>,
    pub(crate) placement_group_arn: Option<String>,
    /// The resource groups that it was put into, by ARN.
    pub(crate) groups: Vec<String>,
    /// `default` or `dedicated`.
    pub(crate) tenancy: String,
    pub(crate) tags: Tags,
    pub(crate) made_at: Timestamp,
}

/// A reservation as a test wants it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewReservation {
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: String,
    /// The type.
    pub instance_type: String,
    /// For how many machines.
    pub count: u32,
    /// Whether it is a capacity block.
    #[serde(default)]
    pub block: bool,
    /// When it begins; now unless told.
    #[serde(default)]
    pub starts_at: Option<Timestamp>,
    /// When it ends.
    #[serde(default)]
    pub ends_at: Option<Timestamp>,
    /// The placement group that it is in.
    #[serde(default)]
    pub placement_group: Option<String>,
    /// The names of the resource groups that it is put into.
    #[serde(default)]
    pub groups: Vec<String>,
}

impl Reservation {
    /// What it is at that time.
    pub(crate) fn state(&self, now: Timestamp) -> &'static str {
        if now < self.starts_at {
            "scheduled"
        } else if self.ends_at.is_some_and(|end| end <= now) {
            "expired"
        } else {
            "active"
        }
    }

    /// How many of its machines are not in use.
    pub(crate) fn available(&self, region: &Region, now: Timestamp) -> u32 {
        if self.state(now) != "active" {
            return 0;
        }
        let uses_it = |instance: &&crate::instances::Instance| {
            instance.reservation.as_ref() == Some(&self.id) && !instance.is_over()
        };
        self.count.saturating_sub(region.instances.values().filter(uses_it).count() as u32)
    }

    fn render(&self, region: &Region, account: &str, now: Timestamp) -> Value {
        let available = self.available(region, now);
        json!({
            "CapacityReservationId": self.id,
            "CapacityReservationArn":
                format!("arn:aws:ec2:{}:{account}:capacity-reservation/{}", region.name, self.id),
            "OwnerId": account,
            "InstanceType": self.instance_type,
            "InstancePlatform": "Linux/UNIX",
            "AvailabilityZone": self.zone,
            "Tenancy": self.tenancy,
            "TotalInstanceCount": self.count,
            "AvailableInstanceCount": available,
            "EbsOptimized": true,
            "EphemeralStorage": false,
            "State": self.state(now),
            "StartDate": xml::time(self.starts_at),
            "EndDate": self.ends_at.map(xml::time),
            "EndDateType": if self.ends_at.is_some() { "limited" } else { "unlimited" },
            "InstanceMatchCriteria": "targeted",
            "CreateDate": xml::time(self.made_at),
            "PlacementGroupArn": self.placement_group_arn,
            "ReservationType": if self.is_block { "capacity-block" } else { "default" },
            "Tags": tag_set(&self.tags),
        })
    }
}

/// The ARN of a resource group.
pub(crate) fn group_arn(region: &str, account: &str, name: &str) -> String {
    format!("arn:aws:resource-groups:{region}:{account}:group/{name}")
}

/// How a reservation that is not there is refused.
pub(crate) fn not_found(id: &str) -> ApiError {
    if id.starts_with("cr-") {
        let message = format!("The capacity reservation ID '{id}' does not exist");
        ApiError::client("InvalidCapacityReservationId.NotFound", message)
    } else {
        ApiError::client(
            "InvalidCapacityReservationId.Malformed",
            format!("Invalid id: \"{id}\" (expecting \"cr-...\")"),
        )
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    capacity_reservation_ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeCapacityReservations.
pub(crate) fn describe_capacity_reservations(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let (now, account) = (call.now(), call.account());
    let region = call.region();
    let reservations = crate::network::select(&region.reservations, &asked.capacity_reservation_ids, not_found)?;
    let rows = reservations.into_iter().map(|one| one.render(region, &account, now)).collect();
    let paths = [
        ("state", "State"),
        ("instance-type", "InstanceType"),
        ("availability-zone", "AvailabilityZone"),
        ("tenancy", "Tenancy"),
        ("owner-id", "OwnerId"),
        ("instance-platform", "InstancePlatform"),
        ("instance-match-criteria", "InstanceMatchCriteria"),
        ("placement-group-arn", "PlacementGroupArn"),
        ("end-date-type", "EndDateType"),
    ];
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = page.cut(call.action, rows, (1, 1000))?;
    Ok(json!({"CapacityReservations": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedGroups {
    capacity_reservation_id: String,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// GetGroupsForCapacityReservation.
pub(crate) fn get_groups_for_capacity_reservation(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedGroups = call.read()?;
    let account = call.account();
    let id = &asked.capacity_reservation_id;
    let reservation = call.region().reservations.get(id).ok_or_else(|| not_found(id))?;
    let groups = reservation.groups.iter().map(|arn| json!({"GroupArn": arn, "OwnerId": account})).collect();
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (groups, next) = page.cut(call.action, groups, (1, 1000))?;
    Ok(json!({"CapacityReservationGroups": groups, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedBlocks {
    instance_type: Option<String>,
    instance_count: Option<i64>,
    start_date_range: Option<Timestamp>,
    end_date_range: Option<Timestamp>,
    capacity_duration_hours: i64,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// What a block would be: all of it stands in the offering's identifier, so that nothing needs to be remembered.
#[derive(Debug)]
struct Block {
    instance_type: String,
    zone: String,
    count: u32,
    starts_at: Timestamp,
    hours: i64,
}

impl Block {
    fn id(&self) -> String {
        let Block { instance_type, zone, count, starts_at, hours } = self;
        format!("cbo-{instance_type}/{zone}/{count}/{}/{hours}", starts_at.as_second())
    }

    fn of(id: &str) -> Option<Block> {
        let mut fields = id.strip_prefix("cbo-")?.split('/');
        Some(Block {
            instance_type: fields.next()?.to_owned(),
            zone: fields.next()?.to_owned(),
            count: fields.next()?.parse().ok()?,
            starts_at: Timestamp::from_second(fields.next()?.parse().ok()?).ok()?,
            hours: fields.next()?.parse().ok()?,
        })
    }

    fn ends_at(&self) -> Timestamp {
        self.starts_at + SignedDuration::from_hours(self.hours)
    }
}

/// DescribeCapacityBlockOfferings: one block in each zone that has the type, from the next full hour on.
pub(crate) fn describe_capacity_block_offerings(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedBlocks = call.read()?;
    let missing = |name: &str| {
        ApiError::client("MissingParameter", format!("The request must contain the parameter {name}"))
    };
    let name = asked.instance_type.ok_or_else(|| missing("InstanceType"))?;
    let count = asked.instance_count.unwrap_or(1);
    let hours = asked.capacity_duration_hours;
    if hours < 24 || hours % 24 != 0 || 182 * 24 < hours {
        return Err(ApiError::invalid_value(hours, "CapacityDurationHours", "Expected full days."));
    }
    if !(1..=64).contains(&count) {
        return Err(ApiError::invalid_value(count, "InstanceCount", "Expected 1 to 64."));
    }
    let has_blocks = catalog()
        .types
        .get(&name)
        .is_some_and(|one| one.usage_classes.iter().any(|class| class == "capacity-block"));
    if !has_blocks {
        let message = format!("The instance type {name} is not supported for Capacity Blocks");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let earliest = asked.start_date_range.unwrap_or(call.now()).max(call.now());
    let starts_at =
        Timestamp::from_second(earliest.as_second().div_euclid(3600) * 3600 + 3600).map_err(ApiError::internal)?;
    let region = call.region.clone();
    let price = catalog().prices.get(&(name.clone(), region.clone())).and_then(|price| price.on_demand);
    let mut rows = Vec::new();
    for zone in catalog().regions[&region].zones_with(&region, &name) {
        let block = Block { instance_type: name.clone(), zone, count: count as u32, starts_at, hours };
        if asked.end_date_range.is_some_and(|end| end < block.ends_at()) {
            continue;
        }
        let fee = price.unwrap_or(50.0) * hours as f64 * count as f64;
        rows.push(json!({
            "CapacityBlockOfferingId": block.id(),
            "InstanceType": block.instance_type,
            "AvailabilityZone": block.zone,
            "InstanceCount": count,
            "StartDate": xml::time(block.starts_at),
            "EndDate": xml::time(block.ends_at()),
            "CapacityBlockDurationHours": hours,
            "UpfrontFee": format!("{fee:.2}"),
            "CurrencyCode": "USD",
            "Tenancy": "default",
        }));
    }
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = page.cut(call.action, rows, (1, 1000))?;
    Ok(json!({"CapacityBlockOfferings": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Purchase {
    capacity_block_offering_id: String,
    instance_platform: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// PurchaseCapacityBlock.
pub(crate) fn purchase_capacity_block(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Purchase = call.read()?;
    let mut tags = tags_by_kind(&asked.tag_specifications, &["capacity-reservation"])?;
    if asked.instance_platform != "Linux/UNIX" {
        return Err(ApiError::not_simulated(format!("the platform `{}`", asked.instance_platform)));
    }
    let now = call.now();
    let block = Block::of(&asked.capacity_block_offering_id).filter(|block| now < block.starts_at);
    let block = block.ok_or_else(|| {
        let message = format!("The offering '{}' does not exist", asked.capacity_block_offering_id);
        ApiError::client("InvalidCapacityBlockOfferingId.NotFound", message)
    })?;
    call.proceed()?;
    let account = call.account();
    let id = add(
        call,
        Reservation {
            id: String::new(),
            ends_at: Some(block.ends_at()),
            instance_type: block.instance_type,
            zone: block.zone,
            count: block.count,
            is_block: true,
            starts_at: block.starts_at,
            placement_group_arn: None,
            groups: vec![],
            tenancy: "default".to_owned(),
            tags: tags.remove("capacity-reservation").unwrap_or_default(),
            made_at: now,
        },
    );
    let region = call.region();
    Ok(json!({"CapacityReservation": region.reservations[&id].render(region, &account, now)}))
}

fn add(call: &mut Call<'_>, mut reservation: Reservation) -> String {
    let (region, rest) = call.split();
    reservation.id = rest.ids.resource("cr");
    let id = reservation.id.clone();
    rest.ledger.made(Kind::CapacityReservation, &id, &region.name, rest.action, rest.now, &reservation.tags);
    region.reservations.insert(id.clone(), reservation);
    id
}
