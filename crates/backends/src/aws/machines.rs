//! The machines that are there, as EC2 lists them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::types::{Instance, InstanceNetworkInterface, InstanceStateName, Reservation, StateReason};
use tokio::time::Instant;

use super::errors::{failure, kind_of};
use super::tags::{self, Owner};
use crate::{ErrorKind, Login, Machine, MachineKey, MachineState, Result, Survey};

/// How long a machine that AWS said it made may be missing from AWS's own list.
const UNSEEN: Duration = Duration::from_mins(2);

/// Machines in one answer. Each of the largest has 33 interfaces, whose text is 50 KB.
const PAGE: i32 = 100;

/// A machine as it was seen, with what only this backend needs.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) machine: Machine,
    /// The interface that a public address goes to.
    pub(super) primary_interface: Option<String>,
    pub(super) interfaces: usize,
    /// It was bought to be near others.
    pub(super) is_in_group: bool,
}

/// What was last seen, and what must be there although no list shows it yet.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: Mutex<HashMap<MachineKey, Sighting>>,
    made: Mutex<HashMap<MachineKey, (Instant, Sighting)>>,
}

impl Seen {
    /// Takes note of what AWS just made.
    pub(super) fn made(&self, sightings: Vec<Sighting>) {
        let now = Instant::now();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        for sighting in sightings {
            made.insert(sighting.machine.key.clone(), (now, sighting));
        }
    }

    /// Takes note of a list, and adds what must be there beside it. What is in regions that did not answer stays known.
    pub(super) fn listed(&self, survey: Survey<Sighting>) -> Survey<Machine> {
        let Survey { found: mut listed, silent } = survey;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        for sighting in &listed {
            made.remove(&sighting.machine.key);
        }
        made.retain(|_, (at, _)| at.elapsed() < UNSEEN);
        listed.extend(made.values().map(|(_, sighting)| sighting.clone()));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, sighting| silent.iter().any(|silent| silent.region == sighting.machine.region));
        known.extend(listed.iter().map(|sighting| (sighting.machine.key.clone(), sighting.clone())));
        Survey { found: listed.into_iter().map(|sighting| sighting.machine).collect(), silent }
    }

    /// Whether AWS said that it made a machine, and has not shown it since.
    pub(super) fn is_new(&self, key: &MachineKey) -> bool {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.get(key).is_some_and(|(at, _)| at.elapsed() < UNSEEN)
    }

    /// A machine as it was last seen.
    pub(super) fn get(&self, key: &MachineKey) -> Option<Sighting> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(key).map(|(_, made)| made.clone());
        made.or_else(|| self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }
}

/// All machines of ours in a region.
pub(super) async fn list(ec2: &aws_sdk_ec2::Client, owner: Owner, region: &str) -> Result<Vec<Sighting>> {
    let request = ec2.describe_instances().set_filters(Some(owner.filters())).max_results(PAGE);
    let mut pages = request.into_paginator().send();
    let mut found = vec![];
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe instances", &error))?;
        let instances = page.reservations().iter().flat_map(Reservation::instances);
        found.extend(instances.filter_map(|instance| sighting(instance, region)));
    }
    Ok(found)
}

/// An instance, if it is a machine of ours.
pub(super) fn sighting(instance: &Instance, region: &str) -> Option<Sighting> {
    let key = tags::machine_key(instance.tags(), instance.ami_launch_index())?;
    let state = match instance.state()?.name()? {
        InstanceStateName::Pending => MachineState::Starting,
        InstanceStateName::Running => MachineState::Running,
        InstanceStateName::Terminated => MachineState::Gone,
        // Nobody starts a stopped machine again.
        _ => MachineState::Stopping,
    };
    let some = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    let primary = instance.network_interfaces().iter().find(|interface| is_primary(interface));
    let machine = Machine {
        key,
        provider_id: instance.instance_id()?.to_owned(),
        state,
        hostname: some(instance.public_ip_address()),
        internal_ip: some(instance.private_ip_address()),
        container_network: None,
        region: region.to_owned(),
        zone: instance.placement().and_then(|placement| placement.availability_zone()).map(str::to_owned),
        ended_because: ended_because(instance),
        lacked_room: lacked_room(instance),
        login: tags::value(instance.tags(), tags::LOGIN).map(|user| Login { user: user.to_owned(), port: 22 }),
        network_path: vec![],
    };
    Some(Sighting {
        machine,
        primary_interface: primary.and_then(|interface| some(interface.network_interface_id())),
        interfaces: instance.network_interfaces().len(),
        is_in_group: instance
            .placement()
            .and_then(|placement| placement.group_name())
            .is_some_and(|name| !name.is_empty()),
    })
}

fn is_primary(interface: &InstanceNetworkInterface) -> bool {
    let attached = interface.attachment();
    attached.is_some_and(|attached| {
        attached.device_index() == Some(0) && attached.network_card_index().unwrap_or(0) == 0
    })
}

/// AWS takes orders and finds out later that there is nothing to fill them with.
fn lacked_room(instance: &Instance) -> bool {
    let code = instance.state_reason().and_then(StateReason::code).unwrap_or_default();
    code == "Server.SpotInstanceTermination" || kind_of(code) == ErrorKind::NoCapacity
}

fn ended_because(instance: &Instance) -> Option<String> {
    let reason = instance.state_reason()?;
    let code = reason.code().unwrap_or_default();
    match reason.message().unwrap_or_default() {
        "" => (!code.is_empty()).then(|| code.to_owned()),
        // AWS's text begins with the code already.
        message if message.starts_with(code) => Some(message.to_owned()),
        message => Some(format!("{code}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState, Tag};

    use super::*;

    fn instance(index: i32) -> Instance {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
        Instance::builder()
            .instance_id("i-1")
            .ami_launch_index(index)
            .state(InstanceState::builder().name(InstanceStateName::Pending).build())
            .tags(tag(tags::LAUNCH, "00000000-0000-4000-8000-000000000001"))
            .tags(tag(tags::FIRST_INDEX, "100"))
            .tags(tag(tags::LOGIN, "ubuntu"))
            .private_ip_address("10.0.0.1")
            .public_ip_address("")
            .build()
    }

    #[test]
    fn a_machine_is_known_by_its_launch_and_index() {
        let seen = sighting(&instance(7), "us-west-2").unwrap().machine;
        assert_eq!((seen.key.index, seen.state), (107, MachineState::Starting));
        assert_eq!((seen.hostname, seen.internal_ip.as_deref()), (None, Some("10.0.0.1")));
        assert_eq!(seen.login.unwrap().user, "ubuntu");
        let foreign = Instance::builder().instance_id("i-2").build();
        assert!(sighting(&foreign, "us-west-2").is_none());
    }

    #[test]
    fn the_end_has_a_reason() {
        let with = |code: &str, message: &str| {
            let reason = StateReason::builder().code(code).message(message).build();
            ended_because(&Instance::builder().state_reason(reason).build())
        };
        assert_eq!(
            with(
                "Server.InsufficientInstanceCapacity",
                "Server.InsufficientInstanceCapacity: Insufficient capacity"
            ),
            Some("Server.InsufficientInstanceCapacity: Insufficient capacity".to_owned())
        );
        assert_eq!(with("Server.SpotInstanceTermination", ""), Some("Server.SpotInstanceTermination".to_owned()));
        assert_eq!(with("a", "b"), Some("a: b".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_made_is_there_before_any_list_shows_it() {
        let seen = Seen::default();
        let made = sighting(&instance(0), "us-west-2").unwrap();
        seen.made(vec![made.clone()]);
        assert_eq!(seen.listed(Survey::whole(vec![])).found.len(), 1);
        assert!(seen.get(&made.machine.key).is_some());
        assert_eq!(seen.listed(Survey::whole(vec![made.clone()])).found.len(), 1);
        // Once it was shown, its absence means something.
        assert_eq!(seen.listed(Survey::whole(vec![])).found.len(), 0);
        seen.made(vec![made.clone()]);
        tokio::time::advance(UNSEEN).await;
        assert_eq!(seen.listed(Survey::whole(vec![])).found.len(), 0);
        assert!(seen.get(&made.machine.key).is_none());
    }
}
