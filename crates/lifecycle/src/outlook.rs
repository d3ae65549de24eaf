//! What happens next, in words for people: the decisions of the other modules, told before they are due.

use api::fleets::FleetStatus;
use api::instances::InstanceStatus;
use api::runs::RunStatus;
use api::why::NextStep;
use jiff::Timestamp;

use crate::fleet::Fleet;
use crate::instance::Instance;
use crate::job::Job;
use crate::launch::{Launch, LaunchStatus, Scope, Verdict};
use crate::run::Run;

fn step(at: Option<Timestamp>, what: impl Into<String>) -> NextStep {
    NextStep { at, what: what.into() }
}

/// What happens next to a run, whose latest jobs these are.
pub fn of_run<'a>(run: &Run, jobs: impl IntoIterator<Item = &'a Job>) -> Vec<NextStep> {
    let mut steps = vec![];
    if let Some(retry) = run.state.retry.filter(|_| run.status == RunStatus::Pending) {
        let what = if retry.for_capacity {
            "machines are bought for it again; what falls free before serves it too"
        } else {
            "its jobs are submitted again"
        };
        steps.push(step(Some(retry.not_before), what));
        steps.push(step(Some(retry.until), "it fails unless it has machines by then (`retry`)"));
    }
    for job in jobs.into_iter().filter(|job| !job.status.is_finished()) {
        let name = &job.spec.job_name;
        if let Some(refused) = &job.state.refused {
            steps.push(step(None, format!("the order to {name} is repeated: {}", refused.message)));
        } else if let Some(waiting_for) = &job.state.waiting_for {
            steps.push(step(None, format!("{name} waits for {waiting_for}")));
        } else if job.instance_id.is_none() && run.status == RunStatus::Submitted {
            steps.push(step(None, format!("{name} is given a free machine, or a fleet buys one")));
        }
    }
    steps
}

/// Whether nothing happens to a fleet any more.
pub fn is_over(fleet: &Fleet) -> bool {
    matches!(fleet.status, FleetStatus::Terminated | FleetStatus::Failed)
}

/// What happens next to a fleet as a whole, which has so many machines that it keeps.
pub fn of_fleet(now: Timestamp, fleet: &Fleet, kept: usize) -> Option<NextStep> {
    let least = fleet.spec.configuration.nodes.as_ref().map_or(0, |nodes| nodes.min as usize);
    let at = fleet.state.not_before.filter(|at| now < *at && kept < least && !is_over(fleet))?;
    Some(step(Some(at), format!("it buys again: it has {kept} of at least {least} machines")))
}

/// What happens next to an instance, whose purchase this is, if it has one.
pub fn of_instance(now: Timestamp, instance: &Instance, launch: Option<&Launch>) -> Option<NextStep> {
    let name = &instance.state.name;
    let told = |what: &str| Some(step(None, format!("{name}{what}")));
    match instance.status {
        InstanceStatus::Pending | InstanceStatus::Provisioning if instance.state.host.is_some() => {
            told(": the host is joined over SSH")
        }
        InstanceStatus::Pending | InstanceStatus::Provisioning => match launch {
            Some(launch) if instance.has_given_up(launch) || launch.is_in_vain_for(instance.launch_index) => {
                told(": its fleet buys the next offer")
            }
            Some(launch) => {
                let NextStep { at, what } = of_launch(launch);
                Some(step(at, format!("{name}: {what}")))
            }
            None => told(": its fleet buys a machine"),
        },
        InstanceStatus::Idle => {
            let until = instance.idle_until().filter(|until| now < *until)?;
            Some(step(Some(until), format!("{name} ends if it is idle until then and its fleet can spare it")))
        }
        InstanceStatus::Terminating => told(" is gone once its backend says so"),
        InstanceStatus::Busy | InstanceStatus::Terminated => None,
    }
}

/// What was said to the purchase of an instance that has no machine yet, and what is asked next, in a few words; none
/// where nothing was refused. These are its fleet's last purchases, the oldest first.
pub fn of_purchase(instance: &Instance, tried: &[Launch]) -> Option<String> {
    if !waits_for_machine(instance) {
        return None;
    }
    let mut theirs = tried.iter().rev().filter(|launch| launch.state.instances.contains(&instance.id));
    let last = theirs.next()?;
    let place = last.state.place();
    if let Some(refusal) = refusal(instance, last) {
        return Some(match (last.status.is_final(), last.next_try_at()) {
            (true, _) => refusal,
            (false, Some(at)) => format!("{refusal}, asked again at {}", at.strftime("%H:%M:%S UTC")),
            (false, None) => format!("{refusal}, asked again"),
        });
    }
    // Once it is bought, nobody asks any more what was refused before.
    let before = theirs.next().filter(|_| last.status != LaunchStatus::Done)?;
    Some(format!("{}; next {place}", refusal(instance, before)?))
}

/// Whether an instance waits for a machine that is sold by somebody.
pub fn waits_for_machine(instance: &Instance) -> bool {
    let is_early = matches!(instance.status, InstanceStatus::Pending | InstanceStatus::Provisioning);
    is_early && instance.state.host.is_none() && instance.state.joined_at.is_none() && instance.launch_id.is_some()
}

/// What was said to a purchase, and where, if it was no yes.
fn refusal(instance: &Instance, launch: &Launch) -> Option<String> {
    let place = launch.state.place();
    if let Some(error) = launch.state.error.as_ref().filter(|_| launch.status != LaunchStatus::Done) {
        return Some(format!("{place}: {}", error.word()));
    }
    // A refusal that came late is known to the instance only.
    let in_vain = instance.state.in_vain.iter().find(|one| one.launch == launch.id)?;
    Some(format!("{place}: {}", in_vain.why.as_deref().unwrap_or("too few machines")))
}

/// What happens next to a purchase.
fn of_launch(launch: &Launch) -> NextStep {
    let state = &launch.state;
    let order = format!("{} × {} in {}", state.count, state.offer.instance.name, state.place());
    let backend = &state.backend;
    match (launch.status, launch.next_try_at()) {
        (_, Some(at)) => step(Some(at), format!("`{backend}` is asked again for {order}")),
        (LaunchStatus::Wanted, None) => step(None, format!("`{backend}` is asked for {order}")),
        (LaunchStatus::Requested, None) => {
            step(None, format!("`{backend}` was asked for {order}, which are to appear"))
        }
        (LaunchStatus::Done, None) => step(None, "the machine starts, and its agent is to answer"),
        (LaunchStatus::Failed, None) => step(None, "its fleet buys the next offer"),
    }
}

/// What somebody has to do before purchases that came to nothing can come to something; these are the last ones, the
/// oldest first.
pub fn remedies(tried: &[Launch]) -> Vec<NextStep> {
    // What came to nothing before something was bought needs no remedy any more.
    let since = tried.iter().rev().take_while(|launch| launch.status != LaunchStatus::Done);
    let mut remedies: Vec<NextStep> = vec![];
    for what in since.filter_map(remedy) {
        if remedies.iter().all(|told| told.what != what) {
            remedies.push(step(None, what));
        }
    }
    remedies
}

fn remedy(launch: &Launch) -> Option<String> {
    let error = launch.state.error.as_ref()?;
    let (backend, region, word) = (&launch.state.backend, &launch.state.offer.region, error.word());
    let said = error.message.trim_end_matches('.');
    match error.verdict {
        Verdict::Refused(Scope::Region) => {
            Some(format!("for more in {region}, ask `{backend}` to raise the quota: {word} ({said})"))
        }
        Verdict::Refused(Scope::WholeRegion) => Some(format!(
            "for anything in {region}, have `{backend}` remove what stands in the way there: {word} ({said})"
        )),
        Verdict::Refused(Scope::Backend) => {
            Some(format!("for anything of `{backend}`, give its credentials what they lack: {word} ({said})"))
        }
        Verdict::Refused(Scope::Reservation) => Some(format!(
            "for more of the reservation in {region}, end machines of it or enlarge it: {word} ({said})"
        )),
        Verdict::Refused(Scope::Zone | Scope::Network | Scope::Offer | Scope::Launch)
        | Verdict::Later
        | Verdict::Unanswered => None,
    }
}
