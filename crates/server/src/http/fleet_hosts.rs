//! Fleets of machines of the users' own: one instance for each host that the configuration names.

use std::collections::HashMap;

use api::fleets::FleetSpec;
use api::ids::InstanceId;
use api::instances::InstanceTerminationReason;
use lifecycle::events::{NewEvent, Target};
use lifecycle::fleet::Fleet;
use lifecycle::instance::{EndOrder, Instance, InstanceState};
use store::leases::{Table, touch};
use store::{Tx, fleets, instances};

use super::auth::Access;
use super::error::{Error, Result};
use crate::accounts;
use crate::deps::Deps;
use crate::own_hosts::{self, WantedHost};
use crate::reconcile::fleet::{free_numbers, new_instance};

/// The keys of such a fleet that may be changed while it lives.
pub(super) const UPDATABLE: &[&str] = &["ssh_config"];

/// Refuses those who may have no machines of their own here.
pub(super) fn check_rights(deps: &Deps, access: &Access, spec: &FleetSpec) -> Result<()> {
    let is_allowed = spec.configuration.ssh_config.is_none() || access.may_manage_ssh_fleets(deps);
    if is_allowed { Ok(()) } else { Err(Error::access_denied()) }
}

/// Makes a fleet have the hosts that are wanted: adds what is missing, ends what is not named any more, and leaves the
/// others alone but for the keys to them. A host that could not be joined before is tried again. Gives the instances
/// that have new keys.
pub(super) async fn update(
    deps: &Deps,
    tx: &mut Tx,
    access: &Access,
    fleet: &Fleet,
    wanted: &[WantedHost],
) -> Result<Vec<InstanceId>> {
    if fleet.spec.configuration.ssh_config.is_none() {
        return Ok(vec![]);
    }
    let there = instances::list_by_fleet(&mut *tx, fleet.id).await?;
    let mut numbers = free_numbers(there.iter().map(|row| row.value.instance_num));
    let kept = there.iter().map(|row| &row.value).filter(|instance| instance.is_kept());
    let mut kept: HashMap<String, &Instance> =
        kept.filter_map(|instance| Some((instance.state.host.as_ref()?.key(), instance))).collect();
    let mut rekeyed = vec![];
    for host in wanted {
        if let Some(instance) = kept.remove(&host.host.key()) {
            if keep(deps, tx, instance, host).await? {
                rekeyed.push(instance.id);
            }
            continue;
        }
        let number = numbers.next().expect("a fleet has fewer hosts than there are numbers");
        add(deps, tx, fleet, number, host).await?;
    }
    let mut unwanted: Vec<&Instance> = kept.into_values().collect();
    unwanted.sort_by_key(|instance| instance.instance_num);
    remove(deps, tx, access, fleet, &unwanted).await?;
    Ok(rekeyed)
}

/// Answers whether the instance has new keys.
async fn keep(deps: &Deps, tx: &mut Tx, instance: &Instance, wanted: &WantedHost) -> Result<bool> {
    let Some(host) = &instance.state.host else { return Ok(false) };
    if own_hosts::differs(host, &wanted.host) {
        return Err(Error::bad_request(format!(
            "The host {} cannot be changed in place. Remove it from `hosts` and apply, then add it again.",
            host.hostname
        )));
    }
    let known = own_hosts::unseal(deps, &mut *tx, instance).await.map_err(Error::internal)?;
    let is_new = known.as_ref() != Some(&wanted.keys);
    if is_new {
        instances::set_host_access(&mut *tx, instance.id, &own_hosts::seal(deps, &wanted.keys)?).await?;
        touch(&mut *tx, Table::Instances, instance.id.0, deps.clock.now()).await?;
    }
    Ok(is_new)
}

async fn add(deps: &Deps, tx: &mut Tx, fleet: &Fleet, number: u32, wanted: &WantedHost) -> Result<()> {
    let host = &wanted.host;
    if let Some(other) = instances::find_by_host(&mut *tx, &host.key()).await? {
        return Err(refusal(tx, fleet, &other.value, host.key()).await?);
    }
    let slot = new_instance(deps, fleet, number);
    let instance = Instance {
        state: InstanceState {
            host: Some(host.clone()),
            hostname: Some(host.hostname.clone()),
            // Nobody pays for it, and nobody else can bring it back.
            idle_duration_secs: Some(-1),
            ..slot.state
        },
        ..slot
    };
    let now = deps.clock.now();
    instances::insert(&mut *tx, &instance, now).await.map_err(|error| match error {
        store::Error::Taken(_) => {
            Error::bad_request(format!("The host {} was just given to another fleet.", host.key()))
        }
        other => Error::from(other),
    })?;
    instances::set_host_access(&mut *tx, instance.id, &own_hosts::seal(deps, &wanted.keys)?).await?;
    let target = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
    let event = NewEvent::by_server("Instance created on fleet submission. Status: PENDING", vec![target]);
    Ok(accounts::record(deps, tx, &event).await?)
}

/// Why a host cannot be added that an instance has. Fleets of other projects are not named.
async fn refusal(tx: &mut Tx, fleet: &Fleet, other: &Instance, host: String) -> Result<Error> {
    if !other.is_kept() {
        return Ok(Error::bad_request(format!(
            "The host {host} is still being left by the instance {}. Try again in a moment.",
            other.state.name
        )));
    }
    let whose = if other.project_id == fleet.project_id {
        let name = fleets::get(&mut *tx, other.fleet_id).await?.map(|row| row.value.name).unwrap_or_default();
        format!("the fleet {name}")
    } else {
        "a fleet of another project".to_owned()
    };
    Ok(Error::bad_request(format!("The host {host} belongs to {whose} already.")))
}

async fn remove(deps: &Deps, tx: &mut Tx, access: &Access, fleet: &Fleet, unwanted: &[&Instance]) -> Result<()> {
    if unwanted.is_empty() {
        return Ok(());
    }
    // Whoever gives one of them to a job has done so before, and it is seen to be in use, or sees that the fleet has
    // moved.
    fleets::overtake(&mut *tx, fleet.id).await?;
    let ids: Vec<InstanceId> = unwanted.iter().map(|instance| instance.id).collect();
    if !instances::count_busy_blocks(&mut *tx, &ids).await?.is_empty() {
        let numbers: Vec<String> = unwanted.iter().map(|instance| instance.instance_num.to_string()).collect();
        return Err(Error::bad_request(format!(
            "Failed to delete fleet {} instances [{}]. Fleet instances are in use.",
            fleet.name,
            numbers.join(", ")
        )));
    }
    for instance in unwanted {
        let end = EndOrder { reason: InstanceTerminationReason::TerminatedByUser, message: None };
        instances::set_end(&mut *tx, instance.id, &end, deps.clock.now()).await?;
        let target = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
        let event = NewEvent::by_user(access.user.id, "Instance termination requested", vec![target]);
        accounts::record(deps, tx, &event).await?;
    }
    Ok(())
}
