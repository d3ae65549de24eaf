//! Whether a launch may be at all, checked as EC2 does before it looks for machines.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::reservations::{self, Wanted};
use super::{Asked, AskedEbs, AskedInterface, AskedMetadata, AskedVolume};
use crate::call::Call;
use crate::capacity::Market;
use crate::catalog::{InstanceType, catalog};
use crate::error::ApiError;
use crate::filters::{Tags, tags_by_kind};
use crate::images::{self, Image};
use crate::instances::MetadataOptions;
use crate::layout;
use crate::{key_pairs, placement_groups, security_groups, types, volumes};

/// The most bytes of user data.
const MAX_USER_DATA: usize = 16 * 1024;

/// The most instances that one call may ask for.
const MAX_COUNT: i64 = 5000;

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) image: Image,
    pub(super) name: String,
    pub(super) kind: &'static InstanceType,
    pub(super) counts: (usize, usize),
    pub(super) market: Market,
    /// The reservations that it is made from, in the order in which they are used up.
    pub(super) reservations: Vec<String>,
    pub(super) placement_group: Option<String>,
    pub(super) tenancy: String,
    pub(super) key_name: Option<String>,
    pub(super) user_data: Option<Vec<u8>>,
    pub(super) interfaces: Vec<PlannedInterface>,
    /// The zones that are to be tried, one where the request names it.
    pub(super) zones: Vec<String>,
    pub(super) volumes: Vec<PlannedVolume>,
    pub(super) profile: Option<String>,
    pub(super) metadata: MetadataOptions,
    pub(super) terminates_itself: bool,
    pub(super) ebs_optimized: bool,
    pub(super) monitoring: bool,
    pub(super) tags: BTreeMap<String, Tags>,
    pub(super) max_price: Option<f64>,
}

/// An interface that is to be made. Without a subnet it is in the default one of the zone.
#[derive(Debug)]
pub(super) struct PlannedInterface {
    pub(super) asked: layout::Asked,
    pub(super) subnet_id: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) delete_on_termination: bool,
    pub(super) description: String,
}

/// A disk that is to be made.
#[derive(Debug)]
pub(super) struct PlannedVolume {
    pub(super) device: String,
    pub(super) size_gib: i64,
    pub(super) volume_type: String,
    pub(super) iops: Option<i64>,
    pub(super) throughput: Option<i64>,
    pub(super) encrypted: bool,
    pub(super) kms_key_id: Option<String>,
    pub(super) delete_on_termination: bool,
    pub(super) snapshot_id: String,
}

/// Checks a launch.
pub(super) fn plan(call: &mut Call<'_>, mut asked: Asked) -> Result<Plan, ApiError> {
    let counts = check_counts(asked.min_count, asked.max_count)?;
    let tags = check_tags(call, &asked)?;
    let image = find_image(call, asked.image_id.as_deref())?;
    let (name, kind) = find_type(call, asked.instance_type.take(), &image)?;
    let user_data = asked.user_data.as_deref().map(read_user_data).transpose()?;
    let (market, max_price) = read_market(&asked)?;
    if !kind.usage_classes.iter().any(|class| class == market_class(market)) {
        let message = format!("{name} is not supported for the market type {}", market_class(market));
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let key_name = asked.key_name.take();
    if let Some(name) = key_name.as_ref().filter(|name| !call.region().key_pairs.contains_key(*name)) {
        return Err(key_pairs::not_found(name));
    }
    let profile = find_profile(call, &asked)?;
    let interfaces = plan_interfaces(call, &mut asked, &name, kind)?;
    let placement = asked.placement.take().unwrap_or_default();
    let zones = find_zones(call, &interfaces, placement.availability_zone.as_deref(), &name)?;
    let reservations =
        reservations::choose(call, &asked, &Wanted { name: &name, market, zones: &zones, least: counts.0 })?;
    if let Some(group) = &placement.group_name {
        check_placement_group(call, group, &name, kind, market, &zones)?;
    }
    let tenancy = placement.tenancy.unwrap_or_else(|| "default".to_owned());
    let volumes = plan_volumes(&image, &asked.block_device_mappings)?;
    Ok(Plan {
        image,
        name,
        kind,
        counts,
        market,
        reservations,
        placement_group: placement.group_name,
        tenancy,
        key_name,
        user_data,
        interfaces,
        zones,
        volumes,
        profile,
        metadata: check_metadata(asked.metadata_options.take().unwrap_or_default())?,
        terminates_itself: asked.instance_initiated_shutdown_behavior.as_deref() == Some("terminate"),
        ebs_optimized: asked.ebs_optimized.unwrap_or_default(),
        monitoring: asked.monitoring.is_some_and(|monitoring| monitoring.enabled),
        tags,
        max_price,
    })
}

fn check_counts(least: i64, most: i64) -> Result<(usize, usize), ApiError> {
    if least < 1 {
        return Err(ApiError::invalid_value(least, "minCount", "Expected at least 1."));
    }
    if most < least {
        let message = format!("The minimum instance count {least} must not be larger than the maximum {most}");
        return Err(ApiError::combination(message));
    }
    if MAX_COUNT < most {
        return Err(ApiError::invalid_value(most, "maxCount", &format!("Expected at most {MAX_COUNT}.")));
    }
    Ok((least as usize, most as usize))
}

fn check_tags(call: &Call<'_>, asked: &Asked) -> Result<BTreeMap<String, Tags>, ApiError> {
    const KINDS: [&str; 4] = ["instance", "volume", "network-interface", "spot-instances-request"];
    let tags = tags_by_kind(&asked.tag_specifications, &KINDS)?;
    if !tags.is_empty() {
        call.permit("ec2:CreateTags")?;
    }
    let is_spot = asked.instance_market_options.as_ref().and_then(|market| market.market_type.as_deref());
    if tags.contains_key("spot-instances-request") && is_spot != Some("spot") {
        let message = "The resource type spot-instances-request can be tagged with market type spot only";
        return Err(ApiError::combination(message));
    }
    Ok(tags)
}

fn find_image(call: &mut Call<'_>, id: Option<&str>) -> Result<Image, ApiError> {
    let id =
        id.ok_or_else(|| ApiError::client("MissingParameter", "The request must contain the parameter ImageId"))?;
    let image = call.region().images.get(id).ok_or_else(|| images::not_found(id))?;
    if image.new.state != "available" {
        let message = format!("The image id '[{id}]' is not available: its state is {}", image.new.state);
        return Err(ApiError::client("InvalidAMIID.Unavailable", message));
    }
    Ok(image.clone())
}

fn find_type(
    call: &Call<'_>,
    name: Option<String>,
    image: &Image,
) -> Result<(String, &'static InstanceType), ApiError> {
    let name = name.ok_or_else(|| {
        ApiError::client("MissingParameter", "The request must contain the parameter InstanceType")
    })?;
    let offers = &catalog().regions[&call.region];
    let kind = catalog().types.get(&name).filter(|_| offers.offers(&name)).ok_or_else(|| {
        ApiError::client("InvalidParameterValue", format!("Invalid value '{name}' for InstanceType."))
    })?;
    let architecture = &image.new.architecture;
    if !kind.architectures.contains(architecture) {
        let message = format!(
            "The architecture '{}' of the specified instance type does not match the architecture '{architecture}' of the \
             specified AMI. Specify an instance type and an AMI that have matching architectures, and try again. You can \
             use 'describe-instance-types' or 'describe-images' to discover the architecture of the instance type or AMI.",
            kind.architectures.join(",")
        );
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    Ok((name, kind))
}

fn read_user_data(text: &str) -> Result<Vec<u8>, ApiError> {
    let bytes = STANDARD
        .decode(text)
        .map_err(|_| ApiError::client("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data"))?;
    if MAX_USER_DATA < bytes.len() {
        let message = format!("User data is limited to {MAX_USER_DATA} bytes");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    Ok(bytes)
}

/// The market's name among a type's classes.
fn market_class(market: Market) -> &'static str {
    match market {
        Market::OnDemand => "on-demand",
        Market::Spot => "spot",
        Market::CapacityBlock => "capacity-block",
    }
}

fn read_market(asked: &Asked) -> Result<(Market, Option<f64>), ApiError> {
    let Some(options) = &asked.instance_market_options else { return Ok((Market::OnDemand, None)) };
    let spot = options.spot_options.as_ref();
    match options.market_type.as_deref() {
        Some("capacity-block") if spot.is_none() => Ok((Market::CapacityBlock, None)),
        Some("spot") => {
            let one_time = |kind: &str| kind == "one-time";
            let is_simple = spot.is_none_or(|spot| {
                spot.spot_instance_type.as_deref().is_none_or(one_time)
                    && spot.instance_interruption_behavior.as_deref().is_none_or(|what| what == "terminate")
            });
            if !is_simple {
                return Err(ApiError::not_simulated("spot requests that outlive their instance"));
            }
            let price = spot.and_then(|spot| spot.max_price.as_deref()).map(|text| {
                let why = "Expected a price in US dollars.";
                text.parse::<f64>().map_err(|_| ApiError::invalid_value(text, "maxPrice", why))
            });
            Ok((Market::Spot, price.transpose()?))
        }
        Some(other) => Err(ApiError::invalid_value(other, "marketType", "")),
        None => Err(ApiError::client("MissingParameter", "The request must contain the parameter marketType")),
    }
}

fn find_profile(call: &mut Call<'_>, asked: &Asked) -> Result<Option<String>, ApiError> {
    let Some(profile) = &asked.iam_instance_profile else { return Ok(None) };
    let by_arn = profile.arn.as_ref().and_then(|arn| arn.rsplit_once('/')).map(|(_, name)| name.to_owned());
    let name = profile.name.clone().or(by_arn).unwrap_or_default();
    if !call.world.profiles.contains_key(&name) {
        let member = if profile.name.is_some() { "iamInstanceProfile.name" } else { "iamInstanceProfile.arn" };
        let why = "Invalid IAM Instance Profile name";
        return Err(ApiError::invalid_value(&name, member, why));
    }
    call.permit("iam:PassRole")?;
    Ok(Some(name))
}

fn plan_interfaces(
    call: &mut Call<'_>,
    asked: &mut Asked,
    name: &str,
    kind: &InstanceType,
) -> Result<Vec<PlannedInterface>, ApiError> {
    let mut given = std::mem::take(&mut asked.network_interfaces);
    if given.is_empty() {
        given.push(AskedInterface {
            device_index: Some(0),
            network_card_index: None,
            interface_type: None,
            subnet_id: asked.subnet_id.take(),
            groups: std::mem::take(&mut asked.security_group_ids),
            associate_public_ip_address: None,
            delete_on_termination: None,
            description: None,
        });
    } else if asked.subnet_id.is_some() || !asked.security_group_ids.is_empty() {
        let what = if asked.subnet_id.is_some() {
            "an instance-level subnet ID"
        } else {
            "an instance-level security groups"
        };
        let message = format!("Network interfaces and {what} may not be specified on the same request");
        return Err(ApiError::combination(message));
    }
    let layout = given.iter().map(read_place).collect::<Result<Vec<_>, _>>()?;
    layout::check(name, &kind.network, &layout)?;
    let mut planned = Vec::new();
    for (asked, interface) in layout.into_iter().zip(given) {
        let subnet = match &interface.subnet_id {
            Some(id) => call.region().network.subnet(id).map(|subnet| (subnet.vpc_id.clone(), id.clone()))?,
            None => default_vpc(call)?,
        };
        let groups = security_groups::check(call, &interface.groups, &subnet.0, &subnet.1)?;
        planned.push(PlannedInterface {
            asked,
            subnet_id: interface.subnet_id,
            groups,
            delete_on_termination: interface.delete_on_termination.unwrap_or(true),
            description: interface.description.unwrap_or_default(),
        });
    }
    Ok(planned)
}

fn read_place(interface: &AskedInterface) -> Result<layout::Asked, ApiError> {
    let device = interface
        .device_index
        .ok_or_else(|| ApiError::combination("Each network interface requires a device index."))?;
    let interface_type = interface.interface_type.clone().unwrap_or_else(|| "interface".to_owned());
    if !["interface", "efa", "efa-only"].contains(&interface_type.as_str()) {
        return Err(ApiError::invalid_value(interface_type, "interfaceType", ""));
    }
    Ok(layout::Asked {
        card: interface.network_card_index.unwrap_or_default(),
        device,
        interface_type,
        public: interface.associate_public_ip_address,
    })
}

fn default_vpc(call: &mut Call<'_>) -> Result<(String, String), ApiError> {
    let vpc = call.region().network.default_vpc().map(|vpc| (vpc.id.clone(), String::new()));
    vpc.ok_or_else(|| {
        let message = "No default VPC for this user. GroupName is only supported for EC2-Classic and default VPC.";
        ApiError::client("VPCIdNotSpecified", message)
    })
}

/// The zones that the launch may be in: that of its subnets, or those of the default ones.
fn find_zones(
    call: &mut Call<'_>,
    interfaces: &[PlannedInterface],
    wanted: Option<&str>,
    name: &str,
) -> Result<Vec<String>, ApiError> {
    let region = call.region.clone();
    let mut zones = Vec::new();
    for id in interfaces.iter().filter_map(|interface| interface.subnet_id.as_ref()) {
        let zone = call.region().network.subnet(id)?.zone.clone();
        if !zones.contains(&zone) {
            zones.push(zone);
        }
    }
    if 1 < zones.len() {
        return Err(ApiError::combination("All network interfaces must be in the same Availability Zone"));
    }
    if let Some(wanted) = wanted {
        if !types::zone_names(&region).iter().any(|zone| zone == wanted) {
            let message = format!("Invalid availability zone: [{wanted}]");
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        if zones.first().is_some_and(|zone| zone != wanted) {
            let message = "The availability zone of the subnet differs from the requested availability zone";
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        zones = vec![wanted.to_owned()];
    }
    let offered = catalog().regions[&region].zones_with(&region, name);
    if zones.is_empty() {
        return Ok(offered);
    }
    if !offered.contains(&zones[0]) {
        let message = format!(
            "Your requested instance type ({name}) is not supported in your requested Availability Zone ({}). Please retry \
             your request by not specifying an Availability Zone or choosing {}.",
            zones[0],
            offered.join(", ")
        );
        return Err(ApiError::client("Unsupported", message));
    }
    Ok(zones)
}

fn check_placement_group(
    call: &mut Call<'_>,
    group: &str,
    name: &str,
    kind: &InstanceType,
    market: Market,
    zones: &[String],
) -> Result<(), ApiError> {
    let strategy = placement_groups::find(call, group)?.strategy.clone();
    if market == Market::CapacityBlock {
        let message = "Placement groups are not supported with the market type capacity-block";
        return Err(ApiError::combination(message));
    }
    if !kind.placement_strategies.contains(&strategy) {
        let message = format!(
            "Placement groups with strategy '{strategy}' may not be used with instances of type '{name}'."
        );
        return Err(ApiError::combination(message));
    }
    let in_group = call
        .region()
        .instances
        .values()
        .find(|one| one.placement_group.as_deref() == Some(group) && !one.is_over());
    if let Some(other) = in_group.filter(|other| strategy == "cluster" && !zones.contains(&other.zone)) {
        let message = format!(
            "The placement group '{group}' has instances in {}: a cluster placement group cannot span Availability Zones.",
            other.zone
        );
        return Err(ApiError::combination(message));
    }
    Ok(())
}

fn plan_volumes(image: &Image, asked: &[AskedVolume]) -> Result<Vec<PlannedVolume>, ApiError> {
    let mut volumes: Vec<PlannedVolume> = Vec::new();
    for mapping in asked {
        let device = mapping.device_name.clone().ok_or_else(|| {
            ApiError::client("MissingParameter", "The request must contain the parameter deviceName")
        })?;
        let ebs =
            mapping.ebs.as_ref().ok_or_else(|| ApiError::not_simulated("mappings of other disks than EBS"))?;
        if volumes.iter().any(|known| known.device == device) {
            let message = format!("Duplicate device name: {device}");
            return Err(ApiError::client("InvalidBlockDeviceMapping", message));
        }
        volumes.push(plan_volume(image, device, ebs)?);
    }
    let has_root = volumes.iter().any(|volume| volume.device == image.new.root_device);
    if !has_root {
        let nothing = AskedEbs {
            volume_size: None,
            volume_type: None,
            iops: None,
            throughput: None,
            encrypted: None,
            kms_key_id: None,
            delete_on_termination: None,
        };
        volumes.push(plan_volume(image, image.new.root_device.clone(), &nothing)?);
    }
    Ok(volumes)
}

fn plan_volume(image: &Image, device: String, ebs: &AskedEbs) -> Result<PlannedVolume, ApiError> {
    let is_root = device == image.new.root_device;
    let least = if is_root { Some(image.new.root_gib) } else { None };
    let size_gib = ebs.volume_size.or(least).ok_or_else(|| {
        let message = format!("The device '{device}' has no snapshot: say its size");
        ApiError::client("InvalidBlockDeviceMapping", message)
    })?;
    if least.is_some_and(|least| size_gib < least) {
        let message = format!(
            "Volume of size {size_gib}GB is smaller than snapshot '{}', expect size >= {}GB",
            image.snapshot_id, image.new.root_gib
        );
        return Err(ApiError::client("InvalidBlockDeviceMapping", message));
    }
    let volume_type = ebs.volume_type.clone().unwrap_or_else(|| if is_root { "gp3" } else { "gp2" }.to_owned());
    let (iops, throughput) = volumes::check_performance(&volume_type, size_gib, ebs.iops, ebs.throughput)?;
    if ebs.kms_key_id.is_some() && ebs.encrypted != Some(true) {
        return Err(ApiError::client(
            "InvalidParameterDependency",
            "The parameter KmsKeyId requires the parameter Encrypted to be set.",
        ));
    }
    Ok(PlannedVolume {
        device,
        size_gib,
        volume_type,
        iops,
        throughput,
        encrypted: ebs.encrypted.unwrap_or_default(),
        kms_key_id: ebs.kms_key_id.clone(),
        // A disk of the image goes with the machine, and so does one that the launch adds, unless it says otherwise.
        delete_on_termination: ebs.delete_on_termination.unwrap_or(true),
        snapshot_id: if is_root { image.snapshot_id.clone() } else { String::new() },
    })
}

fn check_metadata(asked: AskedMetadata) -> Result<MetadataOptions, ApiError> {
    let hop_limit = asked.http_put_response_hop_limit.unwrap_or(1);
    if !(1..=64).contains(&hop_limit) {
        let message = format!(
            "Value ({hop_limit}) for parameter HttpPutResponseHopLimit is invalid. Expected a value from 1 to 64."
        );
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let is_enabled = asked.http_endpoint.as_deref() != Some("disabled");
    if !is_enabled && (asked.http_tokens.is_some() || asked.http_put_response_hop_limit.is_some()) {
        let message = "Metadata options may not be given where the metadata endpoint is disabled";
        return Err(ApiError::combination(message));
    }
    Ok(MetadataOptions {
        tokens: asked.http_tokens.unwrap_or_else(|| "optional".to_owned()),
        hop_limit,
        is_enabled,
        tags: asked.instance_metadata_tags.unwrap_or_else(|| "disabled".to_owned()),
    })
}
