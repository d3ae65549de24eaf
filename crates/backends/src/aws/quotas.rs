//! What the account may run, compared with what is needed. A quota is found by its name, because codes differ for new
//! families; one that is not found, or cannot be asked for, stops nobody.

use std::collections::HashMap;

use super::errors::failure;
use crate::Result;

/// The quotas of a region for running machines.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Quotas {
    on_demand: HashMap<String, Quota>,
    spot: HashMap<String, Quota>,
    /// Public addresses that may be had at once.
    pub(super) elastic_ips: Option<u32>,
}

/// The name of the quota for public addresses.
pub(super) const ELASTIC_IPS: &str = "EC2-VPC Elastic IPs";

/// How much of something may be had at once: vCPUs of some families, or addresses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Quota {
    pub(super) code: String,
    pub(super) name: String,
    pub(super) value: f64,
}

impl Quotas {
    /// From the names, codes and values.
    fn of(quotas: impl IntoIterator<Item = Quota>) -> Quotas {
        let mut known = Quotas::default();
        for quota in quotas {
            let between = |first: &str, last: &str| {
                quota.name.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)).map(str::to_owned)
            };
            if let Some(families) = between("Running On-Demand ", " instances") {
                known.on_demand.extend(letters(&families).map(|family| (family, quota.clone())));
            } else if let Some(families) = between("All ", " Spot Instance Requests") {
                known.spot.extend(letters(&families).map(|family| (family, quota.clone())));
            } else if quota.name == ELASTIC_IPS {
                known.elastic_ips =
                    (0.0..f64::from(u32::MAX)).contains(&quota.value).then_some(quota.value as u32);
            }
        }
        known
    }

    /// The quota that machines of a type count for.
    pub(super) fn find(&self, instance_type: &str, spot: bool) -> Option<&Quota> {
        let quotas = if spot { &self.spot } else { &self.on_demand };
        let family = instance_type.split('.').next()?.to_ascii_uppercase();
        let letters = family.chars().take_while(char::is_ascii_alphabetic).count();
        let generation = family[letters..].chars().take_while(char::is_ascii_digit).count();
        let exact = quotas.get(&family[..letters + generation]).or_else(|| quotas.get(&family[..letters]));
        // Relatives count for the first letter: `gr6` for G. What has a word of its own (`hpc`, `trn`, `inf`) does not.
        let relative = || (letters == 2).then(|| quotas.get(&family[..1])).flatten();
        exact.or_else(relative)
    }

    /// Why machines of a type may not run, if so.
    pub(super) fn obstacle(&self, instance_type: &str, spot: bool, vcpus: u32, machines: u32) -> Option<String> {
        let quota = self.find(instance_type, spot)?;
        let needed = f64::from(vcpus) * f64::from(machines);
        (quota.value < needed).then(|| {
            format!(
                "the account's quota `{}` ({}) is {} vCPUs, and {machines} × {vcpus} are needed: ask AWS for more in \
                 Service Quotas",
                quota.name, quota.code, quota.value
            )
        })
    }
}

/// The families in a quota's name: `Standard (A, C, D)`, `G and VT`, `P4, P3 and P2`, `P`.
fn letters(families: &str) -> impl Iterator<Item = String> {
    let inner = families.split_once('(').map_or(families, |(_, inner)| inner.trim_end_matches(')'));
    inner
        .replace(" and ", ", ")
        .split(", ")
        .map(|family| family.trim().to_ascii_uppercase())
        .collect::<Vec<_>>()
        .into_iter()
}

/// Asks for a region's quotas.
pub(super) async fn ask(client: &aws_sdk_servicequotas::Client) -> Result<Quotas> {
    let mut pages = client.list_service_quotas().service_code("ec2").into_paginator().send();
    let mut quotas = vec![];
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("list service quotas", &error))?;
        quotas.extend(page.quotas().iter().filter_map(|quota| {
            Some(Quota {
                code: quota.quota_code()?.to_owned(),
                name: quota.quota_name()?.to_owned(),
                value: quota.value()?,
            })
        }));
    }
    Ok(Quotas::of(quotas))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas() -> Quotas {
        let quota = |code: &str, name: &str, value| Quota { code: code.to_owned(), name: name.to_owned(), value };
        Quotas::of([
            quota("L-1", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 32.0),
            quota("L-2", "Running On-Demand G and VT instances", 64.0),
            quota("L-3", "Running On-Demand P instances", 192.0),
            quota("L-4", "Running On-Demand HPC instances", 1.0),
            quota("L-5", "All P4, P3 and P2 Spot Instance Requests", 96.0),
            quota("L-6", "All P5 Spot Instance Requests", 384.0),
            quota("L-7", "EC2-VPC Elastic IPs", 5.0),
        ])
    }

    #[track_caller]
    fn check(instance_type: &str, spot: bool, code: Option<&str>) {
        assert_eq!(quotas().find(instance_type, spot).map(|quota| quota.code.as_str()), code);
    }

    #[test]
    fn a_type_counts_for_the_quota_that_names_its_family() {
        check("m7i.large", false, Some("L-1"));
        check("c5.large", false, Some("L-1"));
        check("g6e.xlarge", false, Some("L-2"));
        check("gr6.8xlarge", false, Some("L-2"));
        check("vt1.3xlarge", false, Some("L-2"));
        check("p5.48xlarge", false, Some("L-3"));
        check("p6-b200.48xlarge", false, Some("L-3"));
        check("hpc7a.12xlarge", false, Some("L-4"));
        check("trn1.32xlarge", false, None);
        check("p4d.24xlarge", true, Some("L-5"));
        check("p5en.48xlarge", true, Some("L-6"));
        check("p6-b200.48xlarge", true, None);
    }

    #[test]
    fn what_is_needed_is_counted_in_vcpus() {
        assert_eq!(quotas().obstacle("p5.48xlarge", false, 192, 1), None);
        assert_eq!(
            quotas().obstacle("p5.48xlarge", false, 192, 2).unwrap(),
            "the account's quota `Running On-Demand P instances` (L-3) is 192 vCPUs, and 2 × 192 are needed: ask AWS for \
             more in Service Quotas"
        );
        assert_eq!(quotas().obstacle("trn1.32xlarge", false, 128, 100), None);
    }
}
