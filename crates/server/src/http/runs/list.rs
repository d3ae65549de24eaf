//! Runs as clients see them, one or many.

use std::collections::HashMap;
use std::sync::Arc;

use api::ids::{FleetId, ProjectId, RunId, UserId};
use api::runs::{GetRunRequest, ListRunsRequest, Run as WireRun};
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use jiff::SignedDuration;
use lifecycle::job::Job;
use lifecycle::run::Run;
use store::projects::ProjectRow;
use store::runs::RunFilter;
use store::{fleets, jobs, runs, users};

use super::rows::{RowState, RunRows};
use crate::deps::Deps;
use crate::http::auth::{AuthUser, ProjectMember};
use crate::http::error::{Error, Result, check_bounds};
use crate::http::extract::{Json, OptionalJson, json_response};
use crate::http::run_views::{self, Detail, RunNames, Shown, grows_with_time};
use crate::http::scope::{behind, projects_of};

/// The most runs of a page.
const MOST_RUNS: u32 = 100;

/// The most submissions of a job that a list shows, and how many unless told.
const MOST_SUBMISSIONS: u32 = 10;

/// How long the cost of what runs for money may lag behind in lists.
const COST_LAG: SignedDuration = SignedDuration::from_secs(5);

pub async fn get(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<GetRunRequest>,
) -> Result<Json<WireRun>> {
    let project = &member.project;
    let row = match (request.id, &request.run_name) {
        (Some(id), _) => runs::get(&deps.db, id).await?.filter(|row| row.value.project_id == project.id),
        (None, Some(name)) => runs::get_by_name(&deps.db, project.id, name).await?,
        (None, None) => return Err(Error::bad_request("run_name or id must be specified")),
    };
    let row = row.ok_or_else(|| Error::not_exists("Run not found"))?;
    load_view(&deps, project, &row.value).await.map(Json)
}

/// A run with all of its submissions.
pub(super) async fn load_view(deps: &Deps, project: &ProjectRow, run: &Run) -> Result<WireRun> {
    let submissions = jobs::list_by_runs(&deps.db, &[run.id]).await?;
    let submissions: Vec<Job> = submissions.into_iter().map(|job| job.value).collect();
    let names = names_of(deps, &project.name, run).await?;
    Ok(view_of(deps, &names.project, &names.user, names.fleet, run, &submissions))
}

/// A run whose names and submissions are known.
pub(super) fn view_of(
    deps: &Deps,
    project_name: &str,
    user_name: &str,
    fleet_name: Option<String>,
    run: &Run,
    submissions: &[Job],
) -> WireRun {
    let names = RunNames { project: project_name.to_owned(), user: user_name.to_owned(), fleet: fleet_name };
    run_views::run(deps.clock.now(), &Shown::by(deps), run, submissions, names, Detail::ALL)
}

/// The names that a run's row does not have.
pub(super) async fn names_of(deps: &Deps, project_name: &str, run: &Run) -> Result<RunNames> {
    let user = users::get(&deps.db, run.user_id).await?;
    let fleet = match run.fleet_id {
        Some(id) => fleets::get(&deps.db, id).await?.map(|fleet| fleet.value.name),
        None => None,
    };
    Ok(RunNames { project: project_name.to_owned(), user: user.map(|user| user.name).unwrap_or_default(), fleet })
}

pub async fn list(
    State(deps): State<Deps>,
    Extension(rows): Extension<Arc<RunRows>>,
    asking: AuthUser,
    OptionalJson(request): OptionalJson<ListRunsRequest>,
) -> Result<Response> {
    check_bounds("limit", request.limit, 0, MOST_RUNS)?;
    let submissions = request.job_submissions_limit.unwrap_or(MOST_SUBMISSIONS);
    check_bounds("job_submissions_limit", submissions, 0, MOST_SUBMISSIONS)?;
    if request.repo_id.is_some() && request.project_name.is_none() {
        return Ok(json_response(Bytes::from_static(b"[]")));
    }
    let project_names = projects_of(&deps, &asking, request.project_name.as_deref()).await?;
    let user = match &request.username {
        Some(name) => {
            let user = users::find_by_name(&deps.db, name).await?;
            Some(user.ok_or_else(|| Error::not_exists("User not found"))?.id)
        }
        None => None,
    };
    let filter = RunFilter {
        projects: project_names.keys().copied().collect(),
        user,
        repo_id: request.repo_id,
        only_active: request.only_active,
        after: behind(request.prev_submitted_at, request.prev_run_id, request.ascending),
        ascending: request.ascending,
        limit: request.limit,
    };
    let detail = Detail { jobs: request.include_jobs, submissions: submissions as usize };
    printed(&deps, &rows, &filter, detail, &project_names).await.map(json_response)
}

/// The list as JSON: what was printed before and has not changed, and the rest anew.
async fn printed(
    deps: &Deps,
    rows: &RunRows,
    filter: &RunFilter,
    detail: Detail,
    project_names: &HashMap<ProjectId, String>,
) -> Result<Bytes> {
    let versions = runs::list_versions(&deps.db, filter).await?;
    let ids: Vec<RunId> = versions.iter().map(|(id, _)| *id).collect();
    let sums: HashMap<RunId, i64> = jobs::list_version_sums(&deps.db, &ids).await?.into_iter().collect();
    let now = deps.clock.now();
    let mut found: HashMap<RunId, Bytes> = HashMap::with_capacity(ids.len());
    let mut missing: HashMap<RunId, RowState> = HashMap::new();
    for (id, version) in &versions {
        let state = RowState { run: *version, jobs: sums.get(id).copied().unwrap_or_default() };
        match rows.get(*id, detail, state, now) {
            Some(json) => _ = found.insert(*id, json),
            None => _ = missing.insert(*id, state),
        }
    }
    print_missing(deps, rows, detail, project_names, &missing, &mut found).await?;
    let length: usize = found.values().map(|json| json.len() + 1).sum();
    let mut list = Vec::with_capacity(length + 2);
    list.push(b'[');
    for json in ids.iter().filter_map(|id| found.get(id)) {
        if list.len() > 1 {
            list.push(b',');
        }
        list.extend_from_slice(json);
    }
    list.push(b']');
    Ok(Bytes::from(list))
}

async fn print_missing(
    deps: &Deps,
    rows: &RunRows,
    detail: Detail,
    project_names: &HashMap<ProjectId, String>,
    missing: &HashMap<RunId, RowState>,
    found: &mut HashMap<RunId, Bytes>,
) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let ids: Vec<RunId> = missing.keys().copied().collect();
    // Jobs first: what changes in between shows as a newer run with older jobs, which the next list corrects.
    let submissions: Vec<Job> =
        jobs::list_by_runs(&deps.db, &ids).await?.into_iter().map(|job| job.value).collect();
    let by_run: HashMap<RunId, &[Job]> = submissions
        .chunk_by(|left, right| left.run_id == right.run_id)
        .filter_map(|jobs| Some((jobs.first()?.run_id, jobs)))
        .collect();
    let loaded = runs::list_by_ids(&deps.db, &ids).await?;
    let names = Names::load(deps, loaded.iter().map(|row| &row.value)).await?;
    let now = deps.clock.now();
    for row in &loaded {
        let run = &row.value;
        let jobs = by_run.get(&run.id).copied().unwrap_or_default();
        let project = project_names.get(&run.project_id).cloned().unwrap_or_default();
        let view = run_views::run(now, &Shown::by(deps), run, jobs, names.of(run, project), detail);
        let json = Bytes::from(serde_json::to_vec(&view).map_err(Error::internal)?);
        if let Some(state) = missing.get(&run.id) {
            let until = grows_with_time(jobs).then(|| now + COST_LAG);
            rows.put(run.id, detail, *state, until, json.clone());
        }
        found.insert(run.id, json);
    }
    Ok(())
}

/// The names of users and fleets.
struct Names {
    users: HashMap<UserId, String>,
    fleets: HashMap<FleetId, String>,
}

impl Names {
    async fn load(deps: &Deps, runs: impl Iterator<Item = &Run> + Clone) -> Result<Names> {
        let mut ids: Vec<UserId> = runs.clone().map(|run| run.user_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let users = users::get_many(&deps.db, &ids).await?.into_iter().map(|user| (user.id, user.name)).collect();
        let mut fleet_names = HashMap::new();
        for id in runs.filter_map(|run| run.fleet_id) {
            if !fleet_names.contains_key(&id)
                && let Some(fleet) = fleets::get(&deps.db, id).await?
            {
                fleet_names.insert(id, fleet.value.name);
            }
        }
        Ok(Names { users, fleets: fleet_names })
    }

    fn of(&self, run: &Run, project: String) -> RunNames {
        RunNames {
            project,
            user: self.users.get(&run.user_id).cloned().unwrap_or_default(),
            fleet: run.fleet_id.and_then(|id| self.fleets.get(&id).cloned()),
        }
    }
}
