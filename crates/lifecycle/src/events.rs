//! Events to be recorded together with the change that they tell of.

use api::events::EventTargetType;
use api::ids::{FleetId, InstanceId, JobId, ProjectId, RunId, UserId};
use uuid::Uuid;

/// Something that happened, before it has a time and an identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// What happened, for users.
    pub message: String,
    /// Who did it; unset: the server itself.
    pub actor: Option<UserId>,
    /// What it is about; the first one matters most.
    pub targets: Vec<Target>,
}

/// One thing that an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What it is.
    pub kind: EventTargetType,
    /// Its project.
    pub project_id: Option<ProjectId>,
    /// Its identifier.
    pub id: Uuid,
    /// Its name at that time.
    pub name: String,
    /// The run that it belongs to, so that events within a run are found.
    pub run_id: Option<RunId>,
    /// The fleet that it belongs to, so that events within a fleet are found.
    pub fleet_id: Option<FleetId>,
}

impl NewEvent {
    /// An event that the server itself caused.
    pub fn by_server(message: impl Into<String>, targets: Vec<Target>) -> NewEvent {
        NewEvent { message: clean(&message.into()), actor: None, targets }
    }

    /// An event that a user caused.
    pub fn by_user(actor: UserId, message: impl Into<String>, targets: Vec<Target>) -> NewEvent {
        NewEvent { message: clean(&message.into()), actor: Some(actor), targets }
    }
}

// One line, without the period at the end: the official form.
fn clean(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_suffix('.').unwrap_or(&line).to_owned()
}

impl Target {
    /// A run.
    pub fn run(project_id: ProjectId, id: RunId, name: &str) -> Target {
        Target {
            kind: EventTargetType::Run,
            project_id: Some(project_id),
            id: id.0,
            name: name.to_owned(),
            run_id: Some(id),
            fleet_id: None,
        }
    }

    /// A job.
    pub fn job(project_id: ProjectId, run_id: RunId, id: JobId, name: &str) -> Target {
        Target {
            kind: EventTargetType::Job,
            project_id: Some(project_id),
            id: id.0,
            name: name.to_owned(),
            run_id: Some(run_id),
            fleet_id: None,
        }
    }

    /// A fleet.
    pub fn fleet(project_id: ProjectId, id: FleetId, name: &str) -> Target {
        Target {
            kind: EventTargetType::Fleet,
            project_id: Some(project_id),
            id: id.0,
            name: name.to_owned(),
            run_id: None,
            fleet_id: Some(id),
        }
    }

    /// An instance.
    pub fn instance(project_id: ProjectId, fleet_id: FleetId, id: InstanceId, name: &str) -> Target {
        Target {
            kind: EventTargetType::Instance,
            project_id: Some(project_id),
            id: id.0,
            name: name.to_owned(),
            run_id: None,
            fleet_id: Some(fleet_id),
        }
    }

    /// Something that is not part of a run or fleet.
    pub fn other(kind: EventTargetType, project_id: Option<ProjectId>, id: Uuid, name: &str) -> Target {
        Target { kind, project_id, id, name: name.to_owned(), run_id: None, fleet_id: None }
    }
}

/// `SUBMITTED -> PROVISIONING`, with the reason when there is one: the official wording.
pub(crate) fn status_changed(noun: &str, from: &str, to: &str, reason: Option<(&str, Option<&str>)>) -> String {
    let change = format!("{noun} status changed {} -> {}", from.to_uppercase(), to.to_uppercase());
    match reason {
        None => change,
        Some((reason, None)) => format!("{change}. Termination reason: {}", reason.to_uppercase()),
        Some((reason, Some(message))) => {
            format!("{change}. Termination reason: {} ({message})", reason.to_uppercase())
        }
    }
}
