//! Submissions: a new run, or a change of one that is active.

use api::configurations::RunConfiguration;
use api::ids::RunId;
use api::jobs::{JobSpec, JobStatus};
use api::runs::{ApplyRunPlanRequest, Run as WireRun, RunSpec, RunStatus};
use axum::extract::State;
use lifecycle::events::{NewEvent, Target};
use lifecycle::job::{Job, JobState};
use lifecycle::run::effective::settle_nodes;
use lifecycle::run::{Run, RunState, job_specs};
use store::leases::Table;
use store::{Hold, Tx, Versioned, jobs, runs};

use super::check::Checked;
use super::list::{load_view, view_of};
use super::{CANNOT_OVERRIDE, CHANGED, delete};
use crate::deps::Deps;
use crate::http::auth::{Access, ProjectMember};
use crate::http::error::{Error, Result};
use crate::http::extract::Json;
use crate::http::scope::{cannot_update, changed_keys, hold_project};
use crate::spec_secrets::{seal_job_spec, seal_run_spec, unseal_run_spec};
use crate::{accounts, names};

/// The keys of a run that may be changed while it runs.
const UPDATABLE_SPEC: &[&str] = &["configuration", "configuration_path"];
const UPDATABLE_CONFIGURATION: &[&str] = &["priority", "files"];
const UPDATABLE_DEV_ENVIRONMENT: &[&str] = &["priority", "files", "inactivity_duration"];

pub async fn apply(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<ApplyRunPlanRequest>,
) -> Result<Json<WireRun>> {
    let checked = Checked::new(&deps, &member, &request.plan.run_spec).await?;
    checked.check_repo_exists(&deps, &member).await?;
    let mut tx = deps.db.begin().await?;
    hold_project(&mut tx, &member, Hold::Together).await?;
    let current = match &checked.effective.run_name {
        Some(name) => runs::get_by_name(&mut tx, member.project.id, name).await?,
        None => None,
    };
    let view = match current {
        Some(row) if !row.value.status.is_finished() => {
            let planned = request.plan.current_resource.as_ref();
            let seen = if request.force { Seen::Forced } else { Seen::Plan(planned) };
            update(&deps, &mut tx, &member, &row, &checked, seen).await?;
            tx.commit().await?;
            let row = runs::get(&deps.db, row.value.id).await?.ok_or_else(run_not_found)?;
            load_view(&deps, &member.project, &row.value).await?
        }
        finished => {
            if let Some(row) = &finished {
                delete::hide(&deps, &mut tx, member.user.id, &row.value).await?;
            }
            let (run, submissions) = submit(&deps, &mut tx, &member, checked).await?;
            tx.commit().await?;
            view_of(&deps, &member.project.name, &member.user.name, None, &run, &submissions)
        }
    };
    deps.wake.ring(Table::Runs);
    deps.wake.ring(Table::Jobs);
    deps.wake.ring_placement();
    deps.wake.tell_watchers();
    Ok(Json(view))
}

fn run_not_found() -> Error {
    Error::not_exists("Run not found")
}

/// Writes a run and its jobs.
async fn submit(deps: &Deps, tx: &mut Tx, access: &Access, checked: Checked) -> Result<(Run, Vec<Job>)> {
    let Checked { mut effective, jobs: mut specs } = checked;
    let name = if let Some(name) = effective.run_name.clone() {
        name
    } else {
        let name = free_name(deps, tx, access).await?;
        effective.run_name = Some(name.clone());
        // It was planned under another name, which is in more than one place.
        specs = job_specs(&effective, &deps.settings.default_image).map_err(Error::bad_request)?;
        name
    };
    let now = deps.clock.now();
    seal_run_spec(&deps.sealer, &mut effective);
    let run = Run {
        id: deps.ids.id(),
        project_id: access.project.id,
        user_id: access.user.id,
        name,
        submitted_at: now,
        priority: i64::from(effective.configuration.common().priority.unwrap_or_default()),
        status: RunStatus::Submitted,
        deleted: false,
        stop: None,
        fleet_id: None,
        spec: effective,
        state: RunState { user_is_admin: access.is_global_admin(), ..RunState::default() },
    };
    runs::insert(&mut *tx, &run, now).await.map_err(|error| match error {
        // Somebody was faster with this name.
        store::Error::Taken(_) => Error::bad_request(CANNOT_OVERRIDE),
        other => Error::from(other),
    })?;
    let target = Target::run(run.project_id, run.id, &run.name);
    let event = NewEvent::by_user(access.user.id, "Run submitted. Status: SUBMITTED", vec![target]);
    accounts::record(deps, tx, &event).await?;
    let mut submissions = vec![];
    for spec in specs {
        submissions.push(add_job(deps, tx, &run, spec).await?);
    }
    Ok((run, submissions))
}

async fn add_job(deps: &Deps, tx: &mut Tx, run: &Run, mut spec: JobSpec) -> Result<Job> {
    seal_job_spec(&deps.sealer, &mut spec);
    let now = deps.clock.now();
    let job = Job {
        id: deps.ids.id(),
        run_id: run.id,
        project_id: run.project_id,
        replica_num: spec.replica_num,
        job_num: spec.job_num,
        submission_num: 0,
        submitted_at: now,
        status: JobStatus::Submitted,
        instance_id: None,
        end: None,
        released_at: None,
        spec,
        state: JobState::default(),
    };
    jobs::insert(&mut *tx, &job, now).await?;
    let target = Target::job(job.project_id, job.run_id, job.id, &job.spec.job_name);
    let event = NewEvent::by_server("Job created on run submission. Status: SUBMITTED", vec![target]);
    accounts::record(deps, tx, &event).await?;
    Ok(job)
}

/// A name that no run of the project has or had.
async fn free_name(deps: &Deps, tx: &mut Tx, access: &Access) -> Result<String> {
    let base = names::random(&deps.ids);
    for number in 1_u32.. {
        let name = format!("{base}-{number}");
        if !runs::name_is_used(&mut *tx, access.project.id, &name).await? {
            return Ok(name);
        }
    }
    Err(Error::internal(anyhow::anyhow!("every name beginning with {base} is used")))
}

/// What somebody knew of a run when they wanted it changed.
enum Seen<'a> {
    /// They do not care.
    Forced,
    /// What their plan showed.
    Plan(Option<&'a WireRun>),
}

/// Changes an active run in place.
async fn update(
    deps: &Deps,
    tx: &mut Tx,
    access: &Access,
    row: &Versioned<Run>,
    checked: &Checked,
    seen: Seen<'_>,
) -> Result<RunId> {
    let run = &row.value;
    let mut current = run.spec.clone();
    unseal_run_spec(&deps.sealer, &mut current)?;
    let ends = run.stop.is_some() || run.status == RunStatus::Terminating;
    if ends || update_refusal(&current, &checked.effective)?.is_some() {
        return Err(Error::bad_request(CANNOT_OVERRIDE));
    }
    if let Seen::Plan(seen) = seen
        && !is_same(run.id, &current, seen)
    {
        return Err(Error::bad_request(CHANGED));
    }
    let mut changed = changed_keys(&current.configuration, &checked.effective.configuration)?;
    if changed.is_empty() && current.configuration_path == checked.effective.configuration_path {
        return Ok(run.id);
    }
    if changed.is_empty() {
        changed.push("configuration_path".to_owned());
    }
    let mut wanted = row.clone();
    wanted.value.spec = checked.effective.clone();
    seal_run_spec(&deps.sealer, &mut wanted.value.spec);
    wanted.value.priority = i64::from(checked.effective.configuration.common().priority.unwrap_or_default());
    wanted.value.state.deployment_num += 1;
    runs::set_spec(&mut *tx, &wanted, deps.clock.now()).await.map_err(|error| match error {
        store::Error::Stale => Error::bad_request(CHANGED),
        other => Error::from(other),
    })?;
    // What has changed may be what a job is to end by.
    jobs::touch_by_run(&mut *tx, run.id, deps.clock.now()).await?;
    let message = format!(
        "Run updated. Deployment: {}. Changed fields: {}",
        wanted.value.state.deployment_num,
        changed.join(", ")
    );
    let target = Target::run(run.project_id, run.id, &run.name);
    accounts::record(deps, tx, &NewEvent::by_user(access.user.id, message, vec![target])).await?;
    Ok(run.id)
}

/// Whether a run is what a plan saw. Clients drop keys that they do not know, so values are compared.
fn is_same(id: RunId, current: &RunSpec, seen: Option<&WireRun>) -> bool {
    let settled = |spec: &RunSpec| {
        let mut spec = spec.clone();
        settle_nodes(&mut spec);
        spec
    };
    seen.is_some_and(|seen| seen.id == id && settled(&seen.run_spec) == settled(current))
}

/// Why an active run cannot become what is wanted, if it cannot. Both have the server's defaults.
pub(super) fn update_refusal(current: &RunSpec, wanted: &RunSpec) -> Result<Option<String>> {
    let changed = changed_keys(current, wanted)?;
    if changed.iter().any(|key| !UPDATABLE_SPEC.contains(&key.as_str())) {
        return Ok(Some(cannot_update(&changed, UPDATABLE_SPEC)));
    }
    let mut changed = changed_keys(&current.configuration, &wanted.configuration)?;
    if only_architecture_was_dropped(&current.configuration, &wanted.configuration) {
        changed.retain(|key| key != "resources");
    }
    let is_dev_environment = matches!(current.configuration, RunConfiguration::DevEnvironment(_));
    let updatable = if is_dev_environment { UPDATABLE_DEV_ENVIRONMENT } else { UPDATABLE_CONFIGURATION };
    // Other paths of the same archives: the archives themselves were compared with the rest of the submission.
    if changed.iter().any(|key| !updatable.contains(&key.as_str())) {
        return Ok(Some(cannot_update(&changed, updatable)));
    }
    Ok(None)
}

/// Older servers wrote the architecture of the default image into a run's resources.
fn only_architecture_was_dropped(current: &RunConfiguration, wanted: &RunConfiguration) -> bool {
    let mut resources = current.common().resources.clone();
    let dropped = resources.cpu.arch.take().is_some() && wanted.common().resources.cpu.arch.is_none();
    dropped && resources == *wanted.common().resources
}

#[cfg(test)]
mod tests {
    use lifecycle::run::effective::fill_defaults;
    use serde_json::{Value, json};

    use super::*;

    fn spec(keys: &Value) -> RunSpec {
        let mut configuration = json!({ "type": "task", "commands": ["x"] });
        configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let spec = serde_json::from_value(json!({ "run_name": "train", "configuration": configuration })).unwrap();
        fill_defaults(spec, "key")
    }

    #[track_caller]
    fn check(keys: &Value, is_allowed: bool) {
        let refused = update_refusal(&spec(&json!({})), &spec(keys)).unwrap();
        assert_eq!(refused.is_none(), is_allowed, "{refused:?}");
    }

    #[test]
    fn only_the_priority_changes_while_a_task_runs() {
        check(&json!({}), true);
        check(&json!({ "priority": 50 }), true);
        check(&json!({ "commands": ["y"] }), false);
        check(&json!({ "priority": 50, "nodes": 2 }), false);
        let mut other_code = spec(&json!({}));
        other_code.repo_code_hash = Some("x".to_owned());
        assert!(update_refusal(&spec(&json!({})), &other_code).unwrap().is_some());
        let with_arch = spec(&json!({ "resources": { "cpu": "x86:2.." } }));
        assert_eq!(update_refusal(&with_arch, &spec(&json!({}))).unwrap(), None);
    }

    #[test]
    fn a_dev_environment_may_get_another_time_of_inactivity() {
        let environment = |keys: Value| {
            let mut configuration = json!({ "type": "dev-environment", "ide": "vscode" });
            configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            let spec = json!({ "run_name": "dev", "configuration": configuration });
            fill_defaults(serde_json::from_value(spec).unwrap(), "key")
        };
        let check = |keys: Value, is_allowed: bool| {
            let refused = update_refusal(&environment(json!({})), &environment(keys)).unwrap();
            assert_eq!(refused.is_none(), is_allowed, "{refused:?}");
        };
        check(json!({ "inactivity_duration": "2h" }), true);
        check(json!({ "inactivity_duration": "off", "priority": 7 }), true);
        check(json!({ "ide": "cursor" }), false);
        check(json!({ "inactivity_duration": "2h", "init": ["a"] }), false);
        check(json!({ "max_duration": "2h" }), false);
    }
}
