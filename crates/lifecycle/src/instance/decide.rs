//! What happens next to an instance.

use api::agent::HostInfo;
use api::instances::{GpuDriver, InstanceStatus, InstanceTerminationReason};
use jiff::{SignedDuration, Timestamp};

use std::collections::BTreeMap;

use super::purchase::{describe, go_back, never_came, refused_late};
use super::{ContainerNetwork, Instance, Login, host, observe};
use crate::events::status_changed;
use crate::launch::{Launch, LaunchStatus};
use crate::planted::{self, Bug};

/// How often an instance is looked at when nothing happens to it, in seconds.
const SAFETY_SECS: i64 = 60;

/// How often a machine that starts or ends is looked at, in seconds.
const WATCH_SECS: i64 = 2;

/// How often a machine is looked at that runs and whose agent does not answer yet, in seconds.
const BOOT_SECS: i64 = 10;

/// How soon the order to end a machine is repeated, in seconds.
const REPEAT_SECS: i64 = 10;

/// How long a machine must be missing from its backend's list before it counts as gone, in seconds. Lists of clouds
/// are eventually consistent, so one absence proves nothing.
const ABSENCE_SECS: i64 = 120;

/// How long the agent of a cloud's machine may be silent before the machine is given back, in seconds.
const UNREACHABLE_SECS: i64 = 20 * 60;

/// How soon the backend of a machine is asked again whose agent is silent, in seconds.
const SILENCE_SECS: i64 = 5;

/// How long a job waits for a machine for which nothing is bought, in seconds: longer than a purchase before it that is
/// told to ask later may take.
const UNSOLD_SECS: i64 = 20 * 60;

/// How long a machine that was made for a job may be idle unless the run or the fleet says otherwise, in seconds.
const IDLE_AFTER_JOB_SECS: i64 = 5 * 60;

/// How long a machine of the user's own is tried to be joined, in seconds.
const JOIN_SECS: i64 = 10 * 60;

/// How long a machine of the user's own that does not answer is tried to be left, in seconds.
const LEAVE_SECS: i64 = 10 * 60;

/// A machine as its backend lists it.
#[derive(Debug, Clone, PartialEq)]
pub enum MachineSeen {
    /// The backend could not be asked, which is never a reason to act.
    Unknown,
    /// The backend does not list it.
    Absent,
    /// The backend lists it.
    Present(Box<Machine>),
}

/// What a backend says of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// It is there and runs.
    pub running: bool,
    /// It is gone, and still listed.
    pub gone: bool,
    /// The backend's own identifier.
    pub provider_id: String,
    /// Where it answers.
    pub hostname: Option<String>,
    /// The address that peers use.
    pub internal_ip: Option<String>,
    /// The network that its containers join.
    pub container_network: Option<ContainerNetwork>,
    /// Where it is.
    pub region: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Why it ended.
    pub ended_because: Option<String>,
    /// It ended because its backend has no room for it, which may be elsewhere.
    pub lacked_room: bool,
    /// Who logs in over SSH, where that is how it is reached.
    pub login: Option<Login>,
    /// The switches above it, the highest first, where its backend tells them.
    pub network_path: Vec<String>,
}

/// An instance's agent.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentSeen {
    /// It does not answer.
    Unknown {
        /// Since when.
        since: Option<Timestamp>,
        /// Why, for people.
        error: Option<String>,
        /// It is no use to try again.
        is_final: bool,
    },
    /// It answers.
    Connected(Box<HostInfo>),
}

/// How far a machine of the user's own is left: its agent ended, and what was installed removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaving {
    /// Nobody has done so.
    NotYet,
    /// It is done.
    Done,
    /// The last try failed, and why, for people.
    Failed(String),
}

/// What else a decision about an instance depends on.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    /// The machine.
    pub machine: MachineSeen,
    /// Its agent.
    pub agent: AgentSeen,
    /// Blocks that jobs hold.
    pub busy_blocks: u32,
    /// The purchase.
    pub launch: Option<&'a Launch>,
    /// What the backend lists is what is there.
    pub consistent_list: bool,
    /// Longest time from launch to a joined agent, in seconds.
    pub provisioning_timeout_secs: u64,
    /// Its jobs run beside the server's secrets.
    pub admins_only: bool,
    /// Jobs without an image run as plain processes on it.
    pub runs_processes: bool,
    /// How the machine is split: a number of blocks, or as many as it has GPUs or else CPUs.
    pub blocks: Option<u32>,
    /// The keys that a machine of the user's own and the hosts on the way to it have shown, by address.
    pub host_keys: BTreeMap<String, String>,
    /// How far a machine of the user's own is left.
    pub leaving: Leaving,
}

/// What to do, once the decision is recorded. Each is safe to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Keep a connection to its agent.
    Connect,
    /// Tell the backend to end the machine.
    Terminate,
    /// Let go of its agent.
    Disconnect,
}

/// What happens next to an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceDecision {
    /// The instance as it is from now on.
    pub instance: Instance,
    /// What to do, once that is recorded.
    pub effect: Option<Effect>,
    /// Its jobs and waiting runs must be looked at.
    pub concerns_jobs: bool,
    /// Its fleet must be looked at.
    pub concerns_fleet: bool,
    /// What to tell users.
    pub events: Vec<String>,
    /// When to look again, unless something happens before.
    pub look_again_at: Option<Timestamp>,
}

/// Decides from the instance, what its backend and agent say, and what surrounds it.
pub fn decide(now: Timestamp, instance: &Instance, around: &Surroundings<'_>) -> InstanceDecision {
    let mut decision = InstanceDecision {
        instance: instance.clone(),
        effect: None,
        concerns_jobs: false,
        concerns_fleet: false,
        events: vec![],
        look_again_at: None,
    };
    match instance.status {
        InstanceStatus::Pending => pending(now, around, &mut decision),
        InstanceStatus::Provisioning => provisioning(now, around, &mut decision),
        InstanceStatus::Idle | InstanceStatus::Busy => joined(now, around, &mut decision),
        InstanceStatus::Terminating => ending(now, around, &mut decision),
        InstanceStatus::Terminated => return decision,
    }
    settle(now, instance, &mut decision);
    decision
}

fn settle(now: Timestamp, before: &Instance, decision: &mut InstanceDecision) {
    let instance = &mut decision.instance;
    if instance.status != before.status {
        let reason = matches!(instance.status, InstanceStatus::Terminating | InstanceStatus::Terminated)
            .then_some(instance.state.termination_reason)
            .flatten()
            .filter(|_| before.status != InstanceStatus::Terminating)
            .map(|reason| (reason.as_str(), instance.state.termination_message.as_deref()));
        let (from, to) = (before.status.as_str(), instance.status.as_str());
        decision.events.push(status_changed("Instance", from, to, reason));
        decision.concerns_jobs = true;
        decision.concerns_fleet = true;
        if instance.status == InstanceStatus::Terminated {
            instance.state.finished_at = Some(now);
            decision.effect = Some(Effect::Disconnect);
        }
    }
    let addresses = |instance: &Instance| (instance.state.internal_ip.clone(), instance.state.unreachable_since);
    decision.concerns_jobs |= addresses(instance) != addresses(before);
    if instance != before {
        instance.state.last_processed_at = Some(now);
    }
    if !instance.status.is_final() {
        let boots = decision.effect == Some(Effect::Connect) && instance.state.host.is_none();
        let secs = match instance.status {
            // Its agent is tried all the time, and tells of itself.
            InstanceStatus::Provisioning if boots => BOOT_SECS,
            InstanceStatus::Provisioning | InstanceStatus::Terminating => WATCH_SECS,
            InstanceStatus::Pending | InstanceStatus::Idle | InstanceStatus::Busy | InstanceStatus::Terminated => {
                SAFETY_SECS
            }
        };
        let next = now + SignedDuration::from_secs(secs);
        decision.look_again_at = Some(decision.look_again_at.map_or(next, |at| at.min(next)));
    }
}

fn begin_end(reason: InstanceTerminationReason, message: Option<String>, decision: &mut InstanceDecision) {
    let state = &mut decision.instance.state;
    decision.instance.status = InstanceStatus::Terminating;
    state.idle_since = None;
    if state.termination_reason.is_none() {
        state.termination_reason = Some(reason);
        state.termination_message = message;
    }
}

pub(super) fn finish(reason: InstanceTerminationReason, message: Option<String>, decision: &mut InstanceDecision) {
    begin_end(reason, message, decision);
    decision.instance.status = InstanceStatus::Terminated;
}

fn pending(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    if let Some(end) = decision.instance.end.clone() {
        let nothing_bought = decision.instance.launch_id.is_none();
        if nothing_bought {
            finish(end.reason, end.message, decision);
        } else {
            begin_end(end.reason, end.message, decision);
            ending(now, around, decision);
        }
        return;
    }
    if decision.instance.state.host.is_some() {
        let state = &mut decision.instance.state;
        state.backend = Some(host::BACKEND.to_owned());
        state.region = Some(host::REGION.to_owned());
        state.price = Some(0.0);
        state.hostname = state.host.as_ref().map(|host| host.hostname.clone());
        decision.instance.status = InstanceStatus::Provisioning;
        decision.effect = Some(Effect::Connect);
        return;
    }
    let launch = around.launch.filter(|launch| !decision.instance.has_given_up(launch));
    if let Some(launch) = launch {
        describe(launch, around, decision);
        decision.instance.status = InstanceStatus::Provisioning;
        return;
    }
    let nobody_asked = decision.instance.launch_id.is_none() || around.launch.is_some();
    let unsold_since =
        around.launch.and_then(|launch| launch.state.ended_at).unwrap_or(decision.instance.created_at);
    let until = unsold_since + SignedDuration::from_secs(UNSOLD_SECS);
    if around.busy_blocks > 0 && nobody_asked && until <= now {
        let message = format!("Nothing could be bought for it for {} min", UNSOLD_SECS / 60);
        finish(InstanceTerminationReason::ProvisioningTimeout, Some(message), decision);
    }
}

/// How many blocks a machine is split into: the number asked for, or one per GPU, or else one per CPU.
pub fn blocks_of(blocks: Option<u32>, gpus: usize, cpus: u32) -> u32 {
    let gpus = u32::try_from(gpus).unwrap_or(u32::MAX);
    let auto = if gpus > 0 { gpus.min(cpus) } else { cpus };
    blocks.unwrap_or(auto).max(1)
}

/// Into how many equal blocks a machine is split, or why it cannot be.
pub fn split(blocks: Option<u32>, gpus: usize, cpus: u32) -> Result<u32, String> {
    let total = blocks_of(blocks, gpus, cpus);
    let is_even = cpus.is_multiple_of(total) && gpus.is_multiple_of(total as usize);
    if total == 1 || is_even {
        return Ok(total);
    }
    Err(format!("{cpus} CPUs and {gpus} GPUs cannot be split into {total} equal `blocks`"))
}

/// How long a machine that is made for a job may be idle: what the run and the fleet say, the shorter of the two.
pub fn idle_duration_for_job(run_secs: Option<i64>, fleet_secs: Option<i64>) -> i64 {
    let said = [run_secs, fleet_secs].into_iter().flatten();
    // Negative is for ever.
    said.min_by_key(|secs| if *secs < 0 { i64::MAX } else { *secs }).unwrap_or(IDLE_AFTER_JOB_SECS)
}

fn provisioning(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    if let Some(end) = decision.instance.end.clone() {
        begin_end(end.reason, end.message, decision);
        ending(now, around, decision);
        return;
    }
    if decision.instance.state.host.is_some() {
        joining(now, around, decision);
        return;
    }
    if let Some(launch) = around.launch {
        if decision.instance.has_given_up(launch) {
            go_back(launch, None, decision);
            return;
        }
        // Another purchase was made meanwhile.
        if decision.instance.state.facts_of.is_some_and(|known| known != launch.id) {
            describe(launch, around, decision);
        }
    }
    match &around.machine {
        // What becomes of the purchase decides what is made instead.
        MachineSeen::Present(machine) if machine.gone && is_open(around.launch) => return,
        MachineSeen::Present(machine) if machine.gone => {
            refused_late(machine, around, decision);
            return;
        }
        MachineSeen::Present(machine) => {
            learn(machine, decision);
            if machine.running {
                decision.effect = Some(Effect::Connect);
            }
        }
        MachineSeen::Absent => {
            if vanished(now, around, decision) {
                never_came(around, decision);
                return;
            }
        }
        MachineSeen::Unknown => {}
    }
    let agent = observe::believed(now, &around.agent, &decision.instance.state);
    match &agent {
        AgentSeen::Connected(host) => {
            decision.instance.state.known_keys.extend(around.host_keys.clone());
            join(now, host, around, decision);
            return;
        }
        // Only its backend can say so: a machine that boots may refuse anything for a while.
        AgentSeen::Unknown { error: Some(error), is_final: true, .. } => {
            begin_end(InstanceTerminationReason::Error, Some(error.clone()), decision);
            ending(now, around, decision);
            return;
        }
        AgentSeen::Unknown { .. } => {}
    }
    // What was not asked for yet cannot be late: a backend may take its time to say what it sells.
    let Some(requested_at) = around.launch.and_then(|launch| launch.state.requested_at) else { return };
    let waited = now.duration_since(requested_at);
    let limit = SignedDuration::from_secs(i64::try_from(around.provisioning_timeout_secs).unwrap_or(i64::MAX));
    if limit < waited {
        let why = match &agent {
            AgentSeen::Unknown { error: Some(error), .. } => format!(": {error}"),
            _ => String::new(),
        };
        let message = format!("Instance did not become reachable in {} s{why}", limit.as_secs());
        begin_end(InstanceTerminationReason::ProvisioningTimeout, Some(message), decision);
    }
}

/// A machine of the user's own is being joined.
fn joining(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    decision.effect = Some(Effect::Connect);
    let Some(host) = &mut decision.instance.state.host else { return };
    let failure = match &around.agent {
        AgentSeen::Connected(info) => match host::joined(host, info) {
            Ok(joined) => {
                host.known_keys.extend(around.host_keys.clone());
                let state = &mut decision.instance.state;
                state.instance_type = Some(joined.instance_type);
                state.internal_ip = joined.internal_ip;
                state.total_blocks = joined.total_blocks;
                join(now, info, around, decision);
                return;
            }
            Err(message) => Some((InstanceTerminationReason::Error, message)),
        },
        AgentSeen::Unknown { error: Some(error), is_final: true, .. } => {
            Some((InstanceTerminationReason::Error, error.clone()))
        }
        AgentSeen::Unknown { error, .. } => {
            let until = decision.instance.created_at + SignedDuration::from_secs(JOIN_SECS);
            let why = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            let message = format!("The host could not be joined for {} min{why}", JOIN_SECS / 60);
            (until <= now).then_some((InstanceTerminationReason::ProvisioningTimeout, message))
        }
    };
    if let Some((reason, message)) = failure {
        begin_end(reason, Some(message), decision);
        ending(now, around, decision);
    }
}

/// A machine of the user's own is left: its agent is ended and what was installed removed.
fn leaving(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    let reason = decision.instance.state.termination_reason.unwrap_or(InstanceTerminationReason::Error);
    let since = *decision.instance.state.ending_since.get_or_insert(now);
    let was_joined = decision.instance.state.joined_at.is_some();
    match &around.leaving {
        Leaving::Done => finish(reason, None, decision),
        // What was never joined holds nothing that anybody waits for.
        Leaving::Failed(error) if !was_joined || since + SignedDuration::from_secs(LEAVE_SECS) <= now => {
            decision.events.push(format!("The host could not be cleaned up: {error}"));
            finish(reason, None, decision);
        }
        Leaving::NotYet | Leaving::Failed(_) => send_terminate(now, decision),
    }
}

/// Whether a purchase may still make machines.
fn is_open(launch: Option<&Launch>) -> bool {
    launch.is_some_and(|launch| !launch.status.is_final())
}

fn learn(machine: &Machine, decision: &mut InstanceDecision) {
    let state = &mut decision.instance.state;
    state.absent_since = None;
    state.provider_id = Some(machine.provider_id.clone());
    state.region = Some(machine.region.clone());
    // A list that does not say where a machine answers does not say that it answers nowhere.
    let known = |told: &Option<String>, known: Option<String>| told.clone().or(known);
    state.hostname = known(&machine.hostname, state.hostname.take());
    state.internal_ip = known(&machine.internal_ip, state.internal_ip.take());
    state.zone = known(&machine.zone, state.zone.take());
    state.login = machine.login.clone().or(state.login.take());
    if !machine.network_path.is_empty() {
        state.network_path.clone_from(&machine.network_path);
    }
    state.container_network = machine.container_network.clone().or(state.container_network.take());
}

fn join(now: Timestamp, host: &HostInfo, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    let state = &mut decision.instance.state;
    state.joined_at = Some(now);
    state.unreachable_since = None;
    state.gpu_uuids = host.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    state.has_docker = host.docker.is_some();
    state.gpu_driver = host.gpu_driver.as_ref().map(|version| GpuDriver {
        vendor: host.gpus.first().map(|gpu| gpu.vendor.clone()),
        version: version.clone(),
    });
    if state.internal_ip.is_none() {
        state.internal_ip.clone_from(&host.internal_ip);
    }
    observe::observe(now, host, decision);
    occupy(now, around, decision);
}

/// Idle or busy, by the blocks that jobs hold.
fn occupy(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    if around.busy_blocks > 0 {
        decision.instance.status = InstanceStatus::Busy;
        decision.instance.state.idle_since = None;
    } else {
        decision.instance.status = InstanceStatus::Idle;
        decision.instance.state.idle_since.get_or_insert(now);
    }
}

fn joined(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    if let Some(end) = decision.instance.end.clone() {
        begin_end(end.reason, end.message, decision);
        ending(now, around, decision);
        return;
    }
    match &around.machine {
        MachineSeen::Present(machine) if machine.gone => {
            let message = machine.ended_because.clone().unwrap_or_else(|| "The machine is gone".to_owned());
            finish(InstanceTerminationReason::Unreachable, Some(message), decision);
            return;
        }
        MachineSeen::Present(machine) => {
            learn(machine, decision);
            decision.effect = Some(Effect::Connect);
        }
        MachineSeen::Absent => {
            if vanished(now, around, decision) {
                let message = "The backend no longer lists the machine".to_owned();
                finish(InstanceTerminationReason::Unreachable, Some(message), decision);
                return;
            }
        }
        // Its agent may answer even so, at the address that is recorded.
        MachineSeen::Unknown => decision.effect = Some(Effect::Connect),
    }
    match &observe::believed(now, &around.agent, &decision.instance.state) {
        AgentSeen::Connected(info) => {
            decision.instance.state.unreachable_since = None;
            observe::observe(now, info, decision);
            match &mut decision.instance.state.host {
                Some(host) => host.known_keys.extend(around.host_keys.clone()),
                None => decision.instance.state.known_keys.extend(around.host_keys.clone()),
            }
        }
        AgentSeen::Unknown { since, .. } => {
            // Nobody listened while the server was away, so silence counts from the first try since then.
            let known = decision.instance.state.unreachable_since;
            let since = known.max(*since).unwrap_or(now);
            decision.instance.state.unreachable_since = Some(since);
            // A machine of the user's own is waited for: nobody pays for it, and it may come back with its jobs.
            let is_own = decision.instance.state.host.is_some();
            let until = since + SignedDuration::from_secs(UNREACHABLE_SECS);
            if until <= now && !is_own {
                let message = format!("Its agent has not answered for {} min", UNREACHABLE_SECS / 60);
                begin_end(InstanceTerminationReason::Unreachable, Some(message), decision);
                return;
            }
            // Its backend may know soon what became of a machine that fell silent.
            let soon = now + SignedDuration::from_secs(SILENCE_SECS);
            decision.look_again_at = (!is_own).then_some(until.min(soon));
        }
    }
    if let Some((reason, message)) = observe::taken_back(now, around.busy_blocks, decision) {
        begin_end(reason, Some(message), decision);
        ending(now, around, decision);
        return;
    }
    occupy(now, around, decision);
}

/// Whether an absence may be believed: nobody is still buying, and it has lasted.
fn vanished(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) -> bool {
    if planted::has(Bug::OneAbsenceBelieved) {
        return around.launch.is_none_or(|launch| launch.status.is_final());
    }
    let still_buying = around.launch.is_some_and(|launch| !launch.status.is_final());
    if still_buying {
        decision.instance.state.absent_since = None;
        return false;
    }
    let since = *decision.instance.state.absent_since.get_or_insert(now);
    let believed_at = since + SignedDuration::from_secs(if around.consistent_list { 0 } else { ABSENCE_SECS });
    if now < believed_at {
        decision.look_again_at = Some(believed_at);
    }
    believed_at <= now
}

/// The instance ends: it is over when its backend says that the machine is gone.
fn ending(now: Timestamp, around: &Surroundings<'_>, decision: &mut InstanceDecision) {
    let reason = decision.instance.state.termination_reason.unwrap_or(InstanceTerminationReason::Error);
    if decision.instance.state.host.is_some() {
        leaving(now, around, decision);
        return;
    }
    let nothing_bought = decision.instance.launch_id.is_none()
        || around.launch.is_some_and(|launch| launch.status == LaunchStatus::Failed);
    let gone = match &around.machine {
        MachineSeen::Present(machine) => {
            decision.instance.state.absent_since = None;
            machine.gone
        }
        MachineSeen::Absent => vanished(now, around, decision),
        MachineSeen::Unknown => false,
    };
    if nothing_bought || gone {
        finish(reason, None, decision);
        return;
    }
    send_terminate(now, decision);
}

fn send_terminate(now: Timestamp, decision: &mut InstanceDecision) {
    // Repeated until the machine is gone: an order may be lost, and what is not ended is paid for.
    let repeat_at = decision
        .instance
        .state
        .terminate_sent_at
        .map(|sent_at| sent_at + SignedDuration::from_secs(REPEAT_SECS))
        .filter(|repeat_at| now < *repeat_at || planted::has(Bug::TerminateNotRepeated));
    if let Some(repeat_at) = repeat_at {
        decision.look_again_at = Some(decision.look_again_at.map_or(repeat_at, |at| at.min(repeat_at)));
    } else {
        decision.instance.state.terminate_sent_at = Some(now);
        decision.effect = Some(Effect::Terminate);
    }
}
