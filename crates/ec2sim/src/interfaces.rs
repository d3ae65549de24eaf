//! Network interfaces.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, Page, TagSpecification, Tags, tag_set, tags_by_kind};
use crate::ledger::Kind;
use crate::security_groups;
use crate::world::{Region, World};
use crate::xml;

/// A network interface.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) id: String,
    pub(crate) subnet_id: String,
    pub(crate) vpc_id: String,
    pub(crate) zone: String,
    /// An interface for EFA only has none.
    pub(crate) private_ip: Option<String>,
    pub(crate) mac: String,
    /// `interface`, `efa` or `efa-only`.
    pub(crate) interface_type: String,
    pub(crate) groups: Vec<String>,
    pub(crate) description: String,
    pub(crate) tags: Tags,
    pub(crate) made_at: Timestamp,
    pub(crate) attachment: Option<Attachment>,
    pub(crate) association: Option<Association>,
}

/// To which instance an interface belongs.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) id: String,
    pub(crate) instance_id: String,
    pub(crate) card: i64,
    pub(crate) device: i64,
    pub(crate) delete_on_termination: bool,
    pub(crate) at: Timestamp,
}

/// Under which address the world sees an interface.
#[derive(Debug)]
pub(crate) struct Association {
    pub(crate) public_ip: String,
    /// The allocation and the association, where the address is the account's own.
    pub(crate) own: Option<(String, String)>,
}

impl Association {
    /// `with_ids`: an instance's view of its interfaces has no identifiers in it.
    fn render(&self, account: &str, region: &str, with_ids: bool) -> Value {
        let dashed = self.public_ip.replace('.', "-");
        let mut association = json!({
            "PublicIp": self.public_ip,
            "PublicDnsName": format!("ec2-{dashed}.{region}.compute.amazonaws.com"),
            "IpOwnerId": if self.own.is_some() { account } else { "amazon" },
        });
        if let Some((allocation_id, association_id)) = self.own.as_ref().filter(|_| with_ids) {
            association["AllocationId"] = json!(allocation_id);
            association["AssociationId"] = json!(association_id);
        }
        association
    }
}

/// The name that an address has within its region.
pub(crate) fn private_dns_name(address: &str, region: &str) -> String {
    format!("ip-{}.{region}.compute.internal", address.replace('.', "-"))
}

impl Interface {
    /// Its addresses, as both views of it list them.
    fn addresses(&self, account: &str, region: &str, with_ids: bool) -> Value {
        let entry = |address: &String| {
            json!({
                "Primary": true,
                "PrivateIpAddress": address,
                "PrivateDnsName": private_dns_name(address, region),
                "Association": self.association.as_ref().map(|one| one.render(account, region, with_ids)),
            })
        };
        self.private_ip.iter().map(entry).collect()
    }

    /// As an instance lists it.
    pub(crate) fn render_in_instance(&self, region: &Region, account: &str) -> Value {
        let attachment = self.attachment.as_ref().map(|attachment| {
            json!({
                "AttachmentId": attachment.id,
                "AttachTime": xml::time(attachment.at),
                "DeleteOnTermination": attachment.delete_on_termination,
                "DeviceIndex": attachment.device,
                "NetworkCardIndex": attachment.card,
                "Status": "attached",
            })
        });
        json!({
            "NetworkInterfaceId": self.id,
            "Association": self.association.as_ref().map(|one| one.render(account, &region.name, false)),
            "Attachment": attachment,
            "Description": self.description,
            "Groups": security_groups::identifiers(region, &self.groups),
            "InterfaceType": self.interface_type,
            "Ipv6Addresses": [],
            "MacAddress": self.mac,
            "OwnerId": account,
            "PrivateIpAddress": self.private_ip,
            "PrivateDnsName": self.private_ip.as_ref().map(|address| private_dns_name(address, &region.name)),
            "PrivateIpAddresses": self.addresses(account, &region.name, false),
            "SourceDestCheck": true,
            "Status": "in-use",
            "SubnetId": self.subnet_id,
            "VpcId": self.vpc_id,
        })
    }

    /// As it is listed by itself.
    fn render(&self, region: &Region, account: &str) -> Value {
        let attachment = self.attachment.as_ref().map(|attachment| {
            json!({
                "AttachmentId": attachment.id,
                "AttachTime": xml::time(attachment.at),
                "DeleteOnTermination": attachment.delete_on_termination,
                "DeviceIndex": attachment.device,
                "NetworkCardIndex": attachment.card,
                "InstanceId": attachment.instance_id,
                "InstanceOwnerId": account,
                "Status": "attached",
            })
        });
        json!({
            "NetworkInterfaceId": self.id,
            "Association": self.association.as_ref().map(|one| one.render(account, &region.name, true)),
            "Attachment": attachment,
            "AvailabilityZone": self.zone,
            "Description": self.description,
            "Groups": security_groups::identifiers(region, &self.groups),
            "InterfaceType": self.interface_type,
            "Ipv6Addresses": [],
            "MacAddress": self.mac,
            "OwnerId": account,
            "PrivateIpAddress": self.private_ip,
            "PrivateDnsName": self.private_ip.as_ref().map(|address| private_dns_name(address, &region.name)),
            "PrivateIpAddresses": self.addresses(account, &region.name, true),
            "RequesterManaged": false,
            "SourceDestCheck": true,
            "Status": if self.attachment.is_some() { "in-use" } else { "available" },
            "SubnetId": self.subnet_id,
            "VpcId": self.vpc_id,
            "TagSet": tag_set(&self.tags),
            // Filters by tags look here; the member above has a name of its own.
            "Tags": tag_set(&self.tags),
        })
    }
}

/// How an interface that is not there is refused.
pub(crate) fn not_found(id: &str) -> ApiError {
    let message = format!("The networkInterface ID '{id}' does not exist");
    ApiError::client("InvalidNetworkInterfaceID.NotFound", message)
}

/// Removes an interface with all that hangs on it.
pub(crate) fn remove(world: &mut World, region_name: &str, id: &str) {
    let now = world.now;
    let Some(region) = world.regions.get_mut(region_name) else { return };
    let Some(interface) = region.interfaces.remove(id) else { return };
    if let (Some(address), Ok(subnet)) = (&interface.private_ip, region.network.subnet(&interface.subnet_id)) {
        subnet.release_address(address);
    }
    if let Some((allocation_id, _)) = interface.association.and_then(|association| association.own)
        && let Some(address) = region.addresses.get_mut(&allocation_id)
    {
        address.association = None;
    }
    world.ledger.gone(Kind::NetworkInterface, id, now);
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewInterface {
    subnet_id: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    description: String,
    interface_type: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
    // An action that is sent once only needs no token here.
    #[serde(default, rename = "ClientToken")]
    _client_token: Option<String>,
}

/// CreateNetworkInterface.
pub(crate) fn create_network_interface(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewInterface = call.read()?;
    let tags = tags_by_kind(&new.tag_specifications, &["network-interface"])?.remove("network-interface");
    if tags.is_some() {
        call.permit("ec2:CreateTags")?;
    }
    let account = call.account();
    let (vpc_id, zone) = {
        let subnet = call.region().network.subnet(&new.subnet_id)?;
        (subnet.vpc_id.clone(), subnet.zone.clone())
    };
    let groups = security_groups::check(call, &new.groups, &vpc_id, &new.subnet_id)?;
    let interface_type = new.interface_type.unwrap_or_else(|| "interface".to_owned());
    if !["interface", "efa", "efa-only"].contains(&interface_type.as_str()) {
        return Err(ApiError::not_simulated(format!("interfaces of type `{interface_type}`")));
    }
    if call.region().network.subnet(&new.subnet_id)?.free() == 0 {
        return Err(no_address());
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let has_address = interface_type != "efa-only";
    let address = if has_address { region.network.subnet(&new.subnet_id)?.take_address() } else { None };
    let interface = Interface {
        id: rest.ids.resource("eni"),
        subnet_id: new.subnet_id,
        vpc_id,
        zone,
        private_ip: address.map(|address| address.to_string()),
        mac: rest.ids.mac(),
        interface_type,
        groups,
        description: new.description,
        tags: tags.unwrap_or_default(),
        made_at: rest.now,
        attachment: None,
        association: None,
    };
    let id = interface.id.clone();
    rest.ledger.made(Kind::NetworkInterface, &id, &region.name, rest.action, rest.now, &interface.tags);
    region.interfaces.insert(id.clone(), interface);
    let row = without_helper(region.interfaces[&id].render(region, &account));
    Ok(json!({"NetworkInterface": row}))
}

/// How a subnet without free addresses refuses.
pub(crate) fn no_address() -> ApiError {
    const MESSAGE: &str = "The specified subnet does not have enough free addresses to satisfy the request.";
    ApiError::client("InsufficientFreeAddressesInSubnet", MESSAGE)
}

/// A row without the member that only filters look at.
fn without_helper(mut row: Value) -> Value {
    if let Some(object) = row.as_object_mut() {
        object.remove("Tags");
    }
    row
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    network_interface_ids: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeNetworkInterfaces.
pub(crate) fn describe_network_interfaces(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let account = call.account();
    let seen_since = call.now() - crate::settings::millis(call.world.settings.resource_unseen_ms);
    let mut filters = call.filters(asked.filters)?;
    let by_tags = filters.take_tags();
    let region = call.region();
    let seen = |interface: &&Interface| interface.made_at <= seen_since;
    for id in &asked.network_interface_ids {
        region.interfaces.get(id).filter(seen).ok_or_else(|| not_found(id))?;
    }
    let is_asked = |interface: &&Interface| {
        seen(interface)
            && by_tags.match_tags(&interface.tags)
            && (asked.network_interface_ids.is_empty() || asked.network_interface_ids.contains(&interface.id))
    };
    let rows = region.interfaces.values().filter(is_asked).map(|one| one.render(region, &account)).collect();
    let paths = [
        ("network-interface-id", "NetworkInterfaceId"),
        ("status", "Status"),
        ("subnet-id", "SubnetId"),
        ("vpc-id", "VpcId"),
        ("availability-zone", "AvailabilityZone"),
        ("group-id", "Groups.GroupId"),
        ("description", "Description"),
        ("interface-type", "InterfaceType"),
        ("private-ip-address", "PrivateIpAddress"),
        ("addresses.private-ip-address", "PrivateIpAddresses.PrivateIpAddress"),
        ("attachment.instance-id", "Attachment.InstanceId"),
        ("attachment.device-index", "Attachment.DeviceIndex"),
        ("attachment.status", "Attachment.Status"),
        ("attachment.delete-on-termination", "Attachment.DeleteOnTermination"),
        ("association.public-ip", "Association.PublicIp"),
        ("association.allocation-id", "Association.AllocationId"),
        ("mac-address", "MacAddress"),
        ("owner-id", "OwnerId"),
    ];
    let rows = filters.keep(rows, &paths)?;
    let page = Page { size: asked.max_results, token: asked.next_token };
    let (rows, next) = page.cut(call.action, rows, (5, 1000))?;
    let rows: Vec<Value> = rows.into_iter().map(without_helper).collect();
    Ok(json!({"NetworkInterfaces": rows, "NextToken": next}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Deletion {
    network_interface_id: String,
}

/// DeleteNetworkInterface.
pub(crate) fn delete_network_interface(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let id = call.read::<Deletion>()?.network_interface_id;
    let interface = call.region().interfaces.get(&id).ok_or_else(|| not_found(&id))?;
    if interface.attachment.is_some() {
        let message = format!("Network interface '{id}' is currently in use.");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    call.proceed()?;
    let region = call.region.clone();
    remove(call.world, &region, &id);
    Ok(Value::Null)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Change {
    network_interface_id: String,
    groups: Option<Vec<String>>,
    description: Option<Wrapped<String>>,
    attachment: Option<AttachmentChange>,
    associate_public_ip_address: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Wrapped<T> {
    value: Option<T>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AttachmentChange {
    attachment_id: Option<String>,
    delete_on_termination: Option<bool>,
}

/// ModifyNetworkInterfaceAttribute: one attribute at a time.
pub(crate) fn modify_network_interface_attribute(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let change: Change = call.read()?;
    let id = change.network_interface_id.clone();
    let (vpc_id, subnet_id, attachment, device) = {
        let interface = call.region().interfaces.get(&id).ok_or_else(|| not_found(&id))?;
        let attachment = interface.attachment.as_ref().map(|attachment| attachment.id.clone());
        let device = interface.attachment.as_ref().map(|attachment| (attachment.card, attachment.device));
        (interface.vpc_id.clone(), interface.subnet_id.clone(), attachment, device)
    };
    let given = [
        change.groups.is_some(),
        change.description.is_some(),
        change.attachment.is_some(),
        change.associate_public_ip_address.is_some(),
    ];
    if given.iter().filter(|is_given| **is_given).count() != 1 {
        return Err(ApiError::combination("Exactly one attribute must be given"));
    }
    if let Some(groups) = &change.groups {
        security_groups::check(call, groups, &vpc_id, &subnet_id)?;
    }
    if let Some(asked) = &change.attachment
        && (attachment.is_none() || asked.attachment_id != attachment)
    {
        let id = asked.attachment_id.clone().unwrap_or_default();
        let message = format!("The attachment ID '{id}' does not exist");
        return Err(ApiError::client("InvalidAttachmentID.NotFound", message));
    }
    if change.associate_public_ip_address.is_some() && device != Some((0, 0)) {
        return Err(ApiError::combination("A public address can be given to the primary network interface only"));
    }
    call.proceed()?;
    if let Some(wanted) = change.associate_public_ip_address {
        crate::addresses::give_or_take(call, &id, wanted);
    }
    let interface = call.region().interfaces.get_mut(&id).ok_or_else(|| not_found(&id))?;
    if let Some(groups) = change.groups {
        interface.groups = groups;
    }
    if let Some(description) = change.description.and_then(|description| description.value) {
        interface.description = description;
    }
    if let (Some(asked), Some(attachment)) = (change.attachment, &mut interface.attachment) {
        attachment.delete_on_termination = asked.delete_on_termination.unwrap_or(attachment.delete_on_termination);
    }
    Ok(Value::Null)
}
