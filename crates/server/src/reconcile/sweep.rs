//! Ends what nobody remembers: machines that no row claims, and tasks that no job claims.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::{TaskPhase, TaskState};
use api::ids::{BackendId, InstanceId, LaunchId};
use backends::{MachineKey, MachineState};
use jiff::{SignedDuration, Timestamp};
use store::backends::BackendRow;
use store::{instances, jobs, launches};
use tokio_util::sync::CancellationToken;

use super::job::GENERATION;
use crate::accounts::draining_note;
use crate::backend_pool::answer;
use crate::deps::Deps;

/// How often the sweep looks.
const PERIOD: Duration = Duration::from_secs(20);

/// How long a machine must be unclaimed before it is ended: a listing may be newer than the row that claims it.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Old events that are forgotten at once, so that nobody waits for the database.
const EVENTS_AT_ONCE: u32 = 1000;

/// What the sweep remembers from one pass to the next.
#[derive(Debug, Default)]
pub struct Unclaimed {
    /// Since when each machine is seen unclaimed.
    since: Mutex<HashMap<MachineKey, Timestamp>>,
    /// How many machines each backend that is let go had when that was told last.
    draining: Mutex<HashMap<BackendId, usize>>,
    /// It was told that another server knows better.
    told_superseded: AtomicBool,
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
    let Some(machines) = deps.backends.machines(&open, None).await else { return Ok(()) };
    let now = deps.clock.now();
    let claims = Claims::load(deps, backend).await?;
    for machine in machines.iter().filter(|machine| machine.state != MachineState::Gone) {
        let claimed = claims.has(&machine.key);
        let since = {
            let mut unclaimed = unclaimed.since.lock().expect("nobody panics while sweeping");
            if claimed {
                unclaimed.remove(&machine.key);
                continue;
            }
            *unclaimed.entry(machine.key.clone()).or_insert(now)
        };
        if since + GRACE <= now {
            tracing::warn!("ending machine `{}` of `{}`: no row claims it", machine.provider_id, open.kind);
            if let Err(error) = answer(open.backend.terminate(&machine.key)).await {
                tracing::warn!("cannot end machine `{}`, trying again: {error}", machine.provider_id);
            }
            deps.backends.changed(open.id);
        }
    }
    Ok(())
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
