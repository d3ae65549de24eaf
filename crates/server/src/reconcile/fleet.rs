//! Moves fleets on.

use api::fleets::FleetStatus;
use api::ids::FleetId;
use api::instances::InstanceStatus;
use lifecycle::events::Target;
use lifecycle::fleet::{Effect, Fleet, FleetDecision, OffersSeen, Purchase, Surroundings, decide};
use lifecycle::instance::{Instance, InstanceState};
use lifecycle::launch::{Launch, LaunchState, LaunchStatus};
use store::leases::Table;
use store::{Tx, Versioned, fleets, instances, launches};

use super::{Next, record};
use crate::deps::Deps;
use crate::offers::{self, OffersQuery};

/// Moves one fleet on.
pub async fn reconcile(deps: &Deps, id: FleetId) -> store::Result<Next> {
    let Some(loaded) = fleets::get(&deps.db, id).await? else { return Ok(None) };
    if matches!(loaded.value.status, FleetStatus::Terminated | FleetStatus::Failed) {
        return Ok(None);
    }
    let rows = instances::list_by_fleet(&deps.db, id).await?;
    let ids: Vec<_> = rows.iter().map(|row| row.value.id).collect();
    let busy = instances::count_busy_blocks(&deps.db, &ids).await?;
    let with_busy: Vec<(Instance, u32)> = rows
        .iter()
        .map(|row| {
            let busy = busy.iter().find(|(id, _)| *id == row.value.id).map_or(0, |(_, count)| *count);
            (row.value.clone(), busy)
        })
        .collect();
    let open: Vec<Launch> = launches::list_open(&deps.db, id).await?.into_iter().map(|row| row.value).collect();
    let runs = instances::list_runs(&deps.db, &ids).await?;
    let mut around =
        Surroundings { instances: &with_busy, runs: &runs, open_launches: &open, offers: OffersSeen::NotAsked };
    let mut decision = decide(deps.clock.now(), &loaded.value, &around);
    if decision.effect == Some(Effect::AskOffers) {
        around.offers = ask_offers(deps, &loaded.value, &with_busy).await?;
        decision = decide(deps.clock.now(), &loaded.value, &around);
    }
    save(deps, &loaded, &rows, &decision).await?;
    Ok(decision.look_again_at)
}

/// What the project's backends offer for the fleet's missing instances.
async fn ask_offers(deps: &Deps, fleet: &Fleet, instances: &[(Instance, u32)]) -> store::Result<OffersSeen> {
    let configuration = &fleet.spec.configuration;
    let profile = configuration.merged_profile(Some(&fleet.spec.profile));
    let bought = instances.iter().filter(|(instance, _)| instance.launch_id.is_some()).count();
    let bought = u32::try_from(bought).unwrap_or(u32::MAX);
    let missing = u32::try_from(instances.len()).unwrap_or(u32::MAX).saturating_sub(bought).max(1);
    // A machine that is split among the nodes of a fleet is split for all that the fleet may still have.
    let room =
        configuration.nodes.as_ref().and_then(|nodes| nodes.max).map_or(0, |max| max.saturating_sub(bought));
    let query = OffersQuery {
        project_id: fleet.project_id,
        nodes: missing.max(room),
        requirements: &offers::fleet_requirements(configuration, &profile),
        profile: &profile,
        cluster: lifecycle::placement::is_cluster(configuration.placement),
        user_is_admin: fleet.state.user_is_admin,
        home: fleet.state.home.as_ref(),
    };
    let mut collected = offers::collect(deps, &query).await?;
    collected.keep_for(&offers::waiting_jobs(deps, instances).await?, configuration.blocks);
    if collected.plans.is_empty() && collected.unknown {
        return Ok(OffersSeen::Unknown);
    }
    let obstacle =
        (!collected.obstacles.is_empty()).then(|| format!("No offers found: {}", collected.obstacles.join("; ")));
    Ok(OffersSeen::Known { offers: collected.plans, obstacle })
}

async fn save(
    deps: &Deps,
    loaded: &Versioned<Fleet>,
    rows: &[Versioned<Instance>],
    decision: &FleetDecision,
) -> store::Result<()> {
    let fleet = &decision.fleet;
    let nothing = *fleet == loaded.value
        && decision.end_instances.is_empty()
        && decision.cancel_launches.is_empty()
        && decision.buy.is_none()
        && decision.add_instances == 0;
    if nothing {
        return Ok(());
    }
    let now = deps.clock.now();
    let mut tx = deps.db.begin().await?;
    fleets::save(&mut tx, &Versioned { version: loaded.version, value: fleet.clone() }).await?;
    let target = Target::fleet(fleet.project_id, fleet.id, &fleet.name);
    record::events(deps, &mut tx, &decision.events, &[target]).await?;
    for (instance, end) in &decision.end_instances {
        instances::set_end(&mut tx, *instance, end, now).await?;
    }
    for launch in &decision.cancel_launches {
        launches::cancel(&mut tx, *launch, now).await?;
    }
    buy(deps, &mut tx, fleet, rows, decision).await?;
    add_instances(deps, &mut tx, fleet, rows, decision.add_instances).await?;
    tx.commit().await?;
    if decision.add_instances > 0 {
        // The new instances have no machines yet: the fleet looks again at once.
        store::leases::touch(&deps.db, Table::Fleets, fleet.id.0, now).await?;
        deps.wake.ring(Table::Fleets);
    }
    deps.wake.ring(Table::Launches);
    deps.wake.ring(Table::Instances);
    deps.wake.tell_watchers();
    Ok(())
}

/// Records the purchase before anybody is asked to sell.
async fn buy(
    deps: &Deps,
    tx: &mut Tx,
    fleet: &Fleet,
    rows: &[Versioned<Instance>],
    decision: &FleetDecision,
) -> store::Result<()> {
    let Some(Purchase { plan, instances: wanted, least }) = &decision.buy else { return Ok(()) };
    let now = deps.clock.now();
    let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let launch = Launch {
        id: deps.ids.id(),
        project_id: fleet.project_id,
        fleet_id: fleet.id,
        backend_id: plan.backend_id,
        created_at: now,
        status: LaunchStatus::Wanted,
        cancelled: false,
        state: LaunchState {
            offer: plan.offer.clone(),
            backend: plan.backend.clone(),
            zone: plan.zone.clone(),
            count,
            least: *least,
            cluster: lifecycle::placement::is_cluster(fleet.spec.configuration.placement),
            requested_at: None,
            attempts: 0,
            error: None,
            absent_since: None,
        },
    };
    launches::insert(&mut *tx, &launch, now).await?;
    for (index, id) in (0_u32..).zip(wanted) {
        let Some(row) = rows.iter().find(|row| row.value.id == *id) else { continue };
        instances::set_launch(&mut *tx, row, launch.id, index, now).await?;
    }
    Ok(())
}

async fn add_instances(
    deps: &Deps,
    tx: &mut Tx,
    fleet: &Fleet,
    rows: &[Versioned<Instance>],
    count: u32,
) -> store::Result<()> {
    let mut taken: Vec<u32> = rows.iter().map(|row| row.value.instance_num).collect();
    for _ in 0..count {
        let instance = new_instance(deps, fleet, &taken);
        taken.push(instance.instance_num);
        instances::insert(&mut *tx, &instance, deps.clock.now()).await?;
        let target = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
        let message = "Instance created to meet target fleet node count. Status: PENDING".to_owned();
        record::events(deps, tx, &[message], &[target]).await?;
    }
    Ok(())
}

/// A slot of a fleet with the lowest number that is not taken.
pub fn new_instance(deps: &Deps, fleet: &Fleet, taken: &[u32]) -> Instance {
    let instance_num = (0..u32::MAX).find(|number| !taken.contains(number)).unwrap_or_default();
    let profile = fleet.spec.configuration.merged_profile(Some(&fleet.spec.profile));
    Instance {
        id: deps.ids.id(),
        project_id: fleet.project_id,
        fleet_id: fleet.id,
        instance_num,
        created_at: deps.clock.now(),
        status: InstanceStatus::Pending,
        end: None,
        launch_id: None,
        launch_index: None,
        state: InstanceState {
            name: format!("{}-{instance_num}", fleet.name),
            idle_duration_secs: profile.idle_duration.map(|seconds| seconds.0),
            total_blocks: 1,
            ..InstanceState::default()
        },
    }
}
