//! Which switches machines are under. AWS tells it of the types that gangs are made of, once they run, and it stays so for
//! as long as they do.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_ec2::Client;
use tokio::time::Instant;

use super::errors::failure;
use super::machines::Sighting;
use crate::{MachineState, Result};

/// Machines that one call may be about.
const ASKED_AT_ONCE: usize = 100;

/// How long it is not asked again after a failure: nothing depends on it but speed.
const PATIENCE: Duration = Duration::from_mins(10);

/// What was told, by instance.
#[derive(Debug, Default)]
pub(super) struct Topology {
    paths: Mutex<HashMap<String, Vec<String>>>,
    /// Until when each region is not asked.
    spared: Mutex<HashMap<String, Instant>>,
}

impl Topology {
    /// Adds to the machines of a region where they are in the network, as far as AWS tells it.
    pub(super) async fn add(&self, ec2: &Client, region: &str, machines: &mut [Sighting]) {
        let wanted: Vec<String> = {
            let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
            let is_unknown = |one: &&Sighting| {
                let may_be_told = one.interfaces > 1 || one.is_in_group;
                let machine = &one.machine;
                machine.state == MachineState::Running && may_be_told && !paths.contains_key(&machine.provider_id)
            };
            machines.iter().filter(is_unknown).map(|one| one.machine.provider_id.clone()).collect()
        };
        if !wanted.is_empty() && !self.is_spared(region) {
            for some in wanted.chunks(ASKED_AT_ONCE) {
                match ask(ec2, some).await {
                    Ok(told) => self.paths.lock().unwrap_or_else(PoisonError::into_inner).extend(told),
                    Err(error) => {
                        tracing::info!("nobody tells how the machines in {region} are connected: {error}");
                        let until = Instant::now() + PATIENCE;
                        self.spared
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .insert(region.to_owned(), until);
                        break;
                    }
                }
            }
        }
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        for machine in machines.iter_mut().map(|one| &mut one.machine) {
            machine.network_path = paths.get(&machine.provider_id).cloned().unwrap_or_default();
        }
    }

    /// Forgets all but these.
    pub(super) fn keep(&self, listed: &[Sighting]) {
        let there: HashSet<&String> = listed.iter().map(|one| &one.machine.provider_id).collect();
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| there.contains(id));
    }

    fn is_spared(&self, region: &str) -> bool {
        let spared = self.spared.lock().unwrap_or_else(PoisonError::into_inner);
        spared.get(region).is_some_and(|until| Instant::now() < *until)
    }
}

/// The switches above some machines. Of types that AWS does not tell it of there are none.
async fn ask(ec2: &Client, ids: &[String]) -> Result<HashMap<String, Vec<String>>> {
    let answer = ec2.describe_instance_topology().set_instance_ids(Some(ids.to_vec())).send().await;
    let answer = answer.map_err(|error| failure("describe the topology of instances", &error))?;
    let told = answer.instances().iter().filter_map(|one| {
        let path = one.network_nodes().to_vec();
        Some((one.instance_id()?.to_owned(), path))
    });
    let told: HashMap<String, Vec<String>> = told.collect();
    let known = |id: &String| told.get(id).cloned().unwrap_or_default();
    Ok(ids.iter().map(|id| (id.clone(), known(id))).collect())
}
