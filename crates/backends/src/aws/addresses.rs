//! Addresses that the world can reach, for machines to which AWS gives none because they have several interfaces.
//!
//! There is no client token for an address, so one is looked for by its marks before one is made.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::types::{Address, DomainType, ResourceType};
use tokio::time::Instant;

use super::errors::failure;
use super::security_groups::no_id;
use super::tags::{self, Owner, filter, specification};
use crate::{Error, ErrorKind, MachineKey, Result};

/// How long an address that AWS said it made may be missing from AWS's own list.
const UNSEEN: Duration = Duration::from_mins(2);

/// The addresses that were just made, by whom they are for. Who asks again before AWS shows one must not make another.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<HashMap<MachineKey, (Instant, OwnAddress)>>);

impl Made {
    fn keep(&self, key: &MachineKey, address: &OwnAddress) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|_, (at, _)| at.elapsed() < UNSEEN);
        made.insert(key.clone(), (Instant::now(), address.clone()));
    }

    fn find(&self, key: &MachineKey) -> Option<OwnAddress> {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.get(key).filter(|(at, _)| at.elapsed() < UNSEEN).map(|(_, address)| address.clone())
    }
}

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

/// How many addresses the account has in a region, whosever they are.
pub(super) async fn count(ec2: &aws_sdk_ec2::Client) -> Result<u32> {
    let answer = ec2.describe_addresses().send().await.map_err(|error| failure("describe addresses", &error))?;
    Ok(u32::try_from(answer.addresses().len()).unwrap_or(u32::MAX))
}

/// Gives a machine's interface an address, and tells it. Safe to repeat. Only a quota and a missing right are errors that
/// stay: a machine that runs is not ended because AWS does not know its new address yet.
pub(super) async fn give(
    ec2: &aws_sdk_ec2::Client,
    owner: Owner,
    made: &Made,
    (key, interface_id): (&MachineKey, &str),
    common_tags: &BTreeMap<String, String>,
) -> Result<String> {
    give_once(ec2, owner, made, (key, interface_id), common_tags).await.map_err(|error| match error.kind {
        ErrorKind::RegionLimit | ErrorKind::PermissionDenied | ErrorKind::RateLimited => error,
        _ => Error { kind: ErrorKind::Unavailable, ..error },
    })
}

async fn give_once(
    ec2: &aws_sdk_ec2::Client,
    owner: Owner,
    made: &Made,
    (key, interface_id): (&MachineKey, &str),
    common_tags: &BTreeMap<String, String>,
) -> Result<String> {
    let mut known = list(ec2, owner, Some(key)).await?;
    if let Some(given) = known.iter().find(|address| address.association_id.is_some()) {
        return Ok(given.public_ip.clone());
    }
    // An answer that was lost may have left several; what is too many is given back when the region is tidied.
    let address = if let Some(address) = known.pop().or_else(|| made.find(key)) {
        address
    } else {
        let address = allocate(ec2, owner, key, common_tags).await?;
        made.keep(key, &address);
        address
    };
    let request = ec2
        .associate_address()
        .allocation_id(&address.allocation_id)
        .network_interface_id(interface_id)
        .allow_reassociation(false);
    // Where the interface has an address already, the next look shows which.
    let given = request.send().await.map_err(|error| failure("give the machine its public address", &error));
    given.map(|_| address.public_ip)
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
    // Asked once: each request that AWS heard makes an address, whether or not its answer arrives.
    let once = aws_sdk_ec2::config::Builder::new().retry_config(RetryConfig::disabled());
    let made = request.customize().config_override(once).send().await;
    let made = made.map_err(|error| failure("allocate a public address", &error))?;
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
