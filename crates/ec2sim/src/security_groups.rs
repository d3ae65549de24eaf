//! Security groups and their rules.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, Page, TagSpecification, Tags, tag_set, tags_by_kind};
use crate::ids::Ids;
use crate::ledger::Kind;
use crate::security_rules::{Change, Peer, Rule};
use crate::world::Region;

/// The most rules of a group in one direction.
const MAX_RULES: usize = 60;

/// A security group.
#[derive(Debug)]
pub(crate) struct SecurityGroup {
    pub(crate) id: String,
    pub(crate) name: String,
    description: String,
    pub(crate) vpc_id: String,
    pub(crate) tags: Tags,
    made_at: Timestamp,
    /// By identifier.
    rules: BTreeMap<String, Rule>,
}

impl SecurityGroup {
    /// The group that each VPC comes with.
    pub(crate) fn default_of(vpc_id: &str, ids: &mut Ids) -> SecurityGroup {
        let mut group = SecurityGroup {
            id: ids.resource("sg"),
            name: "default".to_owned(),
            description: "default VPC security group".to_owned(),
            vpc_id: vpc_id.to_owned(),
            tags: Tags::new(),
            made_at: Timestamp::UNIX_EPOCH,
            rules: BTreeMap::new(),
        };
        let all =
            |is_egress, peer| Rule { is_egress, protocol: "-1".to_owned(), ports: None, peer, description: None };
        group.rules.insert(ids.resource("sgr"), all(false, Peer::Group(group.id.clone())));
        group.rules.insert(ids.resource("sgr"), all(true, Peer::Ipv4("0.0.0.0/0".to_owned())));
        group
    }

    /// Rules of one direction as they are listed with the group: those of the same ports together.
    fn permissions(&self, is_egress: bool, account: &str) -> Value {
        let mut permissions: Vec<Value> = Vec::new();
        for rule in self.rules.values().filter(|rule| rule.is_egress == is_egress) {
            let (from, to) = (rule.ports.map(|(from, _)| from), rule.ports.map(|(_, to)| to));
            let key = json!([rule.protocol, from, to]);
            let found = permissions
                .iter()
                .position(|known| json!([known["IpProtocol"], known["FromPort"], known["ToPort"]]) == key);
            let at = found.unwrap_or_else(|| {
                permissions.push(json!({
                    "IpProtocol": rule.protocol, "FromPort": from, "ToPort": to,
                    "IpRanges": [], "Ipv6Ranges": [], "PrefixListIds": [], "UserIdGroupPairs": [],
                }));
                permissions.len() - 1
            });
            let (list, entry) = match &rule.peer {
                Peer::Ipv4(cidr) => ("IpRanges", json!({"CidrIp": cidr, "Description": rule.description})),
                Peer::Ipv6(cidr) => ("Ipv6Ranges", json!({"CidrIpv6": cidr, "Description": rule.description})),
                Peer::Group(group) => (
                    "UserIdGroupPairs",
                    json!({"GroupId": group, "UserId": account, "Description": rule.description}),
                ),
            };
            if let Value::Array(entries) = &mut permissions[at][list] {
                entries.push(entry);
            }
        }
        Value::Array(permissions)
    }

    fn render(&self, region: &str, account: &str) -> Value {
        json!({
            "GroupId": self.id,
            "GroupName": self.name,
            "Description": self.description,
            "VpcId": self.vpc_id,
            "OwnerId": account,
            "SecurityGroupArn": format!("arn:aws:ec2:{region}:{account}:security-group/{}", self.id),
            "IpPermissions": self.permissions(false, account),
            "IpPermissionsEgress": self.permissions(true, account),
            "Tags": tag_set(&self.tags),
        })
    }
}

/// How a group that is not there is refused.
pub(crate) fn not_found(id: &str) -> ApiError {
    if id.starts_with("sg-") {
        ApiError::client("InvalidGroup.NotFound", format!("The security group '{id}' does not exist"))
    } else {
        ApiError::client("InvalidGroupId.Malformed", format!("Invalid id: \"{id}\" (expecting \"sg-...\")"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    group_ids: Vec<String>,
    #[serde(default)]
    group_names: Vec<String>,
    #[serde(default)]
    security_group_rule_ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeSecurityGroups.
pub(crate) fn describe_security_groups(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let (account, region) = (call.account(), call.region.clone());
    let seen = visible(call);
    let default_vpc = call.region().network.default_vpc().map(|vpc| vpc.id.clone());
    let missing = asked.group_ids.iter().find(|id| !seen.contains(id));
    if let Some(id) = missing {
        return Err(not_found(id));
    }
    let groups = &call.region().security_groups;
    for name in &asked.group_names {
        // Names alone are of the default VPC.
        let is_there = |group: &SecurityGroup| group.name == *name && Some(&group.vpc_id) == default_vpc.as_ref();
        if !groups.values().any(is_there) {
            let message = format!("The security group '{name}' does not exist in default VPC");
            return Err(ApiError::client("InvalidGroup.NotFound", message));
        }
    }
    let is_asked = |group: &&SecurityGroup| {
        seen.contains(&group.id)
            && (asked.group_ids.is_empty() || asked.group_ids.contains(&group.id))
            && (asked.group_names.is_empty() || asked.group_names.contains(&group.name))
    };
    let rows = groups.values().filter(is_asked).map(|group| group.render(&region, &account)).collect();
    let paths = [
        ("group-id", "GroupId"),
        ("group-name", "GroupName"),
        ("vpc-id", "VpcId"),
        ("description", "Description"),
        ("owner-id", "OwnerId"),
        ("ip-permission.protocol", "IpPermissions.IpProtocol"),
        ("ip-permission.from-port", "IpPermissions.FromPort"),
        ("ip-permission.to-port", "IpPermissions.ToPort"),
        ("ip-permission.cidr", "IpPermissions.IpRanges.CidrIp"),
        ("ip-permission.group-id", "IpPermissions.UserIdGroupPairs.GroupId"),
        ("egress.ip-permission.cidr", "IpPermissionsEgress.IpRanges.CidrIp"),
        ("egress.ip-permission.group-id", "IpPermissionsEgress.UserIdGroupPairs.GroupId"),
    ];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"SecurityGroups": rows, "NextToken": next}))
}

/// The groups that other actions know of.
fn visible(call: &mut Call<'_>) -> Vec<String> {
    let groups: Vec<(String, Timestamp)> =
        call.region().security_groups.values().map(|group| (group.id.clone(), group.made_at)).collect();
    groups.into_iter().filter(|(_, made_at)| call.world.sees_resource(*made_at)).map(|(id, _)| id).collect()
}

/// DescribeSecurityGroupRules.
pub(crate) fn describe_security_group_rules(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let account = call.account();
    let groups = &call.region().security_groups;
    let rules = groups.values().flat_map(|group| group.rules.iter().map(move |(id, rule)| (id, rule, &group.id)));
    let mut rows: Vec<Value> = rules.map(|(id, rule, group)| rule.render(id, group, &account)).collect();
    let ids = &asked.security_group_rule_ids;
    if let Some(id) = ids.iter().find(|id| !rows.iter().any(|row| row["SecurityGroupRuleId"] == id.as_str())) {
        let message = format!("The security group rule ID '{id}' does not exist");
        return Err(ApiError::client("InvalidSecurityGroupRuleId.NotFound", message));
    }
    rows.retain(|row| ids.is_empty() || ids.iter().any(|id| row["SecurityGroupRuleId"] == id.as_str()));
    let paths = [("group-id", "GroupId"), ("security-group-rule-id", "SecurityGroupRuleId")];
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = call.list(rows, asked.filters, &paths, &page)?;
    Ok(json!({"SecurityGroupRules": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewGroup {
    description: String,
    group_name: String,
    vpc_id: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateSecurityGroup.
pub(crate) fn create_security_group(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewGroup = call.read()?;
    let tags = tags_by_kind(&new.tag_specifications, &["security-group"])?.remove("security-group");
    if tags.is_some() {
        call.permit("ec2:CreateTags")?;
    }
    let allowed = |text: &str| {
        let marks = " ._-:/()#,@[]+=&;{}!$*";
        (1..=255).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
    };
    if !allowed(&new.group_name) || new.group_name.starts_with("sg-") {
        return Err(ApiError::invalid_value(
            &new.group_name,
            "groupName",
            "Character sets beyond ASCII are not supported.",
        ));
    }
    if !allowed(&new.description) {
        let why = "Character sets beyond ASCII are not supported.";
        return Err(ApiError::invalid_value(&new.description, "GroupDescription", why));
    }
    let account = call.account();
    let region_name = call.region.clone();
    let default = call.region().network.default_vpc().map(|vpc| vpc.id.clone());
    let vpc_id = new
        .vpc_id
        .or(default)
        .ok_or_else(|| ApiError::client("VPCIdNotSpecified", "No default VPC for this user"))?;
    if !call.region().network.vpcs.contains_key(&vpc_id) {
        return Err(ApiError::client("InvalidVpcID.NotFound", format!("The vpc ID '{vpc_id}' does not exist")));
    }
    let name = new.group_name;
    if call.region().security_groups.values().any(|group| group.vpc_id == vpc_id && group.name == name) {
        let message = format!("The security group '{name}' already exists for VPC '{vpc_id}'");
        return Err(ApiError::client("InvalidGroup.Duplicate", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let id = rest.ids.resource("sg");
    let tags = tags.unwrap_or_default();
    rest.ledger.made(Kind::SecurityGroup, &id, &region.name, rest.action, rest.now, &tags);
    let everywhere = Rule {
        is_egress: true,
        protocol: "-1".to_owned(),
        ports: None,
        peer: Peer::Ipv4("0.0.0.0/0".to_owned()),
        description: None,
    };
    let mut group = SecurityGroup {
        id: id.clone(),
        name,
        description: new.description,
        vpc_id,
        tags,
        made_at: rest.now,
        rules: BTreeMap::new(),
    };
    group.rules.insert(rest.ids.resource("sgr"), everywhere);
    let answer = json!({
        "GroupId": id,
        "Tags": tag_set(&group.tags),
        "SecurityGroupArn": format!("arn:aws:ec2:{region_name}:{account}:security-group/{id}"),
    });
    region.security_groups.insert(id, group);
    Ok(answer)
}

/// AuthorizeSecurityGroupIngress.
pub(crate) fn authorize_ingress(call: &mut Call<'_>) -> Result<Value, ApiError> {
    authorize(call, false)
}

/// AuthorizeSecurityGroupEgress.
pub(crate) fn authorize_egress(call: &mut Call<'_>) -> Result<Value, ApiError> {
    authorize(call, true)
}

/// The group that a change is about.
fn subject(call: &mut Call<'_>, id: Option<&String>) -> Result<String, ApiError> {
    let id =
        id.ok_or_else(|| ApiError::client("MissingParameter", "The request must contain the parameter groupId"))?;
    if !visible(call).contains(id) {
        return Err(not_found(id));
    }
    Ok(id.clone())
}

fn authorize(call: &mut Call<'_>, is_egress: bool) -> Result<Value, ApiError> {
    let change: Change = call.read()?;
    let account = call.account();
    let group_id = subject(call, change.group_id.as_ref())?;
    let rules = change.rules(is_egress, call.region(), &account)?;
    let group = &call.region().security_groups[&group_id];
    if let Some(rule) = rules.iter().find(|rule| group.rules.values().any(|known| known.is_same(rule))) {
        let peer = match &rule.peer {
            Peer::Ipv4(peer) | Peer::Ipv6(peer) | Peer::Group(peer) => peer,
        };
        let ports = rule.ports.map_or("ALL".to_owned(), |(from, to)| format!("from port: {from}, to port: {to}"));
        let protocol = if rule.protocol == "-1" { "ALL".to_owned() } else { rule.protocol.to_uppercase() };
        let message = format!("the specified rule \"peer: {peer}, {protocol}, {ports}, ALLOW\" already exists");
        return Err(ApiError::client("InvalidPermission.Duplicate", message));
    }
    let known = group.rules.values().filter(|rule| rule.is_egress == is_egress).count();
    if MAX_RULES < known + rules.len() {
        let message = "The maximum number of rules per security group has been reached.";
        return Err(ApiError::client("RulesPerSecurityGroupLimitExceeded", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let group = region.security_groups.get_mut(&group_id).expect("the group was found");
    let mut made = Vec::new();
    for rule in rules {
        let id = rest.ids.resource("sgr");
        rest.ledger.made(Kind::SecurityGroupRule, &id, &region.name, rest.action, rest.now, &Tags::new());
        made.push(rule.render(&id, &group_id, &account));
        group.rules.insert(id, rule);
    }
    Ok(json!({"Return": true, "SecurityGroupRules": made}))
}

/// RevokeSecurityGroupIngress.
pub(crate) fn revoke_ingress(call: &mut Call<'_>) -> Result<Value, ApiError> {
    revoke(call, false)
}

/// RevokeSecurityGroupEgress.
pub(crate) fn revoke_egress(call: &mut Call<'_>) -> Result<Value, ApiError> {
    revoke(call, true)
}

fn revoke(call: &mut Call<'_>, is_egress: bool) -> Result<Value, ApiError> {
    let change: Change = call.read()?;
    let account = call.account();
    let group_id = subject(call, change.group_id.as_ref())?;
    let mut ids = change.security_group_rule_ids.clone();
    let rules = change.rules(is_egress, call.region(), &account)?;
    let group = &call.region().security_groups[&group_id];
    for rule in rules {
        let found = group.rules.iter().find(|(_, known)| known.is_same(&rule));
        let missing = || {
            let message = "The specified rule does not exist in this security group.";
            ApiError::client("InvalidPermission.NotFound", message)
        };
        ids.push(found.ok_or_else(missing)?.0.clone());
    }
    let is_here = |id: &&String| group.rules.get(*id).is_some_and(|rule| rule.is_egress == is_egress);
    if let Some(id) = ids.iter().find(|id| !is_here(id)) {
        let message = format!("The security group rule ID '{id}' does not exist");
        return Err(ApiError::client("InvalidSecurityGroupRuleId.NotFound", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let group = region.security_groups.get_mut(&group_id).expect("the group was found");
    for id in &ids {
        group.rules.remove(id);
        rest.ledger.gone(Kind::SecurityGroupRule, id, rest.now);
    }
    Ok(json!({"Return": true}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Deletion {
    group_id: Option<String>,
}

/// DeleteSecurityGroup.
pub(crate) fn delete_security_group(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let deletion: Deletion = call.read()?;
    let group_id = subject(call, deletion.group_id.as_ref())?;
    let region = call.region();
    if region.security_groups[&group_id].name == "default" {
        let message = "the specified group: \"default\" name: \"default\" cannot be deleted by a user";
        return Err(ApiError::client("CannotDelete", message));
    }
    let is_used = region.interfaces.values().any(|interface| interface.groups.contains(&group_id));
    let refers = |group: &SecurityGroup| {
        group.id != group_id && group.rules.values().any(|rule| rule.peer == Peer::Group(group_id.clone()))
    };
    if is_used || region.security_groups.values().any(refers) {
        let message = format!("resource {group_id} has a dependent object");
        return Err(ApiError::client("DependencyViolation", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    if let Some(group) = region.security_groups.remove(&group_id) {
        for id in group.rules.keys() {
            rest.ledger.gone(Kind::SecurityGroupRule, id, rest.now);
        }
        rest.ledger.gone(Kind::SecurityGroup, &group_id, rest.now);
    }
    Ok(json!({"Return": true, "GroupId": group_id}))
}

/// The names of groups, as interfaces and instances list them.
pub(crate) fn identifiers(region: &Region, ids: &[String]) -> Value {
    let entry = |id: &String| json!({"GroupId": id, "GroupName": region.security_groups.get(id).map(|group| group.name.as_str())});
    ids.iter().map(entry).collect()
}

/// Finds the groups of a request, all of one VPC.
pub(crate) fn check(
    call: &mut Call<'_>,
    ids: &[String],
    vpc_id: &str,
    subnet_id: &str,
) -> Result<Vec<String>, ApiError> {
    let seen = visible(call);
    let groups = &call.region().security_groups;
    if ids.is_empty() {
        let default = groups.values().find(|group| group.vpc_id == vpc_id && group.name == "default");
        return Ok(default.map(|group| group.id.clone()).into_iter().collect());
    }
    for id in ids {
        let group = groups.get(id).filter(|_| seen.contains(id)).ok_or_else(|| not_found(id))?;
        if group.vpc_id != vpc_id {
            let message = format!("Security group {id} and subnet {subnet_id} belong to different networks.");
            return Err(ApiError::client("InvalidParameter", message));
        }
    }
    Ok(ids.to_vec())
}
