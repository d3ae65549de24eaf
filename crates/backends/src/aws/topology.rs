//! Which switches machines are under. AWS tells it of the types that gangs are made of, once they run, and it stays so for
//! as long as they do.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::Client;
use tokio::time::Instant;

use super::errors::failure;
use super::machines::Sighting;
use crate::{Error, ErrorKind, MachineState, Result};

/// Machines that one call may be about.
const ASKED_AT_ONCE: usize = 100;

/// How long it is not asked again after a failure: nothing depends on it but speed.
const PATIENCE: Duration = Duration::from_mins(10);

/// How long one answer is waited for: machines are listed meanwhile, and what happens to them depends on that.
const ANSWER: Duration = Duration::from_secs(5);

/// What was told, by instance.
#[derive(Debug, Default)]
pub(super) struct Topology {
    /// With the time until which a machine of which nothing was told is not asked for.
    paths: Mutex<HashMap<String, (Vec<String>, Instant)>>,
    /// Until when each region is not asked.
    spared: Mutex<HashMap<String, Instant>>,
}

impl Topology {
    /// Adds to the machines of a region where they are in the network, as far as AWS tells it.
    pub(super) async fn add(&self, ec2: &Client, region: &str, machines: &mut [Sighting]) {
        let wanted: Vec<String> =
            machines.iter().filter(|one| self.is_wanted(one)).map(|one| one.machine.provider_id.clone()).collect();
        if !wanted.is_empty()
            && !self.is_spared(region)
            && let Err(error) = self.learn(ec2, &wanted).await
        {
            tracing::info!("nobody tells how the machines in {region} are connected: {error}");
            let until = Instant::now() + PATIENCE;
            self.spared.lock().unwrap_or_else(PoisonError::into_inner).insert(region.to_owned(), until);
        }
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        for machine in machines.iter_mut().map(|one| &mut one.machine) {
            machine.network_path =
                paths.get(&machine.provider_id).map(|(path, _)| path.clone()).unwrap_or_default();
        }
    }

    /// Forgets all but these.
    pub(super) fn keep(&self, listed: &[Sighting]) {
        let there: HashSet<&String> = listed.iter().map(|one| &one.machine.provider_id).collect();
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| there.contains(id));
    }

    fn is_wanted(&self, one: &Sighting) -> bool {
        let machine = &one.machine;
        let may_be_told = one.interfaces > 1 || one.is_in_group;
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = paths
            .get(&machine.provider_id)
            .is_some_and(|(path, until)| !path.is_empty() || Instant::now() < *until);
        machine.state == MachineState::Running && may_be_told && !is_known
    }

    fn is_spared(&self, region: &str) -> bool {
        let spared = self.spared.lock().unwrap_or_else(PoisonError::into_inner);
        spared.get(region).is_some_and(|until| Instant::now() < *until)
    }

    /// Asks for some machines. An error says that nobody need ask for others soon.
    async fn learn(&self, ec2: &Client, ids: &[String]) -> Result<()> {
        for some in ids.chunks(ASKED_AT_ONCE) {
            let answer = tokio::time::timeout(ANSWER, ask(ec2, some)).await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Unavailable, format!("no answer within {} s", ANSWER.as_secs())))
            });
            let mut told = match answer {
                Ok(told) => told,
                // One has ended since it was listed. The others are asked for with the next list.
                Err(error) if error.code.as_deref() == Some("InvalidInstanceID.NotFound") => continue,
                Err(error) => return Err(error),
            };
            let until = Instant::now() + PATIENCE;
            let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
            // Of types that AWS does not tell it of, and of machines that it does not know yet, there is no path.
            paths.extend(some.iter().map(|id| (id.clone(), (told.remove(id).unwrap_or_default(), until))));
        }
        Ok(())
    }
}

/// The switches above some machines.
async fn ask(ec2: &Client, ids: &[String]) -> Result<HashMap<String, Vec<String>>> {
    let mut pages = ec2.describe_instance_topology().set_instance_ids(Some(ids.to_vec())).into_paginator().send();
    let mut told = HashMap::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| failure("describe the topology of instances", &error))?;
        let paths = page.instances().iter();
        told.extend(paths.filter_map(|one| Some((one.instance_id()?.to_owned(), one.network_nodes().to_vec()))));
    }
    Ok(told)
}
