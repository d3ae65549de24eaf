//! What a project has to place runs on, and what a run asks of it: the rows of the database as placement sees them.

use std::collections::HashMap;

use api::configurations::Runtime;
use api::fleets::FleetStatus;
use api::ids::{FleetId, InstanceId, ProjectId};
use api::jobs::JobSpec;
use api::runs::{RunSpec, RunStatus};
use jiff::{SignedDuration, Timestamp};
use lifecycle::fleet::Fleet;
use lifecycle::instance::Instance;
use lifecycle::placement::{Gang, Node, Pool, PoolFleet, PoolInstance, is_cluster, profile_of};
use lifecycle::run::Run;

use crate::deps::Deps;

/// A project's fleets and their instances, as they are now.
pub async fn load(deps: &Deps, project: ProjectId) -> store::Result<Pool> {
    let Some(row) = store::projects::get(&deps.db, project).await? else { return Ok(Pool::default()) };
    let fleets = store::fleets::list_by_project(&deps.db, project).await?;
    if fleets.is_empty() {
        return Ok(Pool::default());
    }
    let instances = store::instances::list_by_project(&deps.db, project).await?;
    let mut taken: HashMap<InstanceId, Vec<u32>> = HashMap::new();
    for (instance, block, _) in store::instances::list_project_assignments(&deps.db, project).await? {
        taken.entry(instance).or_default().push(block);
    }
    let mut by_fleet: HashMap<FleetId, Vec<&Instance>> = HashMap::new();
    for instance in &instances {
        by_fleet.entry(instance.value.fleet_id).or_default().push(&instance.value);
    }
    let opened = deps.backends.of_project(&deps.db, project).await?;
    let can_buy = opened.iter().any(|open| !open.draining && open.backend.capabilities().launches);
    let silent_before = deps.clock.now() - silence(deps);
    // The oldest fleet is tried first.
    let pooled = fleets.iter().rev().map(|fleet| {
        let instances = by_fleet.get(&fleet.value.id).map_or(&[][..], Vec::as_slice);
        pool_fleet(&fleet.value, &row.name, can_buy, instances, &taken, silent_before)
    });
    Ok(Pool { fleets: pooled.collect() })
}

/// How long an agent may be silent before its instance is not used, in tests and for people.
pub fn silence(deps: &Deps) -> SignedDuration {
    SignedDuration::from_secs(i64::try_from(deps.settings.unreachable_shown_after_secs).unwrap_or(i64::MAX / 4))
}

/// Whether an instance's agent has been silent since before a time.
pub fn is_silent(instance: &Instance, silent_before: Timestamp) -> bool {
    instance.state.unreachable_since.is_some_and(|since| since <= silent_before)
}

fn pool_fleet(
    fleet: &Fleet,
    project_name: &str,
    can_buy: bool,
    instances: &[&Instance],
    taken: &HashMap<InstanceId, Vec<u32>>,
    silent_before: Timestamp,
) -> PoolFleet {
    let configuration = &fleet.spec.configuration;
    let kept = instances.iter().filter(|instance| instance.is_kept()).count();
    let kept = u32::try_from(kept).unwrap_or(u32::MAX);
    let room = match &configuration.nodes {
        Some(nodes) => nodes.max.unwrap_or(u32::MAX).saturating_sub(kept),
        None => 0,
    };
    PoolFleet {
        id: fleet.id,
        name: fleet.name.clone(),
        project_name: project_name.to_owned(),
        cluster: is_cluster(configuration.placement),
        room,
        can_grow: can_buy && configuration.nodes.is_some(),
        closing: !fleet.wanted || matches!(fleet.status, FleetStatus::Terminating | FleetStatus::Terminated),
        only_type: fleet.state.home.as_ref().and_then(|home| home.instance_type.clone()),
        limits: configuration.merged_profile(Some(&fleet.spec.profile)),
        instances: instances
            .iter()
            .map(|instance| {
                let taken = taken.get(&instance.id).map_or(&[][..], Vec::as_slice);
                pool_instance(instance, taken, silent_before)
            })
            .collect(),
    }
}

fn pool_instance(instance: &Instance, taken: &[u32], silent_before: Timestamp) -> PoolInstance {
    let state = &instance.state;
    let total_blocks = state.total_blocks.max(1);
    let has_docker = state.joined_at.map(|_| state.has_docker);
    // A machine that runs only containers is of no use without an engine for them.
    let is_broken = has_docker == Some(false) && !state.runs_processes;
    PoolInstance {
        id: instance.id,
        name: state.name.clone(),
        instance_num: instance.instance_num,
        hostname: state.hostname.clone(),
        status: instance.status,
        unusable: !instance.is_kept() || is_silent(instance, silent_before) || is_broken,
        incomplete_efa: state.health.incomplete_efa(),
        admins_only: state.admins_only,
        has_docker,
        backend: state.backend.as_deref().map(backends::wire_type_of),
        region: state.region.clone(),
        zone: state.zone.clone(),
        network_path: state.network_path.clone(),
        price: state.price.unwrap_or_default(),
        instance_type: state.instance_type.clone(),
        is_bought: instance.bought_type().is_some(),
        reservation: state.reservation.clone(),
        total_blocks,
        free_blocks: (0..total_blocks).filter(|block| !taken.contains(block)).collect(),
    }
}

/// What a run asks for: all of its nodes together.
pub fn gang_of(run: &Run, specs: &[JobSpec]) -> Gang {
    Gang {
        run_id: run.id,
        profile: profile_of(&run.spec),
        user_is_admin: run.state.user_is_admin,
        needs_docker: needs_docker(&run.spec),
        may_buy: true,
        wants_reason: run.status == RunStatus::Submitted,
        previous_fleet: run.fleet_id.or(run.state.previous_fleet),
        nodes: specs
            .iter()
            .filter(|spec| spec.replica_num == 0)
            .map(|spec| Node { job_num: spec.job_num, requirements: spec.requirements.clone() })
            .collect(),
    }
}

/// Whether a run's jobs are containers even where jobs may be plain processes: it says so, or asks for what only a
/// container has.
pub fn needs_docker(spec: &RunSpec) -> bool {
    let common = spec.configuration.common();
    match common.runtime {
        Some(Runtime::Docker) => true,
        Some(Runtime::Process) => false,
        None => {
            let of_containers = !common.volumes.is_empty() || *common.privileged || common.registry_auth.is_some();
            common.image.is_some() || *common.docker == Some(true) || of_containers
        }
    }
}
