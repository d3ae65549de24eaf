//! What an instance knows of the purchase that it is to come from, and how it waits for the next one.

use api::instances::{InstanceStatus, InstanceTerminationReason};
use jiff::Timestamp;

use super::InVain;
use super::decide::{Effect, InstanceDecision, Machine, Surroundings, blocks_of, finish};
use crate::launch::{Launch, LaunchStatus};

/// Takes down what is being bought for the instance.
pub(super) fn describe(launch: &Launch, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    forget_facts(decision);
    let state = &mut decision.instance.state;
    let resources = &launch.state.offer.instance;
    state.facts_of = Some(launch.id);
    state.unsold = None;
    state.backend = Some(launch.state.backend.clone());
    state.admins_only = around.admins_only;
    state.runs_processes = around.runs_processes;
    state.region = Some(launch.state.offer.region.clone());
    state.price = Some(launch.state.offer.price);
    state.instance_type = Some(resources.clone());
    state.efa_expected = efa_of(&launch.state.offer.backend_data);
    state.ends_at = end_of(&launch.state.offer.backend_data);
    state.reservation = launch.state.offer.reservation().map(str::to_owned);
    state.total_blocks = blocks_of(around.blocks, resources.resources.gpus.len(), resources.resources.cpus);
    if let Some(ends_at) = state.ends_at {
        let when = ends_at.strftime("%Y-%m-%d %H:%M UTC");
        decision.events.push(format!("What it is bought from ends: its cloud ends the machine at {when}"));
    }
}

/// What was bought is not had: nothing of it says anything about the machine that is bought next.
fn forget_facts(decision: &mut InstanceDecision) {
    let state = &mut decision.instance.state;
    state.facts_of = None;
    state.backend = None;
    state.admins_only = false;
    state.runs_processes = false;
    state.region = None;
    state.zone = None;
    state.price = None;
    state.instance_type = None;
    state.total_blocks = 1;
    state.absent_since = None;
    state.provider_id = None;
    state.hostname = None;
    state.internal_ip = None;
    state.container_network = None;
    state.login = None;
    state.network_path.clear();
    state.known_keys.clear();
    state.efa_expected = None;
    state.ends_at = None;
    state.reservation = None;
}

/// When machines of an offer end in any case, where its backend says so.
fn end_of(backend_data: &serde_json::Value) -> Option<Timestamp> {
    backend_data.get("ends_at")?.as_str()?.parse().ok()
}

/// The EFA devices that a machine is bought with, where its backend says so.
fn efa_of(backend_data: &serde_json::Value) -> Option<u32> {
    backend_data.get("efa_interfaces")?.as_u64().and_then(|count| u32::try_from(count).ok())
}

/// A purchase came to nothing: the instance waits for the next one, which is its fleet's business.
pub(super) fn go_back(launch: &Launch, why: Option<String>, decision: &mut InstanceDecision) {
    forget_facts(decision);
    // What failed as a whole is known to the fleet.
    if launch.status != LaunchStatus::Failed {
        decision.instance.state.in_vain.push(InVain { launch: launch.id, why });
    }
    decision.instance.state.unsold = Some(launch.id);
    decision.instance.status = InstanceStatus::Pending;
    decision.effect = Some(Effect::Disconnect);
}

/// The backend took the order, made the machine and ended it. Where it had no room after all, that is a refusal which came
/// late, and the fleet buys elsewhere; whatever else it was, it would happen there too.
pub(super) fn refused_late(machine: &Machine, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    let why = machine.ended_because.as_deref().unwrap_or("its backend gave no reason");
    let message = format!("The machine ended while it started: {why}");
    match around.launch.filter(|_| machine.lacked_room) {
        Some(launch) => {
            decision.events.push(message.clone());
            go_back(launch, Some(message), decision);
        }
        None => finish(InstanceTerminationReason::Error, Some(message), decision),
    }
}

/// Its launch is over, and the machine is not there.
pub(super) fn never_came(around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    let index = decision.instance.launch_index;
    if let Some(launch) = around.launch.filter(|launch| launch.is_in_vain_for(index)) {
        let (made, count) = (launch.state.made.unwrap_or_default(), launch.state.count);
        decision.events.push(format!("The backend made only {made} of {count} machines, and not this one"));
        go_back(launch, None, decision);
    } else {
        let message = "The backend does not list the machine that was launched".to_owned();
        finish(InstanceTerminationReason::Error, Some(message), decision);
    }
}
