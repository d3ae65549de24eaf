//! Moves runs on.

use api::ids::{JobId, RunId};
use api::jobs::JobStatus;
use api::runs::RunStatus;
use lifecycle::events::Target;
use lifecycle::job::{Job, JobState};
use lifecycle::planted::{self, Bug};
use lifecycle::run::{Run, RunDecision, decide};
use store::leases::Table;
use store::{Tx, Versioned, jobs, runs};
use tokio::time::Instant;

use super::{Next, record, rest};
use crate::deps::Deps;

/// Moves one run on.
pub async fn reconcile(deps: &Deps, id: RunId) -> store::Result<Next> {
    let Some(loaded) = runs::get(&deps.db, id).await? else { return Ok(None) };
    if loaded.value.status.is_finished() && !planted::has(Bug::FinishedRunJudgedAgain) {
        return Ok(None);
    }
    let began = Instant::now();
    let latest = jobs::list_latest(&deps.db, id).await?;
    let latest: Vec<Job> = latest.into_iter().map(|job| job.value).collect();
    let decision = decide(deps.clock.now(), &loaded.value, &latest);
    let did_something = save(deps, &loaded, &latest, &decision).await?;
    if decision.wants_place {
        deps.wake.ring_placement();
    }
    if !did_something {
        rest(began).await;
    }
    // An ending run whose jobs are all finished ends in the next pass, at once.
    let just_began_to_end =
        decision.run.status == RunStatus::Terminating && loaded.value.status != RunStatus::Terminating;
    if just_began_to_end { Ok(Some(deps.clock.now())) } else { Ok(decision.look_again_at) }
}

/// Records what was decided. False: nothing was.
async fn save(
    deps: &Deps,
    loaded: &Versioned<Run>,
    latest: &[Job],
    decision: &RunDecision,
) -> store::Result<bool> {
    let run = &decision.run;
    let nothing = *run == loaded.value
        && decision.end_jobs.is_empty()
        && decision.release_jobs.is_empty()
        && !decision.resubmit;
    if nothing {
        return Ok(false);
    }
    let now = deps.clock.now();
    let mut tx = deps.db.begin().await?;
    runs::save(&mut tx, &Versioned { version: loaded.version, value: run.clone() }).await?;
    let target = Target::run(run.project_id, run.id, &run.name);
    record::events(deps, &mut tx, &decision.events, &[target]).await?;
    for (job, end) in &decision.end_jobs {
        jobs::set_end(&mut tx, *job, end, now).await?;
    }
    for job in &decision.release_jobs {
        jobs::set_released(&mut tx, *job, now).await?;
    }
    if decision.resubmit {
        for job in latest {
            resubmit(deps, &mut tx, job, None).await?;
        }
    }
    tx.commit().await?;
    deps.wake.ring(Table::Jobs);
    if run.status.is_finished() {
        deps.wake.ring(Table::Fleets);
    }
    deps.wake.tell_watchers();
    Ok(true)
}

/// Adds the next submission of a job, already placed if `placed` says where.
pub(super) async fn resubmit(deps: &Deps, tx: &mut Tx, last: &Job, placed: Option<JobId>) -> store::Result<Job> {
    let job = Job {
        id: placed.unwrap_or_else(|| deps.ids.id()),
        submission_num: last.submission_num + 1,
        submitted_at: deps.clock.now(),
        status: JobStatus::Submitted,
        instance_id: None,
        end: None,
        released_at: None,
        state: JobState::default(),
        ..last.clone()
    };
    jobs::insert(&mut *tx, &job, deps.clock.now()).await?;
    let target = Target::job(job.project_id, job.run_id, job.id, &job.spec.job_name);
    record::events(deps, tx, &["Job created on retry. Status: SUBMITTED".to_owned()], &[target]).await?;
    Ok(job)
}
