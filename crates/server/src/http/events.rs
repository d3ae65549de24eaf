//! Events: what happened, for users.

use api::events::{Event, ListEventsRequest};
use axum::extract::State;
use serde_json::json;
use store::events::{self, EventFilter};
use store::members;
use uuid::Uuid;

use super::auth::AuthUser;
use super::error::{Error, Problem, Result, check_bounds};
use super::extract::{Json, OptionalJson};
use crate::deps::Deps;

/// The most events of an answer, and how many there are unless told.
const MOST_EVENTS: u32 = 100;

/// The most identifiers of a filter.
const MOST_IDS: usize = 16;

/// The events that match and that the user may see: those of their projects, and those about themselves.
pub async fn list(
    State(deps): State<Deps>,
    asking: AuthUser,
    OptionalJson(request): OptionalJson<ListEventsRequest>,
) -> Result<Json<Vec<Event>>> {
    let limit = request.limit.unwrap_or(MOST_EVENTS);
    check_bounds("limit", limit, 1, MOST_EVENTS)?;
    let targets = at_most_one("target_*", &target_filters(&request), &request)?;
    let within = at_most_one("within_*", &within_filters(&request), &request)?;
    let mut filter = EventFilter {
        visible_projects: None,
        visible_users: vec![asking.0.id.0],
        targets: targets.map(|(_, ids)| ids),
        target_kinds: request
            .include_target_types
            .map(|kinds| kinds.iter().map(|kind| kind.as_str().to_owned()).collect()),
        actors: request.actors,
        after: request.prev_recorded_at.map(|time| (time, request.prev_id)),
        ascending: request.ascending,
        limit,
        ..EventFilter::default()
    };
    match within {
        Some(("within_projects", ids)) => filter.within_projects = Some(ids),
        Some(("within_fleets", ids)) => filter.within_fleets = Some(ids),
        Some(("within_runs", ids)) => filter.within_runs = Some(ids),
        // There are no gateways.
        Some(_) => return Ok(Json(vec![])),
        None => {}
    }
    if !asking.is_global_admin() {
        let projects = members::list_of_user(&deps.db, asking.0.id).await?;
        filter.visible_projects = Some(projects.into_iter().map(|(id, _)| id.0).collect());
    }
    Ok(Json(events::list(&deps.db, &filter).await?))
}

type Filter = (&'static str, Option<Vec<Uuid>>);

fn target_filters(request: &ListEventsRequest) -> Vec<Filter> {
    vec![
        ("target_projects", request.target_projects.clone()),
        ("target_users", request.target_users.clone()),
        ("target_fleets", request.target_fleets.clone()),
        ("target_instances", request.target_instances.clone()),
        ("target_runs", request.target_runs.clone()),
        ("target_jobs", request.target_jobs.clone()),
        ("target_volumes", request.target_volumes.clone()),
        ("target_gateways", request.target_gateways.clone()),
        ("target_gateway_replicas", request.target_gateway_replicas.clone()),
        ("target_secrets", request.target_secrets.clone()),
        ("target_presets", request.target_presets.clone()),
    ]
}

fn within_filters(request: &ListEventsRequest) -> Vec<Filter> {
    fn plain<T: Copy>(ids: Option<&Vec<T>>, id: fn(T) -> Uuid) -> Option<Vec<Uuid>> {
        ids.map(|ids| ids.iter().map(|item| id(*item)).collect())
    }
    vec![
        ("within_projects", plain(request.within_projects.as_ref(), |id| id.0)),
        ("within_fleets", plain(request.within_fleets.as_ref(), |id| id.0)),
        ("within_runs", plain(request.within_runs.as_ref(), |id| id.0)),
        ("within_gateways", request.within_gateways.clone()),
    ]
}

/// The only filter of a kind that is set.
fn at_most_one(
    kind: &str,
    filters: &[Filter],
    request: &ListEventsRequest,
) -> Result<Option<(&'static str, Vec<Uuid>)>> {
    let set: Vec<_> = filters.iter().filter_map(|(name, ids)| Some((*name, ids.clone()?))).collect();
    if 1 < set.len() {
        let names: Vec<&str> = set.iter().map(|(name, _)| *name).collect();
        let message = format!("At most one {kind} filter can be set at a time. Got {}", names.join(", "));
        return Err(Error::invalid_value(&[], message, without_nulls(request)));
    }
    let Some((name, ids)) = set.into_iter().next() else { return Ok(None) };
    check_length(name, &ids)?;
    Ok(Some((name, ids)))
}

fn check_length(name: &str, ids: &[Uuid]) -> Result<()> {
    let count = ids.len();
    let (kind, message, context) = match count {
        0 => ("too_short", "at least 1 item after validation, not 0".to_owned(), json!({ "min_length": 1 })),
        1..=MOST_IDS => return Ok(()),
        _ => (
            "too_long",
            format!("at most {MOST_IDS} items after validation, not {count}"),
            json!({ "max_length": MOST_IDS }),
        ),
    };
    Err(Error::invalid_body(&[Problem {
        kind,
        loc: Problem::body(&[name]),
        message: format!("List should have {message}"),
        input: json!(ids),
        context: Some(context),
    }]))
}

// What a client sent, but for what it left unset.
fn without_nulls(request: &ListEventsRequest) -> serde_json::Value {
    let mut value = json!(request);
    if let Some(map) = value.as_object_mut() {
        map.retain(|key, value| !value.is_null() && (key != "ascending" || *value == json!(true)));
    }
    value
}
