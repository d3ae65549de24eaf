//! Why a run, a fleet or an instance is as it is: what was tried for it, what was said to that, and what happens next.

use std::collections::HashSet;

use api::ids::{FleetId, InstanceId, ProjectId};
use api::instances::InstanceStatus;
use api::why::{Attempt, AttemptOutcome, ProjectNotes, StoryLine, Why, WhyKind, WhyRequest};
use axum::extract::State;
use jiff::Timestamp;
use lifecycle::fleet::Fleet;
use lifecycle::instance::Instance;
use lifecycle::launch::{Launch, LaunchStatus};
use lifecycle::outlook;
use lifecycle::run::Run;
use store::events::EventFilter;
use store::instances::InstanceFilter;
use store::{fleets, instances, jobs, launches, runs};

use super::auth::ProjectMember;
use super::error::{Error, Result};
use super::extract::Json;
use crate::accounts;
use crate::deps::Deps;

/// Events that are told, the newest.
const MOST_LINES: u32 = 100;

/// Purchases of a fleet that are looked at, the newest.
const MOST_LAUNCHES: u32 = 200;

/// Purchases that are told, the newest.
const MOST_ATTEMPTS: usize = 30;

/// Instances of fleets that are gone which are looked for by name, the newest.
const MOST_INSTANCES: u32 = 1000;

/// Machines of a fleet that are asked what happens to them next.
const MOST_MACHINES: usize = 100;

/// Things that happen next which are told.
const MOST_STEPS: usize = 12;

/// What a name is of.
enum Subject {
    Run(Box<Run>),
    Fleet(Box<Fleet>),
    Instance(Box<Instance>),
}

pub async fn why(
    State(deps): State<Deps>,
    member: ProjectMember,
    Json(request): Json<WhyRequest>,
) -> Result<Json<Why>> {
    let mut found = find(&deps, &member, &request).await?;
    if found.len() > 1 {
        let kinds: Vec<&str> = found.iter().map(|subject| kind_of(subject).as_str()).collect();
        let flags: Vec<String> = kinds.iter().map(|kind| format!("--{kind}")).collect();
        return Err(Error::bad_request(format!(
            "`{}` is the name of a {}. Say which one with {}",
            request.name,
            kinds.join(" and of a "),
            flags.join(" or ")
        )));
    }
    let Some(subject) = found.pop() else {
        let what = request.kind.map_or("run, fleet or instance", WhyKind::as_str);
        return Err(Error::bad_request(format!("There is no {what} `{}` in this project", request.name)));
    };
    let mut answer = match &subject {
        Subject::Run(run) => of_run(&deps, run).await?,
        Subject::Fleet(fleet) => of_fleet(&deps, fleet).await?,
        Subject::Instance(instance) => of_instance(&deps, instance).await?,
    };
    answer.project_name.clone_from(&member.project.name);
    answer.notes = accounts::backend_notes(&deps, &member.project).await?;
    answer.next.sort_by_key(|step| step.at.unwrap_or(Timestamp::MIN));
    answer.next.truncate(MOST_STEPS);
    Ok(Json(answer))
}

pub async fn project_notes(State(deps): State<Deps>, member: ProjectMember) -> Result<Json<ProjectNotes>> {
    Ok(Json(ProjectNotes { notes: accounts::backend_notes(&deps, &member.project).await? }))
}

fn kind_of(subject: &Subject) -> WhyKind {
    match subject {
        Subject::Run(_) => WhyKind::Run,
        Subject::Fleet(_) => WhyKind::Fleet,
        Subject::Instance(_) => WhyKind::Instance,
    }
}

async fn find(deps: &Deps, member: &ProjectMember, request: &WhyRequest) -> Result<Vec<Subject>> {
    let project = member.project.id;
    let wants = |kind| request.kind.is_none_or(|wanted| wanted == kind);
    let mut found = vec![];
    if wants(WhyKind::Run)
        && let Some(row) = runs::get_by_name(&deps.db, project, &request.name).await?
    {
        found.push(Subject::Run(Box::new(row.value)));
    }
    if wants(WhyKind::Fleet)
        && let Some(row) = fleets::get_by_name(&deps.db, project, &request.name).await?
    {
        found.push(Subject::Fleet(Box::new(row.value)));
    }
    if wants(WhyKind::Instance) {
        let instance = find_instance(deps, project, &request.name).await?;
        found.extend(instance.map(|instance| Subject::Instance(Box::new(instance))));
    }
    Ok(found)
}

/// The newest instance of that name: what is terminated leaves its name to its successor.
async fn find_instance(deps: &Deps, project: ProjectId, name: &str) -> Result<Option<Instance>> {
    // It is called by its fleet and its number.
    if let Some((fleet, number)) = name.rsplit_once('-')
        && let Ok(number) = number.parse()
        && let Some(fleet) = fleets::get_by_name(&deps.db, project, fleet).await?
        && let Some(instance) = instances::get_last(&deps.db, fleet.value.id, number).await?
    {
        return Ok(Some(instance.value));
    }
    // Its fleet may be gone.
    let filter = InstanceFilter { projects: vec![project], limit: MOST_INSTANCES, ..InstanceFilter::default() };
    let rows = instances::list(&deps.db, &filter).await?;
    Ok(rows.into_iter().map(|row| row.value).find(|instance| instance.state.name == name))
}

fn empty(kind: WhyKind, name: &str, id: uuid::Uuid, status: &str) -> Why {
    Why {
        kind,
        name: name.to_owned(),
        id,
        project_name: String::new(),
        status: status.to_owned(),
        reason: None,
        next: vec![],
        attempts: vec![],
        story: vec![],
        notes: vec![],
    }
}

async fn of_run(deps: &Deps, run: &Run) -> Result<Why> {
    let mut answer = empty(WhyKind::Run, &run.name, run.id.0, run.status.as_str());
    let state = &run.state;
    let ended = state.termination_reason.map(|reason| reason.as_str().replace('_', " "));
    let cause = state.cause.as_ref().map(|cause| {
        let said = cause.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        format!("node {} ended with {}{said}", cause.job_num, cause.reason.as_str().replace('_', " "))
    });
    answer.reason = cause.or(ended);
    let latest = jobs::list_latest(&deps.db, run.id).await?;
    answer.next = outlook::of_run(run, latest.iter().map(|row| &row.value));
    let machines = instances::list_of_run(&deps.db, run.id).await?;
    let ids: HashSet<InstanceId> = machines.iter().map(|row| row.value.id).collect();
    let of_fleets: HashSet<FleetId> = machines.iter().map(|row| row.value.fleet_id).collect();
    let mut tried = vec![];
    for fleet in of_fleets {
        tried.extend(tried_for(deps, fleet, Some(&ids)).await?);
    }
    tried.sort_by_key(|launch| launch.created_at);
    tell_attempts(&tried, &mut answer);
    let filter = EventFilter { within_runs: Some(vec![run.id.0]), ..EventFilter::default() };
    answer.story = story(deps, filter).await?;
    Ok(answer)
}

async fn of_fleet(deps: &Deps, fleet: &Fleet) -> Result<Why> {
    let mut answer = empty(WhyKind::Fleet, &fleet.name, fleet.id.0, fleet.status.as_str());
    answer.reason.clone_from(&fleet.state.status_message);
    let now = deps.clock.now();
    let rows = instances::list_by_fleet(&deps.db, fleet.id).await?;
    let kept = rows.iter().filter(|row| row.value.is_kept()).count();
    let mut of_machines = vec![];
    for row in rows.iter().filter(|_| !outlook::is_over(fleet)).take(MOST_MACHINES) {
        let launch = launch_of(deps, &row.value).await?;
        of_machines.extend(outlook::of_instance(now, &row.value, launch.as_ref()));
    }
    // The rest is for what concerns all of them.
    of_machines.truncate(MOST_STEPS / 2);
    answer.next = outlook::of_fleet(now, fleet, kept).into_iter().chain(of_machines).collect();
    let tried = tried_for(deps, fleet.id, None).await?;
    tell_attempts(&tried, &mut answer);
    let filter = EventFilter { within_fleets: Some(vec![fleet.id.0]), ..EventFilter::default() };
    answer.story = story(deps, filter).await?;
    Ok(answer)
}

async fn of_instance(deps: &Deps, instance: &Instance) -> Result<Why> {
    let state = &instance.state;
    let mut answer = empty(WhyKind::Instance, &state.name, instance.id.0, instance.status.as_str());
    let reason = state.termination_reason.map(|reason| reason.as_str().replace('_', " "));
    answer.reason = state.termination_message.clone().or(reason);
    if let Some(since) = state.unreachable_since.filter(|_| !instance.status.is_final()) {
        answer.reason =
            Some(format!("its agent has not answered since {}", since.strftime("%Y-%m-%d %H:%M:%S UTC")));
    }
    let launch = launch_of(deps, instance).await?;
    answer.next = outlook::of_instance(deps.clock.now(), instance, launch.as_ref()).into_iter().collect();
    let tried = tried_for(deps, instance.fleet_id, Some(&HashSet::from([instance.id]))).await?;
    tell_attempts(&tried, &mut answer);
    let filter = EventFilter { targets: Some(vec![instance.id.0]), ..EventFilter::default() };
    answer.story = story(deps, filter).await?;
    Ok(answer)
}

async fn launch_of(deps: &Deps, instance: &Instance) -> Result<Option<Launch>> {
    let is_early = matches!(instance.status, InstanceStatus::Pending | InstanceStatus::Provisioning);
    let Some(id) = instance.launch_id.filter(|_| is_early) else { return Ok(None) };
    Ok(launches::get(&deps.db, id).await?.map(|row| row.value))
}

/// The last purchases of a fleet, or those of them that were for some instances.
async fn tried_for(deps: &Deps, fleet: FleetId, only: Option<&HashSet<InstanceId>>) -> Result<Vec<Launch>> {
    let rows = launches::list_last(&deps.db, fleet, MOST_LAUNCHES).await?;
    let is_theirs =
        |launch: &Launch| only.is_none_or(|ids| launch.state.instances.iter().any(|id| ids.contains(id)));
    Ok(rows.into_iter().map(|row| row.value).filter(is_theirs).collect())
}

fn tell_attempts(tried: &[Launch], answer: &mut Why) {
    let first = tried.len().saturating_sub(MOST_ATTEMPTS);
    answer.attempts = tried[first..].iter().map(attempt).collect();
    // They come first, so that nothing else crowds them out.
    answer.next.splice(0..0, outlook::remedies(&tried[first..]));
}

fn attempt(launch: &Launch) -> Attempt {
    let state = &launch.state;
    let error = state.error.as_ref();
    Attempt {
        at: launch.created_at,
        backend: state.backend.clone(),
        instance_type: state.offer.instance.name.clone(),
        region: state.offer.region.clone(),
        zone: state.zone.clone(),
        spot: state.offer.instance.resources.spot,
        price: state.offer.price,
        count: state.count,
        least: state.least,
        outcome: match launch.status {
            LaunchStatus::Wanted | LaunchStatus::Requested => AttemptOutcome::Open,
            LaunchStatus::Done if state.made.is_some_and(|made| made < state.count) => {
                AttemptOutcome::BoughtInPart
            }
            LaunchStatus::Done => AttemptOutcome::Bought,
            LaunchStatus::Failed => AttemptOutcome::Failed,
        },
        made: state.made,
        kind: error.map(|error| error.kind.clone()),
        code: error.and_then(|error| error.code.clone()),
        message: error.map(|error| error.message.clone()),
        next_try_at: launch.next_try_at(),
    }
}

async fn story(deps: &Deps, filter: EventFilter) -> Result<Vec<StoryLine>> {
    let events = store::events::list(&deps.db, &EventFilter { limit: MOST_LINES, ..filter }).await?;
    let line = |event: api::events::Event| StoryLine {
        at: event.recorded_at,
        about: event.targets.iter().map(|target| format!("{} {}", target.r#type, target.name)).collect(),
        actor: event.actor_user,
        message: event.message,
    };
    Ok(events.into_iter().rev().map(line).collect())
}
