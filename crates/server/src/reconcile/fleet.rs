//! Moves fleets on.

use std::collections::{HashMap, HashSet};

use api::fleets::FleetStatus;
use api::ids::{FleetId, InstanceId, LaunchId, RunId};
use api::instances::InstanceStatus;
use api::jobs::JobSpec;
use lifecycle::events::Target;
use lifecycle::fleet::{Buyer, Effect, Fleet, FleetDecision, LATELY, OffersSeen, Purchase, Surroundings, decide};
use lifecycle::instance::{Instance, InstanceState};
use lifecycle::launch::{Launch, LaunchState, LaunchStatus};
use lifecycle::placement::{has_unlike_nodes, is_cluster, profile_of};
use lifecycle::run::Run;
use store::leases::Table;
use store::{Tx, Versioned, fleets, instances, launches, runs};
use tokio::time::Instant;

use super::{Next, record, rest};
use crate::backend_pool::ANSWER_TIMEOUT;
use crate::deps::Deps;
use crate::market::{WaitingJob, offers_of_fleet};
use crate::offers::Collected;

/// Purchases that came to nothing, of which a fleet remembers so many while it tries others.
const FAILED_LIMIT: u32 = 2000;

/// Purchases of a project that came to nothing a moment ago, of which so many are looked at before the next one.
const LATELY_LIMIT: u32 = 200;

/// Moves one fleet on.
pub async fn reconcile(deps: &Deps, id: FleetId) -> store::Result<Next> {
    let Some(loaded) = fleets::get(&deps.db, id).await? else { return Ok(None) };
    if matches!(loaded.value.status, FleetStatus::Terminated | FleetStatus::Failed) {
        return Ok(None);
    }
    let began = Instant::now();
    let rows = instances::list_by_fleet(&deps.db, id).await?;
    let busy: HashMap<InstanceId, u32> =
        instances::count_busy_blocks_by_fleet(&deps.db, id).await?.into_iter().collect();
    let with_busy: Vec<(Instance, u32)> =
        rows.iter().map(|row| (row.value.clone(), busy.get(&row.value.id).copied().unwrap_or_default())).collect();
    let open: Vec<Launch> = launches::list_open(&deps.db, id).await?.into_iter().map(|row| row.value).collect();
    let failed = failed_launches(deps, id, &rows).await?;
    let needs = Needs::of(instances::list_unbought_needs(&deps.db, id).await?);
    let mut around = Surroundings {
        instances: &with_busy,
        buyers: &needs.buyers,
        open_launches: &open,
        failed_launches: &failed,
        failed_lately: &[],
        unlike_runs: &[],
        most_offers: deps.settings.most_offers_tried,
        offers: &[],
    };
    let now = deps.clock.now();
    let mut decision = decide(now, &loaded.value, &around);
    if decision.effect == Some(Effect::AskOffers) {
        let asked = ask_offers(deps, &decision, &around, &needs).await?;
        (around.offers, around.unlike_runs) = (&asked.offers, &asked.unlike_runs);
        around.failed_lately = &asked.failed_lately;
        decision = decide(now, &loaded.value, &around);
    }
    if !save(deps, &loaded, &rows, &decision).await? {
        rest(began).await;
    }
    Ok(decision.look_again_at)
}

/// What the instances are for that are not bought yet.
struct Needs {
    buyers: Vec<(InstanceId, Buyer)>,
    /// A job of each buyer: its others need the same.
    jobs: HashMap<Buyer, JobSpec>,
}

impl Needs {
    fn of(rows: Vec<(InstanceId, RunId, JobSpec)>) -> Needs {
        let mut needs = Needs { buyers: vec![], jobs: HashMap::new() };
        let mut groups: HashMap<RunId, Vec<Buyer>> = HashMap::new();
        for (instance, run_id, spec) in rows {
            let groups = groups.entry(run_id).or_default();
            let known = groups
                .iter()
                .find(|buyer| needs.jobs.get(buyer).is_some_and(|known| known.requirements == spec.requirements));
            let group = u32::try_from(groups.len()).unwrap_or(u32::MAX);
            let buyer = known.copied().unwrap_or(Buyer::Run { run_id, group });
            if known.is_none() {
                groups.push(buyer);
                needs.jobs.insert(buyer, spec);
            }
            needs.buyers.push((instance, buyer));
        }
        needs
    }
}

/// With fewer machines than this nobody who asks is served.
fn least_useful(decision: &FleetDecision, around: &Surroundings<'_>, there: &[Instance]) -> u32 {
    let configuration = &decision.fleet.spec.configuration;
    let machines = |buyer: &Buyer| match buyer {
        Buyer::Run { .. } => around.buyers.iter().filter(|(_, one)| one == buyer).count(),
        // Half a cluster is of no use to those who asked for a whole one.
        Buyer::Fleet if is_cluster(configuration.placement) => {
            let min = configuration.nodes.as_ref().map_or(0, |nodes| nodes.min as usize);
            min.saturating_sub(there.iter().filter(|instance| instance.has_purchase()).count())
        }
        Buyer::Fleet => 1,
    };
    let least = decision.ask_for.iter().map(machines).min().unwrap_or(1);
    u32::try_from(least).unwrap_or(u32::MAX).max(1)
}

/// What was found out before something is bought.
struct Asked {
    offers: Vec<(Buyer, OffersSeen)>,
    unlike_runs: Vec<RunId>,
    failed_lately: Vec<Launch>,
}

/// What the project's backends offer the fleet for each buyer who asks.
async fn ask_offers(
    deps: &Deps,
    decision: &FleetDecision,
    around: &Surroundings<'_>,
    needs: &Needs,
) -> store::Result<Asked> {
    let fleet = &decision.fleet;
    let opened = deps.backends.of_project(&deps.db, fleet.project_id).await?;
    let there: Vec<Instance> = around.instances.iter().map(|(instance, _)| unbound(instance, around)).collect();
    let least = least_useful(decision, around, &there);
    let of_fleet = offers_of_fleet(deps, &opened, fleet, &there, least, ANSWER_TIMEOUT).await;
    let run_ids: HashSet<RunId> = decision
        .ask_for
        .iter()
        .filter_map(|buyer| match buyer {
            Buyer::Run { run_id, .. } => Some(*run_id),
            Buyer::Fleet => None,
        })
        .collect();
    let run_ids: Vec<RunId> = run_ids.into_iter().collect();
    let runs: HashMap<RunId, Run> =
        runs::list_by_ids(&deps.db, &run_ids).await?.into_iter().map(|row| (row.value.id, row.value)).collect();
    let blocks = fleet.spec.configuration.blocks;
    let asked = decision.ask_for.iter().map(|buyer| {
        let Buyer::Run { run_id, .. } = buyer else { return (*buyer, seen(of_fleet.clone())) };
        let (Some(run), Some(spec)) = (runs.get(run_id), needs.jobs.get(buyer)) else {
            return (*buyer, OffersSeen::Unknown);
        };
        let job = WaitingJob {
            requirements: &spec.requirements,
            profile: &profile_of(&run.spec),
            has_peers: spec.jobs_per_replica > 1,
            user_is_admin: run.state.user_is_admin,
            // The fleet itself decides which type it keeps to.
            only_type: None,
        };
        (*buyer, seen(of_fleet.kept_for(&job, blocks)))
    });
    let offers = asked.collect();
    let unlike = runs.values().filter(|run| has_unlike_nodes(&run.spec));
    let since = deps.clock.now() - LATELY;
    let failed = launches::list_failed_by_project(&deps.db, fleet.project_id, since, LATELY_LIMIT).await?;
    Ok(Asked {
        offers,
        unlike_runs: unlike.map(|run| run.id).collect(),
        failed_lately: failed.into_iter().map(|row| row.value).collect(),
    })
}

/// The instance without a purchase that came to nothing.
fn unbound(instance: &Instance, around: &Surroundings<'_>) -> Instance {
    let mut instance = instance.clone();
    let has_failed = around
        .failed_launches
        .iter()
        .any(|launch| Some(launch.id) == instance.launch_id && instance.has_given_up(launch));
    if has_failed {
        instance.launch_id = None;
        instance.launch_index = None;
    }
    instance
}

/// What came to nothing for the fleet's instances that have no machines yet.
async fn failed_launches(deps: &Deps, id: FleetId, rows: &[Versioned<Instance>]) -> store::Result<Vec<Launch>> {
    let waits = |instance: &&Instance| {
        let is_early = matches!(instance.status, InstanceStatus::Pending | InstanceStatus::Provisioning);
        is_early && instance.is_kept() && instance.state.host.is_none()
    };
    let waiting: Vec<&Instance> = rows.iter().map(|row| &row.value).filter(waits).collect();
    let Some(since) = waiting.iter().map(|instance| instance.created_at).min() else { return Ok(vec![]) };
    let failed = launches::list_failed(&deps.db, id, since, FAILED_LIMIT).await?;
    let mut failed: Vec<Launch> = failed.into_iter().map(|row| row.value).collect();
    // What was made in part, or was taken back, is not among the failed ones.
    let made = waiting.iter().flat_map(|instance| instance.state.in_vain.iter().map(|one| one.launch));
    for launch in made.collect::<HashSet<LaunchId>>() {
        if failed.iter().all(|known| known.id != launch) {
            failed.extend(launches::get(&deps.db, launch).await?.map(|row| row.value));
        }
    }
    Ok(failed)
}

fn seen(collected: Collected) -> OffersSeen {
    if collected.plans.is_empty() && collected.unknown {
        return OffersSeen::Unknown;
    }
    let obstacle =
        (!collected.obstacles.is_empty()).then(|| format!("No offers found: {}", collected.obstacles.join("; ")));
    OffersSeen::Known { offers: collected.plans, obstacle, opens_at: collected.opens_at }
}

/// Records what was decided. False: nothing was.
async fn save(
    deps: &Deps,
    loaded: &Versioned<Fleet>,
    rows: &[Versioned<Instance>],
    decision: &FleetDecision,
) -> store::Result<bool> {
    let fleet = &decision.fleet;
    let nothing = *fleet == loaded.value
        && decision.end_instances.is_empty()
        && decision.cancel_launches.is_empty()
        && decision.buy.is_empty()
        && decision.add_instances == 0;
    if nothing {
        return Ok(false);
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
    let by_id: HashMap<InstanceId, &Versioned<Instance>> = rows.iter().map(|row| (row.value.id, row)).collect();
    for purchase in &decision.buy {
        buy(deps, &mut tx, fleet, &by_id, purchase).await?;
    }
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
    Ok(true)
}

/// Records the purchase before anybody is asked to sell.
async fn buy(
    deps: &Deps,
    tx: &mut Tx,
    fleet: &Fleet,
    rows: &HashMap<InstanceId, &Versioned<Instance>>,
    purchase: &Purchase,
) -> store::Result<()> {
    let Purchase { plan, instances: wanted, least, event } = purchase;
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
            prepared: None,
            count,
            least: *least,
            made: None,
            cluster: lifecycle::placement::is_cluster(fleet.spec.configuration.placement),
            requested_at: None,
            attempts: 0,
            error: None,
            absent_since: None,
            instances: wanted.clone(),
            maybe_heard: 0,
            accepted: false,
            limited: 0,
            limited_since: None,
            ended_at: None,
        },
    };
    launches::insert(&mut *tx, &launch, now).await?;
    let mut bought_for = vec![];
    for (index, id) in (0_u32..).zip(wanted) {
        let Some(row) = rows.get(id) else { continue };
        instances::set_launch(&mut *tx, row, launch.id, index, now).await?;
        bought_for.push(row.value.clone());
    }
    let mut targets = vec![Target::fleet(fleet.project_id, fleet.id, &fleet.name)];
    targets.extend(record::waiting(tx, bought_for).await?);
    record::events(deps, tx, std::slice::from_ref(event), &targets).await
}

async fn add_instances(
    deps: &Deps,
    tx: &mut Tx,
    fleet: &Fleet,
    rows: &[Versioned<Instance>],
    count: u32,
) -> store::Result<()> {
    for number in free_numbers(rows.iter().map(|row| row.value.instance_num)).take(count as usize) {
        let instance = new_instance(deps, fleet, number);
        instances::insert(&mut *tx, &instance, deps.clock.now()).await?;
        let target = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
        let message = "Instance created to meet target fleet node count. Status: PENDING".to_owned();
        record::events(deps, tx, &[message], &[target]).await?;
    }
    Ok(())
}

/// The numbers that no instance has, the lowest first.
pub fn free_numbers(taken: impl IntoIterator<Item = u32>) -> impl Iterator<Item = u32> {
    let taken: HashSet<u32> = taken.into_iter().collect();
    (0..u32::MAX).filter(move |number| !taken.contains(number))
}

/// A slot of a fleet with that number.
pub fn new_instance(deps: &Deps, fleet: &Fleet, instance_num: u32) -> Instance {
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
