//! Public addresses: those of the account, and those that AWS lends to interfaces.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, TagSpecification, Tags, tag_set, tags_by_kind};
use crate::instances::State;
use crate::interfaces::{self, Association};
use crate::ledger::Kind;
use crate::machines::MachineEvent;
use crate::quotas;
use crate::world::Region;

/// A public address of the account.
#[derive(Debug)]
pub(crate) struct Address {
    pub(crate) allocation_id: String,
    pub(crate) public_ip: String,
    pub(crate) tags: Tags,
    made_at: Timestamp,
    /// The association and its interface.
    pub(crate) association: Option<(String, String)>,
}

/// An address that nobody in the region has. They are of the blocks that are kept for documentation.
pub(crate) fn unused_address(region: &Region) -> Option<String> {
    let blocks = ["203.0.113", "198.51.100", "192.0.2"];
    let mut addresses = blocks.iter().flat_map(|block| (1..255).map(move |host| format!("{block}.{host}")));
    let is_used = |address: &String| {
        let lent = |interface: &interfaces::Interface| {
            interface.association.as_ref().is_some_and(|association| association.public_ip == *address)
        };
        region.addresses.values().any(|known| known.public_ip == *address) || region.interfaces.values().any(lent)
    };
    // Thousands of machines need more than the three blocks have; these stand for the rest of the world.
    let more = (0..64u32).flat_map(|high| (1..=254u32).map(move |low| format!("198.18.{high}.{low}")));
    addresses.find(|address| !is_used(address)).or_else(|| more.into_iter().find(|address| !is_used(address)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewAddress {
    domain: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// AllocateAddress.
pub(crate) fn allocate_address(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewAddress = call.read()?;
    let tags = tags_by_kind(&new.tag_specifications, &["elastic-ip"])?.remove("elastic-ip");
    if tags.is_some() {
        call.permit("ec2:CreateTags")?;
    }
    if new.domain.is_some_and(|domain| domain != "vpc") {
        return Err(ApiError::not_simulated("addresses outside of a VPC"));
    }
    let limit = quotas::value(call.region(), quotas::ELASTIC_IPS);
    if limit <= call.region().addresses.len() as f64 {
        const MESSAGE: &str = "The maximum number of addresses has been reached.";
        return Err(ApiError::client("AddressLimitExceeded", MESSAGE));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let public_ip = unused_address(region).ok_or_else(|| {
        ApiError::with_status(500, "InsufficientAddressCapacity", "There are not enough free addresses.")
    })?;
    let address = Address {
        allocation_id: rest.ids.resource("eipalloc"),
        public_ip: public_ip.clone(),
        tags: tags.unwrap_or_default(),
        made_at: rest.now,
        association: None,
    };
    let id = address.allocation_id.clone();
    rest.ledger.made(Kind::ElasticIp, &id, &region.name, rest.action, rest.now, &address.tags);
    region.addresses.insert(id.clone(), address);
    Ok(json!({
        "AllocationId": id,
        "PublicIp": public_ip,
        "Domain": "vpc",
        "PublicIpv4Pool": "amazon",
        "NetworkBorderGroup": region.name,
    }))
}

fn not_found(id: &str) -> ApiError {
    ApiError::client("InvalidAllocationID.NotFound", format!("The allocation ID '{id}' does not exist"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewAssociation {
    allocation_id: Option<String>,
    network_interface_id: Option<String>,
    instance_id: Option<String>,
    // Without it, an address that is in use may not be moved, as long as the caller says so.
    allow_reassociation: Option<bool>,
}

/// AssociateAddress.
pub(crate) fn associate_address(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewAssociation = call.read()?;
    let missing = |name: &str| {
        ApiError::client("MissingParameter", format!("The request must contain the parameter {name}"))
    };
    let allocation_id = new.allocation_id.ok_or_else(|| missing("AllocationId"))?;
    let seen_since = call.now() - crate::settings::millis(call.world.settings.resource_unseen_ms);
    let region = call.region();
    let address = region.addresses.get(&allocation_id).filter(|address| address.made_at <= seen_since);
    let address = address.ok_or_else(|| not_found(&allocation_id))?;
    let interface_id = match (new.network_interface_id, new.instance_id) {
        (Some(interface_id), None) => interface_id,
        (None, Some(instance_id)) => primary_interface(region, &instance_id)?,
        (Some(_), Some(_)) => {
            return Err(ApiError::combination("You may specify only one of network interface and instance"));
        }
        (None, None) => return Err(missing("networkInterfaceId")),
    };
    let interface = region.interfaces.get(&interface_id).ok_or_else(|| interfaces::not_found(&interface_id))?;
    let may_move = new.allow_reassociation.unwrap_or(true);
    if (address.association.is_some() || interface.association.as_ref().is_some_and(|one| one.own.is_some()))
        && !may_move
    {
        let message = format!("resource {allocation_id} is already associated with associate-id");
        return Err(ApiError::client("Resource.AlreadyAssociated", message));
    }
    if interface.private_ip.is_none() {
        let message = format!("Network interface {interface_id} has no private IP address");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    if !region.network.is_public(&region.network.subnets[&interface.subnet_id]) {
        let message = format!("Network {} is not attached to any internet gateway", interface.vpc_id);
        return Err(ApiError::client("Gateway.NotAttached", message));
    }
    if let Some(instance) = interface.attachment.as_ref().and_then(|one| region.instances.get(&one.instance_id))
        && !matches!(instance.state(), State::Pending | State::Running)
    {
        let message = format!("The instance '{}' is not in a valid state for this operation.", instance.id);
        return Err(ApiError::client("IncorrectInstanceState", message));
    }
    call.proceed()?;
    let association_id = call.split().1.ids.resource("eipassoc");
    let region = call.region();
    let old = region.addresses.get(&allocation_id).and_then(|address| address.association.clone());
    if let Some(old) = old.and_then(|(_, old)| region.interfaces.get_mut(&old)) {
        old.association = None;
    }
    let public_ip =
        region.addresses.get(&allocation_id).map(|address| address.public_ip.clone()).unwrap_or_default();
    if let Some(interface) = region.interfaces.get_mut(&interface_id) {
        let own = Some((allocation_id.clone(), association_id.clone()));
        interface.association = Some(Association { public_ip, own });
    }
    if let Some(address) = region.addresses.get_mut(&allocation_id) {
        address.association = Some((association_id.clone(), interface_id.clone()));
    }
    tell(call, &interface_id);
    Ok(json!({"AssociationId": association_id}))
}

/// Tells a machine under which address it is seen now.
fn tell(call: &mut Call<'_>, interface_id: &str) {
    let told = call.region().interfaces.get(interface_id).and_then(|interface| {
        let instance_id = interface.attachment.as_ref()?.instance_id.clone();
        Some((instance_id, interface.association.as_ref().map(|association| association.public_ip.clone())))
    });
    if let Some((instance_id, public_ip)) = told {
        call.world.outbox.push(MachineEvent::Addressed { instance_id, public_ip });
    }
}

fn primary_interface(region: &Region, instance_id: &str) -> Result<String, ApiError> {
    let instance = region.instances.get(instance_id).ok_or_else(|| crate::instances::not_found(instance_id))?;
    if 1 < instance.interfaces.len() {
        let message = format!(
            "There are multiple interfaces attached to instance '{instance_id}'. Please specify an interface ID for the operation instead."
        );
        return Err(ApiError::client("InvalidInstanceID", message));
    }
    instance.interfaces.first().cloned().ok_or_else(|| crate::instances::not_found(instance_id))
}

/// Lends an interface a public address, or takes it back.
pub(crate) fn give_or_take(call: &mut Call<'_>, interface_id: &str, wanted: bool) {
    let region = call.region();
    let address = if wanted { unused_address(region) } else { None };
    let Some(interface) = region.interfaces.get_mut(interface_id) else { return };
    let is_own = interface.association.as_ref().is_some_and(|association| association.own.is_some());
    if !is_own && wanted != interface.association.is_some() {
        interface.association = address.map(|public_ip| Association { public_ip, own: None });
        tell(call, interface_id);
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Disassociation {
    association_id: Option<String>,
}

/// DisassociateAddress.
pub(crate) fn disassociate_address(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let id = call.read::<Disassociation>()?.association_id.ok_or_else(|| {
        ApiError::client("MissingParameter", "The request must contain the parameter AssociationId")
    })?;
    let has_it = |address: &&Address| address.association.as_ref().is_some_and(|(known, _)| *known == id);
    let found = call.region().addresses.values().find(has_it).and_then(|address| {
        let (_, interface_id) = address.association.clone()?;
        Some((address.allocation_id.clone(), interface_id))
    });
    let (allocation_id, interface_id) = found.ok_or_else(|| {
        ApiError::client("InvalidAssociationID.NotFound", format!("The association ID '{id}' does not exist"))
    })?;
    call.proceed()?;
    let region = call.region();
    if let Some(address) = region.addresses.get_mut(&allocation_id) {
        address.association = None;
    }
    if let Some(interface) = region.interfaces.get_mut(&interface_id) {
        interface.association = None;
    }
    tell(call, &interface_id);
    Ok(Value::Null)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Release {
    allocation_id: Option<String>,
}

/// ReleaseAddress.
pub(crate) fn release_address(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let id = call.read::<Release>()?.allocation_id.ok_or_else(|| {
        ApiError::client("MissingParameter", "The request must contain the parameter AllocationId")
    })?;
    let address = call.region().addresses.get(&id).ok_or_else(|| not_found(&id))?;
    if address.association.is_some() {
        let message = format!("Address {} is in use.", address.public_ip);
        return Err(ApiError::client("InvalidIPAddress.InUse", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    region.addresses.remove(&id);
    rest.ledger.gone(Kind::ElasticIp, &id, rest.now);
    Ok(Value::Null)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    allocation_ids: Vec<String>,
    #[serde(default)]
    public_ips: Vec<String>,
}

/// DescribeAddresses.
pub(crate) fn describe_addresses(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let account = call.account();
    let seen_since = call.now() - crate::settings::millis(call.world.settings.resource_unseen_ms);
    let region = call.region();
    let seen = |address: &&Address| address.made_at <= seen_since;
    for id in &asked.allocation_ids {
        region.addresses.get(id).filter(seen).ok_or_else(|| not_found(id))?;
    }
    let has_ip = |ip: &String| region.addresses.values().any(|address| address.public_ip == *ip);
    if let Some(ip) = asked.public_ips.iter().find(|ip| !has_ip(ip)) {
        return Err(ApiError::client("InvalidAddress.NotFound", format!("Address '{ip}' not found.")));
    }
    let is_asked = |address: &&Address| {
        seen(address)
            && (asked.allocation_ids.is_empty() || asked.allocation_ids.contains(&address.allocation_id))
            && (asked.public_ips.is_empty() || asked.public_ips.contains(&address.public_ip))
    };
    let rows = region.addresses.values().filter(is_asked).map(|address| {
        let interface = address.association.as_ref().and_then(|(_, id)| region.interfaces.get(id));
        let instance = interface.and_then(|one| one.attachment.as_ref()).map(|one| one.instance_id.as_str());
        json!({
            "AllocationId": address.allocation_id,
            "PublicIp": address.public_ip,
            "Domain": "vpc",
            "PublicIpv4Pool": "amazon",
            "NetworkBorderGroup": region.name,
            "AssociationId": address.association.as_ref().map(|(id, _)| id),
            "NetworkInterfaceId": interface.map(|one| one.id.as_str()),
            "NetworkInterfaceOwnerId": interface.map(|_| account.as_str()),
            "PrivateIpAddress": interface.and_then(|one| one.private_ip.as_deref()),
            "InstanceId": instance,
            "Tags": tag_set(&address.tags),
        })
    });
    let paths = [
        ("allocation-id", "AllocationId"),
        ("association-id", "AssociationId"),
        ("public-ip", "PublicIp"),
        ("instance-id", "InstanceId"),
        ("network-interface-id", "NetworkInterfaceId"),
        ("private-ip-address", "PrivateIpAddress"),
    ];
    let rows = rows.collect();
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    Ok(json!({"Addresses": rows}))
}
