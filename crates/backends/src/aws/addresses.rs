//! Addresses that the world can reach, for machines to which AWS gives none because they have several interfaces.
//!
//! There is no client token for an address, so one is looked for by its marks before one is made.

use std::collections::BTreeMap;

use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::types::{Address, DomainType, ResourceType};

use super::errors::failure;
use super::security_groups::no_id;
use super::tags::{self, Owner, filter, specification};
use crate::{MachineKey, Result};

/// An address of our making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnAddress {
    pub(super) allocation_id: String,
    pub(super) public_ip: String,
    pub(super) association_id: Option<String>,
    /// The machine that it was made for.
    pub(super) key: Option<MachineKey>,
}

fn own(address: &Address) -> Option<OwnAddress> {
    let index = tags::value(address.tags(), tags::INDEX).and_then(|index| index.parse().ok());
    let key = tags::launch_of(address.tags()).zip(index);
    Some(OwnAddress {
        allocation_id: address.allocation_id()?.to_owned(),
        public_ip: address.public_ip()?.to_owned(),
        association_id: address.association_id().map(str::to_owned),
        key: key.map(|(launch_id, index)| MachineKey { launch_id, index }),
    })
}

/// The addresses of our making, of one machine or of all.
pub(super) async fn list(
    ec2: &aws_sdk_ec2::Client,
    owner: Owner,
    key: Option<&MachineKey>,
) -> Result<Vec<OwnAddress>> {
    let mut request = ec2.describe_addresses().set_filters(Some(owner.filters()));
    if let Some(key) = key {
        request = request
            .filters(filter(&format!("tag:{}", tags::LAUNCH), [key.launch_id.to_string()]))
            .filters(filter(&format!("tag:{}", tags::INDEX), [key.index.to_string()]));
    }
    let answer = request.send().await.map_err(|error| failure("describe addresses", &error))?;
    Ok(answer.addresses().iter().filter_map(own).collect())
}

/// Gives a machine's interface an address, and tells it. Safe to repeat.
pub(super) async fn give(
    ec2: &aws_sdk_ec2::Client,
    owner: Owner,
    key: &MachineKey,
    interface_id: &str,
    common_tags: &BTreeMap<String, String>,
) -> Result<String> {
    let known = list(ec2, owner, Some(key)).await?.into_iter().next();
    let address = match known {
        Some(address) => address,
        None => allocate(ec2, owner, key, common_tags).await?,
    };
    if address.association_id.is_some() {
        return Ok(address.public_ip);
    }
    let request = ec2
        .associate_address()
        .allocation_id(&address.allocation_id)
        .network_interface_id(interface_id)
        .allow_reassociation(false);
    match request.send().await {
        Ok(_) => Ok(address.public_ip),
        // It is ours: somebody was quicker.
        Err(error) if error.code() == Some("Resource.AlreadyAssociated") => Ok(address.public_ip),
        Err(error) => Err(failure("give the machine its public address", &error)),
    }
}

async fn allocate(
    ec2: &aws_sdk_ec2::Client,
    owner: Owner,
    key: &MachineKey,
    common_tags: &BTreeMap<String, String>,
) -> Result<OwnAddress> {
    let mut all = common_tags.clone();
    all.extend(owner.tags());
    all.insert(tags::LAUNCH.to_owned(), key.launch_id.to_string());
    all.insert(tags::INDEX.to_owned(), key.index.to_string());
    let request = ec2
        .allocate_address()
        .domain(DomainType::Vpc)
        .tag_specifications(specification(ResourceType::ElasticIp, &all));
    let made = request.send().await.map_err(|error| failure("allocate a public address", &error))?;
    let id = made.allocation_id().zip(made.public_ip());
    let (allocation_id, public_ip) = id.ok_or_else(|| no_id("public address"))?;
    Ok(OwnAddress {
        allocation_id: allocation_id.to_owned(),
        public_ip: public_ip.to_owned(),
        association_id: None,
        key: Some(key.clone()),
    })
}

/// Gives an address back. Does nothing if it is gone.
pub(super) async fn release(ec2: &aws_sdk_ec2::Client, address: &OwnAddress) -> Result<()> {
    if let Some(association) = &address.association_id
        && let Err(error) = ec2.disassociate_address().association_id(association).send().await
        && error.code() != Some("InvalidAssociationID.NotFound")
    {
        return Err(failure("take the machine its public address", &error));
    }
    match ec2.release_address().allocation_id(&address.allocation_id).send().await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("InvalidAllocationID.NotFound") => Ok(()),
        Err(error) => Err(failure("release a public address", &error)),
    }
}
