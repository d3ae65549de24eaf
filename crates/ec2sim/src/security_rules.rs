//! Rules of security groups: what they say, and how a request says it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::security_groups::not_found;
use crate::world::Region;

/// What a group lets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) is_egress: bool,
    /// `tcp`, `udp`, `icmp`, or `-1` for everything.
    pub(crate) protocol: String,
    pub(crate) ports: Option<(i64, i64)>,
    pub(crate) peer: Peer,
    pub(crate) description: Option<String>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    Ipv4(String),
    Ipv6(String),
    Group(String),
}

impl Rule {
    /// Whether both let the same pass, whatever they say about it.
    pub(crate) fn is_same(&self, other: &Rule) -> bool {
        (self.is_egress, &self.protocol, self.ports, &self.peer)
            == (other.is_egress, &other.protocol, other.ports, &other.peer)
    }

    pub(crate) fn render(&self, id: &str, group_id: &str, account: &str) -> Value {
        let (from, to) = self.ports.unwrap_or((-1, -1));
        let mut rule = json!({
            "SecurityGroupRuleId": id,
            "GroupId": group_id,
            "GroupOwnerId": account,
            "IsEgress": self.is_egress,
            "IpProtocol": self.protocol,
            "FromPort": from,
            "ToPort": to,
            "Description": self.description,
            "Tags": [],
        });
        match &self.peer {
            Peer::Ipv4(cidr) => rule["CidrIpv4"] = json!(cidr),
            Peer::Ipv6(cidr) => rule["CidrIpv6"] = json!(cidr),
            Peer::Group(group) => rule["ReferencedGroupInfo"] = json!({"GroupId": group, "UserId": account}),
        }
        rule
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct Change {
    pub(crate) group_id: Option<String>,
    #[serde(default)]
    ip_permissions: Vec<Permission>,
    #[serde(default)]
    pub(crate) security_group_rule_ids: Vec<String>,
    // Short forms for one rule to or from addresses.
    ip_protocol: Option<String>,
    from_port: Option<i64>,
    to_port: Option<i64>,
    cidr_ip: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Permission {
    ip_protocol: Option<String>,
    from_port: Option<i64>,
    to_port: Option<i64>,
    #[serde(default)]
    ip_ranges: Vec<IpRange>,
    #[serde(default)]
    ipv6_ranges: Vec<Ipv6Range>,
    #[serde(default)]
    user_id_group_pairs: Vec<GroupPair>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct IpRange {
    cidr_ip: String,
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Ipv6Range {
    cidr_ipv6: String,
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct GroupPair {
    group_id: String,
    user_id: Option<String>,
    description: Option<String>,
}

impl Change {
    /// The rules that the change is about.
    pub(crate) fn rules(self, is_egress: bool, region: &Region, account: &str) -> Result<Vec<Rule>, ApiError> {
        let mut permissions = self.ip_permissions;
        if let Some(cidr_ip) = self.cidr_ip {
            permissions.push(Permission {
                ip_protocol: self.ip_protocol,
                from_port: self.from_port,
                to_port: self.to_port,
                ip_ranges: vec![IpRange { cidr_ip, description: None }],
                ipv6_ranges: vec![],
                user_id_group_pairs: vec![],
            });
        }
        let mut rules: Vec<Rule> = Vec::new();
        for permission in permissions {
            for rule in permission.rules(is_egress, region, account)? {
                if rules.iter().any(|known| known.is_same(&rule)) {
                    return Err(ApiError::client(
                        "InvalidParameterValue",
                        "The same permission must not appear multiple times",
                    ));
                }
                rules.push(rule);
            }
        }
        if rules.is_empty() && self.security_group_rule_ids.is_empty() {
            return Err(ApiError::client(
                "MissingParameter",
                "Either 'ipPermissions' or 'securityGroupRuleIds' should be provided",
            ));
        }
        Ok(rules)
    }
}

impl Permission {
    pub(crate) fn rules(self, is_egress: bool, region: &Region, account: &str) -> Result<Vec<Rule>, ApiError> {
        let protocol = match self.ip_protocol.as_deref() {
            None => {
                return Err(ApiError::client(
                    "MissingParameter",
                    "The request must contain the parameter ipProtocol",
                ));
            }
            Some("-1" | "all") => "-1",
            Some("6" | "tcp") => "tcp",
            Some("17" | "udp") => "udp",
            Some("1" | "icmp") => "icmp",
            Some(other) => return Err(ApiError::invalid_value(other, "ipProtocol", "Unrecognized protocol.")),
        };
        let ports = match (protocol, self.from_port, self.to_port) {
            // With all protocols, ports mean nothing.
            ("-1", _, _) => None,
            (_, Some(from), Some(to)) if -1 <= from && from <= to && to <= 65_535 => Some((from, to)),
            _ => return Err(ApiError::client("InvalidParameterValue", "Invalid port range for the protocol")),
        };
        let mut peers = Vec::new();
        for range in self.ip_ranges {
            if !is_cidr(&range.cidr_ip) {
                let message = format!("CIDR block {} is malformed", range.cidr_ip);
                return Err(ApiError::client("InvalidParameterValue", message));
            }
            peers.push((Peer::Ipv4(range.cidr_ip), range.description));
        }
        peers.extend(self.ipv6_ranges.into_iter().map(|range| (Peer::Ipv6(range.cidr_ipv6), range.description)));
        for pair in self.user_id_group_pairs {
            if !region.security_groups.contains_key(&pair.group_id) {
                return Err(not_found(&pair.group_id));
            }
            if pair.user_id.is_some_and(|user| user != account) {
                return Err(ApiError::not_simulated("groups of other accounts"));
            }
            peers.push((Peer::Group(pair.group_id), pair.description));
        }
        let rule =
            |(peer, description)| Rule { is_egress, protocol: protocol.to_owned(), ports, peer, description };
        let rules: Vec<Rule> = peers.into_iter().map(rule).collect();
        // The official server names nobody when it asks for the egress that a new group has already: that is everybody.
        if rules.is_empty() && !is_egress {
            return Err(ApiError::client("MissingParameter", "A permission must name whom it is for"));
        }
        if rules.is_empty() {
            return Ok(vec![rule((Peer::Ipv4("0.0.0.0/0".to_owned()), None))]);
        }
        Ok(rules)
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    address.parse::<std::net::Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|prefix| prefix <= 32)
}
