//! Regions, zones, and instance types.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::catalog::{self, catalog};
use crate::error::ApiError;
use crate::filters::{Filter, Page};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedRegions {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    region_names: Vec<String>,
    #[serde(default)]
    all_regions: bool,
}

/// DescribeRegions.
pub(crate) fn describe_regions(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedRegions = call.read()?;
    let status = |name: &str| {
        if catalog::is_open(name) {
            "opt-in-not-required"
        } else if call.world.settings.opted_in.iter().any(|known| known == name) {
            "opted-in"
        } else {
            "not-opted-in"
        }
    };
    if let Some(name) = asked.region_names.iter().find(|name| !catalog().regions.contains_key(*name)) {
        let message = format!("Invalid region provided : {name}");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let is_asked = |name: &&String| {
        (asked.region_names.is_empty() || asked.region_names.contains(name))
            && (asked.all_regions || status(name) != "not-opted-in")
    };
    let rows = catalog().regions.keys().filter(is_asked).map(|name| {
        json!({
            "RegionName": name,
            "Endpoint": format!("ec2.{name}.amazonaws.com"),
            "OptInStatus": status(name),
        })
    });
    let paths = [("region-name", "RegionName"), ("endpoint", "Endpoint"), ("opt-in-status", "OptInStatus")];
    let rows = rows.collect();
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    Ok(json!({"Regions": rows}))
}

/// The names of a region's zones.
pub(crate) fn zone_names(region: &str) -> Vec<String> {
    let offers = catalog().regions.get(region);
    offers
        .map(|offers| offers.zones.keys().map(|letter| format!("{region}{letter}")).collect())
        .unwrap_or_default()
}

/// The identifier of a zone.
pub(crate) fn zone_id(region: &str, zone: &str) -> String {
    let letter = zone.chars().last().unwrap_or_default();
    catalog().regions.get(region).and_then(|offers| offers.zones.get(&letter).cloned()).unwrap_or_default()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedZones {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    zone_names: Vec<String>,
    #[serde(default)]
    zone_ids: Vec<String>,
    // Every zone here is one that accounts have from the start.
    #[serde(default, rename = "AllAvailabilityZones")]
    _all: bool,
}

/// DescribeAvailabilityZones.
pub(crate) fn describe_availability_zones(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedZones = call.read()?;
    let region = call.region.clone();
    let rows = zone_names(&region).into_iter().map(|zone| {
        json!({
            "ZoneName": zone,
            "ZoneId": zone_id(&region, &zone),
            "ZoneType": "availability-zone",
            "RegionName": region,
            "GroupName": format!("{region}-zg-1"),
            "NetworkBorderGroup": region,
            "OptInStatus": "opt-in-not-required",
            "State": "available",
            "Messages": [],
        })
    });
    let mut rows: Vec<Value> = rows.collect();
    for (member, names) in [("ZoneName", &asked.zone_names), ("ZoneId", &asked.zone_ids)] {
        if let Some(name) = names.iter().find(|name| !rows.iter().any(|row| row[member] == name.as_str())) {
            let message = format!("Invalid availability zone: [{name}]");
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        rows.retain(|row| names.is_empty() || names.iter().any(|name| row[member] == name.as_str()));
    }
    let paths = [
        ("region-name", "RegionName"),
        ("zone-name", "ZoneName"),
        ("zone-id", "ZoneId"),
        ("zone-type", "ZoneType"),
        ("state", "State"),
        ("group-name", "GroupName"),
        ("opt-in-status", "OptInStatus"),
    ];
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    Ok(json!({"AvailabilityZones": rows}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedTypes {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    instance_types: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

const TYPE_FILTERS: [(&str, &str); 24] = [
    ("instance-type", "InstanceType"),
    ("current-generation", "CurrentGeneration"),
    ("bare-metal", "BareMetal"),
    ("hypervisor", "Hypervisor"),
    ("burstable-performance-supported", "BurstablePerformanceSupported"),
    ("free-tier-eligible", "FreeTierEligible"),
    ("instance-storage-supported", "InstanceStorageSupported"),
    ("instance-storage-info.total-size-in-gb", "InstanceStorageInfo.TotalSizeInGB"),
    ("memory-info.size-in-mib", "MemoryInfo.SizeInMiB"),
    ("network-info.efa-supported", "NetworkInfo.EfaSupported"),
    ("network-info.efa-info.maximum-efa-interfaces", "NetworkInfo.EfaInfo.MaximumEfaInterfaces"),
    ("network-info.ena-support", "NetworkInfo.EnaSupport"),
    ("network-info.maximum-network-cards", "NetworkInfo.MaximumNetworkCards"),
    ("network-info.maximum-network-interfaces", "NetworkInfo.MaximumNetworkInterfaces"),
    ("network-info.network-performance", "NetworkInfo.NetworkPerformance"),
    ("network-info.encryption-in-transit-supported", "NetworkInfo.EncryptionInTransitSupported"),
    ("processor-info.supported-architecture", "ProcessorInfo.SupportedArchitectures"),
    ("processor-info.sustained-clock-speed-in-ghz", "ProcessorInfo.SustainedClockSpeedInGhz"),
    ("supported-boot-mode", "SupportedBootModes"),
    ("supported-root-device-type", "SupportedRootDeviceTypes"),
    ("supported-usage-class", "SupportedUsageClasses"),
    ("supported-virtualization-type", "SupportedVirtualizationTypes"),
    ("vcpu-info.default-vcpus", "VCpuInfo.DefaultVCpus"),
    ("ebs-info.ebs-optimized-support", "EbsInfo.EbsOptimizedSupport"),
];

/// DescribeInstanceTypes.
pub(crate) fn describe_instance_types(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedTypes = call.read()?;
    if 100 < asked.instance_types.len() {
        let message = "The maximum number of instance types that can be specified is 100";
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    if !asked.instance_types.is_empty() && asked.max_results.is_some() {
        return Err(ApiError::combination(
            "The parameter instanceTypes cannot be used with the parameter maxResults",
        ));
    }
    let offers = &catalog().regions[&call.region];
    let unknown: Vec<&str> =
        asked.instance_types.iter().filter(|name| !offers.offers(name)).map(String::as_str).collect();
    if !unknown.is_empty() {
        let message = format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
        return Err(ApiError::client("InvalidInstanceType", message));
    }
    let types = catalog().types.iter().filter(|(name, _)| {
        offers.offers(name) && (asked.instance_types.is_empty() || asked.instance_types.contains(name))
    });
    let rows = types.map(|(_, one)| one.row.clone()).collect();
    let rows = call.filters(asked.filters)?.keep(rows, &TYPE_FILTERS)?;
    let page = Page { size: asked.max_results, token: asked.next_token };
    if asked.max_results.is_some_and(|size| 100 < size) {
        return Err(ApiError::invalid_value(
            asked.max_results.unwrap_or_default(),
            "maxResults",
            "Expecting at most 100.",
        ));
    }
    let (rows, next) = page.cut(call.action, rows, (5, 100))?;
    Ok(json!({"InstanceTypes": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedOfferings {
    location_type: Option<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeInstanceTypeOfferings.
pub(crate) fn describe_instance_type_offerings(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedOfferings = call.read()?;
    let location_type = asked.location_type.unwrap_or_else(|| "region".to_owned());
    let region = call.region.clone();
    let offers = &catalog().regions[&region];
    let mut rows = Vec::new();
    for name in catalog().types.keys().filter(|name| offers.offers(name)) {
        let zones = offers.zones_with(&region, name);
        let locations: Vec<String> = match location_type.as_str() {
            "region" => vec![region.clone()],
            "availability-zone" => zones,
            "availability-zone-id" => zones.iter().map(|zone| zone_id(&region, zone)).collect(),
            other => return Err(ApiError::not_simulated(format!("the location type `{other}`"))),
        };
        rows.extend(
            locations.into_iter().map(
                |location| json!({"InstanceType": name, "LocationType": location_type, "Location": location}),
            ),
        );
    }
    let paths = [("instance-type", "InstanceType"), ("location", "Location")];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"InstanceTypeOfferings": rows, "NextToken": next}))
}
