//! What would become of a run.

use std::sync::Arc;

use api::instances::Offer;
use api::runs::{ApplyAction, GetRunPlanRequest, JobPlan, RunPlan, RunSpec};
use axum::extract::State;
use lifecycle::placement::Gang;
use lifecycle::run::effective::settle_nodes;
use lifecycle::run::{Run, RunState};

use super::apply::update_refusal;
use super::check::Checked;
use super::list::load_view;
use super::offers::{Wanted, offers_of_jobs};
use super::warnings::warnings;
use crate::deps::Deps;
use crate::http::auth::{Access, ProjectMember};
use crate::http::error::{Result, check_bounds};
use crate::http::extract::Json;
use crate::pool;
use crate::spec_secrets::unseal_run_spec;

/// Offers per job unless told, and the most that may be asked for.
const OFFERS: u32 = 50;
const MOST_OFFERS: u32 = 10_000;

/// The most offers that a plan shows of all jobs but the first one together.
const OFFERS_TOGETHER: usize = 100_000;

pub async fn get_plan(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<GetRunPlanRequest>,
) -> Result<Json<RunPlan>> {
    let max_offers = request.max_offers.unwrap_or(OFFERS);
    check_bounds("max_offers", max_offers, 1, MOST_OFFERS)?;
    let checked = Checked::new(&deps, &member, &request.run_spec).await?;
    let gang = gang_of(&deps, &member, &checked);
    let pool = pool::load(&deps, member.project.id).await?;
    let wanted = Wanted {
        beyond_fleets: request.for_offers_only,
        unallocated_only: request.unallocated_resources,
        reverse: request.reverse_offers,
    };
    let offers = offers_of_jobs(&deps, member.project.id, &gang, &checked.jobs, &pool, wanted).await?;
    let told = if request.for_offers_only {
        vec![]
    } else {
        warnings(&deps, member.project.id, &checked.effective, &gang, &pool).await?
    };
    // Clients show the offers of the first job.
    let of_others = OFFERS_TOGETHER.checked_div(checked.jobs.len()).unwrap_or_default();
    let job_plans = checked.jobs.into_iter().zip(offers).enumerate().map(|(index, (job_spec, offers))| {
        let total_offers = u32::try_from(offers.len()).unwrap_or(u32::MAX);
        let max_price = offers.iter().map(|offer| offer.price).max_by(f64::total_cmp);
        let most = if index == 0 { usize::MAX } else { of_others };
        let offers = offers.iter().take(most.min(max_offers as usize)).cloned().collect();
        JobPlan { job_spec, offers, total_offers, max_price }
    });
    let job_plans = job_plans.collect();
    let (current_resource, action) = current(&deps, &member, &checked.effective).await?;
    // Clients post this to apply, so nothing but what old ones need is added.
    let mut run_spec = request.run_spec;
    settle_nodes(&mut run_spec);
    Ok(Json(RunPlan {
        project_name: member.project.name.clone(),
        user: member.user.name.clone(),
        run_spec,
        effective_run_spec: Some(checked.effective),
        job_plans,
        current_resource,
        action,
        warnings: told,
    }))
}

/// The run as placement would see it.
pub(super) fn gang_of(deps: &Deps, access: &Access, checked: &Checked) -> Gang {
    let now = deps.clock.now();
    let run = Run {
        id: deps.ids.id(),
        project_id: access.project.id,
        user_id: access.user.id,
        name: checked.effective.run_name.clone().unwrap_or_default(),
        submitted_at: now,
        priority: 0,
        status: api::runs::RunStatus::Submitted,
        deleted: false,
        stop: None,
        fleet_id: None,
        spec: checked.effective.clone(),
        state: RunState { user_is_admin: access.is_global_admin(), ..RunState::default() },
    };
    pool::gang_of(&run, &checked.jobs)
}

/// The run of that name, and whether it would be changed in place.
async fn current(
    deps: &Deps,
    access: &Access,
    effective: &RunSpec,
) -> Result<(Option<api::runs::Run>, ApplyAction)> {
    let Some(name) = &effective.run_name else { return Ok((None, ApplyAction::Create)) };
    let row = store::runs::get_by_name(&deps.db, access.project.id, name).await?;
    let Some(row) = row else { return Ok((None, ApplyAction::Create)) };
    let mut spec = row.value.spec.clone();
    unseal_run_spec(&deps.sealer, &mut spec)?;
    let in_place = !row.value.status.is_finished() && update_refusal(&spec, effective)?.is_none();
    let view = load_view(deps, &access.project, &row.value).await?;
    Ok((Some(view), if in_place { ApplyAction::Update } else { ApplyAction::Create }))
}

/// Whatever the run's first job could run on, for lists of accelerators.
pub(crate) async fn all_offers(
    deps: &Deps,
    access: &Access,
    spec: &RunSpec,
    unallocated_only: bool,
) -> Result<Vec<Offer>> {
    let checked = Checked::new(deps, access, spec).await?;
    let gang = gang_of(deps, access, &checked);
    let pool = pool::load(deps, access.project.id).await?;
    let wanted = Wanted { beyond_fleets: true, unallocated_only, reverse: false };
    let first = checked.jobs.get(..1).unwrap_or_default();
    let mut offers = offers_of_jobs(deps, access.project.id, &gang, first, &pool, wanted).await?;
    Ok(offers.pop().map(Arc::unwrap_or_clone).unwrap_or_default())
}

/// Whether a run asks for no accelerator at all.
pub(crate) fn wants_no_accelerator(spec: &RunSpec) -> bool {
    let gpu = spec.configuration.common().resources.gpu.as_ref();
    gpu.is_some_and(|gpu| gpu.count.max == Some(0))
}
