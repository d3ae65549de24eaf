//! Asks AWS for the machines of a launch: in one call, unless there are more than one call may ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder;
use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, HttpTokensState, IamInstanceProfileSpecification,
    InstanceInterruptionBehavior, InstanceMarketOptionsRequest, InstanceMetadataEndpointState,
    InstanceMetadataOptionsRequest, InstanceNetworkInterfaceSpecification, MarketType, Placement, ResourceType,
    ShutdownBehavior, SpotInstanceType, SpotMarketOptions, Tenancy, VolumeType,
};
use base64::Engine as _;

use super::errors::failure;
use super::machines::{Sighting, sighting};
use super::prepare::{Market, Prepared};
use super::tags::specification;
use super::{placement_groups, tags};
use crate::{Error, ErrorKind, LaunchOrder, Result};

/// How long something that was just made may be unknown to the very service that made it.
pub(super) const UNSEEN: Duration = Duration::from_secs(20);

/// How soon it is tried again.
pub(super) const UNSEEN_PAUSE: Duration = Duration::from_millis(500);

/// A part of a launch that one call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    number: u32,
    first_index: u32,
    count: u32,
    least: u32,
}

/// Divides a launch. With several parts, each is wanted whole but for what may be missing at the end.
fn parts(count: u32, least: u32, per_call: u32) -> Vec<Part> {
    let mut parts = vec![];
    let mut first_index = 0;
    while first_index < count {
        let size = per_call.min(count - first_index);
        let still_needed = least.saturating_sub(first_index);
        let least = still_needed.clamp(1, size);
        parts.push(Part { number: parts.len() as u32, first_index, count: size, least });
        first_index += size;
    }
    parts
}

/// Asks for the machines, and tells those that were made. Safe to repeat: each part has a token of its own, which always
/// comes with the same request.
///
/// When a later part is refused and the launch is worthless without it, what the earlier ones made is ended. Should that
/// fail too, nobody knows what stands, and the launch is to be repeated.
pub(super) async fn launch(
    ec2: &aws_sdk_ec2::Client,
    order: &LaunchOrder,
    prepared: &Prepared,
) -> Result<Vec<Sighting>> {
    if let Some(group) = prepared.placement_group.as_ref().filter(|group| group.is_own) {
        placement_groups::ensure(ec2, &group.name, &prepared.tags).await?;
    }
    let mut made: Vec<Sighting> = vec![];
    for part in parts(order.count, order.least, prepared.machines_per_call) {
        let made_so_far = u32::try_from(made.len()).unwrap_or(u32::MAX);
        if made_so_far < part.first_index {
            // The part before came short, so the zone has no more.
            break;
        }
        match run(ec2, order, prepared, part).await {
            Ok(more) => made.extend(more),
            // A part stands, so it is not true that nothing was made because of this request.
            Err(error) if error.kind.is_transient() && !made.is_empty() => {
                return Err(Error { kind: ErrorKind::Unavailable, ..error });
            }
            Err(error) if error.kind.is_transient() => return Err(error),
            Err(_) if order.least <= made_so_far && !made.is_empty() => break,
            Err(error) => {
                undo(ec2, &made).await?;
                return Err(error);
            }
        }
    }
    Ok(made)
}

/// Ends what was made of a launch that is worthless.
async fn undo(ec2: &aws_sdk_ec2::Client, made: &[Sighting]) -> Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = made.iter().map(|sighting| sighting.machine.provider_id.clone()).collect();
    let ended = super::terminate::undo(ec2, &ids).await;
    ended.map_err(|error| Error {
        kind: ErrorKind::Unavailable,
        message: format!("a part of the launch was refused, and ending the others failed: {error}"),
        ..error
    })
}

async fn run(
    ec2: &aws_sdk_ec2::Client,
    order: &LaunchOrder,
    prepared: &Prepared,
    part: Part,
) -> Result<Vec<Sighting>> {
    let deadline = tokio::time::Instant::now() + UNSEEN;
    loop {
        // Asked once: a lack of capacity is an error of the server to the SDK, which would try again and again. Who
        // records launches repeats them, and tells of it.
        let once = aws_sdk_ec2::config::Builder::new().retry_config(RetryConfig::disabled());
        let error = match request(ec2, order, prepared, part).customize().config_override(once).send().await {
            Ok(answer) => {
                let instances = answer.instances();
                return Ok(instances.iter().filter_map(|instance| sighting(instance, &prepared.region)).collect());
            }
            Err(error) => error,
        };
        let code = error.code();
        let is_unseen = matches!(
            code,
            Some("InvalidGroup.NotFound" | "InvalidPlacementGroup.Unknown" | "InvalidSecurityGroupID.NotFound")
        );
        if is_unseen && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(UNSEEN_PAUSE).await;
            continue;
        }
        let what = format!("launch {} × {} in {}", part.count, prepared.instance_type, prepared.zone);
        let failed = failure(&what, &error);
        return Err(failed);
    }
}

fn request(
    ec2: &aws_sdk_ec2::Client,
    order: &LaunchOrder,
    prepared: &Prepared,
    part: Part,
) -> RunInstancesFluentBuilder {
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let encoded = base64::engine::general_purpose::STANDARD.encode(&prepared.user_data);
    let mut request = ec2
        .run_instances()
        .client_token(format!("{}-{}", order.launch_id, part.number))
        .image_id(&prepared.image.id)
        .instance_type(prepared.instance_type.as_str().into())
        .max_count(count(part.count))
        .min_count(count(part.least))
        .user_data(encoded)
        .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
        .metadata_options(
            InstanceMetadataOptionsRequest::builder()
                .http_tokens(HttpTokensState::Required)
                .http_endpoint(InstanceMetadataEndpointState::Enabled)
                .http_put_response_hop_limit(prepared.metadata_hop_limit)
                .build(),
        )
        .block_device_mappings(root_disk(prepared))
        .set_network_interfaces(Some(interfaces(prepared)))
        .placement(placement(prepared));
    let own = own_tags(prepared, part);
    for kind in [ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface] {
        request = request.tag_specifications(specification(kind, &own));
    }
    if let Some(profile) = &prepared.iam_instance_profile {
        request = request.iam_instance_profile(IamInstanceProfileSpecification::builder().name(profile).build());
    }
    if let Some(reservation) = &prepared.reservation {
        request = request.capacity_reservation_specification(reservation.specification());
    }
    match prepared.market {
        Market::OnDemand => request,
        Market::CapacityBlock => request.instance_market_options(
            InstanceMarketOptionsRequest::builder().market_type(MarketType::CapacityBlock).build(),
        ),
        Market::Spot => request
            .tag_specifications(specification(ResourceType::SpotInstancesRequest, &own))
            .instance_market_options(
                InstanceMarketOptionsRequest::builder()
                    .market_type(MarketType::Spot)
                    .spot_options(
                        SpotMarketOptions::builder()
                            .spot_instance_type(SpotInstanceType::OneTime)
                            .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate)
                            .build(),
                    )
                    .build(),
            ),
    }
}

fn own_tags(prepared: &Prepared, part: Part) -> BTreeMap<String, String> {
    let mut own = prepared.tags.clone();
    own.insert("Name".to_owned(), prepared.name.clone());
    own.insert(tags::FIRST_INDEX.to_owned(), part.first_index.to_string());
    own
}

fn root_disk(prepared: &Prepared) -> BlockDeviceMapping {
    let volume = &prepared.root_volume;
    let disk = EbsBlockDevice::builder()
        .volume_size(prepared.disk_gib)
        .volume_type(VolumeType::from(volume.volume_type.as_str()))
        .delete_on_termination(true)
        .set_encrypted(volume.encrypted)
        .set_kms_key_id(volume.kms_key_id.clone())
        .set_iops(volume.iops)
        .set_throughput(volume.throughput)
        .build();
    BlockDeviceMapping::builder().device_name(&prepared.image.root_device).ebs(disk).build()
}

fn interfaces(prepared: &Prepared) -> Vec<InstanceNetworkInterfaceSpecification> {
    let one = |(place, interface): (usize, &super::layout::Interface)| {
        InstanceNetworkInterfaceSpecification::builder()
            .network_card_index(interface.card)
            .device_index(interface.device)
            .interface_type(interface.kind.as_str())
            .subnet_id(&prepared.subnet_id)
            .set_groups(Some(prepared.security_group_ids.clone()))
            .delete_on_termination(true)
            .set_associate_public_ip_address(prepared.public_address.filter(|_| place == 0))
            .build()
    };
    prepared.interfaces.iter().enumerate().map(one).collect()
}

fn placement(prepared: &Prepared) -> Placement {
    let tenancy = prepared.reservation.as_ref().and_then(|reservation| reservation.tenancy.as_deref());
    Placement::builder()
        .availability_zone(&prepared.zone)
        .set_group_name(prepared.placement_group.as_ref().map(|group| group.name.clone()))
        .set_tenancy(tenancy.map(Tenancy::from))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(count: u32, least: u32, per_call: u32, expected: &[(u32, u32, u32)]) {
        let found: Vec<(u32, u32, u32)> = parts(count, least, per_call)
            .into_iter()
            .map(|part| (part.first_index, part.count, part.least))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_launch_is_divided_by_what_a_call_may_ask_for() {
        check(1, 1, 1000, &[(0, 1, 1)]);
        check(200, 200, 1000, &[(0, 200, 200)]);
        check(200, 200, 100, &[(0, 100, 100), (100, 100, 100)]);
        check(5, 3, 2, &[(0, 2, 2), (2, 2, 1), (4, 1, 1)]);
        check(5, 1, 1000, &[(0, 5, 1)]);
    }
}
