//! What would become of a fleet, and making it so.

use api::configurations::Blocks;
use api::fleets::{
    ApplyFleetPlanRequest, Fleet as WireFleet, FleetPlan, FleetSpec, FleetStatus, GetFleetPlanRequest,
};
use api::ids::{FleetId, InstanceId};
use api::runs::ApplyAction;
use axum::extract::State;
use lifecycle::events::{NewEvent, Target};
use lifecycle::fleet::{Fleet, FleetState};
use lifecycle::placement::is_cluster;
use store::{Hold, Tx, Versioned, fleets, instances};

use super::auth::{Access, ProjectMember};
use super::error::{Error, Result};
use super::extract::Json;
use super::fleet_hosts;
use super::fleet_views::without_keys;
use super::fleets::{ring, view_of};
use super::scope::{cannot_update, changed_keys, hold_project};
use crate::backend_pool::ANSWER_TIMEOUT;
use crate::deps::Deps;
use crate::market::fleet_requirements;
use crate::offers::{self, OffersQuery};
use crate::own_hosts::{self, WantedHost};
use crate::reconcile::fleet::{free_numbers, new_instance};
use crate::{accounts, names};

/// The most offers of a plan.
const MOST_OFFERS: usize = 50;

/// The most instances that a fleet has from the beginning or keeps up.
const MOST_NODES: u32 = 10_000;

/// The most blocks that an instance is split into.
const MOST_BLOCKS: u32 = 1024;

/// The keys of a fleet that may be changed while it lives.
const UPDATABLE_SPEC: &[&str] = &["configuration", "configuration_path"];
const UPDATABLE_CONFIGURATION: &[&str] = &[
    "nodes",
    "reservation",
    "tags",
    "resources",
    "backends",
    "regions",
    "availability_zones",
    "instance_types",
    "spot_policy",
    "max_price",
];

const CHANGED: &str = "Failed to apply plan. Resource has been changed. Try again or use force apply.";

pub async fn get_plan(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<GetFleetPlanRequest>,
) -> Result<Json<FleetPlan>> {
    let spec = request.spec;
    check(&spec)?;
    fleet_hosts::check_rights(&deps, &member, &spec)?;
    let current = find(&deps, &member, &spec).await?;
    let action = match &current {
        Some(row) if refusal(&row.value.spec, &spec)?.is_none() => ApplyAction::Update,
        Some(_) | None => ApplyAction::Create,
    };
    let mut offers = offers_for(&deps, &member, &spec, current.as_ref()).await?;
    let total_offers = u32::try_from(offers.len()).unwrap_or(u32::MAX);
    let max_offer_price = offers.iter().map(|offer| offer.price).max_by(f64::total_cmp);
    offers.truncate(MOST_OFFERS);
    let current_resource = match &current {
        Some(row) => Some(view_of(&deps, row, &member.project.name).await?),
        None => None,
    };
    Ok(Json(FleetPlan {
        project_name: member.project.name.clone(),
        user: member.user.name.clone(),
        effective_spec: Some(without_keys(spec.clone())),
        spec,
        current_resource,
        offers,
        total_offers,
        max_offer_price,
        action,
    }))
}

/// What the fleet could be made of.
async fn offers_for(
    deps: &Deps,
    access: &Access,
    spec: &FleetSpec,
    current: Option<&Versioned<Fleet>>,
) -> Result<Vec<api::instances::Offer>> {
    let configuration = &spec.configuration;
    if configuration.ssh_config.is_some() {
        return Ok(vec![]);
    }
    let profile = configuration.merged_profile(Some(&spec.profile));
    let home = current.and_then(|row| row.value.state.home.as_ref());
    let has = match current {
        Some(row) => {
            let there = store::instances::list_by_fleet(&deps.db, row.value.id).await?;
            u32::try_from(there.iter().filter(|row| row.value.has_purchase()).count()).unwrap_or(u32::MAX)
        }
        None => 0,
    };
    let query = OffersQuery {
        least: configuration.nodes.map_or(1, |nodes| nodes.min.saturating_sub(has)),
        most: configuration.nodes.map_or(1, |nodes| nodes.max.unwrap_or(nodes.target)),
        requirements: &fleet_requirements(configuration, &profile),
        profile: &profile,
        cluster: is_cluster(configuration.placement),
        user_is_admin: access.is_global_admin(),
        home,
        blocks: configuration.blocks,
        patience: ANSWER_TIMEOUT,
    };
    let opened = deps.backends.of_project(&deps.db, access.project.id).await?;
    let mut offers = offers::collect(deps, &opened, &query).await.offers();
    if let Some(only_type) = home.and_then(|home| home.instance_type.as_ref()) {
        offers.retain(|offer| offer.instance.name == *only_type);
    }
    Ok(offers)
}

pub async fn apply(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<ApplyFleetPlanRequest>,
) -> Result<Json<WireFleet>> {
    let hosts = check(&request.plan.spec)?;
    fleet_hosts::check_rights(&deps, &member, &request.plan.spec)?;
    // The instances have the keys, sealed.
    let spec = FleetSpec { autocreated: false, ..without_keys(request.plan.spec) };
    let mut tx = deps.db.begin().await?;
    hold_project(&mut tx, &member, Hold::Together).await?;
    let current = match &spec.configuration.name {
        Some(name) => fleets::get_by_name(&mut tx, member.project.id, name).await?,
        None => None,
    };
    let (id, rekeyed) = match current {
        Some(row) => {
            if !request.force {
                check_unchanged(&row.value, request.plan.current_resource.as_ref())?;
            }
            update(&deps, &mut tx, &member, row, spec, &hosts).await?
        }
        None => create(&deps, &mut tx, &member, spec, &hosts).await?,
    };
    tx.commit().await?;
    for instance in rekeyed {
        // What is tried with the old keys is tried anew.
        deps.agents.drop_connection(instance);
    }
    ring(&deps);
    let row = fleets::get(&deps.db, id).await?.ok_or_else(Error::resource_not_found)?;
    view_of(&deps, &row, &member.project.name).await.map(Json)
}

/// Refuses what is wrong with a spec, and what this server does not have. Gives the machines that it names.
fn check(spec: &FleetSpec) -> Result<Vec<WantedHost>> {
    spec.configuration.check_submission().map_err(Error::bad_request)?;
    // The target is not less than the least.
    if spec.configuration.nodes.is_some_and(|nodes| MOST_NODES < nodes.target) {
        return Err(Error::bad_request(format!("`nodes` of a fleet cannot start with more than {MOST_NODES}")));
    }
    if matches!(spec.configuration.blocks, Blocks::Count(count) if MOST_BLOCKS < count) {
        return Err(Error::bad_request(format!("`blocks` cannot be more than {MOST_BLOCKS}")));
    }
    if spec.configuration.backend_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(Error::bad_request(
            "`backend_options` is not supported by this server: it has no such backend",
        ));
    }
    own_hosts::wanted(&spec.configuration).map_err(Error::bad_request)
}

async fn find(deps: &Deps, access: &Access, spec: &FleetSpec) -> Result<Option<Versioned<Fleet>>> {
    match &spec.configuration.name {
        Some(name) => Ok(fleets::get_by_name(&deps.db, access.project.id, name).await?),
        None => Ok(None),
    }
}

/// Checks that the fleet is what the plan saw. Clients drop keys that they do not know, so values are compared.
fn check_unchanged(fleet: &Fleet, seen: Option<&WireFleet>) -> Result<()> {
    let expected = without_keys(fleet.spec.clone());
    let is_unchanged = seen.is_some_and(|seen| {
        let seen_spec = FleetSpec { autocreated: expected.autocreated, ..without_keys(seen.spec.clone()) };
        seen.id == fleet.id && seen_spec == expected
    });
    if is_unchanged { Ok(()) } else { Err(Error::bad_request(CHANGED)) }
}

/// Why a fleet cannot be changed in place, if it cannot.
fn refusal(current: &FleetSpec, wanted: &FleetSpec) -> Result<Option<String>> {
    let wanted = FleetSpec { autocreated: current.autocreated, ..without_keys(wanted.clone()) };
    let of_hosts = [&current.configuration, &wanted.configuration].iter().all(|it| it.ssh_config.is_some());
    let updatable = if of_hosts { fleet_hosts::UPDATABLE } else { UPDATABLE_CONFIGURATION };
    for (changed, updatable) in [
        (changed_keys(current, &wanted)?, UPDATABLE_SPEC),
        (changed_keys(&current.configuration, &wanted.configuration)?, updatable),
    ] {
        if changed.iter().any(|key| !updatable.contains(&key.as_str())) {
            return Ok(Some(cannot_update(&changed, updatable)));
        }
    }
    Ok(None)
}

async fn update(
    deps: &Deps,
    tx: &mut Tx,
    access: &Access,
    mut row: Versioned<Fleet>,
    spec: FleetSpec,
    hosts: &[WantedHost],
) -> Result<(FleetId, Vec<InstanceId>)> {
    let fleet = &mut row.value;
    if !fleet.wanted {
        return Err(Error::bad_request(format!(
            "Fleet {} is being deleted. Try again when it is gone.",
            fleet.name
        )));
    }
    if let Some(message) = refusal(&fleet.spec, &spec)? {
        return Err(Error::bad_request(message));
    }
    let changed = changed_keys(&fleet.spec.configuration, &spec.configuration)?;
    let path_changed = fleet.spec.configuration_path != spec.configuration_path;
    if changed.is_empty() && !path_changed {
        return Ok((fleet.id, fleet_hosts::update(deps, tx, access, fleet, hosts).await?));
    }
    fleet.spec = FleetSpec { autocreated: fleet.spec.autocreated, ..spec };
    // What it buys from now on is bought by whoever made it and by whoever changed it.
    fleet.state.user_is_admin &= access.is_global_admin();
    // What was not to be had before may be now.
    fleet.state.failures = 0;
    fleet.state.not_before = None;
    fleets::set_spec(&mut *tx, &row, deps.clock.now()).await.map_err(|error| match error {
        store::Error::Stale => Error::bad_request(CHANGED),
        other => Error::from(other),
    })?;
    let fleet = &row.value;
    if !changed.is_empty() {
        let message = format!("Fleet updated. Changed fields: {}", changed.join(", "));
        let target = Target::fleet(fleet.project_id, fleet.id, &fleet.name);
        accounts::record(deps, tx, &NewEvent::by_user(access.user.id, message, vec![target])).await?;
    }
    Ok((fleet.id, fleet_hosts::update(deps, tx, access, fleet, hosts).await?))
}

async fn create(
    deps: &Deps,
    tx: &mut Tx,
    access: &Access,
    mut spec: FleetSpec,
    hosts: &[WantedHost],
) -> Result<(FleetId, Vec<InstanceId>)> {
    let name = match &spec.configuration.name {
        Some(name) => name.clone(),
        None => free_name(deps, tx, access).await?,
    };
    spec.configuration.name = Some(name.clone());
    let now = deps.clock.now();
    let fleet = Fleet {
        id: deps.ids.id(),
        project_id: access.project.id,
        user_id: access.user.id,
        name,
        created_at: now,
        status: FleetStatus::Active,
        wanted: true,
        spec,
        state: FleetState { user_is_admin: access.is_global_admin(), ..FleetState::default() },
    };
    fleets::insert(&mut *tx, &fleet, now).await.map_err(|error| match error {
        // Somebody was faster: the plan is about nothing, and there is something.
        store::Error::Taken(_) => Error::bad_request(CHANGED),
        other => Error::from(other),
    })?;
    let target = Target::fleet(fleet.project_id, fleet.id, &fleet.name);
    let event = NewEvent::by_user(access.user.id, "Fleet created. Status: ACTIVE", vec![target]);
    accounts::record(deps, tx, &event).await?;
    let target_count = fleet.spec.configuration.nodes.map_or(0, |nodes| nodes.target);
    for number in free_numbers([]).take(target_count as usize) {
        let instance = new_instance(deps, &fleet, number);
        instances::insert(&mut *tx, &instance, now).await?;
        let target = Target::instance(instance.project_id, instance.fleet_id, instance.id, &instance.state.name);
        let event = NewEvent::by_server("Instance created on fleet submission. Status: PENDING", vec![target]);
        accounts::record(deps, tx, &event).await?;
    }
    Ok((fleet.id, fleet_hosts::update(deps, tx, access, &fleet, hosts).await?))
}

/// A name that no fleet of the project has.
async fn free_name(deps: &Deps, tx: &mut Tx, access: &Access) -> Result<String> {
    loop {
        let name = names::random(&deps.ids);
        if fleets::get_by_name(&mut *tx, access.project.id, &name).await?.is_none() {
            return Ok(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(keys: &serde_json::Value) -> FleetSpec {
        let mut configuration = json!({ "type": "fleet", "name": "tpl", "nodes": "0..2" });
        configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        serde_json::from_value(json!({ "configuration": configuration, "profile": {} })).unwrap()
    }

    #[track_caller]
    fn check_refusal(keys: &serde_json::Value, expected: Option<&str>) {
        let refused = refusal(&spec(&json!({})), &spec(keys)).unwrap();
        assert_eq!(refused.as_deref().and_then(|text| text.split(". ").next()), expected);
    }

    #[test]
    fn only_some_keys_change_in_place() {
        check_refusal(&json!({}), None);
        check_refusal(&json!({ "nodes": "0..3", "max_price": 2 }), None);
        check_refusal(&json!({ "placement": "cluster" }), Some("Failed to update fields ['placement']"));
        check_refusal(&json!({ "blocks": 2, "nodes": 1 }), Some("Failed to update fields ['blocks', 'nodes']"));
    }

    #[track_caller]
    fn check_spec(keys: &serde_json::Value, expected: &str) {
        let error = check(&spec(keys)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let hosts = |ssh: serde_json::Value| json!({ "nodes": null, "ssh_config": ssh });
        check_spec(&hosts(json!({ "hosts": ["a"], "user": "u" })), "no private key for a: `identity_file`");
        check_spec(&hosts(json!({ "hosts": ["a"] })), "`user` is needed for the host a");
        let key = json!({ "public": "", "private": "ssh-ed25519 AAAA" });
        check_spec(&hosts(json!({ "hosts": ["a"], "user": "u", "ssh_key": key })), "the key for a");
        check_spec(&json!({ "nodes": null }), "No ssh_config or nodes specified");
        check_spec(&json!({ "name": "A b" }), "Resource name should match regex");
        check_spec(&json!({ "env": ["A=1"] }), "['env']");
        check_spec(&json!({ "nodes": "10001.." }), "`nodes` of a fleet cannot start with more than 10000");
        check_spec(&json!({ "nodes": { "target": 4_000_000_000_u32 } }), "cannot start with more than 10000");
        check_spec(&json!({ "blocks": 4_000_000_000_u32 }), "`blocks` cannot be more than 1024");
    }
}
