//! Ends what nobody remembers: machines that no row claims, and tasks that no job claims.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::{TaskPhase, TaskState};
use api::events::EventTargetType;
use api::ids::{BackendId, InstanceId, LaunchId};
use backends::{Machine, MachineKey, MachineState, Survey};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use lifecycle::events::Target;
use store::backends::BackendRow;
use store::{instances, jobs, launches};
use tokio_util::sync::CancellationToken;

use super::job::GENERATION;
use super::record;
use crate::accounts::draining_note;
use crate::agents::Route;
use crate::backend_answers::Fresh;
use crate::backend_pool::{MOVING, OpenBackend, answer};
use crate::bought_machines;
use crate::deps::Deps;

/// How often the sweep looks.
const PERIOD: Duration = Duration::from_secs(20);

/// How long a machine must be unclaimed before it is ended: a listing may be newer than the row that claims it.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Old events that are forgotten at once, so that nobody waits for the database.
const EVENTS_AT_ONCE: u32 = 1000;

/// How long a machine that is unclaimed and does not tell what runs on it is spared.
const SILENT_GRACE: SignedDuration = SignedDuration::from_mins(5);

/// How long the agent of a machine that is unclaimed may take to tell what runs there.
const VISIT: Duration = Duration::from_secs(15);

/// Machines that are visited at the same time.
const VISITS_AT_ONCE: usize = 16;

/// What the sweep remembers from one pass to the next.
#[derive(Debug, Default)]
pub struct Unclaimed {
    machines: Mutex<HashMap<(BackendId, MachineKey), Sighting>>,
    /// How many machines each backend that is let go had when that was told last.
    draining: Mutex<HashMap<BackendId, usize>>,
    /// It was told that another server knows better.
    told_superseded: AtomicBool,
}

/// A machine that no row claims.
#[derive(Debug)]
struct Sighting {
    since: Timestamp,
    region: String,
    /// How many tasks it was told to run.
    told: usize,
}

impl Unclaimed {
    /// The machines of a backend that no row has claimed for a while, and since when. Those that are claimed or gone are
    /// forgotten, and those of regions that do not answer are not.
    fn older_than_grace<'a>(
        &self,
        backend: BackendId,
        listed: &'a Survey<Machine>,
        claims: &Claims,
        now: Timestamp,
    ) -> Vec<(&'a Machine, Timestamp)> {
        let mut known = self.machines.lock().expect("nobody panics while sweeping");
        let mut old = vec![];
        let there: HashSet<&MachineKey> = listed.found.iter().map(|machine| &machine.key).collect();
        known.retain(|(of, key), sighting| {
            *of != backend || there.contains(key) || !listed.knows(&sighting.region)
        });
        for machine in &listed.found {
            let key = (backend, machine.key.clone());
            if machine.state == MachineState::Gone || claims.has(&machine.key) {
                known.remove(&key);
                continue;
            }
            let sighting = known.entry(key).or_insert_with(|| Sighting {
                since: now,
                region: machine.region.clone(),
                told: 0,
            });
            if sighting.since + GRACE <= now {
                old.push((machine, sighting.since));
            }
        }
        old
    }

    /// Whether it was not told yet that a machine runs so many tasks.
    fn is_news(&self, backend: BackendId, key: &MachineKey, tasks: usize) -> bool {
        let mut known = self.machines.lock().expect("nobody panics while sweeping");
        known
            .get_mut(&(backend, key.clone()))
            .is_some_and(|sighting| std::mem::replace(&mut sighting.told, tasks) != tasks)
    }
}

pub(super) async fn run_loop(deps: Deps, shutdown: CancellationToken) {
    let unclaimed = Arc::new(Unclaimed::default());
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let swept =
            [pass(&deps, &unclaimed).await, super::tidy::pass(&deps).await, forget_old_events(&deps).await];
        for error in swept.into_iter().filter_map(Result::err) {
            tracing::error!("the sweep failed, next try in {} s: {error}", PERIOD.as_secs());
        }
    }
}

/// Events that are older than the server was told to keep, some at a time.
async fn forget_old_events(deps: &Deps) -> store::Result<()> {
    let kept = i64::try_from(deps.settings.event_retention_secs).unwrap_or(i64::MAX);
    let Ok(before) = deps.clock.now().checked_sub(SignedDuration::from_secs(kept)) else { return Ok(()) };
    store::events::delete_older(&deps.db, before, EVENTS_AT_ONCE).await.map(|_| ())
}

/// Looks once at every backend. What goes wrong with one does not concern the others; the last error is given when
/// all have had their turn.
pub async fn pass(deps: &Deps, unclaimed: &Unclaimed) -> store::Result<()> {
    if deps.agents.is_superseded() {
        // What it does not remember may be what the other one bought.
        if !unclaimed.told_superseded.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "an agent knows a server of this installation that started later, so this one's database is an old \
                 copy: machines that no row claims are left alone. Stop this server, or the other one and restart this"
            );
        }
        return Ok(());
    }
    let mut swept = Ok(());
    for row in store::backends::all(&deps.db).await? {
        if row.draining {
            tell_draining(deps, &row, unclaimed).await?;
        }
        swept = sweep_machines(deps, row.id, unclaimed).await.and(swept);
    }
    swept
}

/// Says in the log what is left of a backend that is let go, whenever that has changed.
async fn tell_draining(deps: &Deps, row: &BackendRow, unclaimed: &Unclaimed) -> store::Result<()> {
    let left = instances::list_machines_by_backend(&deps.db, row.id).await?.len();
    let before = unclaimed.draining.lock().expect("nobody panics while sweeping").insert(row.id, left);
    if before != Some(left) {
        let project = store::projects::get(&deps.db, row.project_id).await?;
        let name = project.map(|project| project.name).unwrap_or_default();
        tracing::warn!(backend.id = %row.id, "{}", draining_note(&row.kind, &name, left));
    }
    Ok(())
}

async fn sweep_machines(deps: &Deps, backend: BackendId, unclaimed: &Unclaimed) -> store::Result<()> {
    let Some(open) = deps.backends.get(&deps.db, backend).await? else { return Ok(()) };
    let Some(machines) = deps.backends.machines(&open, Fresh { max_age: MOVING, later_than: None }).await else {
        return Ok(());
    };
    let claims = Claims::load(deps, backend).await?;
    let (to_visit, to_end): (Vec<_>, Vec<_>) = unclaimed
        .older_than_grace(backend, &machines, &claims, deps.clock.now())
        .into_iter()
        .partition(|(machine, _)| machine.login.is_some() && machine.state == MachineState::Running);
    let to_end: Vec<&Machine> = to_end.into_iter().map(|(machine, _)| machine).collect();
    end(deps, &open, &to_end).await;
    let mut swept = Ok(());
    // One that does not answer keeps nobody long from the others.
    for some in to_visit.chunks(VISITS_AT_ONCE) {
        let looks = some.iter().map(|(machine, since)| may_be_ended(deps, &open, machine, *since, unclaimed));
        let mut ended = vec![];
        for ((machine, _), may_go) in some.iter().zip(join_all(looks).await) {
            match may_go {
                Ok(may_go) => ended.extend(may_go.then_some(*machine)),
                Err(error) => swept = Err(error),
            }
        }
        end(deps, &open, &ended).await;
    }
    swept
}

/// Ends machines that no row claims.
async fn end(deps: &Deps, open: &OpenBackend, machines: &[&Machine]) {
    let ends = machines.iter().map(|machine| async {
        tracing::warn!("ending machine `{}` of `{}`: no row claims it", machine.provider_id, open.kind);
        if let Err(error) = answer(open.backend.terminate(&machine.key)).await {
            tracing::warn!("cannot end machine `{}`, trying again: {error}", machine.provider_id);
        }
    });
    join_all(ends).await;
    if !machines.is_empty() {
        deps.backends.changed(open.id);
    }
}

/// Whether a machine that no row claims may be ended. A database that was put back may have forgotten it, and somebody's
/// work may run there: that is told, and left alone.
async fn may_be_ended(
    deps: &Deps,
    open: &OpenBackend,
    machine: &Machine,
    since: Timestamp,
    unclaimed: &Unclaimed,
) -> store::Result<bool> {
    // What this database remembers to have bought it has not forgotten: the machine is left over.
    if launches::get(&deps.db, machine.key.launch_id).await?.is_some() {
        return Ok(true);
    }
    let is_late = since + SILENT_GRACE <= deps.clock.now();
    // Nobody gets an address only to be asked.
    if machine.hostname.is_none() {
        return Ok(is_late);
    }
    let access = match bought_machines::access_to_unclaimed(deps, open.project_id).await {
        Ok(access) => access,
        Err(error) => {
            tracing::error!("machine `{}` cannot be looked at: {error:#}", machine.provider_id);
            return Ok(false);
        }
    };
    let route = Route::Machine(open.backend.clone(), Box::new(machine.clone()), Some(Box::new(access)));
    let visited = tokio::time::timeout(VISIT, deps.agents.visit(route)).await;
    // Whoever answered may have said that another server knows better.
    if deps.agents.is_superseded() {
        return Ok(false);
    }
    match visited.unwrap_or_else(|_| Err(anyhow::anyhow!("it has not answered for {} s", VISIT.as_secs()))) {
        Ok(tasks) => {
            let running = tasks.iter().flatten().filter(|task| task.phase < TaskPhase::Exited).count();
            if running > 0 && unclaimed.is_news(open.id, &machine.key, running) {
                tell_running(deps, open, machine, running).await?;
            }
            Ok(running == 0)
        }
        Err(error) => {
            tracing::warn!(
                "machine `{}` that no row claims does not tell what runs on it: {error:#}",
                machine.provider_id
            );
            Ok(is_late)
        }
    }
}

async fn tell_running(deps: &Deps, open: &OpenBackend, machine: &Machine, running: usize) -> store::Result<()> {
    let tasks = if running == 1 { "1 task".to_owned() } else { format!("{running} tasks") };
    let (id, kind, region) = (&machine.provider_id, &open.kind, &machine.region);
    let message = format!(
        "Machine {id} of {kind} in {region} runs {tasks} that this server knows nothing of; its database may be an \
         old copy. The machine is left running and is paid for: end it in the console when its work is done"
    );
    tracing::error!("{message}");
    let project = store::projects::get(&deps.db, open.project_id).await?;
    let name = project.map(|project| project.name).unwrap_or_default();
    let target = Target::other(EventTargetType::Project, Some(open.project_id), open.project_id.0, &name);
    let mut tx = deps.db.begin().await?;
    record::events(deps, &mut tx, &[message], &[target]).await?;
    tx.commit().await
}

/// What rows of ours still want to know of a backend's machines.
struct Claims {
    /// Launches that may still make machines.
    open: HashSet<LaunchId>,
    machines: HashSet<MachineKey>,
}

impl Claims {
    async fn load(deps: &Deps, backend: BackendId) -> store::Result<Claims> {
        // Launches first: one that is over by then has all its machines in the other list.
        let open_launches = launches::list_open_by_backend(&deps.db, backend).await?;
        let machines = instances::list_machines_by_backend(&deps.db, backend).await?;
        let key = |(launch_id, index): (LaunchId, Option<u32>)| Some(MachineKey { launch_id, index: index? });
        Ok(Claims {
            open: open_launches.into_iter().collect(),
            machines: machines.into_iter().filter_map(key).collect(),
        })
    }

    fn has(&self, key: &MachineKey) -> bool {
        self.open.contains(&key.launch_id) || self.machines.contains(key)
    }
}

/// Tells an agent to end and forget each task that no job of the instance claims.
pub async fn sweep_tasks(deps: &Deps, instance: InstanceId) -> store::Result<()> {
    let Some(tasks) = deps.agents.tasks(instance) else { return Ok(()) };
    for task in tasks {
        let claimed = jobs::get(&deps.db, task.id)
            .await?
            .is_some_and(|job| !job.value.status.is_finished() && job.value.instance_id == Some(instance));
        if !claimed {
            end_task(deps, instance, &task).await;
        }
    }
    Ok(())
}

async fn end_task(deps: &Deps, instance: InstanceId, task: &TaskState) {
    let result = if task.phase != TaskPhase::Sealed {
        deps.agents.stop(instance, task.id, GENERATION, 0).await
    } else if task.log_end <= deps.logs.received(task.id) {
        deps.agents.forget(instance, task.id, GENERATION).await
    } else {
        // Its job ended unseen; the rest of its log is on the way.
        Ok(())
    };
    if let Err(error) = result {
        tracing::debug!(instance.id = %instance, job.id = %task.id, "cannot end an unclaimed task yet: {error}");
    }
}

#[cfg(test)]
mod tests {
    use backends::{Error, ErrorKind, SilentRegion};
    use uuid::Uuid;

    use super::*;

    fn machine(number: u128, region: &str) -> Machine {
        Machine {
            key: MachineKey { launch_id: LaunchId(Uuid::from_u128(number)), index: 0 },
            provider_id: format!("i-{number}"),
            state: MachineState::Running,
            hostname: None,
            internal_ip: None,
            container_network: None,
            region: region.to_owned(),
            zone: None,
            ended_because: None,
            lacked_room: false,
            login: None,
            network_path: vec![],
        }
    }

    #[test]
    fn what_one_backend_lists_says_nothing_of_the_machines_of_another() {
        let unclaimed = Unclaimed::default();
        let claims = Claims { open: HashSet::new(), machines: HashSet::new() };
        let (cloud, other) = (BackendId(Uuid::from_u128(1)), BackendId(Uuid::from_u128(2)));
        let listed = Survey::whole(vec![machine(7, "west"), machine(8, "east")]);
        let nothing = Survey::whole(vec![]);
        let silence = SilentRegion { region: "east".to_owned(), error: Error::new(ErrorKind::Unavailable, "") };
        let half = Survey { found: vec![machine(7, "west")], silent: vec![silence] };
        let start = Timestamp::UNIX_EPOCH;
        let old = |backend, listed: &Survey<Machine>, secs| {
            let now = start + SignedDuration::from_secs(secs);
            let old = unclaimed.older_than_grace(backend, listed, &claims, now);
            old.into_iter().map(|(machine, _)| machine.provider_id.clone()).collect::<Vec<_>>()
        };
        for (secs, seen) in [(0, &listed), (20, &listed), (40, &half)] {
            assert!(old(cloud, seen, secs).is_empty() && old(other, &nothing, secs).is_empty());
        }
        assert_eq!(old(cloud, &listed, 60), ["i-7", "i-8"]);
        // What is not listed any more is forgotten.
        assert!(old(cloud, &nothing, 80).is_empty() && old(cloud, &listed, 100).is_empty());
    }
}
