//! The price list, as its query service tells it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::catalog::{InstanceType, catalog};
use crate::error::ApiError;
use crate::filters::Page;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    service_code: String,
    #[serde(default)]
    filters: Vec<Filter>,
    format_version: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Filter {
    #[serde(rename = "Type")]
    kind: String,
    field: String,
    value: String,
}

/// What a product is known by.
fn attributes(name: &str, region: &str, one: &InstanceType) -> Value {
    let gpus = one.row["GpuInfo"]["Gpus"].as_array().into_iter().flatten();
    let gpus: u64 = gpus.filter_map(|gpu| gpu["Count"].as_u64()).sum();
    let memory = one.row["MemoryInfo"]["SizeInMiB"].as_u64().unwrap_or_default() as f64 / 1024.0;
    let mut attributes = json!({
        "servicecode": "AmazonEC2",
        "servicename": "Amazon Elastic Compute Cloud",
        "instanceType": name,
        "regionCode": region,
        "locationType": "AWS Region",
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "capacitystatus": "Used",
        "preInstalledSw": "NA",
        "licenseModel": "No License required",
        "marketoption": "OnDemand",
        "operation": "RunInstances",
        "vcpu": one.vcpus.to_string(),
        "memory": format!("{memory} GiB"),
        "usagetype": format!("BoxUsage:{name}"),
    });
    if 0 < gpus {
        attributes["gpu"] = json!(gpus.to_string());
    }
    attributes
}

/// GetProducts: on-demand prices of Linux machines, each as a text of JSON.
pub(crate) fn get_products(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    if asked.service_code != "AmazonEC2" {
        return Err(ApiError::not_simulated(format!("prices of `{}`", asked.service_code)));
    }
    if asked.format_version.is_some_and(|version| version != "aws_v1") {
        return Err(ApiError::client("InvalidParameterException", "The format version must be aws_v1"));
    }
    if let Some(filter) = asked.filters.iter().find(|filter| filter.kind != "TERM_MATCH") {
        return Err(ApiError::not_simulated(format!("filters of type `{}`", filter.kind)));
    }
    let mut rows = Vec::new();
    for ((name, region), price) in &catalog().prices {
        let changed = call.world.changed_prices.get(&(name.clone(), region.clone())).copied();
        let Some(on_demand) = changed.or(price.on_demand) else { continue };
        let attributes = attributes(name, region, &catalog().types[name]);
        let matches = |filter: &Filter| match filter.field.as_str() {
            "productFamily" => filter.value == "Compute Instance",
            field => attributes[field].as_str().is_some_and(|value| value.eq_ignore_ascii_case(&filter.value)),
        };
        if !asked.filters.iter().all(matches) {
            continue;
        }
        let sku = format!("{:016X}", fold(name, region));
        let (term, rate) = (format!("{sku}.JRTCKXETXF"), format!("{sku}.JRTCKXETXF.6YS6EN2CT7"));
        let product = json!({
            "product": {"productFamily": "Compute Instance", "attributes": attributes, "sku": sku},
            "serviceCode": "AmazonEC2",
            "terms": {"OnDemand": {term: {
                "offerTermCode": "JRTCKXETXF",
                "sku": sku,
                "effectiveDate": "2026-02-01T00:00:00Z",
                "termAttributes": {},
                "priceDimensions": {rate.clone(): {
                    "unit": "Hrs",
                    "beginRange": "0",
                    "endRange": "Inf",
                    "description": format!("${on_demand} per On Demand Linux {name} Instance Hour"),
                    "appliesTo": [],
                    "rateCode": rate,
                    "pricePerUnit": {"USD": format!("{on_demand:.10}")},
                }},
            }}},
            "version": "20260201000000",
            "publicationDate": "2026-02-01T00:00:00Z",
        });
        rows.push(json!(product.to_string()));
    }
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = page.cut(call.action, rows, (1, 100)).map_err(|error| {
        let code = if error.code == "InvalidNextToken" {
            "InvalidNextTokenException"
        } else {
            "InvalidParameterException"
        };
        ApiError::client(code, error.message)
    })?;
    Ok(json!({"FormatVersion": "aws_v1", "PriceList": rows, "NextToken": next}))
}

/// A number for a product that stays the same.
fn fold(name: &str, region: &str) -> u64 {
    let bytes = name.bytes().chain([b'/']).chain(region.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
