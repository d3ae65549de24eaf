//! Where in a region's networks machines may be put.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_ec2::types::{Route, RouteState, RouteTable, Subnet};

use super::config::{AwsConfig, NetworkConfig};
use super::errors::failure;
use super::tags::filter;
use crate::keys::invalid;
use crate::{Error, ErrorKind, Result};

/// A region's network as machines see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegionNetwork {
    pub(super) vpc_id: String,
    /// The networks of the VPC, in CIDR notation.
    pub(super) cidrs: Vec<String>,
    /// By zone, those with the most free addresses first.
    pub(super) subnets: BTreeMap<String, Vec<SubnetFacts>>,
}

/// A subnet that machines may be put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SubnetFacts {
    pub(super) id: String,
    pub(super) free_addresses: u32,
}

impl RegionNetwork {
    /// A subnet of a zone that has room for so many machines, each of which takes one address.
    pub(super) fn subnet(&self, zone: &str, machines: u32) -> Result<&SubnetFacts> {
        let subnets = self.subnets.get(zone).map(Vec::as_slice).unwrap_or_default();
        let Some(best) = subnets.first() else {
            let message = format!("no subnet that can be used is in zone {zone} of {}", self.vpc_id);
            return Err(Error::new(ErrorKind::NoAddresses, message));
        };
        if best.free_addresses < machines {
            let message = format!(
                "the subnet {} in {zone} has {} free addresses, and {machines} are needed",
                best.id, best.free_addresses
            );
            return Err(Error::new(ErrorKind::NoAddresses, message));
        }
        Ok(best)
    }
}

/// Finds the network of a region. An error says in words what is missing in it.
pub(super) async fn resolve(ec2: &aws_sdk_ec2::Client, config: &AwsConfig, region: &str) -> Result<RegionNetwork> {
    let network = &config.network;
    let given = network.subnet_ids.get(region);
    let (vpc_id, cidrs) = match given {
        Some(ids) => vpc_of_subnets(ec2, ids, region).await?,
        None => vpc(ec2, network, region).await?,
    };
    let mut request = ec2.describe_subnets();
    request = match given {
        Some(ids) => request.set_subnet_ids(Some(ids.clone())),
        None => request.filters(filter("vpc-id", [vpc_id.as_str()])),
    };
    let mut pages = request.into_paginator().send();
    let mut subnets = vec![];
    while let Some(page) = pages.next().await {
        subnets.extend(page.map_err(|error| failure("describe subnets", &error))?.subnets.unwrap_or_default());
    }
    if given.is_none() {
        let tables = route_tables(ec2, &vpc_id).await?;
        let ordinary = ordinary_zones(ec2).await?;
        subnets.retain(|subnet| {
            subnet.availability_zone().is_some_and(|zone| ordinary.iter().any(|known| known == zone))
                && does(&tables, subnet, config.public_ips)
        });
    }
    let mut by_zone: BTreeMap<String, Vec<SubnetFacts>> = BTreeMap::new();
    for subnet in &subnets {
        let (Some(id), Some(zone)) = (subnet.subnet_id(), subnet.availability_zone()) else { continue };
        let free = subnet.available_ip_address_count().and_then(|free| u32::try_from(free).ok()).unwrap_or(0);
        by_zone.entry(zone.to_owned()).or_default().push(SubnetFacts { id: id.to_owned(), free_addresses: free });
    }
    if by_zone.is_empty() {
        return Err(invalid(no_subnets(config, region, &vpc_id)));
    }
    for subnets in by_zone.values_mut() {
        subnets.sort_by(|one, other| {
            other.free_addresses.cmp(&one.free_addresses).then_with(|| one.id.cmp(&other.id))
        });
    }
    Ok(RegionNetwork { vpc_id, cidrs, subnets: by_zone })
}

fn no_subnets(config: &AwsConfig, region: &str, vpc_id: &str) -> String {
    let network = &config.network;
    let which = match (&network.vpc_name, network.vpc_ids.get(region)) {
        (Some(name), _) => format!("VPC {name}"),
        (None, Some(id)) => format!("VPC {id}"),
        (None, None) => format!("default VPC {vpc_id}"),
    };
    if config.public_ips {
        format!(
            "Failed to find public subnets for {which} in region {region}: one needs an active route to an internet \
             gateway"
        )
    } else {
        format!(
            "Failed to find private subnets for {which} with NAT or other outbound access in region {region}: one \
             needs an active route for 0.0.0.0/0 that is not to an internet gateway"
        )
    }
}

async fn vpc_of_subnets(ec2: &aws_sdk_ec2::Client, ids: &[String], region: &str) -> Result<(String, Vec<String>)> {
    let answer = ec2.describe_subnets().set_subnet_ids(Some(ids.to_vec())).send().await;
    let answer = answer.map_err(|error| failure("describe the subnets of `subnet_ids`", &error))?;
    let mut vpcs: Vec<&str> = answer.subnets().iter().filter_map(Subnet::vpc_id).collect();
    vpcs.sort_unstable();
    vpcs.dedup();
    let [vpc_id] = vpcs[..] else {
        return Err(invalid(format!("`subnet_ids` of {region} are not all of one VPC")));
    };
    let cidrs = cidrs_of(ec2, vpc_id).await?;
    Ok((vpc_id.to_owned(), cidrs))
}

async fn cidrs_of(ec2: &aws_sdk_ec2::Client, vpc_id: &str) -> Result<Vec<String>> {
    let answer = ec2.describe_vpcs().vpc_ids(vpc_id).send().await;
    let answer = answer.map_err(|error| failure("describe the VPC", &error))?;
    Ok(answer.vpcs().iter().flat_map(cidrs).collect())
}

fn cidrs(vpc: &aws_sdk_ec2::types::Vpc) -> Vec<String> {
    let associated = vpc.cidr_block_association_set().iter().filter_map(|block| block.cidr_block());
    let mut cidrs: Vec<String> = associated.chain(vpc.cidr_block()).map(str::to_owned).collect();
    cidrs.sort();
    cidrs.dedup();
    cidrs
}

async fn vpc(ec2: &aws_sdk_ec2::Client, network: &NetworkConfig, region: &str) -> Result<(String, Vec<String>)> {
    let id = network.vpc_ids.get(region);
    let condition = match (id, &network.vpc_name) {
        (Some(id), _) => filter("vpc-id", [id.as_str()]),
        (None, Some(name)) => filter("tag:Name", [name.as_str()]),
        (None, None) if !network.default_vpcs => {
            return Err(invalid(format!("No VPC ID configured for region {region}")));
        }
        (None, None) => filter("is-default", ["true"]),
    };
    let answer = ec2.describe_vpcs().filters(condition).send().await;
    let answer = answer.map_err(|error| failure("describe VPCs", &error))?;
    let found = answer.vpcs().iter().find_map(|vpc| Some((vpc.vpc_id()?.to_owned(), cidrs(vpc))));
    found.ok_or_else(|| {
        invalid(match (id, &network.vpc_name) {
            (Some(id), _) => format!("Failed to find VPC {id} in region {region}"),
            (None, Some(name)) => format!("No VPC named {name} in region {region}"),
            (None, None) => format!("No default VPC in region {region}"),
        })
    })
}

/// The zones that are neither local nor of a telephone company.
async fn ordinary_zones(ec2: &aws_sdk_ec2::Client) -> Result<Vec<String>> {
    let request = ec2.describe_availability_zones().filters(filter("zone-type", ["availability-zone"]));
    let answer = request.send().await.map_err(|error| failure("describe availability zones", &error))?;
    Ok(answer.availability_zones().iter().filter_map(|zone| Some(zone.zone_name()?.to_owned())).collect())
}

/// The routes of a VPC: those of each subnet that has some of its own, and those of all others.
struct RouteTables {
    by_subnet: HashMap<String, Vec<Route>>,
    main: Vec<Route>,
}

async fn route_tables(ec2: &aws_sdk_ec2::Client, vpc_id: &str) -> Result<RouteTables> {
    let mut pages = ec2.describe_route_tables().filters(filter("vpc-id", [vpc_id])).into_paginator().send();
    let mut tables: Vec<RouteTable> = vec![];
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe route tables", &error))?;
        tables.extend(page.route_tables.unwrap_or_default());
    }
    let mut known = RouteTables { by_subnet: HashMap::new(), main: vec![] };
    for table in tables {
        for association in table.associations() {
            if let Some(subnet) = association.subnet_id() {
                known.by_subnet.insert(subnet.to_owned(), table.routes().to_vec());
            }
            if association.main() == Some(true) {
                known.main = table.routes().to_vec();
            }
        }
    }
    Ok(known)
}

/// Whether machines of a subnet can be used: in the world, or from within with a way out.
fn does(tables: &RouteTables, subnet: &Subnet, public: bool) -> bool {
    let routes = subnet.subnet_id().and_then(|id| tables.by_subnet.get(id)).unwrap_or(&tables.main);
    let active = || routes.iter().filter(|route| route.state() == Some(&RouteState::Active));
    let is_to_the_world = |route: &Route| route.gateway_id().is_some_and(|gateway| gateway.starts_with("igw-"));
    if public {
        return active().any(is_to_the_world);
    }
    active().any(|route| {
        let leads_out = route.nat_gateway_id().is_some()
            || route.transit_gateway_id().is_some()
            || route.vpc_peering_connection_id().is_some()
            || route.network_interface_id().is_some()
            || route.instance_id().is_some()
            || route.local_gateway_id().is_some()
            || route.core_network_arn().is_some()
            || route
                .gateway_id()
                .is_some_and(|gateway| gateway.starts_with("vpce-") || gateway.starts_with("vgw-"));
        route.destination_cidr_block() == Some("0.0.0.0/0") && leads_out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet() -> Subnet {
        Subnet::builder().subnet_id("subnet-1").build()
    }

    fn route(
        build: impl FnOnce(aws_sdk_ec2::types::builders::RouteBuilder) -> aws_sdk_ec2::types::builders::RouteBuilder,
    ) -> Route {
        build(Route::builder().state(RouteState::Active).destination_cidr_block("0.0.0.0/0")).build()
    }

    #[track_caller]
    fn check(routes: Vec<Route>, public: bool, private: bool) {
        let own = RouteTables {
            by_subnet: HashMap::from([("subnet-1".to_owned(), routes.clone())]),
            main: vec![route(|route| route.gateway_id("igw-1"))],
        };
        let of_main = RouteTables { by_subnet: HashMap::new(), main: routes };
        for tables in [own, of_main] {
            assert_eq!((does(&tables, &subnet(), true), does(&tables, &subnet(), false)), (public, private));
        }
    }

    #[test]
    fn a_subnet_is_what_its_routes_say() {
        check(vec![], false, false);
        check(vec![route(|route| route.gateway_id("igw-1"))], true, false);
        check(vec![route(|route| route.nat_gateway_id("nat-1"))], false, true);
        check(vec![route(|route| route.transit_gateway_id("tgw-1"))], false, true);
        check(vec![route(|route| route.network_interface_id("eni-1"))], false, true);
        check(vec![route(|route| route.gateway_id("vpce-1"))], false, true);
        check(vec![route(|route| route.gateway_id("local"))], false, false);
        check(vec![route(|route| route.nat_gateway_id("nat-1").state(RouteState::Blackhole))], false, false);
        check(
            vec![route(|route| route.nat_gateway_id("nat-1").destination_cidr_block("10.0.0.0/8"))],
            false,
            false,
        );
    }

    #[test]
    fn the_subnet_with_the_most_room_is_taken() {
        let facts = |id: &str, free_addresses| SubnetFacts { id: id.to_owned(), free_addresses };
        let network = RegionNetwork {
            vpc_id: "vpc-1".to_owned(),
            cidrs: vec![],
            subnets: BTreeMap::from([("a".to_owned(), vec![facts("s1", 9), facts("s2", 3)])]),
        };
        assert_eq!(network.subnet("a", 9).unwrap().id, "s1");
        let error = network.subnet("a", 10).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoAddresses);
        assert_eq!(error.message, "the subnet s1 in a has 9 free addresses, and 10 are needed");
        assert!(network.subnet("b", 1).unwrap_err().message.contains("zone b"));
    }
}
