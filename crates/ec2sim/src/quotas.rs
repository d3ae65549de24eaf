//! Quotas of the account in a region.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::Page;
use crate::world::Region;

/// The quota of public addresses.
pub(crate) const ELASTIC_IPS: &str = "L-0263D0A3";

/// What a simulated account may run of each bucket, unless told otherwise: 1,000 of the largest machines and more.
const PLENTY: f64 = 400_000.0;

/// A quota: code, name, default.
type Quota = (&'static str, &'static str, f64);

/// The quotas of EC2 that are told.
const QUOTAS: [Quota; 14] = [
    ("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", PLENTY),
    ("L-DB2E81BA", "Running On-Demand G and VT instances", PLENTY),
    ("L-417A185B", "Running On-Demand P instances", PLENTY),
    ("L-1945791B", "Running On-Demand Inf instances", PLENTY),
    ("L-2C3B7624", "Running On-Demand Trn instances", PLENTY),
    ("L-F7808C92", "Running On-Demand HPC instances", PLENTY),
    ("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", PLENTY),
    ("L-3819A6DF", "All G and VT Spot Instance Requests", PLENTY),
    ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests", PLENTY),
    ("L-C4BD4855", "All P5 Spot Instance Requests", PLENTY),
    ("L-B5D1601B", "All Inf Spot Instance Requests", PLENTY),
    ("L-6B0D517C", "All Trn Spot Instance Requests", PLENTY),
    ("L-88CF9481", "All F Spot Instance Requests", PLENTY),
    (ELASTIC_IPS, "EC2-VPC Elastic IPs", 5.0),
];

/// The code of the quota that a type counts for.
pub(crate) fn vcpu_code(instance_type: &str, is_spot: bool) -> &'static str {
    let family = instance_type.split('.').next().unwrap_or_default();
    let letters: String = family.chars().take_while(char::is_ascii_alphabetic).collect();
    match (letters.as_str(), is_spot) {
        ("g" | "gr" | "vt", false) => "L-DB2E81BA",
        ("g" | "gr" | "vt", true) => "L-3819A6DF",
        ("p", false) => "L-417A185B",
        ("p", true) if ["p2", "p3", "p3dn", "p4d", "p4de"].contains(&family) => "L-7212CCBC",
        ("p", true) => "L-C4BD4855",
        ("inf", false) => "L-1945791B",
        ("inf", true) => "L-B5D1601B",
        ("trn", false) => "L-2C3B7624",
        ("trn", true) => "L-6B0D517C",
        ("hpc", false) => "L-F7808C92",
        (_, false) => "L-1216C47A",
        (_, true) => "L-34B43A08",
    }
}

/// What a quota is in a region.
pub(crate) fn value(region: &Region, code: &str) -> f64 {
    let default = QUOTAS.iter().find(|(known, ..)| *known == code).map_or(0.0, |(.., default)| *default);
    region.quotas.get(code).copied().unwrap_or(default)
}

/// Whether there is a quota of that code.
pub(crate) fn is_known(code: &str) -> bool {
    QUOTAS.iter().any(|(known, ..)| *known == code)
}

fn render(call: &mut Call<'_>, (code, name, _): Quota) -> Value {
    let (region_name, account) = (call.region.clone(), call.account());
    json!({
        "ServiceCode": "ec2",
        "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaArn": format!("arn:aws:servicequotas:{region_name}:{account}:ec2/{code}"),
        "QuotaCode": code,
        "QuotaName": name,
        "Value": value(call.region(), code),
        "Unit": "None",
        "Adjustable": true,
        "GlobalQuota": false,
        "QuotaAppliedAtLevel": "ACCOUNT",
    })
}

fn no_such(what: &str) -> ApiError {
    ApiError::client("NoSuchResourceException", format!("The request failed because {what} does not exist."))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    service_code: String,
    quota_code: String,
}

/// GetServiceQuota.
pub(crate) fn get_service_quota(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let quota = QUOTAS.into_iter().find(|(code, ..)| asked.service_code == "ec2" && *code == asked.quota_code);
    let quota = quota.ok_or_else(|| no_such("the specified service quota"))?;
    Ok(json!({"Quota": render(call, quota)}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedList {
    service_code: String,
    max_results: Option<i64>,
    next_token: Option<String>,
    quota_code: Option<String>,
}

/// ListServiceQuotas.
pub(crate) fn list_service_quotas(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedList = call.read()?;
    if asked.service_code != "ec2" {
        return Err(no_such("the specified service"));
    }
    let quotas =
        QUOTAS.into_iter().filter(|(code, ..)| asked.quota_code.as_deref().is_none_or(|wanted| wanted == *code));
    let rows: Vec<Value> = quotas.map(|quota| render(call, quota)).collect();
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = page.cut(call.action, rows, (1, 100)).map_err(|error| {
        let code = if error.code == "InvalidNextToken" {
            "InvalidPaginationTokenException"
        } else {
            "IllegalArgumentException"
        };
        ApiError::client(code, error.message)
    })?;
    Ok(json!({"Quotas": rows, "NextToken": next}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_count_for_the_bucket_of_their_family() {
        for (name, on_demand, spot) in [
            ("p5.48xlarge", "L-417A185B", "L-C4BD4855"),
            ("p4d.24xlarge", "L-417A185B", "L-7212CCBC"),
            ("g5.xlarge", "L-DB2E81BA", "L-3819A6DF"),
            ("gr6.4xlarge", "L-DB2E81BA", "L-3819A6DF"),
            ("t3.micro", "L-1216C47A", "L-34B43A08"),
            ("trn1.32xlarge", "L-2C3B7624", "L-6B0D517C"),
        ] {
            assert_eq!((vcpu_code(name, false), vcpu_code(name, true)), (on_demand, spot), "{name}");
            assert!(is_known(on_demand) && is_known(spot));
        }
    }
}
