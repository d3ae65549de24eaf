//! Gives waiting runs their instances: all nodes of a gang in one transaction, or none.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use api::ids::{InstanceId, JobId, ProjectId, RunId};
use api::jobs::{JobStatus, JobTerminationReason};
use api::runs::RunStatus;
use futures_util::future::join_all;
use jiff::Timestamp;
use lifecycle::events::Target;
use lifecycle::instance::{Instance, idle_duration_for_job};
use lifecycle::job::{EndOrder, Job};
use lifecycle::placement::{Gang, Outcome, Slot, place, profile_of};
use lifecycle::run::Run;
use store::leases::Table;
use store::{Tx, Versioned, fleets, instances, jobs, runs};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{fleet, record, run, task_spec};
use crate::deps::Deps;
use crate::market::FleetMarket;
use crate::pool;

/// Runs that are looked at in one pass of one project, the most urgent ones. Those that wait to buy again are among
/// them, because they take what falls free.
const WAITING_LIMIT: u32 = 20_000;

/// Projects that are looked at at the same time. The next ones wait until backends have answered all of these, or for
/// as long as placement has patience.
const PROJECTS_AT_ONCE: usize = 8;

/// The longest time between two passes.
const SAFETY: Duration = Duration::from_secs(30);

/// The shortest time between two passes, so that a burst of submissions is placed together.
const BREATH: Duration = Duration::from_millis(2);

/// The longest time that is left to others between two passes that take long.
const LONGEST_BREATH: Duration = Duration::from_millis(200);

/// Gangs by project and run: reading a thousand waiting runs anew for each free slot would be most of the work.
#[derive(Debug, Default)]
pub struct GangCache(Mutex<HashMap<ProjectId, HashMap<RunId, CachedGang>>>);

#[derive(Debug)]
struct CachedGang {
    /// The run's version.
    version: i64,
    /// None: the run waits for something else than a place.
    gang: Option<Gang>,
    /// Nothing is bought for it before this, because a moment ago nothing could be.
    buys_from: Option<Timestamp>,
}

pub(super) async fn run_loop(deps: Deps, shutdown: CancellationToken) {
    let cache = GangCache::default();
    loop {
        // What goes wrong is in the log already, and the next pass tries again.
        let began = Instant::now();
        let _ = pass(&deps, &cache).await;
        let ready_at = Instant::now() + (began.elapsed() / 2).clamp(BREATH, LONGEST_BREATH);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = deps.wake.placement_bell().notified() => {}
            () = tokio::time::sleep(SAFETY) => {}
        }
        // Who comes after a quiet while is only waited for with others who come at the same time.
        tokio::time::sleep_until(ready_at.max(Instant::now() + BREATH)).await;
    }
}

impl GangCache {
    /// The gang is not what it was thought to be.
    fn forget(&self, project: ProjectId, run: RunId) {
        let mut cache = self.0.lock().expect("nobody panics while placing");
        cache.entry(project).or_default().remove(&run);
    }
}

/// Places what can be placed in every project with waiting runs. What goes wrong in one does not concern the others;
/// each error is logged, and the last is given when all have had their turn.
pub async fn pass(deps: &Deps, cache: &GangCache) -> store::Result<()> {
    let listed = runs::list_waiting_projects(&deps.db).await;
    let projects = listed.inspect_err(|error| tracing::error!("cannot list waiting runs: {error}"))?;
    cache.0.lock().expect("nobody panics while placing").retain(|project, _| projects.contains(project));
    let mut passed = Ok(());
    for some in projects.chunks(PROJECTS_AT_ONCE) {
        let placing = some.iter().map(|project| async move {
            place_project(deps, cache, *project).await.inspect_err(|error| {
                tracing::error!(project.id = %project, "placing its waiting runs failed: {error}");
            })
        });
        passed = join_all(placing).await.into_iter().rfind(Result::is_err).unwrap_or(passed);
    }
    passed
}

async fn place_project(deps: &Deps, cache: &GangCache, project: ProjectId) -> store::Result<()> {
    let waiting = runs::list_waiting_versions(&deps.db, project, WAITING_LIMIT).await?;
    let gangs = gangs_of(deps, cache, project, &waiting).await?;
    if gangs.is_empty() {
        return Ok(());
    }
    let mut pool = pool::load(deps, project).await?;
    let mut market = FleetMarket::default();
    let mut refused: Vec<(RunId, String)> = vec![];
    let mut is_as_thought = true;
    let mut rest = &gangs[..];
    while !rest.is_empty() {
        let outcomes = place(rest, &mut pool, &market);
        let mut decided = outcomes.len();
        for (run_id, outcome) in outcomes {
            match outcome {
                Outcome::Placed { fleet_id, slots } => {
                    let has_moved = record_placed(deps, run_id, fleet_id, &slots).await;
                    is_as_thought &= settle(deps, cache, (project, run_id), has_moved);
                }
                Outcome::NoCapacity { message } => refused.extend(message.map(|message| (run_id, message))),
                Outcome::AskOffers { fleets } => {
                    market.ask(deps, &fleets).await?;
                    decided -= 1;
                }
            }
        }
        rest = &rest[decided..];
    }
    // Who got nothing beside somebody who was not there may get something in the next pass.
    if is_as_thought {
        for (run_id, message) in refused {
            record_refused(deps, run_id, message).await?;
        }
    }
    Ok(())
}

/// Whether a run got what it was given. If not, the next pass sees what there really is.
fn settle(
    deps: &Deps,
    cache: &GangCache,
    (project, run_id): (ProjectId, RunId),
    recorded: store::Result<bool>,
) -> bool {
    match recorded {
        Ok(true) => return true,
        // Somebody was faster.
        Ok(false) | Err(store::Error::Stale | store::Error::Taken(_)) => deps.wake.ring_placement(),
        Err(error) => tracing::error!(run.id = %run_id, "recording the run's place failed: {error}"),
    }
    cache.forget(project, run_id);
    false
}

/// The gangs of waiting runs, in the order of `waiting`; those that wait for a time or have a place are left out.
async fn gangs_of(
    deps: &Deps,
    cache: &GangCache,
    project: ProjectId,
    waiting: &[(RunId, i64)],
) -> store::Result<Vec<Gang>> {
    let versions: HashMap<RunId, i64> = waiting.iter().copied().collect();
    let unknown: Vec<RunId> = {
        let mut cache = cache.0.lock().expect("nobody panics while placing");
        let cache = cache.entry(project).or_default();
        cache.retain(|id, cached| versions.get(id) == Some(&cached.version));
        waiting.iter().map(|(id, _)| *id).filter(|id| !cache.contains_key(id)).collect()
    };
    for part in unknown.chunks(200) {
        for row in runs::list_by_ids(&deps.db, part).await? {
            let latest = jobs::list_latest(&deps.db, row.value.id).await?;
            let latest: Vec<Job> = latest.into_iter().map(|job| job.value).collect();
            let gang = waiting_gang(&row.value, &latest);
            // Whether a submitted run waits is told by its jobs too, which have versions of their own.
            if gang.is_none() && row.value.status == RunStatus::Submitted {
                continue;
            }
            let buys_from = row.value.state.retry.map(|retry| retry.not_before);
            let cached = CachedGang { version: row.version, gang, buys_from };
            let mut cache = cache.0.lock().expect("nobody panics while placing");
            cache.entry(project).or_default().insert(row.value.id, cached);
        }
    }
    let now = deps.clock.now();
    let cache = cache.0.lock().expect("nobody panics while placing");
    let gangs = waiting.iter().filter_map(|(id, _)| {
        let cached = cache.get(&project)?.get(id)?;
        let gang = cached.gang.clone()?;
        Some(Gang { may_buy: cached.buys_from.is_none_or(|from| from <= now), ..gang })
    });
    Ok(gangs.collect())
}

/// The gang of a run that wants a place now.
fn waiting_gang(run: &Run, latest: &[Job]) -> Option<Gang> {
    let wants_place = match run.status {
        RunStatus::Submitted => latest.iter().all(has_no_place_yet),
        RunStatus::Pending => run.state.retry.is_some_and(|retry| retry.for_capacity),
        _ => false,
    };
    let specs: Vec<_> = latest.iter().map(|job| job.spec.clone()).collect();
    (wants_place && run.stop.is_none() && !specs.is_empty()).then(|| pool::gang_of(run, &specs))
}

fn has_no_place_yet(job: &Job) -> bool {
    job.status == JobStatus::Submitted && job.instance_id.is_none() && job.end.is_none()
}

/// Records that a run got nothing. A run that was told so before goes on waiting.
async fn record_refused(deps: &Deps, run_id: RunId, message: String) -> store::Result<()> {
    let Some(row) = runs::get(&deps.db, run_id).await? else { return Ok(()) };
    if row.value.status != RunStatus::Submitted || row.value.stop.is_some() {
        return Ok(());
    }
    let latest = jobs::list_latest(&deps.db, run_id).await?;
    let Some(first) = latest.first().filter(|_| latest.iter().all(|job| has_no_place_yet(&job.value))) else {
        return Ok(());
    };
    let end = EndOrder {
        reason: JobTerminationReason::FailedToStartDueToNoCapacity,
        message: Some(message),
        grace_secs: 0,
    };
    jobs::refuse(&deps.db, first.value.id, &end, deps.clock.now()).await?;
    deps.wake.ring(Table::Jobs);
    Ok(())
}

/// Records the places of all nodes of a gang at once. False: the run or the fleet is not what it was.
async fn record_placed(
    deps: &Deps,
    run_id: RunId,
    fleet_id: api::ids::FleetId,
    slots: &[Slot],
) -> store::Result<bool> {
    let now = deps.clock.now();
    let mut tx = deps.db.begin().await?;
    let Some(mut row) = runs::get(&mut tx, run_id).await? else { return Ok(false) };
    let may_be_placed =
        matches!(row.value.status, RunStatus::Submitted | RunStatus::Pending) && row.value.stop.is_none();
    let Some(fleet) = fleets::get(&mut tx, fleet_id).await?.filter(|fleet| fleet.value.wanted && may_be_placed)
    else {
        return Ok(false);
    };
    // Whoever decides about the fleet at the same time sees that it has moved: nobody ends what was just given away.
    fleets::move_on(&mut tx, &fleet).await?;
    let latest = submissions(deps, &mut tx, &row.value).await?;
    if !latest.iter().all(|job| has_no_place_yet(&job.value)) {
        return Ok(false);
    }
    let mut numbers = fleet::free_numbers(instances::list_numbers(&mut tx, fleet_id).await?);
    for slot in slots {
        let Some(job) = latest.iter().find(|job| job.value.job_num == slot.job_num) else { return Ok(false) };
        let instance = if let Some(id) = slot.instance_id {
            instances::get(&mut tx, id).await?.map(|row| row.value)
        } else {
            let number = numbers.next().unwrap_or(u32::MAX);
            Some(add_instance(deps, &mut tx, &fleet.value, number, &row.value, job).await?)
        };
        let Some(instance) = instance.filter(Instance::is_kept) else { return Err(store::Error::Stale) };
        place_job(deps, &mut tx, &row.value, job, &instance, slot, slots.len()).await?;
    }
    if row.value.status == RunStatus::Pending {
        let from = row.value.status;
        row.value.status = RunStatus::Submitted;
        row.value.state.retry = None;
        row.value.state.cause = None;
        let message = format!("Run status changed {} -> SUBMITTED", from.as_str().to_uppercase());
        let target = Target::run(row.value.project_id, run_id, &row.value.name);
        record::events(deps, &mut tx, &[message], &[target]).await?;
    }
    row.value.fleet_id = Some(fleet_id);
    row.value.state.last_processed_at = Some(now);
    runs::save(&mut tx, &row).await?;
    record::touch_run(deps, &mut tx, run_id).await?;
    store::leases::touch(&mut tx, Table::Fleets, fleet_id.0, now).await?;
    tx.commit().await?;
    for table in [Table::Jobs, Table::Runs, Table::Instances, Table::Fleets] {
        deps.wake.ring(table);
    }
    deps.wake.tell_watchers();
    Ok(true)
}

/// The submissions to place: those that wait, or new ones of a run that was to be retried.
async fn submissions(deps: &Deps, tx: &mut Tx, row: &Run) -> store::Result<Vec<Versioned<Job>>> {
    let latest = jobs::list_latest(&mut *tx, row.id).await?;
    if row.status == RunStatus::Submitted {
        return Ok(latest);
    }
    let mut fresh = vec![];
    for job in &latest {
        fresh.push(Versioned { version: 1, value: run::resubmit(deps, tx, &job.value, None::<JobId>).await? });
    }
    Ok(fresh)
}

async fn add_instance(
    deps: &Deps,
    tx: &mut Tx,
    fleet: &lifecycle::fleet::Fleet,
    number: u32,
    run: &Run,
    job: &Versioned<Job>,
) -> store::Result<Instance> {
    let mut instance = fleet::new_instance(deps, fleet, number);
    let run_secs = profile_of(&run.spec).idle_duration.map(|seconds| seconds.0);
    let idle_secs = idle_duration_for_job(run_secs, instance.state.idle_duration_secs);
    instance.state.idle_duration_secs = Some(idle_secs);
    instance.state.made_for_job = true;
    instances::insert(&mut *tx, &instance, deps.clock.now()).await?;
    let targets = [
        Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name),
        Target::job(job.value.project_id, job.value.run_id, job.value.id, &job.value.spec.job_name),
    ];
    let message = "Instance created for job. Instance status: PENDING".to_owned();
    record::events(deps, tx, &[message], &targets).await?;
    Ok(instance)
}

async fn place_job(
    deps: &Deps,
    tx: &mut Tx,
    run: &Run,
    job: &Versioned<Job>,
    instance: &Instance,
    slot: &Slot,
    nodes: usize,
) -> store::Result<()> {
    let now = deps.clock.now();
    let mut placed = job.clone();
    placed.value.instance_id = Some(instance.id);
    placed.value.status = JobStatus::Provisioning;
    // A job without peers starts as soon as it is ready.
    placed.value.released_at = (nodes == 1).then_some(now);
    placed.value.state.placed_at = Some(now);
    placed.value.state.last_processed_at = Some(now);
    placed.value.state.blocks.clone_from(&slot.blocks);
    task_spec::describe(&mut placed.value, run, instance);
    jobs::save_placed(&mut *tx, &placed, now).await?;
    for block in &slot.blocks {
        instances::assign(&mut *tx, instance.id, *block, placed.value.id).await?;
    }
    record::touch_instance(deps, tx, instance.id).await?;
    let busy = instances::list_assignments(&mut *tx, instance.id).await?.len();
    let messages = [
        format!("Job assigned to instance. Instance blocks: {busy}/{} busy", instance.state.total_blocks.max(1)),
        "Job status changed SUBMITTED -> PROVISIONING".to_owned(),
    ];
    let job_target =
        Target::job(placed.value.project_id, placed.value.run_id, placed.value.id, &placed.value.spec.job_name);
    let machine: InstanceId = instance.id;
    let instance_target = Target::instance(instance.project_id, instance.fleet_id, machine, &instance.state.name);
    record::events(deps, tx, &messages[..1], &[job_target.clone(), instance_target]).await?;
    record::events(deps, tx, &messages[1..], &[job_target]).await
}
