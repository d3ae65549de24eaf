//! Under which switches instances are, as far as AWS tells it: of some types, once they run.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{State, find_all};
use crate::call::Call;
use crate::capacity::Market;
use crate::error::ApiError;
use crate::filters::{Filter, Page};
use crate::types;

/// The types of which AWS tells three switches, and those of which it tells four (EC2 user guide, "Prerequisites for
/// Amazon EC2 topology", read in November 2026). Of others it tells nothing, smaller ones of the same families among
/// them.
const TYPES: [(usize, &[&str]); 2] = [
    (
        3,
        &[
            "g6e.xlarge",
            "g6e.2xlarge",
            "g6e.4xlarge",
            "g6e.8xlarge",
            "g6e.12xlarge",
            "g6e.16xlarge",
            "g6e.24xlarge",
            "g6e.48xlarge",
            "g7e.2xlarge",
            "g7e.4xlarge",
            "g7e.8xlarge",
            "g7e.12xlarge",
            "g7e.24xlarge",
            "g7e.48xlarge",
            "hpc6a.48xlarge",
            "hpc6id.32xlarge",
            "hpc7a.12xlarge",
            "hpc7a.24xlarge",
            "hpc7a.48xlarge",
            "hpc7a.96xlarge",
            "hpc7g.4xlarge",
            "hpc7g.8xlarge",
            "hpc7g.16xlarge",
            "hpc8a.96xlarge",
            "p3dn.24xlarge",
            "p4d.24xlarge",
            "p4de.24xlarge",
            "p5.48xlarge",
            "p5e.48xlarge",
            "p5en.48xlarge",
            "trn1.2xlarge",
            "trn1.32xlarge",
            "trn1n.32xlarge",
            "trn2.48xlarge",
            "trn2u.48xlarge",
        ],
    ),
    (4, &["p6-b200.48xlarge", "p6-b300.48xlarge"]),
];

/// Places of a small data center, and how many of them are under one switch of each level, the uppermost first. Types of
/// three levels are connected to the third.
const PLACES: u32 = 256;
const PLACES_UNDER: [u32; 4] = [128, 32, 4, 1];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedTopology {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    instance_ids: Vec<String>,
    #[serde(default)]
    group_names: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeInstanceTopology: which switches instances are under follows from their places.
pub(crate) fn describe_instance_topology(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedTopology = call.read()?;
    find_all(call, &asked.instance_ids)?;
    let region = call.region();
    let instances = region.instances.values().filter(|one| {
        one.state() == State::Running
            && (asked.instance_ids.is_empty() || asked.instance_ids.contains(&one.id))
            && (asked.group_names.is_empty()
                || one.placement_group.as_ref().is_some_and(|name| asked.group_names.contains(name)))
    });
    let rows = instances.filter_map(|one| {
        let levels = levels(&one.instance_type)?;
        Some(json!({
            "InstanceId": one.id,
            "InstanceType": one.instance_type,
            "GroupName": one.placement_group,
            "NetworkNodes": network_nodes(one.place, levels),
            "AvailabilityZone": one.zone,
            "ZoneId": types::zone_id(&region.name, &one.zone),
            "CapacityBlockId": one.reservation.as_ref().filter(|_| one.market == Market::CapacityBlock),
        }))
    });
    let paths =
        [("availability-zone", "AvailabilityZone"), ("instance-type", "InstanceType"), ("zone-id", "ZoneId")];
    let rows = rows.collect();
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = page.cut(call.action, rows, (1, 100))?;
    Ok(json!({"Instances": rows, "NextToken": next}))
}

/// How many switches AWS tells of machines of a type.
fn levels(instance_type: &str) -> Option<usize> {
    TYPES.iter().find(|(_, types)| types.contains(&instance_type)).map(|(levels, _)| *levels)
}

/// The switches above a place, the uppermost first.
fn network_nodes(place: u32, levels: usize) -> Vec<String> {
    let place = place % PLACES;
    let under = PLACES_UNDER.iter().take(levels).enumerate();
    under.map(|(level, under)| format!("nn-{:x}{:016x}", level + 1, place / under)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::catalog;

    #[test]
    fn every_type_that_is_told_of_exists() {
        for name in TYPES.iter().flat_map(|(_, types)| *types) {
            assert!(catalog().types.contains_key(*name), "{name}");
        }
        assert_eq!((levels("p5.48xlarge"), levels("p6-b300.48xlarge")), (Some(3), Some(4)));
        assert_eq!((levels("p5.4xlarge"), levels("g5.48xlarge")), (None, None));
    }

    #[test]
    fn neighbours_share_their_switches_from_the_top() {
        let shared = |one: u32, other: u32| {
            let (one, other) = (network_nodes(one, 4), network_nodes(other, 4));
            one.iter().zip(&other).take_while(|(one, other)| one == other).count()
        };
        assert_eq!([shared(0, 0), shared(0, 3), shared(0, 31), shared(0, 127), shared(0, 128)], [4, 3, 2, 1, 0]);
        assert_eq!(network_nodes(257, 3), network_nodes(3, 4)[..3]);
    }
}
