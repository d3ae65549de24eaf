//! Moves jobs on.

use std::sync::Arc;

use api::agent::{AgentError, AgentErrorCode, ClusterInfo, GoOrder};
use api::configurations::RunConfiguration;
use api::ids::JobId;
use api::jobs::{JobStatus, JobTerminationReason};
use lifecycle::events::Target;
use lifecycle::instance::Instance;
use lifecycle::job::{Effect, Inactivity, Job, JobDecision, Refused, Seen, Surroundings, decide};
use lifecycle::launch::Launch;
use lifecycle::outlook;
use store::leases::Table;
use store::{Versioned, instances, jobs, launches, runs};

use super::{Next, gang, record, task_spec};
use crate::agents::{HostSeen, OrderError, TaskSeen};
use crate::deps::Deps;

/// The generation of every task: a submission is given to one machine once, so there is never a second one.
pub const GENERATION: u64 = 1;

/// Purchases of a fleet that are looked at to tell how one of them goes, the newest.
pub const MOST_PURCHASES: u32 = 20;

/// Moves one job on.
pub async fn reconcile(deps: &Deps, id: JobId) -> store::Result<Next> {
    let Some(loaded) = jobs::get(&deps.db, id).await? else { return Ok(None) };
    let mut job = loaded.value.clone();
    if job.status.is_finished() {
        return Ok(None);
    }
    let instance = match job.instance_id {
        Some(instance_id) => instances::get(&deps.db, instance_id).await?.map(|instance| instance.value),
        None => None,
    };
    let is_ending = job.status == JobStatus::Terminating || job.end.is_some();
    let seen = observe(deps, &job, instance.as_ref());
    let log = deps.logs.end(id);
    let around = Surroundings {
        cluster: cluster_of(deps, &mut job, &seen, instance.as_ref()).await?,
        logs_received: log.length,
        logs_lost: log.lost,
        log_error: deps.logs.error(id),
        unreachable_since: instance.as_ref().and_then(|instance| silent_since(deps, instance, is_ending)),
        unreachable_after_secs: deps.settings.unreachable_after_secs,
        inactivity: inactivity_of(deps, &job, instance.as_ref()).await?,
        instance: instance.as_ref(),
    };
    let mut decision = decide(deps.clock.now(), &job, &seen, &around);
    if let (Some(waiting_for), Some(instance)) = (&mut decision.job.state.waiting_for, &instance)
        && let Some(said) = said_to_purchase(deps, &job, instance).await?
    {
        waiting_for.push_str(&format!(" ({said})"));
    }
    save(deps, &loaded, &decision, instance.as_ref()).await?;
    if let (Some(effect), Some(instance)) = (decision.effect, &instance) {
        // What was decided may rest on what others wrote, and nothing may have been recorded here.
        deps.db.settle().await?;
        act(deps, &decision.job, instance, effect).await?;
    }
    Ok(decision.look_again_at)
}

fn observe(deps: &Deps, job: &Job, instance: Option<&Instance>) -> Seen {
    let Some(instance) = instance else { return Seen::Unknown };
    match deps.agents.task(instance.id, job.id) {
        TaskSeen::Unknown => Seen::Unknown,
        TaskSeen::Absent => Seen::Absent,
        TaskSeen::Known(task) => Seen::Known(task),
    }
}

/// What was said to the purchase of the job's machine, if something was refused. All nodes of a run are bought together,
/// so that the first one tells it for all.
async fn said_to_purchase(deps: &Deps, job: &Job, instance: &Instance) -> store::Result<Option<String>> {
    if job.job_num != 0 || !outlook::waits_for_machine(instance) {
        return Ok(None);
    }
    let rows = launches::list_last(&deps.db, instance.fleet_id, MOST_PURCHASES).await?;
    let tried: Vec<Launch> = rows.into_iter().map(|row| row.value).collect();
    Ok(outlook::of_purchase(instance, &tried))
}

/// How long nobody has been in a dev environment, if that is to end it. Agents tell it of such jobs only.
async fn inactivity_of(deps: &Deps, job: &Job, instance: Option<&Instance>) -> store::Result<Option<Inactivity>> {
    let since = instance.and_then(|instance| deps.agents.unvisited_since(instance.id, job.id));
    let Some(since) = since else { return Ok(None) };
    let Some(run) = runs::get(&deps.db, job.run_id).await? else { return Ok(None) };
    let RunConfiguration::DevEnvironment(environment) = &run.value.spec.configuration else { return Ok(None) };
    let limit = environment.inactivity_duration.and_then(|limit| u64::try_from(limit.0).ok());
    Ok(limit.map(|limit_secs| Inactivity { since, limit_secs }))
}

fn silent_since(deps: &Deps, instance: &Instance, is_ending: bool) -> Option<jiff::Timestamp> {
    match deps.agents.host(instance.id) {
        HostSeen::Connected(_) => None,
        // Before the first try to reach it since the server started, nobody knows whether it is silent. Only for an
        // end, which does no harm to a task that still runs, what was known before counts as well.
        HostSeen::Unknown { since, .. } => since.or(instance.state.unreachable_since.filter(|_| is_ending)),
    }
}

/// The addresses of the job's gang, once every node has one. On the way the job learns what its machine turned out to
/// be: where it was placed, the machine had perhaps not been bought.
async fn cluster_of(
    deps: &Deps,
    job: &mut Job,
    seen: &Seen,
    instance: Option<&Instance>,
) -> store::Result<Option<Arc<ClusterInfo>>> {
    let is_before_start = job.status == JobStatus::Provisioning && job.state.phase.is_none();
    let (Some(instance), true) = (instance, is_before_start && *seen != Seen::Unknown) else { return Ok(None) };
    let Some(run) = runs::get(&deps.db, job.run_id).await? else { return Ok(None) };
    task_spec::describe(job, &run.value, instance);
    if let Some(known) = gang::find(deps, job).await? {
        return Ok(Some(known.cluster.clone()));
    }
    // The first node looks for all, and the others are woken when it has found them.
    if job.job_num == 0 { gang::find_out(deps, job, &run.value).await } else { Ok(None) }
}

async fn save(
    deps: &Deps,
    loaded: &Versioned<Job>,
    decision: &JobDecision,
    instance: Option<&Instance>,
) -> store::Result<()> {
    let job = &decision.job;
    if *job == loaded.value && decision.events.is_empty() && !decision.releases_slot {
        return Ok(());
    }
    let mut tx = deps.db.begin().await?;
    jobs::save(&mut tx, &Versioned { version: loaded.version, value: job.clone() }).await?;
    let target = Target::job(job.project_id, job.run_id, job.id, &job.spec.job_name);
    record::events(deps, &mut tx, &decision.events, std::slice::from_ref(&target)).await?;
    if decision.releases_slot
        && instances::unassign(&mut tx, job.id).await? > 0
        && let Some(instance) = instance
    {
        let busy = instances::list_assignments(&mut tx, instance.id).await?.len();
        let total = instance.state.total_blocks;
        let message = format!("Job unassigned from instance. Instance blocks: {busy}/{total} busy");
        let machine = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
        record::events(deps, &mut tx, &[message], &[target, machine]).await?;
        record::touch_instance(deps, &mut tx, instance.id).await?;
    }
    if decision.concerns_run {
        record::touch_run(deps, &mut tx, job.run_id).await?;
    }
    if decision.concerns_gang {
        jobs::touch_by_run(&mut tx, job.run_id, deps.clock.now()).await?;
    }
    tx.commit().await?;
    ring(deps, decision);
    Ok(())
}

fn ring(deps: &Deps, decision: &JobDecision) {
    if decision.concerns_run {
        deps.wake.ring(Table::Runs);
    }
    if decision.concerns_gang {
        deps.wake.ring(Table::Jobs);
    }
    if decision.releases_slot {
        deps.wake.ring(Table::Instances);
        deps.wake.ring_placement();
    }
    deps.wake.tell_watchers();
}

async fn act(deps: &Deps, job: &Job, instance: &Instance, effect: Effect) -> store::Result<()> {
    let result = match effect {
        Effect::Put => match task_spec::give(deps, job, instance).await? {
            Ok(()) | Err(task_spec::Refusal::Later) => Ok(()),
            Err(task_spec::Refusal::Order(error)) => Err(error),
            Err(task_spec::Refusal::Never(message)) => return refuse(deps, job, message).await,
        },
        Effect::Go => {
            let order = GoOrder { generation: GENERATION, ssh_ports: gang::ssh_ports_of(deps, job).await? };
            deps.agents.go(instance.id, job.id, &order).await
        }
        Effect::Stop { grace_secs } => deps.agents.stop(instance.id, job.id, GENERATION, grace_secs).await,
        Effect::Forget => deps.agents.forget(instance.id, job.id, GENERATION).await,
    };
    match result {
        Ok(()) => {}
        // The next pass observes the truth and decides again.
        Err(OrderError::Unreachable(error)) => {
            tracing::debug!(job.id = %job.id, "order {effect:?} may be lost: {error}");
        }
        // Nothing is left of a job that is finished, but a task that the sweep ends.
        Err(OrderError::Refused(error)) if effect != Effect::Forget => {
            return note_refusal(deps, job, instance, effect, &error).await;
        }
        Err(OrderError::Refused(error)) => {
            tracing::warn!(job.id = %job.id, "the agent refused {effect:?}: {error}");
        }
    }
    Ok(())
}

/// The job remembers since when its agent refuses it, and why; what follows is decided when the order is repeated.
async fn note_refusal(
    deps: &Deps,
    job: &Job,
    instance: &Instance,
    effect: Effect,
    error: &AgentError,
) -> store::Result<()> {
    // The agent has forgotten a task that it is to start or to end: the next pass sees that.
    if error.code == AgentErrorCode::UnknownTask {
        return Ok(());
    }
    let Some(mut loaded) = jobs::get(&deps.db, job.id).await? else { return Ok(()) };
    let state = &mut loaded.value.state;
    let is_news = state.refused.as_ref().is_none_or(|refused| refused.message != error.message);
    if !is_news || loaded.value.status.is_finished() {
        return Ok(());
    }
    tracing::warn!(job.id = %job.id, instance.id = %instance.id, "the agent refused {effect:?}: {error}");
    let since = state.refused.as_ref().map_or_else(|| deps.clock.now(), |refused| refused.since);
    let is_first = state.refused.is_none();
    let for_good = error.code == AgentErrorCode::InvalidRequest;
    state.refused = Some(Refused { since, message: error.message.clone(), for_good });
    let mut tx = deps.db.begin().await?;
    jobs::save(&mut tx, &loaded).await?;
    if is_first {
        let message = format!("Job refused by instance: {}", error.message);
        let job_target = Target::job(job.project_id, job.run_id, job.id, &job.spec.job_name);
        let machine = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
        record::events(deps, &mut tx, &[message], &[job_target, machine]).await?;
    }
    store::leases::touch(&mut tx, Table::Jobs, job.id.0, deps.clock.now()).await?;
    tx.commit().await
}

/// The task cannot be made, now or later: the job ends with a reason of its own, so that its run takes it for the
/// cause.
async fn refuse(deps: &Deps, job: &Job, message: String) -> store::Result<()> {
    let Some(mut loaded) = jobs::get(&deps.db, job.id).await? else { return Ok(()) };
    let before = loaded.value.status;
    if before.is_finished() || before == JobStatus::Terminating {
        return Ok(());
    }
    let reason = JobTerminationReason::TerminatedByServer;
    let from = before.as_str().to_uppercase();
    let event =
        format!("Job status changed {from} -> TERMINATING. Termination reason: TERMINATED_BY_SERVER ({message})");
    loaded.value.status = JobStatus::Terminating;
    loaded.value.state.termination_reason = Some(reason);
    loaded.value.state.termination_message = Some(message);
    let mut tx = deps.db.begin().await?;
    jobs::save(&mut tx, &loaded).await?;
    let target = Target::job(job.project_id, job.run_id, job.id, &job.spec.job_name);
    record::events(deps, &mut tx, &[event], &[target]).await?;
    store::leases::touch(&mut tx, Table::Jobs, job.id.0, deps.clock.now()).await?;
    record::touch_run(deps, &mut tx, job.run_id).await?;
    tx.commit().await?;
    deps.wake.ring(Table::Jobs);
    deps.wake.ring(Table::Runs);
    Ok(())
}
