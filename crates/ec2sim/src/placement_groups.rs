//! Placement groups.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, TagSpecification, Tags, tag_set, tags_by_kind};
use crate::instances::State;
use crate::ledger::Kind;
use crate::world::Region;

/// The most groups of a region.
const MAX_GROUPS: usize = 500;

/// A placement group.
#[derive(Debug)]
pub(crate) struct PlacementGroup {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) strategy: String,
    pub(crate) tags: Tags,
    pub(crate) made_at: Timestamp,
    /// When its name is free again, once it is being deleted.
    gone_at: Option<Timestamp>,
}

impl PlacementGroup {
    fn render(&self, region: &str, account: &str) -> Value {
        json!({
            "GroupId": self.id,
            "GroupName": self.name,
            "GroupArn": format!("arn:aws:ec2:{region}:{account}:placement-group/{}", self.name),
            "Strategy": self.strategy,
            "State": if self.gone_at.is_some() { "deleting" } else { "available" },
            "Tags": tag_set(&self.tags),
        })
    }
}

/// How a group that is not there is refused.
pub(crate) fn unknown(name: &str) -> ApiError {
    ApiError::client("InvalidPlacementGroup.Unknown", format!("The Placement Group '{name}' is unknown."))
}

/// Forgets the groups whose deletion is over.
fn forget_deleted(region: &mut Region, now: Timestamp) {
    region.placement_groups.retain(|_, group| group.gone_at.is_none_or(|gone_at| now < gone_at));
}

/// Finds a group that instances may be launched into.
pub(crate) fn find<'a>(call: &'a mut Call<'_>, name: &str) -> Result<&'a PlacementGroup, ApiError> {
    let now = call.now();
    forget_deleted(call.region(), now);
    let made_at = call.region().placement_groups.get(name).map(|group| group.made_at);
    let is_seen = made_at.is_some_and(|made_at| call.world.sees_resource(made_at));
    let group = call.region().placement_groups.get(name).filter(|group| is_seen && group.gone_at.is_none());
    group.ok_or_else(|| unknown(name))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewGroup {
    group_name: Option<String>,
    strategy: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreatePlacementGroup.
pub(crate) fn create_placement_group(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewGroup = call.read()?;
    let tags = tags_by_kind(&new.tag_specifications, &["placement-group"])?.remove("placement-group");
    if tags.is_some() {
        call.permit("ec2:CreateTags")?;
    }
    let missing = |name: &str| {
        ApiError::client("MissingParameter", format!("The request must contain the parameter {name}"))
    };
    let name = new.group_name.ok_or_else(|| missing("groupName"))?;
    let strategy = new.strategy.ok_or_else(|| missing("strategy"))?;
    if name.is_empty() || 255 < name.len() || !name.is_ascii() {
        return Err(ApiError::invalid_value(&name, "groupName", "Up to 255 ASCII characters."));
    }
    if strategy == "partition" {
        return Err(ApiError::not_simulated("the strategy `partition`"));
    }
    let now = call.now();
    let account = call.account();
    let region = call.region();
    forget_deleted(region, now);
    if region.placement_groups.contains_key(&name) {
        let message = format!("The Placement Group '{name}' already exists.");
        return Err(ApiError::client("InvalidPlacementGroup.Duplicate", message));
    }
    if MAX_GROUPS <= region.placement_groups.len() {
        let message = format!("You have reached the limit of {MAX_GROUPS} placement groups.");
        return Err(ApiError::client("PlacementGroupLimitExceeded", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let group = PlacementGroup {
        id: rest.ids.resource("pg"),
        name: name.clone(),
        strategy,
        tags: tags.unwrap_or_default(),
        made_at: rest.now,
        gone_at: None,
    };
    rest.ledger.made(Kind::PlacementGroup, &name, &region.name, rest.action, rest.now, &group.tags);
    let answer = json!({"PlacementGroup": group.render(&region.name, &account)});
    region.placement_groups.insert(name, group);
    Ok(answer)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    group_names: Vec<String>,
    #[serde(default)]
    group_ids: Vec<String>,
}

/// DescribePlacementGroups.
pub(crate) fn describe_placement_groups(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let (now, account) = (call.now(), call.account());
    forget_deleted(call.region(), now);
    let seen: Vec<(String, Timestamp)> =
        call.region().placement_groups.values().map(|group| (group.name.clone(), group.made_at)).collect();
    let seen: Vec<String> =
        seen.into_iter().filter(|(_, at)| call.world.sees_resource(*at)).map(|(name, _)| name).collect();
    let region = call.region();
    let groups: Vec<&PlacementGroup> = seen.iter().map(|name| &region.placement_groups[name]).collect();
    if let Some(name) = asked.group_names.iter().find(|name| !seen.contains(name)) {
        return Err(unknown(name));
    }
    if let Some(id) = asked.group_ids.iter().find(|id| !groups.iter().any(|group| group.id == **id)) {
        return Err(ApiError::client(
            "InvalidPlacementGroupId.NotFound",
            format!("The placement group ID '{id}' does not exist"),
        ));
    }
    let is_asked = |group: &&PlacementGroup| {
        (asked.group_names.is_empty() || asked.group_names.contains(&group.name))
            && (asked.group_ids.is_empty() || asked.group_ids.contains(&group.id))
    };
    let rows: Vec<Value> =
        groups.into_iter().filter(is_asked).map(|group| group.render(&region.name, &account)).collect();
    let paths =
        [("group-name", "GroupName"), ("group-arn", "GroupArn"), ("state", "State"), ("strategy", "Strategy")];
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    Ok(json!({"PlacementGroups": rows}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Deletion {
    group_name: String,
}

/// DeletePlacementGroup.
pub(crate) fn delete_placement_group(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let name = call.read::<Deletion>()?.group_name;
    find(call, &name)?;
    let region = call.region();
    let uses_it = |group: Option<&String>| group == Some(&name);
    let is_used = region
        .instances
        .values()
        .any(|instance| uses_it(instance.placement_group.as_ref()) && instance.state() != State::Terminated);
    let arn_end = format!("placement-group/{name}");
    let is_reserved = region
        .reservations
        .values()
        .any(|reservation| reservation.placement_group_arn.as_ref().is_some_and(|arn| arn.ends_with(&arn_end)));
    if is_used || is_reserved {
        let message = format!("The placement group '{name}' is in use and may not be deleted.");
        return Err(ApiError::client("InvalidPlacementGroup.InUse", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    if let Some(group) = region.placement_groups.get_mut(&name) {
        group.gone_at = Some(rest.now + crate::settings::millis(rest.settings.group_deletion_ms));
        rest.ledger.gone(Kind::PlacementGroup, &name, rest.now);
    }
    forget_deleted(region, rest.now);
    Ok(Value::Null)
}
