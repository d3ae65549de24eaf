//! Instances.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use api::ids::{FleetId, InstanceId, ProjectId};
use api::instances::{
    GetInstanceHealthChecksRequest, GetInstanceHealthChecksResponse, GetInstanceRequest, HealthCheck,
    Instance as WireInstance, ListInstancesRequest,
};
use axum::extract::State;
use lifecycle::instance::Instance;
use store::instances::{self, InstanceFilter};
use store::{Versioned, fleets};

use super::auth::{AuthUser, ProjectMember};
use super::error::{Error, Result, check_bounds};
use super::extract::{Json, OptionalJson};
use super::fleet_views as views;
use super::fleets::{moment, progress};
use super::scope::{behind, projects_of};
use crate::deps::Deps;

/// The most instances of a page, and how many there are unless told.
const MOST_INSTANCES: u32 = 1000;

pub async fn list(
    State(deps): State<Deps>,
    asking: AuthUser,
    OptionalJson(request): OptionalJson<ListInstancesRequest>,
) -> Result<Json<Vec<WireInstance>>> {
    let limit = request.limit.unwrap_or(MOST_INSTANCES);
    check_bounds("limit", limit, 0, MOST_INSTANCES)?;
    let mut names = projects_of(&deps, &asking, None).await?;
    if let Some(wanted) = &request.project_names {
        names.retain(|_, name| wanted.iter().any(|one| one.eq_ignore_ascii_case(name)));
    }
    let filter = InstanceFilter {
        projects: names.keys().copied().collect(),
        fleets: request.fleet_ids,
        only_active: request.only_active,
        after: behind(request.prev_created_at, request.prev_id, request.ascending),
        ascending: request.ascending,
        limit,
    };
    let rows = instances::list(&deps.db, &filter).await?;
    views_of(&deps, &rows, &names).await.map(Json)
}

pub async fn get(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<GetInstanceRequest>,
) -> Result<Json<WireInstance>> {
    let row = instances::get(&deps.db, request.id).await?;
    let row = row.filter(|row| row.value.project_id == member.project.id).ok_or_else(Error::resource_not_found)?;
    let names = HashMap::from([(member.project.id, member.project.name.clone())]);
    let view = views_of(&deps, &[row], &names).await?.pop();
    view.map(Json).ok_or_else(Error::resource_not_found)
}

/// What was found when an instance was last looked at. Nobody keeps what was found before.
pub async fn get_health_checks(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<GetInstanceHealthChecksRequest>,
) -> Result<Json<GetInstanceHealthChecksResponse>> {
    let fleet = fleets::get_by_name(&deps.db, member.project.id, &request.fleet_name).await?;
    let fleet = fleet.ok_or_else(Error::resource_not_found)?;
    let instances = instances::list_by_fleet(&deps.db, fleet.value.id).await?;
    // Numbers are used again; the one that is kept comes before those that are gone.
    let numbered = instances.iter().filter(|row| row.value.instance_num == request.instance_num);
    let instance = numbered.min_by_key(|row| (!row.value.is_kept(), Reverse(row.value.created_at)));
    let instance = &instance.ok_or_else(Error::resource_not_found)?.value;
    let is_asked_for = |check: &HealthCheck| {
        request.after.is_none_or(|after| after < check.collected_at)
            && request.before.is_none_or(|before| check.collected_at < before)
            && request.limit != Some(0)
    };
    let health_checks = views::health(instance).into_iter().filter(is_asked_for).collect();
    Ok(Json(GetInstanceHealthChecksResponse { health_checks }))
}

async fn views_of(
    deps: &Deps,
    rows: &[Versioned<Instance>],
    project_names: &HashMap<ProjectId, String>,
) -> Result<Vec<WireInstance>> {
    let ids: Vec<InstanceId> = rows.iter().map(|row| row.value.id).collect();
    let busy: HashMap<InstanceId, u32> = instances::count_busy_blocks(&deps.db, &ids).await?.into_iter().collect();
    let mut fleet_names: HashMap<FleetId, String> = HashMap::new();
    for row in rows {
        let id = row.value.fleet_id;
        if let Entry::Vacant(place) = fleet_names.entry(id) {
            let fleet = fleets::get(&deps.db, id).await?;
            place.insert(fleet.map(|fleet| fleet.value.name).unwrap_or_default());
        }
    }
    let moment = moment(deps);
    let name_of = |names: Option<&String>| names.cloned().unwrap_or_default();
    Ok(rows
        .iter()
        .map(|row| {
            let instance = &row.value;
            let busy = busy.get(&instance.id).copied().unwrap_or_default();
            let project_name = name_of(project_names.get(&instance.project_id));
            let fleet_name = name_of(fleet_names.get(&instance.fleet_id));
            let mut view = views::instance(moment, instance, busy, &project_name, &fleet_name);
            view.progress = progress(deps, &view);
            view
        })
        .collect())
}
