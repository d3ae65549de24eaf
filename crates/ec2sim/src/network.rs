//! Networks that an account finds: VPCs, subnets, routes and gateways. They are given, and no action here changes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::catalog::RegionOffers;
use crate::error::ApiError;
use crate::filters::{Filter, Page, Tags, tag_set};
use crate::ids::Ids;
use crate::settings::Settings;

/// The addresses of a subnet that AWS keeps for itself: the first four and the last.
const RESERVED: u32 = 5;

/// How large the subnets are that an account finds.
const SUBNET_PREFIX: u32 = 20;

/// The networks of a region.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) vpcs: BTreeMap<String, Vpc>,
    pub(crate) subnets: BTreeMap<String, Subnet>,
    pub(crate) route_tables: BTreeMap<String, RouteTable>,
    /// The gateways to the world, by their identifiers, each with its VPC.
    pub(crate) internet_gateways: BTreeMap<String, String>,
    /// The gateways for private subnets, by their identifiers, each with its subnet.
    pub(crate) nat_gateways: BTreeMap<String, String>,
}

/// A network.
#[derive(Debug)]
pub(crate) struct Vpc {
    pub(crate) id: String,
    pub(crate) cidr: String,
    pub(crate) is_default: bool,
    pub(crate) tags: Tags,
}

/// A part of a network in one zone.
#[derive(Debug)]
pub(crate) struct Subnet {
    pub(crate) id: String,
    pub(crate) vpc_id: String,
    pub(crate) zone: String,
    pub(crate) zone_id: String,
    base: u32,
    prefix: u32,
    is_default: bool,
    pub(crate) public_by_default: bool,
    pub(crate) tags: Tags,
    used: BTreeSet<u32>,
    /// Addresses that others have, as a test wants it.
    pub(crate) taken: u32,
}

/// Where packets go.
#[derive(Debug)]
pub(crate) struct RouteTable {
    id: String,
    vpc_id: String,
    is_main: bool,
    subnets: Vec<String>,
    /// Where packets to everywhere go, if they go anywhere: the name of the member, and the target.
    default_route: Option<(&'static str, String)>,
    tags: Tags,
}

/// A network as a test wants it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVpc {
    /// The region.
    pub region: String,
    /// The value of its tag `Name`.
    pub name: String,
    /// Its addresses, as `10.1.0.0/16`.
    pub cidr: String,
    /// Its subnets.
    pub subnets: Vec<NewSubnet>,
}

/// A subnet as a test wants it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSubnet {
    /// The value of its tag `Name`.
    pub name: String,
    /// Its addresses, as `10.1.0.0/24`.
    pub cidr: String,
    /// Its zone.
    pub zone: String,
    /// Where its packets go.
    pub egress: Egress,
}

/// Where packets of a subnet go that leave the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// To the world, and from it.
    Internet,
    /// To the world through a gateway that lets nothing in.
    Nat,
    /// Nowhere.
    None,
}

impl Network {
    /// What the simulated account has in each region: the default VPC with a public subnet in each zone, and `my-vpc`
    /// with a private subnet in each zone and a public one in the first.
    pub(crate) fn new(
        region: &str,
        offers: &RegionOffers,
        settings: &Settings,
        ids: &mut Ids,
    ) -> Result<Network, String> {
        let mut network = Network::default();
        let zones: Vec<String> = offers.zones.keys().map(|letter| format!("{region}{letter}")).collect();
        let block = |base: u32, index: usize, prefix: u32| {
            format!("{}/{prefix}", Ipv4Addr::from(base + (index as u32) * (1 << (32 - SUBNET_PREFIX))))
        };
        let subnet = |name: String, cidr: String, zone: &String, egress| NewSubnet {
            name,
            cidr,
            zone: zone.clone(),
            egress,
        };
        let base = read_large_block(&settings.default_vpc_cidr)?;
        let public = zones
            .iter()
            .enumerate()
            .map(|(index, zone)| subnet(String::new(), block(base, index, SUBNET_PREFIX), zone, Egress::Internet));
        let default = NewVpc {
            region: region.to_owned(),
            name: String::new(),
            cidr: settings.default_vpc_cidr.clone(),
            subnets: public.collect(),
        };
        network.add(&default, true, offers, ids)?;
        let base = read_large_block(&settings.my_vpc_cidr)?;
        let private = zones.iter().enumerate().map(|(index, zone)| {
            subnet(format!("private-{zone}"), block(base, index + 1, SUBNET_PREFIX), zone, Egress::Nat)
        });
        let public = subnet(format!("public-{}", zones[0]), block(base, 0, 24), &zones[0], Egress::Internet);
        let own = NewVpc {
            region: region.to_owned(),
            name: "my-vpc".to_owned(),
            cidr: settings.my_vpc_cidr.clone(),
            subnets: std::iter::once(public).chain(private).collect(),
        };
        network.add(&own, false, offers, ids)?;
        Ok(network)
    }

    /// Adds a network.
    pub(crate) fn add(
        &mut self,
        new: &NewVpc,
        is_default: bool,
        offers: &RegionOffers,
        ids: &mut Ids,
    ) -> Result<String, String> {
        read_cidr(&new.cidr)?;
        let vpc_id = ids.resource("vpc");
        let gateway = ids.resource("igw");
        self.internet_gateways.insert(gateway.clone(), vpc_id.clone());
        let tables = [
            (Egress::None, ids.resource("rtb")),
            (Egress::Internet, ids.resource("rtb")),
            (Egress::Nat, ids.resource("rtb")),
        ];
        let mut nat_place = None;
        for (egress, table_id) in tables {
            let mut subnets = Vec::new();
            for subnet in new.subnets.iter().filter(|subnet| subnet.egress == egress) {
                let subnet_id = self.add_subnet(&vpc_id, subnet, is_default, offers, ids)?;
                if egress == Egress::Internet {
                    nat_place.get_or_insert_with(|| subnet_id.clone());
                }
                subnets.push(subnet_id);
            }
            // The default VPC's subnets use its main table, which leads to the world.
            let is_main = if is_default { egress == Egress::Internet } else { egress == Egress::None };
            if !is_main && subnets.is_empty() {
                continue;
            }
            let default_route = match egress {
                Egress::None => None,
                Egress::Internet => Some(("GatewayId", gateway.clone())),
                Egress::Nat => {
                    let nat = ids.resource("nat");
                    let place = nat_place.clone().or_else(|| subnets.first().cloned()).unwrap_or_default();
                    self.nat_gateways.insert(nat.clone(), place);
                    Some(("NatGatewayId", nat))
                }
            };
            let subnets = if is_main { vec![] } else { subnets };
            let table = RouteTable {
                id: table_id.clone(),
                vpc_id: vpc_id.clone(),
                is_main,
                subnets,
                default_route,
                tags: Tags::new(),
            };
            self.route_tables.insert(table_id, table);
        }
        let vpc = Vpc { id: vpc_id.clone(), cidr: new.cidr.clone(), is_default, tags: name_tag(&new.name) };
        self.vpcs.insert(vpc_id.clone(), vpc);
        Ok(vpc_id)
    }

    fn add_subnet(
        &mut self,
        vpc_id: &str,
        new: &NewSubnet,
        is_default: bool,
        offers: &RegionOffers,
        ids: &mut Ids,
    ) -> Result<String, String> {
        let (base, prefix) = read_cidr(&new.cidr)?;
        let letter = new.zone.chars().last().unwrap_or_default();
        let zone_id = offers.zones.get(&letter).ok_or_else(|| format!("there is no zone `{}`", new.zone))?;
        let id = ids.resource("subnet");
        let subnet = Subnet {
            id: id.clone(),
            vpc_id: vpc_id.to_owned(),
            zone: new.zone.clone(),
            zone_id: zone_id.clone(),
            base,
            prefix,
            is_default,
            public_by_default: is_default,
            tags: name_tag(&new.name),
            used: BTreeSet::new(),
            taken: 0,
        };
        self.subnets.insert(id.clone(), subnet);
        Ok(id)
    }

    /// The default VPC, if the account has kept it.
    pub(crate) fn default_vpc(&self) -> Option<&Vpc> {
        self.vpcs.values().find(|vpc| vpc.is_default)
    }

    /// A subnet of that identifier.
    pub(crate) fn subnet(&mut self, id: &str) -> Result<&mut Subnet, ApiError> {
        self.subnets.get_mut(id).ok_or_else(|| {
            ApiError::client("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
        })
    }

    /// Whether packets of a subnet get to the world and back.
    pub(crate) fn is_public(&self, subnet: &Subnet) -> bool {
        let own = self.route_tables.values().find(|table| table.subnets.contains(&subnet.id));
        let main = || self.route_tables.values().find(|table| table.is_main && table.vpc_id == subnet.vpc_id);
        let table = own.or_else(main);
        table.is_some_and(|table| matches!(table.default_route, Some(("GatewayId", _))))
    }
}

fn name_tag(name: &str) -> Tags {
    if name.is_empty() { Tags::new() } else { Tags::from([("Name".to_owned(), name.to_owned())]) }
}

fn read_cidr(text: &str) -> Result<(u32, u32), String> {
    let wrong = || format!("`{text}` is no block of addresses");
    let (base, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let base: Ipv4Addr = base.parse().map_err(|_| wrong())?;
    let prefix: u32 = prefix.parse().map_err(|_| wrong())?;
    if !(16..=28).contains(&prefix) || u32::from(base) & ((1 << (32 - prefix)) - 1) != 0 {
        return Err(wrong());
    }
    Ok((u32::from(base), prefix))
}

/// The first address of a block that has room for a subnet in each zone.
pub(crate) fn read_large_block(text: &str) -> Result<u32, String> {
    let (base, prefix) = read_cidr(text)?;
    if prefix == 16 { Ok(base) } else { Err(format!("`{text}` is no block of /16")) }
}

impl Subnet {
    /// Its addresses.
    pub(crate) fn cidr(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }

    fn size(&self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// How many addresses are free.
    pub(crate) fn free(&self) -> u32 {
        (self.size() - RESERVED).saturating_sub(self.used.len() as u32 + self.taken)
    }

    /// Takes a free address; whether there is one is known from [`Subnet::free`].
    pub(crate) fn take_address(&mut self) -> Option<Ipv4Addr> {
        let mut hosts = self.base + RESERVED - 1..self.base + self.size() - 1;
        let free = hosts.find(|host| !self.used.contains(host)).filter(|_| 0 < self.free())?;
        self.used.insert(free);
        Some(Ipv4Addr::from(free))
    }

    /// Gives an address back.
    pub(crate) fn release_address(&mut self, address: &str) {
        if let Ok(address) = address.parse::<Ipv4Addr>() {
            self.used.remove(&u32::from(address));
        }
    }

    fn render(&self, region: &str, account: &str) -> Value {
        json!({
            "SubnetId": self.id,
            "SubnetArn": format!("arn:aws:ec2:{region}:{account}:subnet/{}", self.id),
            "VpcId": self.vpc_id,
            "State": "available",
            "CidrBlock": self.cidr(),
            "AvailabilityZone": self.zone,
            "AvailabilityZoneId": self.zone_id,
            "AvailableIpAddressCount": self.free(),
            "DefaultForAz": self.is_default,
            "MapPublicIpOnLaunch": self.public_by_default,
            "MapCustomerOwnedIpOnLaunch": false,
            "AssignIpv6AddressOnCreation": false,
            "Ipv6CidrBlockAssociationSet": [],
            "EnableDns64": false,
            "Ipv6Native": false,
            "PrivateDnsNameOptionsOnLaunch": {
                "HostnameType": "ip-name",
                "EnableResourceNameDnsARecord": false,
                "EnableResourceNameDnsAAAARecord": false,
            },
            "OwnerId": account,
            "Tags": tag_set(&self.tags),
        })
    }
}

impl RouteTable {
    fn render(&self, cidr: &str, account: &str) -> Value {
        let local = json!({
            "DestinationCidrBlock": cidr,
            "GatewayId": "local",
            "Origin": "CreateRouteTable",
            "State": "active",
        });
        let default = self.default_route.as_ref().map(|(member, target)| {
            let mut route =
                json!({"DestinationCidrBlock": "0.0.0.0/0", "Origin": "CreateRoute", "State": "active"});
            route[*member] = json!(target);
            route
        });
        let association = |subnet: Option<&String>| {
            let which = subnet.map_or(self.id.as_str(), String::as_str);
            let digits = which.split_once('-').map_or(which, |(_, digits)| digits);
            json!({
                "Main": subnet.is_none(),
                "RouteTableAssociationId": format!("rtbassoc-{digits}"),
                "RouteTableId": self.id,
                "SubnetId": subnet,
                "AssociationState": {"State": "associated"},
            })
        };
        let main = self.is_main.then(|| association(None));
        let associations: Vec<Value> =
            main.into_iter().chain(self.subnets.iter().map(|id| association(Some(id)))).collect();
        json!({
            "RouteTableId": self.id,
            "VpcId": self.vpc_id,
            "OwnerId": account,
            "Associations": associations,
            "PropagatingVgws": [],
            "Routes": std::iter::once(local).chain(default).collect::<Vec<_>>(),
            "Tags": tag_set(&self.tags),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase", default)]
#[derive(Default)]
struct Asked {
    filters: Vec<Filter>,
    vpc_ids: Vec<String>,
    subnet_ids: Vec<String>,
    route_table_ids: Vec<String>,
    internet_gateway_ids: Vec<String>,
    nat_gateway_ids: Vec<String>,
    /// The one action whose filters have another name.
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// The rows of those identifiers, or all of them. One that is not there is refused with `code`.
pub(crate) fn select<'a, T>(
    rows: &'a BTreeMap<String, T>,
    ids: &[String],
    refuse: impl Fn(&str) -> ApiError,
) -> Result<Vec<&'a T>, ApiError> {
    if ids.is_empty() {
        return Ok(rows.values().collect());
    }
    ids.iter().map(|id| rows.get(id).ok_or_else(|| refuse(id))).collect()
}

/// DescribeVpcs.
pub(crate) fn describe_vpcs(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let account = call.account();
    let missing =
        |id: &str| ApiError::client("InvalidVpcID.NotFound", format!("The vpc ID '{id}' does not exist"));
    let vpcs = select(&call.region().network.vpcs, &asked.vpc_ids, missing)?;
    let rows = vpcs.into_iter().map(|vpc| {
        let digits = vpc.id.trim_start_matches("vpc-");
        json!({
            "VpcId": vpc.id,
            "State": "available",
            "CidrBlock": vpc.cidr,
            "CidrBlockAssociationSet": [{
                "AssociationId": format!("vpc-cidr-assoc-{digits}"),
                "CidrBlock": vpc.cidr,
                "CidrBlockState": {"State": "associated"},
            }],
            "DhcpOptionsId": format!("dopt-{digits}"),
            "InstanceTenancy": "default",
            "IsDefault": vpc.is_default,
            "OwnerId": account,
            "Tags": tag_set(&vpc.tags),
        })
    });
    let rows = rows.collect();
    let paths = [
        ("vpc-id", "VpcId"),
        ("is-default", "IsDefault"),
        ("isDefault", "IsDefault"),
        ("cidr", "CidrBlock"),
        ("state", "State"),
        ("owner-id", "OwnerId"),
        ("dhcp-options-id", "DhcpOptionsId"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"Vpcs": rows, "NextToken": next}))
}

/// DescribeSubnets.
pub(crate) fn describe_subnets(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let (account, region) = (call.account(), call.region.clone());
    let missing =
        |id: &str| ApiError::client("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"));
    let subnets = select(&call.region().network.subnets, &asked.subnet_ids, missing)?;
    let rows = subnets.into_iter().map(|subnet| subnet.render(&region, &account)).collect();
    let paths = [
        ("subnet-id", "SubnetId"),
        ("vpc-id", "VpcId"),
        ("availability-zone", "AvailabilityZone"),
        ("availability-zone-id", "AvailabilityZoneId"),
        ("available-ip-address-count", "AvailableIpAddressCount"),
        ("cidr-block", "CidrBlock"),
        ("default-for-az", "DefaultForAz"),
        ("map-public-ip-on-launch", "MapPublicIpOnLaunch"),
        ("state", "State"),
        ("owner-id", "OwnerId"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"Subnets": rows, "NextToken": next}))
}

/// DescribeRouteTables.
pub(crate) fn describe_route_tables(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let account = call.account();
    let network = &call.region().network;
    let missing = |id: &str| {
        let message = format!("The routeTable ID '{id}' does not exist");
        ApiError::client("InvalidRouteTableID.NotFound", message)
    };
    let tables = select(&network.route_tables, &asked.route_table_ids, missing)?;
    let rows = tables.into_iter().map(|table| table.render(&network.vpcs[&table.vpc_id].cidr, &account)).collect();
    let paths = [
        ("route-table-id", "RouteTableId"),
        ("vpc-id", "VpcId"),
        ("association.subnet-id", "Associations.SubnetId"),
        ("association.main", "Associations.Main"),
        ("association.route-table-id", "Associations.RouteTableId"),
        ("route.gateway-id", "Routes.GatewayId"),
        ("route.nat-gateway-id", "Routes.NatGatewayId"),
        ("route.destination-cidr-block", "Routes.DestinationCidrBlock"),
        ("route.state", "Routes.State"),
        ("owner-id", "OwnerId"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"RouteTables": rows, "NextToken": next}))
}

/// DescribeInternetGateways.
pub(crate) fn describe_internet_gateways(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let account = call.account();
    let rows = call.region().network.internet_gateways.iter().map(|(id, vpc_id)| {
        json!({
            "InternetGatewayId": id,
            "Attachments": [{"State": "attached", "VpcId": vpc_id}],
            "OwnerId": account,
            "Tags": [],
        })
    });
    let rows: Vec<Value> = rows.collect();
    let rows = named(rows, "InternetGatewayId", &asked.internet_gateway_ids, "InvalidInternetGatewayID.NotFound")?;
    let paths = [
        ("internet-gateway-id", "InternetGatewayId"),
        ("attachment.vpc-id", "Attachments.VpcId"),
        ("attachment.state", "Attachments.State"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"InternetGateways": rows, "NextToken": next}))
}

/// DescribeNatGateways.
pub(crate) fn describe_nat_gateways(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let network = &call.region().network;
    let rows = network.nat_gateways.iter().map(|(id, subnet_id)| {
        json!({
            "NatGatewayId": id,
            "SubnetId": subnet_id,
            "VpcId": network.subnets.get(subnet_id).map(|subnet| subnet.vpc_id.clone()),
            "State": "available",
            "ConnectivityType": "public",
            "NatGatewayAddresses": [],
            "Tags": [],
        })
    });
    let rows: Vec<Value> = rows.collect();
    let rows = named(rows, "NatGatewayId", &asked.nat_gateway_ids, "NatGatewayNotFound")?;
    let paths =
        [("nat-gateway-id", "NatGatewayId"), ("subnet-id", "SubnetId"), ("vpc-id", "VpcId"), ("state", "State")];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filter, &paths, &page)?;
    Ok(json!({"NatGateways": rows, "NextToken": next}))
}

/// The rows of those identifiers, or all.
fn named(rows: Vec<Value>, member: &str, ids: &[String], code: &'static str) -> Result<Vec<Value>, ApiError> {
    let has = |id: &&String| rows.iter().any(|row| row[member] == id.as_str());
    if let Some(id) = ids.iter().find(|id| !has(id)) {
        return Err(ApiError::client(code, format!("The ID '{id}' does not exist")));
    }
    Ok(rows.into_iter().filter(|row| ids.is_empty() || ids.iter().any(|id| row[member] == id.as_str())).collect())
}
