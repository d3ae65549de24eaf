//! What fleets could buy for jobs: what suits both the fleet and the job.
//!
//! Placement asks before it lets a fleet grow, and the fleet asks again when it buys, with the same words.

use std::collections::HashMap;
use std::time::Duration;

use api::configurations::{
    Blocks, CpuSpec, FleetConfiguration, GpuSpec, Memory, ProfileParams, Range, ResourcesSpec,
};
use api::ids::FleetId;
use api::instances::Offer;
use api::jobs::Requirements;
use futures_util::future::join_all;
use lifecycle::fleet::{Fleet, LaunchPlan};
use lifecycle::instance::Instance;
use lifecycle::placement::{
    Gang, Growth, Market, Node, PoolFleet, blocks_for, is_cluster, is_listed, of_one_type,
};
use store::Versioned;

use crate::backend_pool::OpenBackend;
use crate::deps::Deps;
use crate::offers::{Collected, MAX_REASONS, OffersQuery, blocks_of, collect, disk_mib};

/// How long placement waits for backends. It does not wait as long as a purchase, because other runs wait for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fleets that are asked about at the same time, so that a backend that is slow is waited for once and not by each.
const FLEETS_AT_ONCE: usize = 30;

/// A job that waits for a machine which is still to be bought.
#[derive(Debug, Clone, Copy)]
pub struct WaitingJob<'a> {
    /// What it needs.
    pub requirements: &'a Requirements,
    /// Where it may be.
    pub profile: &'a ProfileParams,
    /// It is one of several nodes, which take whole machines.
    pub has_peers: bool,
    /// It may run on machines that only global admins may use.
    pub user_is_admin: bool,
    /// The only type that is bought for it, because its machine joins a cluster of that type.
    pub only_type: Option<&'a str>,
}

impl WaitingJob<'_> {
    /// How many of a machine's blocks the job would take, and of how many, or why the machine does not do. What only
    /// the fleet asks is not looked at.
    pub fn blocks_of(&self, offer: &Offer, blocks: Blocks) -> Result<(u32, u32), String> {
        let profile = self.profile;
        if profile.backends.as_ref().is_some_and(|list| !list.contains(&offer.backend)) {
            return Err(format!("`{}` is not in `backends`", offer.backend));
        }
        if !is_listed(profile.regions.as_ref(), &offer.region) {
            return Err(format!("region `{}` is not in `regions`", offer.region));
        }
        if !is_listed(profile.instance_types.as_ref(), &offer.instance.name) {
            return Err(format!("type `{}` is not in `instance_types`", offer.instance.name));
        }
        if let Some(only_type) = self.only_type.filter(|only_type| *only_type != offer.instance.name) {
            return Err(of_one_type(only_type));
        }
        if profile.availability_zones.is_some() && self.zone_of(offer).is_none() {
            return Err("none of its zones is in `availability_zones`".to_owned());
        }
        if let Some(max_price) = self.requirements.max_price.filter(|max_price| *max_price < offer.price) {
            return Err(format!("${} an hour is over `max_price` {max_price}", offer.price));
        }
        let of = offer.reservation();
        if let Some(reservation) = profile.reservation.as_deref().filter(|wanted| of != Some(wanted)) {
            return Err(format!("it is not of `reservation` {reservation}"));
        }
        let resources = &offer.instance.resources;
        if self.requirements.spot.is_some_and(|spot| spot != resources.spot) {
            return Err("it does not fit `spot_policy`".to_owned());
        }
        let total = blocks_of(blocks, resources)?;
        blocks_for(self.requirements, self.has_peers, resources, total).map(|needed| (needed, total))
    }

    /// The first zone of an offer where the job may be.
    fn zone_of(&self, offer: &Offer) -> Option<String> {
        let mut zones = offer.availability_zones.iter().flatten();
        zones.find(|zone| is_listed(self.profile.availability_zones.as_ref(), zone)).cloned()
    }

    /// The zone to buy a machine in for the job (`None`: any), or why it does not do.
    fn zone_to_buy_in(&self, plan: &LaunchPlan, blocks: Blocks) -> Result<Option<String>, String> {
        if plan.admins_only && !self.user_is_admin {
            return Err("it is the server's own machine, which only global admins may use".to_owned());
        }
        self.blocks_of(&plan.offer, blocks)?;
        let zones = self.profile.availability_zones.as_ref();
        match &plan.zone {
            Some(zone) if !is_listed(zones, zone) => Err(format!("zone `{zone}` is not in `availability_zones`")),
            Some(zone) => Ok(Some(zone.clone())),
            None if zones.is_some() => Ok(self.zone_of(&plan.offer)),
            None => Ok(None),
        }
    }
}

impl Collected {
    /// What of it a job that waits for the machines could use; what it could not use is left out, with the reasons.
    pub fn kept_for(&self, job: &WaitingJob<'_>, blocks: Blocks) -> Collected {
        let mut kept = Collected { plans: vec![], ..self.clone() };
        let mut reasons: Vec<String> = vec![];
        for plan in &self.plans {
            let plan = &with_disk(plan, job);
            match job.zone_to_buy_in(plan, blocks) {
                Ok(zone) => kept.plans.push(LaunchPlan { zone, ..plan.clone() }),
                Err(reason) => add_reason(&mut reasons, plan, &reason),
            }
        }
        if kept.plans.is_empty() {
            kept.obstacles.extend(reasons);
        }
        kept.unavailable.retain(|unavailable| {
            let may_use = !unavailable.admins_only || job.user_is_admin;
            may_use && job.blocks_of(&unavailable.offer, blocks).is_ok()
        });
        kept
    }
}

/// The same plan with a disk as large as the job asks for, where its size may be chosen.
fn with_disk(plan: &LaunchPlan, job: &WaitingJob<'_>) -> LaunchPlan {
    let mut plan = plan.clone();
    let resources = &mut plan.offer.instance.resources;
    resources.disk.size_mib = disk_mib(resources, plan.most_disk_mib, &job.requirements.resources);
    plan
}

fn add_reason(reasons: &mut Vec<String>, plan: &LaunchPlan, reason: &str) {
    // There may be thousands of offers, and few reasons are told.
    if MAX_REASONS <= reasons.len() {
        return;
    }
    let reason = format!("`{}`: {reason}", plan.backend);
    if !reasons.contains(&reason) {
        reasons.push(reason);
    }
}

/// What a fleet could buy for whomever, from the opened backends of its project, if fewer machines than `least` are of no
/// use.
pub async fn offers_of_fleet<'a>(
    deps: &Deps,
    opened: &[OpenBackend],
    fleet: &Fleet,
    instances: impl IntoIterator<Item = &'a Instance>,
    least: u32,
    patience: Duration,
) -> Collected {
    let configuration = &fleet.spec.configuration;
    let profile = configuration.merged_profile(Some(&fleet.spec.profile));
    let (mut bought, mut missing) = (0_u32, 0_u32);
    for instance in instances {
        let counted = if instance.has_purchase() { &mut bought } else { &mut missing };
        *counted = counted.saturating_add(1);
    }
    // A machine that is split among the nodes of a fleet is split for all that the fleet may still have.
    let room =
        configuration.nodes.as_ref().and_then(|nodes| nodes.max).map_or(0, |max| max.saturating_sub(bought));
    let query = OffersQuery {
        least,
        most: missing.max(room),
        requirements: &fleet_requirements(configuration, &profile),
        profile: &profile,
        cluster: is_cluster(configuration.placement),
        // The fleet buys, so its maker's rights count here; those of the job's user are looked at for each job.
        user_is_admin: fleet.state.user_is_admin,
        home: fleet.state.home.as_ref(),
        blocks: configuration.blocks,
        patience,
    };
    collect(deps, opened, &query).await
}

/// What a fleet asks of each machine. A fleet that says nothing asks next to nothing.
pub fn fleet_requirements(configuration: &FleetConfiguration, profile: &ProfileParams) -> Requirements {
    let least = || ResourcesSpec {
        cpu: CpuSpec { arch: None, count: Range::at_least(1) },
        memory: Range::at_least(Memory(0.0)),
        shm_size: None,
        gpu: Some(GpuSpec { count: Range::at_least(0), ..GpuSpec::default() }),
        disk: None,
    };
    Requirements {
        resources: configuration.resources.clone().unwrap_or_else(least),
        max_price: profile.max_price,
        spot: lifecycle::run::wanted_spot(profile),
        reservation: profile.reservation.clone(),
        multinode: Some(is_cluster(configuration.placement)),
        backend_options: profile.backend_options.clone(),
    }
}

/// What the fleets that were asked about could buy.
#[derive(Debug, Default)]
pub struct FleetMarket(HashMap<FleetId, (Collected, Blocks)>);

impl FleetMarket {
    /// Asks what some fleets could buy. A fleet that is gone buys nothing.
    pub async fn ask(&mut self, deps: &Deps, fleets: &[FleetId]) -> store::Result<()> {
        let mut askers = vec![];
        for id in fleets {
            match store::fleets::get(&deps.db, *id).await? {
                Some(fleet) => askers.push(Asker::load(deps, fleet.value).await?),
                None => drop(self.0.insert(*id, Default::default())),
            }
        }
        for some in askers.chunks(FLEETS_AT_ONCE) {
            self.0.extend(join_all(some.iter().map(|asker| asker.ask(deps))).await);
        }
        Ok(())
    }
}

/// A fleet that is asked about, with what its question needs.
struct Asker {
    fleet: Fleet,
    instances: Vec<Versioned<Instance>>,
    opened: Vec<OpenBackend>,
}

impl Asker {
    async fn load(deps: &Deps, fleet: Fleet) -> store::Result<Asker> {
        let instances = store::instances::list_by_fleet(&deps.db, fleet.id).await?;
        let opened = deps.backends.of_project(&deps.db, fleet.project_id).await?;
        Ok(Asker { fleet, instances, opened })
    }

    async fn ask(&self, deps: &Deps) -> (FleetId, (Collected, Blocks)) {
        let instances = self.instances.iter().map(|row| &row.value);
        // How many a job needs is compared when they are bought for it.
        let collected = offers_of_fleet(deps, &self.opened, &self.fleet, instances, 1, PATIENCE).await;
        (self.fleet.id, (collected, self.fleet.spec.configuration.blocks))
    }
}

impl Market for FleetMarket {
    fn growth(&self, gang: &Gang, node: &Node, fleet: &PoolFleet) -> Growth {
        let Some((collected, blocks)) = self.0.get(&fleet.id) else { return Growth::NotAsked };
        let job = WaitingJob {
            requirements: &node.requirements,
            profile: &gang.profile,
            has_peers: gang.nodes.len() > 1,
            user_is_admin: gang.user_is_admin,
            only_type: fleet.only_type.as_deref().filter(|_| !gang.has_unlike_nodes()),
        };
        let most = if gang.wants_reason { MAX_REASONS } else { 0 };
        let mut reasons: Vec<String> = collected.obstacles.iter().take(most).cloned().collect();
        // The cheapest comes first.
        for plan in &collected.plans {
            match job.zone_to_buy_in(plan, *blocks) {
                Ok(_) => return Growth::Price(plan.offer.price),
                Err(reason) if gang.wants_reason => add_reason(&mut reasons, plan, &reason),
                Err(_) => {}
            }
        }
        if collected.unknown { Growth::Unknown } else { Growth::Nothing(reasons.join("; ")) }
    }
}
