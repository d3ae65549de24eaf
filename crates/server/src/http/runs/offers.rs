//! What the jobs of a run could run on: instances that are there, and what could be bought.

use api::configurations::{CreationPolicy, ProfileParams};
use api::ids::ProjectId;
use api::instances::{InstanceAvailability, Offer};
use api::jobs::{JobSpec, Requirements};
use lifecycle::placement::{Gang, Pool, PoolFleet, PoolInstance};

use crate::deps::Deps;
use crate::http::error::Result;
use crate::offers::{OffersQuery, WaitingJob, collect, fleet_requirements};

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

/// The offers of each job, the best first.
pub(super) async fn offers_of_jobs(
    deps: &Deps,
    project: ProjectId,
    gang: &Gang,
    jobs: &[JobSpec],
    pool: &Pool,
    wanted: Wanted,
) -> Result<Vec<Vec<Offer>>> {
    let mut found: Vec<(&Requirements, Vec<Offer>)> = vec![];
    let mut all = Vec::with_capacity(jobs.len());
    for job in jobs {
        // The nodes of a group ask for the same.
        let known = found.iter().find(|(requirements, _)| **requirements == job.requirements);
        let offers = match known {
            Some((_, offers)) => offers.clone(),
            None => offers_of_job(deps, project, gang, job, pool, wanted).await?,
        };
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
        for offer in growth_offers(deps, project, gang, job, pool).await? {
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
        // Nodes of a cluster wait for nobody: what is busy is none of their offers.
        .filter(|candidate| candidate.free || !(wanted.unallocated_only || gang.nodes.len() > 1))
        .filter_map(|candidate| {
            let fleet = pool.fleets.iter().find(|fleet| fleet.id == candidate.fleet_id)?;
            let instance = fleet.instances.iter().find(|instance| instance.id == candidate.instance_id)?;
            let availability =
                if candidate.free { InstanceAvailability::Idle } else { InstanceAvailability::Busy };
            instance_offer(instance, candidate.blocks, availability)
        })
        .collect()
}

fn instance_offer(instance: &PoolInstance, blocks: u32, availability: InstanceAvailability) -> Option<Offer> {
    Some(Offer {
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
        project_id: project,
        nodes: job.jobs_per_replica,
        requirements: &job.requirements,
        profile,
        cluster: job.jobs_per_replica > 1,
        user_is_admin: gang.user_is_admin,
        home: None,
    };
    Ok(collect(deps, &query).await?.offers())
}

/// What the fleets that the run may use would buy for it.
async fn growth_offers(
    deps: &Deps,
    project: ProjectId,
    gang: &Gang,
    job: &JobSpec,
    pool: &Pool,
) -> Result<Vec<Offer>> {
    let mut offers: Vec<Offer> = vec![];
    for fleet in pool.fleets.iter().filter(|fleet| fleet.can_grow && fleet.room > 0 && gang.admits(fleet)) {
        for offer in fleet_offers(deps, project, gang, job, fleet).await? {
            if !offers.contains(&offer) {
                offers.push(offer);
            }
        }
    }
    Ok(offers)
}

/// What one fleet would buy: what suits the job and the fleet.
async fn fleet_offers(
    deps: &Deps,
    project: ProjectId,
    gang: &Gang,
    job: &JobSpec,
    fleet: &PoolFleet,
) -> Result<Vec<Offer>> {
    let Some(row) = store::fleets::get(&deps.db, fleet.id).await? else { return Ok(vec![]) };
    let of_fleet = fleet_requirements(&row.value.spec.configuration, &fleet.limits);
    let query = OffersQuery {
        project_id: project,
        nodes: job.jobs_per_replica,
        requirements: &of_fleet,
        profile: &fleet.limits,
        cluster: fleet.cluster,
        // The fleet buys, so its maker's rights count.
        user_is_admin: row.value.state.user_is_admin && gang.user_is_admin,
        home: row.value.state.home.as_ref(),
    };
    let waiting = WaitingJob {
        requirements: job.requirements.clone(),
        profile: gang.profile.clone(),
        has_peers: job.jobs_per_replica > 1,
    };
    let split = row.value.spec.configuration.blocks;
    let offers = collect(deps, &query).await?.offers().into_iter();
    let suiting = offers.filter_map(|offer| {
        let (blocks, total_blocks) = waiting.blocks_of(&offer, split).ok()?;
        Some(Offer { blocks, total_blocks, ..offer })
    });
    Ok(suiting.collect())
}
