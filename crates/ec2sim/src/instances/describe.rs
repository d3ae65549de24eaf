//! What can be asked about instances.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Instance, State, find_all};
use crate::call::Call;
use crate::capacity::Market;
use crate::error::ApiError;
use crate::filters::{Filter, Page, tag_set};
use crate::interfaces;
use crate::security_groups;
use crate::settings::millis;
use crate::world::Region;
use crate::xml;

/// An instance as it is described, in the state that it was in at `seen_at`.
pub(crate) fn render(instance: &Instance, region: &Region, account: &str, seen_at: Timestamp) -> Value {
    let state = instance.state_at(seen_at);
    let mut row = render_machine(instance, region, account);
    let is_gone = state == State::Terminated;
    let primary = region.interfaces.get(&instance.primary);
    let public_ip =
        primary.and_then(|one| one.association.as_ref()).map(|association| association.public_ip.clone());
    row["State"] = state.render();
    row["StateTransitionReason"] =
        json!(if instance.is_over() && state != State::Running { &instance.transition } else { "" });
    let reason = instance.reason.as_ref().filter(|_| matches!(state, State::ShuttingDown | State::Terminated));
    row["StateReason"] = match (reason, state) {
        (Some((code, message)), _) => json!({"Code": code, "Message": message}),
        (None, State::Pending) => json!({"Code": "pending", "Message": "pending"}),
        _ => Value::Null,
    };
    row["PublicDnsName"] = json!(public_ip.as_ref().map_or_else(String::new, |address| {
        format!("ec2-{}.{}.compute.amazonaws.com", address.replace('.', "-"), region.name)
    }));
    row["PrivateDnsName"] = json!(if is_gone {
        String::new()
    } else {
        interfaces::private_dns_name(&instance.private_ip, &region.name)
    });
    let interfaces = instance.interfaces.iter().filter_map(|id| region.interfaces.get(id));
    row["NetworkInterfaces"] = interfaces.map(|one| one.render_in_instance(region, account)).collect();
    row["BlockDeviceMappings"] = block_devices(instance, region);
    if !is_gone {
        row["PublicIpAddress"] = json!(public_ip);
        row["PrivateIpAddress"] = json!(instance.private_ip);
        row["SubnetId"] = json!(instance.subnet_id);
        row["VpcId"] = json!(instance.vpc_id);
        row["SecurityGroups"] = security_groups::identifiers(region, &instance.groups);
        row["SourceDestCheck"] = json!(true);
    }
    row
}

/// What does not change over an instance's life.
fn render_machine(instance: &Instance, region: &Region, account: &str) -> Value {
    let lifecycle = match instance.market {
        Market::OnDemand => None,
        Market::Spot => Some("spot"),
        Market::CapacityBlock => Some("capacity-block"),
    };
    let profile = instance.profile.as_ref().map(|name| {
        json!({"Arn": format!("arn:aws:iam::{account}:instance-profile/{name}"), "Id": "AIPAEXAMPLEEXAMPLE000"})
    });
    let group_id = instance
        .placement_group
        .as_ref()
        .and_then(|name| region.placement_groups.get(name))
        .map(|group| &group.id);
    let target = instance.reservation.as_ref().map(|id| json!({"CapacityReservationId": id}));
    let preference = target.is_none().then_some("open");
    json!({
        "InstanceId": instance.id,
        "AmiLaunchIndex": instance.launch_index,
        "ClientToken": instance.client_token,
        "ImageId": instance.image_id,
        "InstanceType": instance.instance_type,
        "Architecture": instance.architecture,
        "KeyName": instance.key_name,
        "LaunchTime": xml::time(instance.launched_at),
        "Monitoring": {"State": if instance.monitoring { "enabled" } else { "disabled" }},
        "Placement": {
            "AvailabilityZone": instance.zone,
            "GroupName": instance.placement_group.as_deref().unwrap_or_default(),
            "GroupId": group_id,
            "Tenancy": instance.tenancy,
        },
        "ProductCodes": [],
        "EbsOptimized": instance.ebs_optimized,
        "EnaSupport": true,
        "SriovNetSupport": "simple",
        "Hypervisor": "xen",
        "VirtualizationType": "hvm",
        "RootDeviceName": instance.root_device,
        "RootDeviceType": "ebs",
        "IamInstanceProfile": profile,
        "InstanceLifecycle": lifecycle,
        "SpotInstanceRequestId": instance.spot_request,
        "CapacityReservationId": instance.reservation,
        "CapacityReservationSpecification": {
            "CapacityReservationPreference": preference,
            "CapacityReservationTarget": target,
        },
        "CpuOptions": {"CoreCount": instance.vcpus.div_ceil(2), "ThreadsPerCore": if instance.vcpus == 1 { 1 } else { 2 }},
        "HibernationOptions": {"Configured": false},
        "EnclaveOptions": {"Enabled": false},
        "MetadataOptions": {
            "State": "applied",
            "HttpTokens": instance.metadata.tokens,
            "HttpPutResponseHopLimit": instance.metadata.hop_limit,
            "HttpEndpoint": if instance.metadata.is_enabled { "enabled" } else { "disabled" },
            "HttpProtocolIpv6": "disabled",
            "InstanceMetadataTags": instance.metadata.tags,
        },
        "MaintenanceOptions": {"AutoRecovery": "default"},
        "PrivateDnsNameOptions": {
            "HostnameType": "ip-name",
            "EnableResourceNameDnsARecord": false,
            "EnableResourceNameDnsAAAARecord": false,
        },
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "UsageOperationUpdateTime": xml::time(instance.launched_at),
        "Tags": tag_set(&instance.tags),
    })
}

fn block_devices(instance: &Instance, region: &Region) -> Value {
    let volumes = instance.volumes.iter().filter_map(|id| region.volumes.get(id));
    let attached = volumes.filter_map(|volume| volume.attachment.as_ref().map(|attachment| (volume, attachment)));
    let rows = attached.map(|(volume, attachment)| {
        json!({
            "DeviceName": attachment.device,
            "Ebs": {
                "VolumeId": volume.id,
                "Status": "attached",
                "AttachTime": xml::time(attachment.at),
                "DeleteOnTermination": attachment.delete_on_termination,
            },
        })
    });
    rows.collect()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    instance_ids: Vec<String>,
    #[serde(default)]
    include_all_instances: bool,
    max_results: Option<i64>,
    next_token: Option<String>,
}

const FILTERS: [(&str, &str); 41] = [
    ("instance-id", "InstanceId"),
    ("instance-state-name", "State.Name"),
    ("instance-state-code", "State.Code"),
    ("instance-type", "InstanceType"),
    ("image-id", "ImageId"),
    ("architecture", "Architecture"),
    ("availability-zone", "Placement.AvailabilityZone"),
    ("placement-group-name", "Placement.GroupName"),
    ("tenancy", "Placement.Tenancy"),
    ("client-token", "ClientToken"),
    ("launch-index", "AmiLaunchIndex"),
    ("launch-time", "LaunchTime"),
    ("key-name", "KeyName"),
    ("instance-lifecycle", "InstanceLifecycle"),
    ("spot-instance-request-id", "SpotInstanceRequestId"),
    ("capacity-reservation-id", "CapacityReservationId"),
    ("vpc-id", "VpcId"),
    ("subnet-id", "SubnetId"),
    ("private-ip-address", "PrivateIpAddress"),
    ("private-dns-name", "PrivateDnsName"),
    ("ip-address", "PublicIpAddress"),
    ("dns-name", "PublicDnsName"),
    ("instance.group-id", "SecurityGroups.GroupId"),
    ("instance.group-name", "SecurityGroups.GroupName"),
    ("iam-instance-profile.arn", "IamInstanceProfile.Arn"),
    ("state-reason-code", "StateReason.Code"),
    ("state-reason-message", "StateReason.Message"),
    ("reason", "StateTransitionReason"),
    ("metadata-options.http-tokens", "MetadataOptions.HttpTokens"),
    ("block-device-mapping.volume-id", "BlockDeviceMappings.Ebs.VolumeId"),
    ("block-device-mapping.device-name", "BlockDeviceMappings.DeviceName"),
    ("network-interface.network-interface-id", "NetworkInterfaces.NetworkInterfaceId"),
    ("network-interface.subnet-id", "NetworkInterfaces.SubnetId"),
    ("network-interface.vpc-id", "NetworkInterfaces.VpcId"),
    ("network-interface.group-id", "NetworkInterfaces.Groups.GroupId"),
    ("network-interface.private-ip-address", "NetworkInterfaces.PrivateIpAddress"),
    ("network-interface.association.public-ip", "NetworkInterfaces.Association.PublicIp"),
    ("network-interface.attachment.device-index", "NetworkInterfaces.Attachment.DeviceIndex"),
    ("monitoring-state", "Monitoring.State"),
    ("root-device-type", "RootDeviceType"),
    ("root-device-name", "RootDeviceName"),
];

/// Refuses pages of instances that are named one by one.
fn check_page(asked: &Asked) -> Result<(), ApiError> {
    if asked.max_results.is_some() && !asked.instance_ids.is_empty() {
        let message = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(ApiError::combination(message));
    }
    Ok(())
}

/// DescribeInstances.
pub(crate) fn describe_instances(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    check_page(&asked)?;
    find_all(call, &asked.instance_ids)?;
    let mut filters = call.filters(asked.filters)?;
    let by_tags = filters.take_tags();
    let account = call.account();
    let (now, settings) = (call.now(), call.world.settings.clone());
    let seen_since = now - millis(settings.instance_unseen_ms);
    let seen_at = now - millis(settings.stale_ms);
    let region = call.region();
    let mut instances: Vec<&Instance> = if asked.instance_ids.is_empty() {
        region
            .instances
            .values()
            .filter(|one| one.launched_at <= seen_since && by_tags.match_tags(&one.tags))
            .collect()
    } else {
        let named = asked.instance_ids.iter().filter_map(|id| region.instances.get(id));
        named.filter(|one| by_tags.match_tags(&one.tags)).collect()
    };
    instances.sort_by(|a, b| (&a.reservation_id, a.launch_index).cmp(&(&b.reservation_id, b.launch_index)));
    instances.dedup_by(|a, b| a.id == b.id);
    let page = Page { size: asked.max_results, token: asked.next_token };
    // Without more filters the page is cut before its rows are made, for rows are large.
    let (rows, next) = if filters.is_empty() {
        let ids = instances.iter().map(|one| json!(one.id)).collect();
        let (ids, next) = page.cut("DescribeInstances", ids, (5, 1000))?;
        let chosen = ids.iter().filter_map(|id| region.instances.get(id.as_str()?));
        (chosen.map(|one| render(one, region, &account, seen_at)).collect::<Vec<_>>(), next)
    } else {
        let rows = instances.into_iter().map(|one| render(one, region, &account, seen_at)).collect();
        page.cut("DescribeInstances", filters.keep(rows, &FILTERS)?, (5, 1000))?
    };
    let mut reservations: Vec<Value> = Vec::new();
    for row in rows {
        let id = row["InstanceId"].as_str().and_then(|id| region.instances.get(id)).map(|one| &one.reservation_id);
        match reservations.last_mut() {
            Some(last) if last["ReservationId"].as_str() == id.map(String::as_str) => {
                if let Value::Array(instances) = &mut last["Instances"] {
                    instances.push(row);
                }
            }
            _ => reservations
                .push(json!({"ReservationId": id, "OwnerId": account, "Groups": [], "Instances": [row]})),
        }
    }
    Ok(json!({"Reservations": reservations, "NextToken": next}))
}

/// DescribeInstanceStatus.
pub(crate) fn describe_instance_status(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    check_page(&asked)?;
    find_all(call, &asked.instance_ids)?;
    let (now, settings) = (call.now(), call.world.settings.clone());
    let seen_at = now - millis(settings.stale_ms);
    let seen_since = now - millis(settings.instance_unseen_ms);
    let instances = call.region().instances.values().filter(|one| {
        let is_named = asked.instance_ids.is_empty() || asked.instance_ids.contains(&one.id);
        let is_running = one.state_at(seen_at) == State::Running;
        one.launched_at <= seen_since && is_named && (is_running || asked.include_all_instances)
    });
    let rows = instances.map(|one| {
        let is_running = one.state_at(seen_at) == State::Running;
        let (summary, detail) = match (is_running, one.healthy) {
            (false, _) => ("not-applicable", None),
            (true, None) => ("initializing", Some("initializing")),
            (true, Some(true)) => ("ok", Some("passed")),
            (true, Some(false)) => ("impaired", Some("failed")),
        };
        let details: Vec<Value> =
            detail.iter().map(|status| json!({"Name": "reachability", "Status": status})).collect();
        json!({
            "InstanceId": one.id,
            "AvailabilityZone": one.zone,
            "InstanceState": one.state_at(seen_at).render(),
            "InstanceStatus": {"Status": summary, "Details": details},
            "SystemStatus": {
                "Status": if is_running { "ok" } else { "not-applicable" },
                "Details": if is_running { json!([{"Name": "reachability", "Status": "passed"}]) } else { json!([]) },
            },
        })
    });
    let paths = [
        ("instance-state-name", "InstanceState.Name"),
        ("instance-state-code", "InstanceState.Code"),
        ("availability-zone", "AvailabilityZone"),
        ("instance-status.status", "InstanceStatus.Status"),
        ("system-status.status", "SystemStatus.Status"),
    ];
    let rows = rows.collect();
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"InstanceStatuses": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedAttribute {
    instance_id: String,
    attribute: String,
}

/// DescribeInstanceAttribute.
pub(crate) fn describe_instance_attribute(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedAttribute = call.read()?;
    find_all(call, std::slice::from_ref(&asked.instance_id))?;
    let region = call.region();
    let instance = &region.instances[&asked.instance_id];
    let mut answer = json!({"InstanceId": instance.id});
    let value = |value: Value| json!({ "Value": value });
    match asked.attribute.as_str() {
        "blockDeviceMapping" => answer["BlockDeviceMappings"] = block_devices(instance, region),
        "userData" => {
            answer["UserData"] = instance.user_data.as_ref().map_or(json!({}), |data| value(json!(data)));
        }
        "instanceType" => answer["InstanceType"] = value(json!(instance.instance_type)),
        "rootDeviceName" => answer["RootDeviceName"] = value(json!(instance.root_device)),
        "ebsOptimized" => answer["EbsOptimized"] = value(json!(instance.ebs_optimized)),
        "groupSet" => answer["Groups"] = security_groups::identifiers(region, &instance.groups),
        "disableApiTermination" => answer["DisableApiTermination"] = value(json!(false)),
        "instanceInitiatedShutdownBehavior" => {
            let behavior = if instance.terminates_itself { "terminate" } else { "stop" };
            answer["InstanceInitiatedShutdownBehavior"] = value(json!(behavior));
        }
        other => return Err(ApiError::not_simulated(format!("the attribute `{other}`"))),
    }
    Ok(answer)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedConsole {
    instance_id: String,
    // What is kept is always the latest.
    #[serde(default, rename = "Latest")]
    _latest: bool,
}

/// GetConsoleOutput.
pub(crate) fn get_console_output(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedConsole = call.read()?;
    find_all(call, std::slice::from_ref(&asked.instance_id))?;
    let now = call.now();
    let console = &call.region().instances[&asked.instance_id].console;
    let output = (!console.is_empty()).then(|| STANDARD.encode(console));
    Ok(json!({"InstanceId": asked.instance_id, "Timestamp": xml::time(now), "Output": output}))
}
