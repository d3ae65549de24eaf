//! RunInstances: what is asked, whether it may be, how many there are to be had, and the making of them.

mod make;
mod plan;
mod reservations;
mod room;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::TagSpecification;
use crate::instances::{self, State};

/// The longest token.
const MAX_TOKEN: usize = 64;

/// What was asked for under a client's token, and what came of it.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) parameters: Value,
    pub(crate) instances: Vec<String>,
}

/// The parameters of RunInstances that are simulated. Another one is refused, and not ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    image_id: Option<String>,
    instance_type: Option<String>,
    min_count: i64,
    max_count: i64,
    key_name: Option<String>,
    subnet_id: Option<String>,
    #[serde(default)]
    security_group_ids: Vec<String>,
    #[serde(default)]
    network_interfaces: Vec<AskedInterface>,
    user_data: Option<String>,
    #[serde(default)]
    block_device_mappings: Vec<AskedVolume>,
    placement: Option<AskedPlacement>,
    iam_instance_profile: Option<AskedProfile>,
    instance_market_options: Option<AskedMarket>,
    capacity_reservation_specification: Option<AskedReservation>,
    metadata_options: Option<AskedMetadata>,
    instance_initiated_shutdown_behavior: Option<String>,
    ebs_optimized: Option<bool>,
    monitoring: Option<AskedMonitoring>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    client_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedInterface {
    device_index: Option<i64>,
    network_card_index: Option<i64>,
    interface_type: Option<String>,
    subnet_id: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    associate_public_ip_address: Option<bool>,
    delete_on_termination: Option<bool>,
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedVolume {
    device_name: Option<String>,
    ebs: Option<AskedEbs>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedEbs {
    volume_size: Option<i64>,
    volume_type: Option<String>,
    iops: Option<i64>,
    throughput: Option<i64>,
    encrypted: Option<bool>,
    kms_key_id: Option<String>,
    delete_on_termination: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedPlacement {
    availability_zone: Option<String>,
    group_name: Option<String>,
    tenancy: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedProfile {
    arn: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedMarket {
    market_type: Option<String>,
    spot_options: Option<AskedSpot>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedSpot {
    max_price: Option<String>,
    spot_instance_type: Option<String>,
    instance_interruption_behavior: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedReservation {
    capacity_reservation_preference: Option<String>,
    capacity_reservation_target: Option<AskedTarget>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedTarget {
    capacity_reservation_id: Option<String>,
    capacity_reservation_resource_group_arn: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedMetadata {
    http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    instance_metadata_tags: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedMonitoring {
    enabled: bool,
}

/// RunInstances.
pub(crate) fn run_instances(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let mut parameters = call.parameters().clone();
    let asked: Asked = call.read()?;
    let token = asked.client_token.clone();
    if token.as_ref().is_some_and(|token| MAX_TOKEN < token.len() || !token.is_ascii()) {
        let why = format!("At most {MAX_TOKEN} ASCII characters.");
        return Err(ApiError::invalid_value(token.unwrap_or_default(), "clientToken", &why));
    }
    if let Some(object) = parameters.as_object_mut() {
        object.remove("ClientToken");
    }
    if let Some(token) = &token {
        let known = call.region().tokens.get(token);
        if let Some((same, made)) = known.map(|known| (known.parameters == parameters, known.instances.clone())) {
            return answer_again(call, same, &made);
        }
    }
    let plan = plan::plan(call, asked)?;
    call.proceed()?;
    let count = room::count(call, &plan)?;
    call.take_resources(count)?;
    let made = make::make(call, &plan, count, token.as_ref());
    if let Some(token) = token {
        call.region().tokens.insert(token, Token { parameters, instances: made.clone() });
    }
    Ok(reservation(call, &made))
}

/// The answer to a token that was seen before.
fn answer_again(call: &mut Call<'_>, same: bool, instances: &[String]) -> Result<Value, ApiError> {
    if !same {
        const MESSAGE: &str =
            "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).";
        return Err(ApiError::client("IdempotentParameterMismatch", MESSAGE));
    }
    let region = call.region();
    let is_over = |id: &String| region.instances.get(id).is_none_or(|one| one.state() == State::Terminated);
    if instances.iter().all(is_over) {
        const MESSAGE: &str = "The request to launch an instance uses the same client token as a previous request for \
                               which the instance has been terminated.";
        return Err(ApiError::client("IdempotentInstanceTerminated", MESSAGE));
    }
    call.proceed()?;
    Ok(reservation(call, instances))
}

/// Instances of one launch as its answer lists them.
fn reservation(call: &mut Call<'_>, ids: &[String]) -> Value {
    let (account, now) = (call.account(), call.now());
    let region = call.region();
    let instances: Vec<_> = ids.iter().filter_map(|id| region.instances.get(id)).collect();
    let rows: Vec<Value> =
        instances.iter().map(|instance| instances::render(instance, region, &account, now)).collect();
    json!({
        "ReservationId": instances.first().map(|instance| instance.reservation_id.as_str()),
        "OwnerId": account,
        "Groups": [],
        "Instances": rows,
    })
}
