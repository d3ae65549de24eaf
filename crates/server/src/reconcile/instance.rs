//! Moves instances on.

use api::configurations::Blocks;
use api::ids::InstanceId;
use api::instances::InstanceStatus;
use backends::{Machine, MachineKey, MachineState};
use lifecycle::events::Target;
use lifecycle::instance::{
    AgentSeen, ContainerNetwork, Effect, Instance, InstanceDecision, Login, MachineSeen, Surroundings,
};
use lifecycle::launch::Launch;
use lifecycle::planted::{self, Bug};
use store::leases::Table;
use store::{Versioned, fleets, instances, jobs, launches};

use super::{Next, blocks, record, sweep};
use crate::agents::{HostSeen, Route};
use crate::backend_answers::Fresh;
use crate::backend_pool::{MOVING, OpenBackend, STEADY, answer};
use crate::deps::Deps;
use crate::{bought_machines, own_hosts};

/// Moves one instance on.
pub async fn reconcile(deps: &Deps, id: InstanceId) -> store::Result<Next> {
    let Some(loaded) = instances::get(&deps.db, id).await? else { return Ok(None) };
    let instance = &loaded.value;
    if instance.status.is_final() {
        return Ok(None);
    }
    let launch = match instance.launch_id {
        Some(launch_id) => launches::get(&deps.db, launch_id).await?.map(|launch| launch.value),
        None => None,
    };
    let backend = match &launch {
        Some(launch) => deps.backends.get(&deps.db, launch.backend_id).await?,
        None => None,
    };
    let machine = listed(deps, instance, launch.as_ref(), backend.as_ref()).await;
    let around = surroundings(deps, instance, launch.as_ref(), backend.as_ref(), machine.as_ref()).await?;
    let decision = lifecycle::instance::decide(deps.clock.now(), instance, &around);
    save(deps, &loaded, &decision).await?;
    if let Some(open) = backend.as_ref().filter(|_| decision.instance.status.is_final()) {
        deps.backends.freed(open.id);
    }
    if let Some(effect) = decision.effect {
        // What was decided may rest on what others wrote, and nothing may have been recorded here.
        deps.db.settle().await?;
        act(deps, &decision.instance, backend.as_ref(), machine.flatten().as_ref(), effect).await;
    }
    if matches!(around.agent, AgentSeen::Connected(_)) {
        sweep::sweep_tasks(deps, id).await?;
    }
    Ok(decision.look_again_at)
}

/// What the backend lists of the instance: none if it could not be asked, none within if it does not list it.
async fn listed(
    deps: &Deps,
    instance: &Instance,
    launch: Option<&Launch>,
    backend: Option<&OpenBackend>,
) -> Option<Option<Machine>> {
    let (launch_id, index) = (instance.launch_id?, instance.launch_index?);
    // What was listed before it was bought or its end was ordered says nothing of that.
    let bought_at = launch.and_then(|launch| launch.state.requested_at);
    let later_than = bought_at.max(instance.state.terminate_sent_at);
    let is_steady = matches!(instance.status, InstanceStatus::Idle | InstanceStatus::Busy)
        && matches!(deps.agents.host(instance.id), HostSeen::Connected(_));
    let max_age = if is_steady { STEADY } else { MOVING };
    let machines = deps.backends.machines(backend?, Fresh { max_age, later_than }).await?;
    let key = MachineKey { launch_id, index };
    let machine = machines.found.iter().find(|machine| machine.key == key);
    // Where a region does not answer, nobody knows what is there.
    let is_known = launch.is_none_or(|launch| machines.knows(&launch.state.offer.region));
    (machine.is_some() || is_known).then(|| machine.cloned())
}

async fn surroundings<'a>(
    deps: &Deps,
    instance: &Instance,
    launch: Option<&'a Launch>,
    backend: Option<&OpenBackend>,
    machine: Option<&Option<Machine>>,
) -> store::Result<Surroundings<'a>> {
    let capabilities = backend.map(|open| open.backend.capabilities());
    let busy_blocks = instances::list_assignments(&deps.db, instance.id).await?.len();
    // Only a machine that is being made is split, so only then the fleet is asked how.
    let is_made = matches!(instance.status, InstanceStatus::Pending | InstanceStatus::Provisioning);
    let blocks = if is_made && launch.is_some() {
        let fleet = fleets::get(&deps.db, instance.fleet_id).await?;
        fleet.map_or(Some(1), |fleet| match fleet.value.spec.configuration.blocks {
            Blocks::Auto => None,
            Blocks::Count(count) => Some(count),
        })
    } else {
        Some(instance.state.total_blocks)
    };
    Ok(Surroundings {
        machine: match machine {
            None if planted::has(Bug::SilenceTakenForAbsence) && instance.launch_id.is_some() => {
                MachineSeen::Absent
            }
            None => MachineSeen::Unknown,
            Some(None) => MachineSeen::Absent,
            Some(Some(machine)) => MachineSeen::Present(Box::new(facts(machine))),
        },
        agent: match deps.agents.host(instance.id) {
            HostSeen::Unknown { since, error, is_final } => AgentSeen::Unknown { since, error, is_final },
            HostSeen::Connected(host) => AgentSeen::Connected(host),
        },
        busy_blocks: u32::try_from(busy_blocks).unwrap_or(u32::MAX),
        launch,
        consistent_list: capabilities.is_some_and(|capabilities| capabilities.consistent_list),
        provisioning_timeout_secs: capabilities
            .map_or(DEFAULT_TIMEOUT_SECS, |capabilities| capabilities.provisioning_timeout_secs),
        admins_only: capabilities.is_some_and(|capabilities| capabilities.admins_only),
        runs_processes: capabilities.is_some_and(|capabilities| capabilities.processes_without_image),
        blocks,
        host_keys: deps.agents.host_keys(instance.id),
        leaving: deps.agents.leaving(instance.id),
    })
}

/// Longest time from launch to a joined agent where the backend is gone, in seconds.
const DEFAULT_TIMEOUT_SECS: u64 = 600;

fn facts(machine: &Machine) -> lifecycle::instance::Machine {
    lifecycle::instance::Machine {
        running: machine.state == MachineState::Running,
        gone: machine.state == MachineState::Gone,
        provider_id: machine.provider_id.clone(),
        hostname: machine.hostname.clone(),
        internal_ip: machine.internal_ip.clone(),
        container_network: machine.container_network.as_ref().map(|network| ContainerNetwork {
            name: network.name.clone(),
            subnet: network.subnet.clone(),
            address: network.address.clone(),
        }),
        region: machine.region.clone(),
        zone: machine.zone.clone(),
        ended_because: machine.ended_because.clone(),
        lacked_room: machine.lacked_room,
        login: machine.login.clone().map(|backends::Login { user, port }| Login { user, port }),
        network_path: machine.network_path.clone(),
    }
}

async fn save(deps: &Deps, loaded: &Versioned<Instance>, decision: &InstanceDecision) -> store::Result<()> {
    let instance = &decision.instance;
    if *instance == loaded.value && decision.events.is_empty() {
        return Ok(());
    }
    let now = deps.clock.now();
    let mut tx = deps.db.begin().await?;
    instances::save(&mut tx, &Versioned { version: loaded.version, value: instance.clone() }).await?;
    if instance.state.instance_type != loaded.value.state.instance_type {
        blocks::refit(deps, &mut tx, instance).await?;
    }
    let target = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
    record::events(deps, &mut tx, &decision.events, &[target]).await?;
    if decision.concerns_jobs {
        jobs::touch_by_instance(&mut tx, instance.id, now).await?;
        touch_gangs(deps, &mut tx, instance).await?;
    }
    if decision.concerns_fleet {
        store::leases::touch(&mut tx, Table::Fleets, instance.fleet_id.0, now).await?;
    }
    tx.commit().await?;
    if decision.concerns_jobs {
        deps.wake.ring(Table::Jobs);
        deps.wake.ring_placement();
    }
    if decision.concerns_fleet {
        deps.wake.ring(Table::Fleets);
    }
    deps.wake.tell_watchers();
    Ok(())
}

/// A gang waits for the addresses of all its machines, and its first node is who looks for them.
async fn touch_gangs(deps: &Deps, tx: &mut store::Tx, instance: &Instance) -> store::Result<()> {
    for job in jobs::list_active_by_instance(&mut *tx, instance.id).await? {
        if job.value.spec.jobs_per_replica > 1 {
            jobs::touch_first(&mut *tx, job.value.run_id, deps.clock.now()).await?;
        }
    }
    Ok(())
}

/// The machine as it was when its backend last listed it.
fn recorded(instance: &Instance) -> Option<Machine> {
    let state = &instance.state;
    Some(Machine {
        key: MachineKey { launch_id: instance.launch_id?, index: instance.launch_index? },
        provider_id: state.provider_id.clone()?,
        state: MachineState::Running,
        hostname: state.hostname.clone(),
        internal_ip: state.internal_ip.clone(),
        container_network: state.container_network.as_ref().map(|network| backends::ContainerNetwork {
            name: network.name.clone(),
            subnet: network.subnet.clone(),
            address: network.address.clone(),
        }),
        region: state.region.clone()?,
        zone: state.zone.clone(),
        ended_because: None,
        lacked_room: false,
        login: state.login.clone().map(|Login { user, port }| backends::Login { user, port }),
        network_path: state.network_path.clone(),
    })
}

/// Joins or leaves a machine of the user's own.
async fn reach_host(deps: &Deps, instance: &Instance, effect: Effect) {
    match own_hosts::access(deps, instance).await {
        Ok(access) if effect == Effect::Terminate => deps.agents.leave(instance.id, access),
        Ok(access) => deps.agents.keep(instance.id, Route::Host(Box::new(access))),
        Err(error) => {
            tracing::warn!(instance.id = %instance.id, "cannot reach the host of `{}`: {error:#}", instance.state.name);
        }
    }
}

async fn act(
    deps: &Deps,
    instance: &Instance,
    backend: Option<&OpenBackend>,
    machine: Option<&Machine>,
    effect: Effect,
) {
    match effect {
        Effect::Connect if deps.agents.is_kept(instance.id) => {}
        Effect::Connect | Effect::Terminate if instance.state.host.is_some() => {
            reach_host(deps, instance, effect).await;
        }
        Effect::Connect => {
            if let (Some(open), Some(machine)) = (backend, machine.cloned().or_else(|| recorded(instance))) {
                match bought_machines::access(deps, instance, &machine).await {
                    Ok(access) => {
                        let route = Route::Machine(open.backend.clone(), Box::new(machine), access.map(Box::new));
                        deps.agents.keep(instance.id, route);
                    }
                    Err(error) => {
                        let name = &instance.state.name;
                        tracing::warn!(instance.id = %instance.id, "cannot reach `{name}`: {error:#}");
                    }
                }
            }
        }
        Effect::Disconnect => deps.agents.drop_connection(instance.id),
        Effect::Terminate => {
            let (Some(open), Some(launch_id), Some(index)) = (backend, instance.launch_id, instance.launch_index)
            else {
                return;
            };
            let key = MachineKey { launch_id, index };
            if let Err(error) = answer(open.backend.terminate(&key)).await {
                tracing::warn!(instance.id = %instance.id, "cannot end `{}`, trying again: {error}", instance.state.name);
            }
        }
    }
}
