//! Fleets: what there is, and what is not wanted any more. Plans and changes are in `fleet_apply`.

use std::collections::HashMap;

use api::fleets::{
    DeleteFleetInstancesRequest, DeleteFleetsRequest, Fleet as WireFleet, FleetStatus, GetFleetRequest,
    ListFleetsRequest, ListProjectFleetsRequest,
};
use api::ids::{FleetId, InstanceId, ProjectId};
use api::instances::{
    Instance as WireInstance, InstanceStatus, InstanceTerminationReason, JoinProgress, JoinStep,
};
use axum::extract::State;
use lifecycle::events::{NewEvent, Target};
use lifecycle::fleet::Fleet;
use lifecycle::instance::{EndOrder, HOST_REGION, Instance};
use lifecycle::launch::Launch;
use lifecycle::outlook;
use store::fleets::{self, FleetFilter};
use store::leases::Table;
use store::{Tx, Versioned, instances, launches, runs};

use super::auth::{AuthUser, ProjectMember};
use super::error::{Error, Result, check_bounds, check_length};
use super::extract::{Json, OptionalJson};
use super::fleet_hosts::check_rights;
use super::fleet_views::{self as views, Moment};
use super::scope::{behind, projects_of};
use crate::accounts;
use crate::agents::{HostSeen, hosts};
use crate::deps::Deps;
use crate::pool;
use crate::reconcile::job::MOST_PURCHASES;

/// The most fleets of a page, and how many there are unless told.
const MOST_FLEETS: u32 = 100;

pub async fn list(
    State(deps): State<Deps>,
    asking: AuthUser,
    OptionalJson(request): OptionalJson<ListFleetsRequest>,
) -> Result<Json<Vec<WireFleet>>> {
    let limit = request.limit.unwrap_or(MOST_FLEETS);
    check_bounds("limit", limit, 0, MOST_FLEETS)?;
    let names = projects_of(&deps, &asking, request.project_name.as_deref()).await?;
    let filter = FleetFilter {
        projects: names.keys().copied().collect(),
        only_active: request.only_active,
        after: behind(request.prev_created_at, request.prev_id, request.ascending),
        ascending: request.ascending,
        limit,
    };
    let rows = fleets::list(&deps.db, &filter).await?;
    views_of(&deps, &rows, &names).await.map(Json)
}

pub async fn list_of_project(
    State(deps): State<Deps>,
    member: ProjectMember,
    OptionalJson(_): OptionalJson<ListProjectFleetsRequest>,
) -> Result<Json<Vec<WireFleet>>> {
    let rows = fleets::list_by_project(&deps.db, member.project.id).await?;
    let names = HashMap::from([(member.project.id, member.project.name.clone())]);
    views_of(&deps, &rows, &names).await.map(Json)
}

pub async fn get(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<GetFleetRequest>,
) -> Result<Json<WireFleet>> {
    let project = &member.project;
    let row = match (request.id, &request.name) {
        (Some(id), _) => fleets::get(&deps.db, id).await?.filter(|row| row.value.project_id == project.id),
        (None, Some(name)) => fleets::get_by_name(&deps.db, project.id, name).await?,
        (None, None) => return Err(Error::bad_request("name or id must be specified")),
    };
    let row = row.ok_or_else(Error::resource_not_found)?;
    view_of(&deps, &row, &project.name).await.map(Json)
}

/// Lets fleets go. Those that are in use are refused, and then all of them stay.
pub async fn delete(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<DeleteFleetsRequest>,
) -> Result<Json<()>> {
    check_length("names", request.names.len())?;
    let mut tx = deps.db.begin().await?;
    for name in &request.names {
        let Some(row) = fleets::get_by_name(&mut tx, member.project.id, name).await? else { continue };
        let fleet = &row.value;
        if !fleet.wanted {
            continue;
        }
        check_rights(&deps, &member, &fleet.spec)?;
        if is_in_use(&mut tx, fleet).await? {
            return Err(Error::bad_request(format!("Failed to delete fleet {name}. Fleet is in use.")));
        }
        fleets::set_unwanted(&mut tx, fleet.id, deps.clock.now()).await?;
        let message = format!("Fleet status changed {} -> TERMINATING", fleet.status.as_str().to_uppercase());
        let target = Target::fleet(fleet.project_id, fleet.id, &fleet.name);
        accounts::record(&deps, &mut tx, &NewEvent::by_user(member.user.id, message, vec![target])).await?;
    }
    tx.commit().await?;
    ring(&deps);
    Ok(Json(()))
}

/// Whether jobs run on a fleet, or runs that were given it are not finished.
async fn is_in_use(tx: &mut Tx, fleet: &Fleet) -> Result<bool> {
    let ids: Vec<InstanceId> =
        instances::list_by_fleet(&mut *tx, fleet.id).await?.iter().map(|row| row.value.id).collect();
    let has_busy = !instances::count_busy_blocks(&mut *tx, &ids).await?.is_empty();
    Ok(has_busy || !runs::list_active_by_fleet(&mut *tx, fleet.id).await?.is_empty())
}

/// Ends instances of a fleet. If one of them is in use, none is ended.
pub async fn delete_instances(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<DeleteFleetInstancesRequest>,
) -> Result<Json<()>> {
    check_length("instance_nums", request.instance_nums.len())?;
    let mut tx = deps.db.begin().await?;
    let row = fleets::get_by_name(&mut tx, member.project.id, &request.name).await?;
    let row = row.ok_or_else(Error::resource_not_found)?;
    check_rights(&deps, &member, &row.value.spec)?;
    // Whoever gives one of them to a job has done so before, and it is seen to be in use, or sees that the fleet has
    // moved.
    fleets::overtake(&mut tx, row.value.id).await?;
    let wanted = instances::list_by_fleet(&mut tx, row.value.id).await?;
    let wanted: Vec<Instance> = wanted
        .into_iter()
        .map(|instance| instance.value)
        .filter(|instance| request.instance_nums.contains(&instance.instance_num))
        .collect();
    let ids: Vec<InstanceId> = wanted.iter().map(|instance| instance.id).collect();
    if !instances::count_busy_blocks(&mut tx, &ids).await?.is_empty() {
        let numbers: Vec<String> = request.instance_nums.iter().map(u32::to_string).collect();
        return Err(Error::bad_request(format!(
            "Failed to delete fleet {} instances [{}]. Fleet instances are in use.",
            row.value.name,
            numbers.join(", ")
        )));
    }
    let end = EndOrder { reason: InstanceTerminationReason::TerminatedByUser, message: None };
    for instance in wanted {
        instances::set_end(&mut tx, instance.id, &end, deps.clock.now()).await?;
        let target = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
        let event = NewEvent::by_user(member.user.id, "Instance termination requested", vec![target]);
        accounts::record(&deps, &mut tx, &event).await?;
    }
    tx.commit().await?;
    ring(&deps);
    Ok(Json(()))
}

/// Wakes whoever acts on a changed fleet.
pub(super) fn ring(deps: &Deps) {
    deps.wake.ring(Table::Fleets);
    deps.wake.ring(Table::Instances);
    deps.wake.ring_placement();
    deps.wake.tell_watchers();
}

/// The moment at which views are made.
pub(super) fn moment(deps: &Deps) -> Moment {
    let now = deps.clock.now();
    Moment { now, silent_before: now - pool::silence(deps) }
}

/// One fleet as clients see it.
pub(super) async fn view_of(deps: &Deps, row: &Versioned<Fleet>, project_name: &str) -> Result<WireFleet> {
    let names = HashMap::from([(row.value.project_id, project_name.to_owned())]);
    let view = views_of(deps, std::slice::from_ref(row), &names).await?.pop();
    view.ok_or_else(|| Error::internal(anyhow::anyhow!("a fleet has no view")))
}

/// How far a machine of the user's own is joined, while its agent does not answer.
pub(super) fn progress(deps: &Deps, instance: &WireInstance) -> Option<JoinProgress> {
    let may_join = match instance.status {
        InstanceStatus::Provisioning | InstanceStatus::Idle | InstanceStatus::Busy => true,
        InstanceStatus::Pending | InstanceStatus::Terminating | InstanceStatus::Terminated => false,
    };
    if !may_join || instance.region.as_deref() != Some(HOST_REGION) {
        return None;
    }
    let HostSeen::Unknown { error, .. } = deps.agents.host(instance.id) else { return None };
    let step = match deps.agents.joining(instance.id) {
        Some(hosts::JoinStep::Connect) | None => JoinStep::Connecting,
        Some(hosts::JoinStep::Check) => JoinStep::Checking,
        Some(hosts::JoinStep::Deliver) => JoinStep::Delivering,
        Some(hosts::JoinStep::Start) => JoinStep::Starting,
        Some(hosts::JoinStep::Greet) => JoinStep::Greeting,
    };
    Some(JoinProgress { step, message: error })
}

/// Fleets as clients see them, in the order given.
async fn views_of(
    deps: &Deps,
    rows: &[Versioned<Fleet>],
    project_names: &HashMap<ProjectId, String>,
) -> Result<Vec<WireFleet>> {
    let ids: Vec<FleetId> = rows.iter().map(|row| row.value.id).collect();
    let all = instances::list_last_by_fleets(&deps.db, &ids).await?;
    let instance_ids: Vec<InstanceId> = all.iter().map(|row| row.value.id).collect();
    let busy: HashMap<InstanceId, u32> =
        instances::count_busy_blocks(&deps.db, &instance_ids).await?.into_iter().collect();
    let mut by_fleet: HashMap<FleetId, Vec<(&Instance, u32)>> = HashMap::new();
    for row in &all {
        let busy = busy.get(&row.value.id).copied().unwrap_or_default();
        by_fleet.entry(row.value.fleet_id).or_default().push((&row.value, busy));
    }
    let moment = moment(deps);
    let mut purchases = purchases(deps, &by_fleet).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let instances = by_fleet.get(&row.value.id).map_or(&[][..], Vec::as_slice);
            let project_name = project_names.get(&row.value.project_id).map_or("", String::as_str);
            let mut view = views::fleet(moment, &row.value, instances, project_name);
            // A fleet that nobody wants ends from the moment that somebody said so.
            if !row.value.wanted && row.value.status == FleetStatus::Active {
                view.status = FleetStatus::Terminating;
            }
            for instance in &mut view.instances {
                instance.progress = progress(deps, instance);
                instance.purchase = purchases.remove(&instance.id);
            }
            view
        })
        .collect())
}

/// How the purchases of instances go that have no machines yet, where something was refused.
async fn purchases(
    deps: &Deps,
    by_fleet: &HashMap<FleetId, Vec<(&Instance, u32)>>,
) -> Result<HashMap<InstanceId, String>> {
    let mut told = HashMap::new();
    for (fleet, instances) in by_fleet {
        let bought =
            || instances.iter().map(|(instance, _)| *instance).filter(|one| outlook::waits_for_machine(one));
        if bought().next().is_none() {
            continue;
        }
        let rows = launches::list_last(&deps.db, *fleet, MOST_PURCHASES).await?;
        let tried: Vec<Launch> = rows.into_iter().map(|row| row.value).collect();
        told.extend(bought().filter_map(|one| Some((one.id, outlook::of_purchase(one, &tried)?))));
    }
    Ok(told)
}
