//! Tags of things that are there already.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, Page, Tag, Tags, are_too_many, check_tags, too_many_tags};
use crate::world::Region;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Change {
    resources: Vec<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

/// The tags of a resource, by the prefix of its identifier.
fn find<'a>(region: &'a mut Region, id: &str) -> Result<&'a mut Tags, ApiError> {
    let missing = || {
        let message = format!("The ID '{id}' does not exist");
        let code = match id.split('-').next().unwrap_or_default() {
            "i" => "InvalidInstanceID.NotFound",
            "vol" => "InvalidVolume.NotFound",
            "eni" => "InvalidNetworkInterfaceID.NotFound",
            "eipalloc" => "InvalidAllocationID.NotFound",
            "sg" => "InvalidGroup.NotFound",
            "subnet" => "InvalidSubnetID.NotFound",
            "vpc" => "InvalidVpcID.NotFound",
            _ => "InvalidID",
        };
        ApiError::client(code, message)
    };
    let tags = match id.split('-').next().unwrap_or_default() {
        "i" => region.instances.get_mut(id).map(|one| &mut one.tags),
        "vol" => region.volumes.get_mut(id).map(|one| &mut one.tags),
        "eni" => region.interfaces.get_mut(id).map(|one| &mut one.tags),
        "eipalloc" => region.addresses.get_mut(id).map(|one| &mut one.tags),
        "sg" => region.security_groups.get_mut(id).map(|one| &mut one.tags),
        "subnet" => region.network.subnets.get_mut(id).map(|one| &mut one.tags),
        "vpc" => region.network.vpcs.get_mut(id).map(|one| &mut one.tags),
        "cr" => region.reservations.get_mut(id).map(|one| &mut one.tags),
        "sir" => region.spot_requests.get_mut(id).map(|one| &mut one.tags),
        "pg" => region.placement_groups.values_mut().find(|one| one.id == id).map(|one| &mut one.tags),
        _ => None,
    };
    tags.ok_or_else(missing)
}

/// CreateTags.
pub(crate) fn create_tags(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let change: Change = call.read()?;
    let tags = check_tags(&change.tags)?;
    for id in &change.resources {
        let mut known = find(call.region(), id)?.clone();
        known.extend(tags.clone());
        if are_too_many(&known) {
            return Err(too_many_tags());
        }
    }
    call.proceed()?;
    for id in &change.resources {
        find(call.region(), id)?.extend(tags.clone());
    }
    Ok(Value::Null)
}

/// DeleteTags: of the keys that are named, with the values if any are; without keys, all.
pub(crate) fn delete_tags(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let change: Change = call.read()?;
    for id in &change.resources {
        find(call.region(), id)?;
    }
    call.proceed()?;
    for id in &change.resources {
        find(call.region(), id)?.retain(|key, value| {
            let is_meant = |tag: &Tag| {
                tag.key.as_ref() == Some(key) && tag.value.as_ref().is_none_or(|wanted| wanted == value)
            };
            !(change.tags.is_empty() || change.tags.iter().any(is_meant))
        });
    }
    Ok(Value::Null)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeTags.
pub(crate) fn describe_tags(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let region = call.region();
    let mut rows = Vec::new();
    let mut add = |kind: &str, id: &str, tags: &Tags| {
        rows.extend(
            tags.iter()
                .map(|(key, value)| json!({"ResourceType": kind, "ResourceId": id, "Key": key, "Value": value})),
        );
    };
    region.instances.values().for_each(|one| add("instance", &one.id, &one.tags));
    region.volumes.values().for_each(|one| add("volume", &one.id, &one.tags));
    region.interfaces.values().for_each(|one| add("network-interface", &one.id, &one.tags));
    region.addresses.values().for_each(|one| add("elastic-ip", &one.allocation_id, &one.tags));
    region.security_groups.values().for_each(|one| add("security-group", &one.id, &one.tags));
    region.placement_groups.values().for_each(|one| add("placement-group", &one.id, &one.tags));
    region.reservations.values().for_each(|one| add("capacity-reservation", &one.id, &one.tags));
    region.spot_requests.values().for_each(|one| add("spot-instances-request", &one.id, &one.tags));
    region.network.subnets.values().for_each(|one| add("subnet", &one.id, &one.tags));
    region.network.vpcs.values().for_each(|one| add("vpc", &one.id, &one.tags));
    // A filter by a tag is one by key and value here.
    let paths =
        [("resource-type", "ResourceType"), ("resource-id", "ResourceId"), ("key", "Key"), ("value", "Value")];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"Tags": rows, "NextToken": next}))
}
