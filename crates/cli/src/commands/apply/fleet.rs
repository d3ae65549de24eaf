//! Applying a fleet.

use std::time::Duration;

use api::client::endpoints;
use api::configurations::FleetConfiguration;
use api::fleets::{
    ApplyFleetPlanInput, ApplyFleetPlanRequest, DeleteFleetsRequest, Fleet, FleetPlan, FleetSpec,
    GetFleetPlanRequest, GetFleetRequest,
};
use api::instances::{Instance, InstanceStatus, JoinProgress};
use api::runs::ApplyAction;

use super::USE_FORCE;
use super::configure::complete_env;
use super::identities;
use super::progress::{Progress, Step, plain_line};
use super::source::Source;
use crate::args::ApplyArgs;
use crate::commands::{agreed, delete};
use crate::output::runs::Times;
use crate::output::{fleets, format, offers, plans};
use crate::printer::SECONDARY;
use crate::session::{Project, Session};
use crate::{Outcome, profiles};

/// Offers of a plan that are shown.
const SHOWN_OFFERS: usize = 3;

/// How often a fleet that is being made is looked at, at most and at least. A machine may be joined within a second; but
/// a look at a fleet costs the server by the number of its instances.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_INTERVAL: Duration = Duration::from_millis(500);
const INTERVAL_PER_INSTANCE: Duration = Duration::from_millis(2);

pub(super) async fn apply(
    session: &mut Session,
    args: &ApplyArgs,
    mut configuration: FleetConfiguration,
    path: String,
    source: &Source,
) -> anyhow::Result<Option<(Project, Fleet)>> {
    if let Some(name) = &args.name {
        configuration.name = Some(name.clone());
    }
    complete_env(session, &args.env, &mut configuration.env)?;
    if let Some(ssh) = &mut configuration.ssh_config {
        identities::read_keys(session, source, ssh)?;
    }
    let project = session.project(args.project.project.as_deref())?;
    let profile = profiles::load(session, None, false)?;
    let spec = FleetSpec { configuration, configuration_path: Some(path), profile, autocreated: false };
    let request = GetFleetPlanRequest { spec };
    let plan = project.client.call(&endpoints::GET_FLEET_PLAN, &project.name, &request).await?;
    print_plan(session, &plan)?;
    let Some(decision) = decide(session, args, &plan)? else { return Ok(None) };
    if !agreed(session, args.yes, decision.question).await? {
        return Ok(None);
    }
    if let (true, Some(current)) = (decision.delete_first, &plan.current_resource) {
        let _progress = Progress::of(&mut session.printer, "Deleting existing fleet...")?;
        delete::delete_fleet(&project, &current.name).await?;
    }
    let input = ApplyFleetPlanInput { spec: plan.spec, current_resource: plan.current_resource };
    let request = ApplyFleetPlanRequest { plan: input, force: false };
    let fleet = project.client.call(&endpoints::APPLY_FLEET, &project.name, &request).await?;
    if args.detach {
        session.printer.line("Fleet configuration submitted. Exiting...")?;
        return Ok(None);
    }
    Ok(Some((project, fleet)))
}

fn print_plan(session: &mut Session, plan: &FleetPlan) -> anyhow::Result<()> {
    let printer = &mut session.printer;
    printer.table(&plans::fleet_properties(plan))?;
    printer.blank()?;
    let is_ssh = plan.spec.configuration.ssh_config.is_some();
    if plan.offers.is_empty() && is_ssh {
        // Machines that are there already are offered by nobody.
        return Ok(());
    }
    if plan.offers.is_empty() {
        printer.warning(offers::NO_OFFERS)?;
    } else {
        let shown = &plan.offers[..plan.offers.len().min(SHOWN_OFFERS)];
        printer.table(&offers::fleet_table(shown, plan.total_offers))?;
        for reason in offers::reasons(shown) {
            printer.styled_line(&format!(" {reason}"), SECONDARY)?;
        }
        if shown.len() < plan.total_offers as usize {
            let max =
                plan.max_offer_price.map(|price| format!(", {} max", format::price(price))).unwrap_or_default();
            printer.line(format!(" Shown {} of {} offers{max}", shown.len(), plan.total_offers))?;
        }
    }
    printer.blank()?;
    Ok(())
}

/// What is asked, and what yes means.
struct Decision {
    question: &'static str,
    delete_first: bool,
}

/// Says what stands in the way. None: nothing is to be done.
fn decide(session: &mut Session, args: &ApplyArgs, plan: &FleetPlan) -> anyhow::Result<Option<Decision>> {
    let printer = &mut session.printer;
    let spec = plan.effective_spec.as_ref().unwrap_or(&plan.spec);
    let Some(current) = &plan.current_resource else {
        let name = spec.configuration.name.as_deref();
        match name {
            Some(name) => printer.line(format!("Fleet {name} does not exist yet."))?,
            None => printer.line("The fleet does not exist yet.")?,
        }
        return Ok(Some(Decision { question: "Create the fleet?", delete_first: false }));
    };
    // Who made the fleet is not part of what is wanted.
    let changes = plans::changes(&FleetSpec { autocreated: spec.autocreated, ..current.spec.clone() }, spec);
    let lost = lost_hosts(current);
    if changes.is_empty() && lost != 0 && plan.action == ApplyAction::Update && !args.force {
        let hosts = if lost == 1 { "1 host is".to_owned() } else { format!("{lost} hosts are") };
        printer.line(format!(
            "Found fleet {}. No configuration changes detected, but {hosts} missing.",
            current.name
        ))?;
        return Ok(Some(Decision { question: "Try again to join what is missing?", delete_first: false }));
    }
    if changes.is_empty() {
        if args.yes && !args.force {
            printer.line(format!("No configuration changes detected. {USE_FORCE}"))?;
            return Ok(None);
        }
        printer.line(format!("Found fleet {}. No configuration changes detected.", current.name))?;
        return Ok(Some(Decision { question: "Re-create the fleet?", delete_first: true }));
    }
    let is_update = plan.action == ApplyAction::Update;
    let how = if is_update { "can" } else { "cannot" };
    printer.line(format!("Found fleet {}. Detected changes that {how} be updated in-place:", current.name))?;
    for change in changes {
        printer.line(change)?;
    }
    printer.blank()?;
    let question = if is_update { "Update the fleet in-place?" } else { "Re-create the fleet?" };
    Ok(Some(Decision { question, delete_first: !is_update }))
}

/// How many of the hosts that a fleet names could not be joined, and are in nobody's hands.
fn lost_hosts(fleet: &Fleet) -> usize {
    let Some(ssh) = &fleet.spec.configuration.ssh_config else { return 0 };
    let kept = fleet.instances.iter().filter(|instance| is_active(instance.status));
    ssh.hosts.len().saturating_sub(kept.count())
}

/// Waits until no instance is on its way, and shows what became of them.
pub(super) async fn follow(
    session: &mut Session,
    project: &Project,
    args: &ApplyArgs,
    mut fleet: Fleet,
) -> anyhow::Result<Outcome> {
    let interrupts = session.interrupts.clone();
    let mut progress = Progress::default();
    let is_followed = fleet.instances.iter().any(|instance| is_on_its_way(instance.status));
    while fleet.instances.iter().any(|instance| is_on_its_way(instance.status)) {
        progress.show(&mut session.printer, &steps(&fleet))?;
        let seen = tokio::select! {
            biased;
            () = interrupts.next() => None,
            seen = look_again(project, &fleet) => Some(seen?),
        };
        let Some(seen) = seen else {
            progress.clear();
            return leave(session, project, args, &fleet.name).await;
        };
        fleet = seen;
    }
    if is_followed {
        progress.show(&mut session.printer, &steps(&fleet))?;
    }
    progress.clear();
    let has_ended = |instance: &Instance| instance.status == InstanceStatus::Terminated;
    let has_failed = fleet.instances.iter().any(has_ended);
    let times = Times::At(session.zone.clone());
    session.printer.table(&fleets::table(std::slice::from_ref(&fleet), has_failed || args.verbose, &times))?;
    if has_failed {
        session.printer.blank()?;
        if fleet.spec.configuration.ssh_config.is_some() {
            // The table does not say which machine is which.
            for (step, _) in steps(&fleet).iter().zip(&fleet.instances).filter(|(_, instance)| has_ended(instance))
            {
                session.printer.line(plain_line(step))?;
            }
            session.printer.blank()?;
        }
        session.printer.error(if is_retried(&fleet) {
            "Some instances failed. Provisioning will be retried in the background."
        } else {
            "Some instances failed. Check the table above for errors."
        })?;
        return Ok(Outcome::Failed);
    }
    Ok(Outcome::Done)
}

async fn look_again(project: &Project, fleet: &Fleet) -> anyhow::Result<Fleet> {
    let instances = u32::try_from(fleet.instances.len()).unwrap_or(u32::MAX);
    let interval = INTERVAL_PER_INSTANCE.saturating_mul(instances).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
    tokio::time::sleep(interval).await;
    let request = GetFleetRequest { name: Some(fleet.name.clone()), id: None };
    Ok(project.client.call(&endpoints::GET_FLEET, &project.name, &request).await?)
}

/// Whether the fleet still owes instances, which its server goes on to provide.
fn is_retried(fleet: &Fleet) -> bool {
    let active = fleet.instances.iter().filter(|instance| is_active(instance.status)).count();
    fleet.spec.configuration.nodes.as_ref().is_some_and(|nodes| active < nodes.min as usize)
}

fn is_active(status: InstanceStatus) -> bool {
    match status {
        InstanceStatus::Pending | InstanceStatus::Provisioning | InstanceStatus::Idle | InstanceStatus::Busy => {
            true
        }
        InstanceStatus::Terminating | InstanceStatus::Terminated => false,
    }
}

async fn leave(session: &mut Session, project: &Project, args: &ApplyArgs, name: &str) -> anyhow::Result<Outcome> {
    if !args.yes {
        let interrupts = session.interrupts.clone();
        let is_deleted = tokio::select! {
            biased;
            () = interrupts.next() => None,
            is_deleted = delete_if_wanted(session, project, name) => Some(is_deleted?),
        };
        match is_deleted {
            None => {
                session.printer.line("\nCancelled by user")?;
                return Ok(Outcome::Failed);
            }
            Some(true) => return Ok(Outcome::Done),
            Some(false) => {}
        }
    }
    session.printer.line("Exiting... Fleet provisioning will continue in the background.")?;
    Ok(Outcome::Done)
}

/// Asks whether the fleet is to be deleted, and does so. Whoever cannot be asked keeps what there is.
async fn delete_if_wanted(session: &mut Session, project: &Project, name: &str) -> anyhow::Result<bool> {
    let is_wanted = session.printer.ask("Delete the fleet before exiting?").await?.unwrap_or(false);
    if is_wanted {
        let _progress = Progress::of(&mut session.printer, "Deleting fleet...")?;
        let request = DeleteFleetsRequest { names: vec![name.to_owned()] };
        project.client.call(&endpoints::DELETE_FLEETS, &project.name, &request).await?;
    }
    Ok(is_wanted)
}

fn is_on_its_way(status: InstanceStatus) -> bool {
    match status {
        InstanceStatus::Pending | InstanceStatus::Provisioning | InstanceStatus::Terminating => true,
        InstanceStatus::Idle | InstanceStatus::Busy | InstanceStatus::Terminated => false,
    }
}

/// What each instance is doing.
fn steps(fleet: &Fleet) -> Vec<Step> {
    let is_ssh = fleet.spec.configuration.ssh_config.is_some();
    let host = |instance: &Instance| instance.hostname.clone().filter(|_| is_ssh).unwrap_or_default();
    let width = fleet.instances.iter().map(|instance| host(instance).chars().count()).max().unwrap_or_default();
    let step = |instance: &Instance| Step {
        node: instance.instance_num.to_string(),
        host: format!("{:width$}", host(instance)),
        doing: doing(instance),
        detail: String::new(),
    };
    fleet.instances.iter().map(step).collect()
}

fn doing(instance: &Instance) -> String {
    match (&instance.progress, instance.status) {
        (Some(JoinProgress { step, message }), InstanceStatus::Pending | InstanceStatus::Provisioning) => {
            let why = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
            return format!("{}{why}", step.as_str());
        }
        (_, InstanceStatus::Terminated) => {
            return format!("{}: {}", instance.status.as_str(), fleets::instance_error(instance));
        }
        _ => {}
    }
    let mut doing = fleets::instance_status(instance);
    let bought = instance.backend.filter(|_| !fleets::is_over_ssh(instance));
    if let (Some(kind), Some(backend)) = (&instance.instance_type, bought) {
        let region = instance.region.as_deref().unwrap_or_default();
        let place = format::place(backend, region, instance.availability_zone.as_deref());
        doing.push_str(&format::on(&kind.name, &place));
    }
    // What the backend said last says more than where it is asked.
    if let (Some(said), true) = (&instance.purchase, is_on_its_way(instance.status)) {
        doing.push_str(&format!(": {said}"));
    }
    doing
}
