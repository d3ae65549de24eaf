//! What the jobs of a run could run on: instances that are there, and what could be bought.

use std::sync::Arc;

use api::configurations::{Blocks, CreationPolicy, ProfileParams};
use api::ids::ProjectId;
use api::instances::{InstanceAvailability, Offer};
use api::jobs::{JobSpec, Requirements};
use lifecycle::placement::{Gang, Pool, PoolFleet, PoolInstance};

use crate::backend_pool::ANSWER_TIMEOUT;
use crate::deps::Deps;
use crate::http::error::Result;
use crate::market::{WaitingJob, offers_of_fleet};
use crate::offers::{OffersQuery, collect};

/// How offers are looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Whatever the backends sell, and not only what the project's fleets would buy.
    pub(super) beyond_fleets: bool,
    /// Nothing that jobs hold.
    pub(super) unallocated_only: bool,
    /// Dearest first.
    pub(super) reverse: bool,
}

/// The offers of each job, the best first; jobs that ask for the same share them.
pub(super) async fn offers_of_jobs(
    deps: &Deps,
    project: ProjectId,
    gang: &Gang,
    jobs: &[JobSpec],
    pool: &Pool,
    wanted: Wanted,
) -> Result<Vec<Arc<Vec<Offer>>>> {
    let mut found: Vec<(&Requirements, Arc<Vec<Offer>>)> = vec![];
    let mut all = Vec::with_capacity(jobs.len());
    for job in jobs {
        // The nodes of a group ask for the same, and stand one after another.
        let known = found.iter().rev().find(|(requirements, _)| **requirements == job.requirements);
        if let Some((_, offers)) = known {
            all.push(offers.clone());
            continue;
        }
        let offers = Arc::new(offers_of_job(deps, project, gang, job, pool, wanted).await?);
        found.push((&job.requirements, offers.clone()));
        all.push(offers);
    }
    Ok(all)
}

async fn offers_of_job(
    deps: &Deps,
    project: ProjectId,
    gang: &Gang,
    job: &JobSpec,
    pool: &Pool,
    wanted: Wanted,
) -> Result<Vec<Offer>> {
    let mut offers = instance_offers(gang, job, pool, wanted);
    let reuses = gang.profile.creation_policy == Some(CreationPolicy::Reuse) || gang.profile.instances.is_some();
    if !reuses && wanted.beyond_fleets && gang.profile.fleets.is_none() {
        offers.extend(backend_offers(deps, project, gang, job, &gang.profile).await?);
    } else if !reuses {
        for offer in growth_offers(deps, gang, job, pool).await? {
            if !offers.contains(&offer) {
                offers.push(offer);
            }
        }
    }
    let direction = |left: f64, right: f64| {
        if wanted.reverse { right.total_cmp(&left) } else { left.total_cmp(&right) }
    };
    offers.sort_by(|left, right| {
        let unusable = |offer: &Offer| !offer.availability.is_usable();
        let bought = |offer: &Offer| offer.availability != InstanceAvailability::Idle;
        unusable(left)
            .cmp(&unusable(right))
            .then(direction(left.price, right.price))
            .then(bought(left).cmp(&bought(right)))
    });
    Ok(offers)
}

/// The instances that suit the job, free or not.
fn instance_offers(gang: &Gang, job: &JobSpec, pool: &Pool, wanted: Wanted) -> Vec<Offer> {
    // A node is judged as the first of its gang.
    let mut gang = gang.clone();
    gang.nodes.sort_by_key(|node| node.job_num != job.job_num);
    let candidates = gang.candidates(pool).into_iter();
    candidates
        .filter(|candidate| candidate.free || !wanted.unallocated_only)
        .filter_map(|candidate| {
            let fleet = pool.fleets.iter().find(|fleet| fleet.id == candidate.fleet_id)?;
            let instance = fleet.instances.iter().find(|instance| instance.id == candidate.instance_id)?;
            // Nodes of a cluster take whole machines. Of one that is shared, nobody knows when all of it falls free.
            let is_shared = instance.total_blocks > 1;
            if !candidate.free && is_shared && gang.nodes.len() > 1 {
                return None;
            }
            let availability =
                if candidate.free { InstanceAvailability::Idle } else { InstanceAvailability::Busy };
            instance_offer(instance, candidate.blocks, availability)
        })
        .collect()
}

fn instance_offer(instance: &PoolInstance, blocks: u32, availability: InstanceAvailability) -> Option<Offer> {
    Some(Offer {
        unavailable_because: None,
        backend: instance.backend?,
        instance: instance.instance_type.clone()?,
        region: instance.region.clone()?,
        price: instance.price,
        backend_data: serde_json::json!({}),
        availability,
        availability_zones: instance.zone.clone().map(|zone| vec![zone]),
        instance_runtime: "shim".to_owned(),
        blocks,
        total_blocks: instance.total_blocks,
    })
}

async fn backend_offers(
    deps: &Deps,
    project: ProjectId,
    gang: &Gang,
    job: &JobSpec,
    profile: &ProfileParams,
) -> Result<Vec<Offer>> {
    let query = OffersQuery {
        least: job.jobs_per_replica,
        most: job.jobs_per_replica,
        requirements: &job.requirements,
        profile,
        cluster: job.jobs_per_replica > 1,
        user_is_admin: gang.user_is_admin,
        home: None,
        blocks: Blocks::default(),
        patience: ANSWER_TIMEOUT,
    };
    let opened = deps.backends.of_project(&deps.db, project).await?;
    Ok(collect(deps, &opened, &query).await.offers())
}

/// What the fleets that the run may use would buy for it.
async fn growth_offers(deps: &Deps, gang: &Gang, job: &JobSpec, pool: &Pool) -> Result<Vec<Offer>> {
    let mut offers: Vec<Offer> = vec![];
    for fleet in pool.fleets.iter().filter(|fleet| fleet.can_grow && fleet.room > 0 && gang.admits(fleet)) {
        for offer in fleet_offers(deps, gang, job, fleet).await? {
            if !offers.contains(&offer) {
                offers.push(offer);
            }
        }
    }
    Ok(offers)
}

/// What one fleet would buy, asked for as it does itself: what suits the job and the fleet.
async fn fleet_offers(deps: &Deps, gang: &Gang, job: &JobSpec, fleet: &PoolFleet) -> Result<Vec<Offer>> {
    let Some(row) = store::fleets::get(&deps.db, fleet.id).await? else { return Ok(vec![]) };
    let instances = store::instances::list_by_fleet(&deps.db, fleet.id).await?;
    let instances = instances.iter().map(|row| &row.value);
    let opened = deps.backends.of_project(&deps.db, row.value.project_id).await?;
    let of_fleet =
        offers_of_fleet(deps, &opened, &row.value, instances, job.jobs_per_replica, ANSWER_TIMEOUT).await;
    let split = row.value.spec.configuration.blocks;
    let waiting = WaitingJob {
        requirements: &job.requirements,
        profile: &gang.profile,
        has_peers: job.jobs_per_replica > 1,
        user_is_admin: gang.user_is_admin,
        only_type: fleet.only_type.as_deref().filter(|_| !gang.has_unlike_nodes()),
    };
    let offers = of_fleet.kept_for(&waiting, split).offers().into_iter();
    let counted = offers.filter_map(|offer| {
        let (blocks, total_blocks) = waiting.blocks_of(&offer, split).ok()?;
        Some(Offer { blocks, total_blocks, ..offer })
    });
    Ok(counted.collect())
}

#[cfg(test)]
mod tests {
    use api::backends::BackendType;
    use api::ids::{FleetId, InstanceId, RunId};
    use api::instances::InstanceStatus;
    use lifecycle::placement::Node;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    /// What `nodes` nodes are offered of a fleet whose only instance is split so and has these blocks free.
    fn check(nodes: u32, total_blocks: u32, free_blocks: &[u32], unallocated_only: bool, expected: &[&str]) {
        let recorded: Vec<api::runs::Run> =
            serde_json::from_str(include_str!("../../../tests/golden/run_views.json")).unwrap();
        let mut job = recorded[0].jobs[0].job_spec.clone();
        job.requirements.resources =
            serde_json::from_value(json!({"cpu": "1..", "memory": "1GB..", "disk": null})).unwrap();
        let node = |job_num| Node { job_num, requirements: job.requirements.clone() };
        let gang = Gang {
            run_id: RunId(Uuid::from_u128(1)),
            profile: ProfileParams::default(),
            user_is_admin: true,
            needs_docker: false,
            may_buy: true,
            wants_reason: true,
            previous_fleet: None,
            nodes: (0..nodes).map(node).collect(),
        };
        let resources =
            json!({"cpus": 8, "memory_mib": 16384, "gpus": [], "spot": false, "disk": {"size_mib": 102_400}});
        let instance = PoolInstance {
            id: InstanceId(Uuid::from_u128(2)),
            name: "pair-0".to_owned(),
            instance_num: 0,
            hostname: None,
            status: InstanceStatus::Busy,
            unusable: false,
            incomplete_efa: None,
            admins_only: false,
            has_docker: None,
            backend: Some(BackendType::Remote),
            region: Some("local".to_owned()),
            zone: None,
            network_path: vec![],
            price: 0.0,
            instance_type: Some(serde_json::from_value(json!({"name": "local", "resources": resources})).unwrap()),
            is_bought: false,
            reservation: None,
            total_blocks,
            free_blocks: free_blocks.to_vec(),
        };
        let fleet = PoolFleet {
            id: FleetId(Uuid::from_u128(3)),
            name: "pair".to_owned(),
            project_name: "main".to_owned(),
            cluster: true,
            room: 0,
            can_grow: false,
            closing: false,
            only_type: None,
            limits: ProfileParams::default(),
            instances: vec![instance],
        };
        let wanted = Wanted { beyond_fleets: false, unallocated_only, reverse: false };
        let offers = instance_offers(&gang, &job, &Pool { fleets: vec![fleet] }, wanted);
        let shown: Vec<String> =
            offers.iter().map(|offer| format!("{:?} {}", offer.availability, offer.blocks)).collect();
        assert_eq!(shown, expected, "{nodes} nodes, {total_blocks} blocks, {free_blocks:?} free");
    }

    #[test]
    fn busy_instances_are_offers_too() {
        check(1, 1, &[0], false, &["Idle 1"]);
        check(1, 1, &[], false, &["Busy 1"]);
        check(2, 1, &[], false, &["Busy 1"]);
        check(2, 1, &[], true, &[]);
    }

    #[test]
    fn nodes_of_a_cluster_are_offered_whole_machines() {
        check(2, 2, &[0, 1], false, &["Idle 2"]);
        check(2, 2, &[1], false, &[]);
        check(1, 2, &[], false, &["Busy 1"]);
    }
}
