//! Moves launches on.

use std::collections::BTreeMap;

use api::ids::{InstanceId, LaunchId};
use backends::{ErrorKind, Machine, MachineState};
use jiff::Timestamp;
use lifecycle::events::Target;
use lifecycle::launch::{Effect, Launch, LaunchError, LaunchStatus, Scope, Seen, Verdict, decide};
use lifecycle::planted::{self, Bug};
use store::leases::{Table, touch};
use store::{Tx, Versioned, fleets, instances, jobs, launches};

use super::{Next, buyer, record};
use crate::backend_answers::Fresh;
use crate::backend_pool::{MOVING, OpenBackend, answer};
use crate::deps::Deps;

/// Moves one launch on.
pub async fn reconcile(deps: &Deps, id: LaunchId) -> store::Result<Next> {
    let Some(loaded) = launches::get(&deps.db, id).await? else { return Ok(None) };
    if loaded.value.status.is_final() {
        return Ok(None);
    }
    let backend = deps.backends.get(&deps.db, loaded.value.backend_id).await?;
    let seen = observe(deps, &loaded.value, backend.as_ref()).await;
    let consistent = backend.as_ref().is_some_and(|open| open.backend.capabilities().consistent_list);
    let decision = decide(deps.clock.now(), &loaded.value, seen, consistent);
    if let (true, Some(open)) = (planted::has(Bug::EffectBeforeRecord) && decision.effect.is_some(), &backend) {
        let _ = open.backend.launch(&order_of(deps, &loaded.value).await?).await;
    }
    let saved = save(deps, loaded, decision.launch).await?;
    if let (Some(Effect::Launch), Some(open)) = (decision.effect, backend) {
        // What was decided may rest on what others wrote, and nothing may have been recorded here.
        deps.db.settle().await?;
        act(deps, &saved, &open).await?;
        // The answer is judged at once.
        return Ok(Some(deps.clock.now()));
    }
    Ok(decision.look_again_at)
}

async fn observe(deps: &Deps, launch: &Launch, backend: Option<&OpenBackend>) -> Seen {
    // What was never heard has made nothing.
    if launch.status == LaunchStatus::Wanted || launch.state.maybe_heard == 0 {
        return Seen::Unknown;
    }
    let Some(open) = backend else { return Seen::Unknown };
    // What was listed before the request says nothing of it.
    let fresh = Fresh { max_age: MOVING, later_than: launch.state.requested_at };
    let Some(machines) = deps.backends.machines(open, fresh).await else {
        return Seen::Unknown;
    };
    if !machines.knows(&launch.state.offer.region) {
        return Seen::Unknown;
    }
    // What was made of a launch that was refused in the end was ended again, and is not what the launch made.
    let is_refused = matches!(launch.state.error, Some(LaunchError { verdict: Verdict::Refused(_), .. }));
    let is_alive = |machine: &Machine| matches!(machine.state, MachineState::Starting | MachineState::Running);
    let counts = |machine: &&Machine| !is_refused || is_alive(machine);
    let of_launch = machines.found.iter().filter(|machine| machine.key.launch_id == launch.id);
    let listed = of_launch.filter(counts).count();
    Seen::Listed(u32::try_from(listed).unwrap_or(u32::MAX))
}

async fn save(deps: &Deps, loaded: Versioned<Launch>, launch: Launch) -> store::Result<Versioned<Launch>> {
    if launch == loaded.value {
        return Ok(loaded);
    }
    let now = deps.clock.now();
    let mut tx = deps.db.begin().await?;
    let mut saved = Versioned { version: loaded.version, value: launch };
    launches::save(&mut tx, &saved).await?;
    saved.version += 1;
    if saved.value.status.is_final() {
        for instance in instances::list_by_launch(&mut tx, saved.value.id).await? {
            touch(&mut tx, Table::Instances, instance.value.id.0, now).await?;
        }
        touch(&mut tx, Table::Fleets, saved.value.fleet_id.0, now).await?;
    }
    tx.commit().await?;
    if saved.value.status.is_final() {
        deps.wake.ring(Table::Instances);
        deps.wake.ring(Table::Fleets);
    }
    Ok(saved)
}

/// Asks the backend, and records what it answered.
async fn act(deps: &Deps, launch: &Versioned<Launch>, open: &OpenBackend) -> store::Result<()> {
    let mut order = order_of(deps, &launch.value).await?;
    let mut answered = launch.clone();
    let prepared = if open.draining && launch.value.state.maybe_heard == 0 {
        // It was let go between the decision to buy and now.
        let message = format!("`{}` is draining: it is no longer in the project's configuration", open.kind);
        Err(backends::Error::new(ErrorKind::InvalidRequest, message))
    } else {
        prepare(deps, &mut answered, open, &mut order).await?
    };
    match prepared {
        Ok(()) => {
            let result = answer(open.backend.launch(&order)).await;
            deps.backends.changed(open.id);
            answered.value.state.hear(result.map_err(|error| told(error, deps.clock.now())));
        }
        Err(error) => answered.value.state.hold_back(told(error, deps.clock.now())),
    }
    let now = deps.clock.now();
    let mut tx = deps.db.begin().await?;
    launches::save(&mut tx, &answered).await?;
    let bought_for = instances::list_by_launch(&mut tx, launch.value.id).await?;
    if let Some(message) = event_of(&answered.value) {
        let mut targets = vec![Target::fleet(launch.value.project_id, launch.value.fleet_id, &order.fleet_name)];
        targets.extend(record::waiting(&mut tx, bought_for.iter().map(|row| row.value.clone()).collect()).await?);
        record::events(deps, &mut tx, &[message], &targets).await?;
    }
    for instance in &bought_for {
        touch(&mut tx, Table::Instances, instance.value.id.0, now).await?;
    }
    // After the instances, as their own reconciler does it, so that nobody waits for each other.
    if answered.value.next_try_at().is_some() {
        tell_first_job(deps, &mut tx, bought_for.first().map(|row| row.value.id)).await?;
    }
    tx.commit().await?;
    deps.wake.ring(Table::Instances);
    deps.wake.ring(Table::Jobs);
    deps.wake.tell_watchers();
    Ok(())
}

/// The first node of a run that waits for machines tells when they are asked for again.
async fn tell_first_job(deps: &Deps, tx: &mut Tx, instance: Option<InstanceId>) -> store::Result<()> {
    let Some(instance) = instance else { return Ok(()) };
    for job in jobs::list_active_by_instance(&mut *tx, instance).await? {
        jobs::touch_first(&mut *tx, job.value.run_id, deps.clock.now()).await?;
    }
    Ok(())
}

/// What users are told of a backend's answer: what was tried where, what the backend said, and what happens next.
fn event_of(launch: &Launch) -> Option<String> {
    let state = &launch.state;
    let error = state.error.as_ref()?;
    let next = match error.verdict {
        // It may say so many times, so that of the later ones fewer and fewer are told.
        Verdict::Later if !state.limited.is_power_of_two() => return None,
        Verdict::Later => later(launch),
        Verdict::Unanswered if state.maybe_heard == 0 => "It was not asked for yet, and is tried again".to_owned(),
        Verdict::Unanswered => "Nobody knows whether it was heard, so the same is asked again".to_owned(),
        Verdict::Refused(_) if state.maybe_heard > 0 => {
            "An earlier request may have been heard, so what that one may have made is waited for".to_owned()
        }
        Verdict::Refused(scope) => format!("Next: {}", next_after(scope)),
    };
    let (count, name, price) = (state.count, &state.offer.instance.name, state.offer.price);
    let spot = if state.offer.instance.resources.spot { " (spot)" } else { "" };
    let code = error.code.as_ref().map(|code| format!("{code}: ")).unwrap_or_default();
    let said: String = error.message.chars().take(MOST_SAID).collect();
    let said = said.trim_end_matches('.');
    let (backend, place) = (&state.backend, state.place());
    Some(format!(
        "Launching {count} × {name}{spot} on {backend} in {place} for ${price} failed: {code}{said}. {next}"
    ))
}

/// What is told where a backend says to ask later: how often it has said so, and when it is asked again.
fn later(launch: &Launch) -> String {
    let state = &launch.state;
    let since = state.limited_since.map(|at| at.strftime("%H:%M:%S UTC").to_string()).unwrap_or_default();
    let so_far = if state.limited > 1 {
        format!("So it said {} times since {since}. ", state.limited)
    } else {
        String::new()
    };
    match launch.next_try_at() {
        Some(at) => format!("{so_far}It is asked again at {}, with growing pauses", at.strftime("%H:%M:%S UTC")),
        None => format!("{so_far}It is asked again later"),
    }
}

/// Earlier launches of a fleet from which a backend may take what it found out: a fleet may have machines of several
/// kinds in several regions.
const MOST_REMEMBERED: u32 = 20;

/// How much of what a backend said goes into an event, in characters.
const MOST_SAID: usize = 500;

fn next_after(scope: Scope) -> &'static str {
    match scope {
        Scope::Zone => "the other zones, then other offers",
        Scope::Network => "the other zones; this one has no addresses left",
        Scope::Reservation => "other regions; the reservation is used up",
        Scope::Region => "other types and regions; a quota must be raised for more of this one here",
        Scope::WholeRegion => "other regions; nothing can be bought in this one as it is",
        Scope::Launch => "the same once more, as another purchase",
        Scope::Offer => "other offers; this one can never be had like this",
        Scope::Backend => "other backends; this one refuses everything",
    }
}

fn told(error: backends::Error, at: Timestamp) -> LaunchError {
    LaunchError {
        kind: error.kind.as_str().to_owned(),
        verdict: verdict(error.kind),
        code: error.code,
        message: error.message,
        zones_with_capacity: error.zones_with_capacity,
        at: Some(at),
    }
}

fn verdict(kind: ErrorKind) -> Verdict {
    let refused = |scope| Verdict::Refused(scope);
    match kind.scope() {
        backends::Scope::Zone => refused(Scope::Zone),
        backends::Scope::Network => refused(Scope::Network),
        backends::Scope::Reservation => refused(Scope::Reservation),
        backends::Scope::Region => refused(Scope::Region),
        backends::Scope::WholeRegion => refused(Scope::WholeRegion),
        backends::Scope::Launch => refused(Scope::Launch),
        backends::Scope::Offer => refused(Scope::Offer),
        backends::Scope::Backend => refused(Scope::Backend),
        backends::Scope::Nothing if kind == ErrorKind::RateLimited => Verdict::Later,
        backends::Scope::Nothing => Verdict::Unanswered,
    }
}

/// Finds out what exactly is asked for, and records it before it is: the same token must never come with another
/// request. What is recorded as well is that the request goes out now.
async fn prepare(
    deps: &Deps,
    launch: &mut Versioned<Launch>,
    open: &OpenBackend,
    order: &mut backends::LaunchOrder,
) -> store::Result<backends::Result<()>> {
    if launch.value.state.prepared.is_none() {
        order.prepared = match answer(open.backend.prepare(order)).await {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        // A backend that has nothing to find out has nothing to keep.
        launch.value.state.prepared = Some(order.prepared.clone()).filter(|prepared| !prepared.is_null());
    }
    launch.value.state.ask();
    launches::save(&deps.db, launch).await?;
    launch.version += 1;
    deps.db.settle().await?;
    Ok(Ok(()))
}

async fn order_of(deps: &Deps, launch: &Launch) -> store::Result<backends::LaunchOrder> {
    let fleet = fleets::get(&deps.db, launch.fleet_id).await?;
    let project = store::projects::get(&deps.db, launch.project_id).await?;
    let before = launches::list_done(&deps.db, launch.fleet_id, launch.backend_id, MOST_REMEMBERED).await?;
    let buyer = buyer::of_launch(deps, launch, fleet.as_ref().map(|fleet| &fleet.value)).await?;
    let state = &launch.state;
    Ok(backends::LaunchOrder {
        launch_id: launch.id,
        fleet_id: launch.fleet_id,
        authorized_keys: project.iter().map(|project| project.ssh_public_key.clone()).collect(),
        prepared: state.prepared.clone().unwrap_or_default(),
        fleet_prepared: before.into_iter().filter_map(|before| before.value.state.prepared).collect(),
        fleet_name: fleet.map(|fleet| fleet.value.name).unwrap_or_default(),
        project_name: project.map(|project| project.name.clone()).unwrap_or_default(),
        name: buyer.name,
        user_name: buyer.user_name,
        tags: buyer.tags,
        offer: backends::BackendOffer {
            instance_type: state.offer.instance.clone(),
            region: state.offer.region.clone(),
            zones: state.offer.availability_zones.clone(),
            price_usd_per_hour: state.offer.price,
            availability: state.offer.availability,
            unavailable_because: None,
            available_from: None,
            zone_prices: BTreeMap::new(),
            most_disk_mib: None,
            backend_data: state.offer.backend_data.clone(),
        },
        zone: state.zone.clone(),
        count: state.count,
        least: state.least,
        cluster: state.cluster,
    })
}
