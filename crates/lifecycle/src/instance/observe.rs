//! What an agent says of its machine while it is there: whether it is the right one, what it lacks, and whether its
//! cloud takes it back.

use api::agent::{Cloud, CloudMachine, HostInfo, Interruption};
use api::instances::{HealthStatus, InstanceTerminationReason};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::decide::{AgentSeen, InstanceDecision};
use super::health::{Check, Expected, judge};
use super::{Instance, InstanceState};

/// How long devices may take to show after a machine is joined, in seconds.
const SETTLE_SECS: i64 = 60;

/// How long before the foreseen end of a machine its jobs are told, in seconds.
const LEAD_SECS: i64 = 10 * 60;

/// How long a machine is left that its cloud takes back without saying when, in seconds.
const NOTICE_SECS: i64 = 120;

/// Since when a machine has fewer EFA devices than it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EfaShortage {
    /// Since when.
    pub since: Timestamp,
    /// Users were told.
    pub told: bool,
}

impl EfaShortage {
    /// When it is no longer likely that the rest only comes late.
    pub fn settled_at(self) -> Timestamp {
        self.since + SignedDuration::from_secs(SETTLE_SECS)
    }
}

/// The cloud's notice that it takes a machine back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What it says.
    pub interruption: Interruption,
    /// When the server learned of it.
    pub seen_at: Timestamp,
}

impl Notice {
    /// Until when the machine may be used.
    pub fn deadline(&self) -> Timestamp {
        self.interruption.at.unwrap_or(self.seen_at + SignedDuration::from_secs(NOTICE_SECS))
    }

    /// What happens, for people.
    pub fn text(&self, provider_id: Option<&str>) -> String {
        let Interruption { cloud, action, at } = &self.interruption;
        let machine = provider_id.unwrap_or("the machine");
        let when = at.map(|at| at.strftime(" at %Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default();
        format!("{} takes {machine} back{when} ({action})", cloud.name())
    }
}

/// Why an agent is not that of a machine: its cloud says that it runs on another one. Addresses are used again.
pub fn another_machine(
    told: Option<&CloudMachine>,
    provider_id: Option<&str>,
    hostname: Option<&str>,
) -> Option<String> {
    let (told, wanted) = (&told?.instance_id, provider_id?);
    let address = hostname.unwrap_or("its address");
    (told != wanted).then(|| format!("another machine answers at {address}: {told} instead of {wanted}"))
}

/// The agent as far as it may be believed: one on another machine is none.
pub(super) fn believed(now: Timestamp, agent: &AgentSeen, state: &InstanceState) -> AgentSeen {
    let stranger = match agent {
        AgentSeen::Connected(host) => {
            another_machine(host.cloud.as_ref(), state.provider_id.as_deref(), state.hostname.as_deref())
        }
        AgentSeen::Unknown { .. } => None,
    };
    match stranger {
        Some(error) => {
            let since = state.unreachable_since.or(Some(now));
            AgentSeen::Unknown { since, error: Some(error), is_final: false }
        }
        None => agent.clone(),
    }
}

/// The end of what a machine was bought from, once it is near: who works on the machine is told as by a notice.
fn foreseen_end(now: Timestamp, host: &HostInfo, decision: &mut InstanceDecision) -> Option<Interruption> {
    let ends_at = decision.instance.state.ends_at?;
    let told_at = ends_at - SignedDuration::from_secs(LEAD_SECS);
    if now < told_at {
        decision.look_again_at = Some(decision.look_again_at.map_or(told_at, |at| at.min(told_at)));
        return None;
    }
    let cloud = host.cloud.as_ref().map_or(Cloud::Ec2, |machine| machine.cloud);
    Some(Interruption { cloud, action: "terminate".to_owned(), at: Some(ends_at) })
}

/// Takes over what an agent says of its machine.
pub(super) fn observe(now: Timestamp, host: &HostInfo, decision: &mut InstanceDecision) {
    note_health(now, host, decision);
    note_shortage(now, decision);
    let end = foreseen_end(now, host, decision);
    let state = &mut decision.instance.state;
    let interruption = host.interruption.clone().or(end);
    if let Some(interruption) = interruption.filter(|_| state.notice.is_none()) {
        let notice = Notice { interruption, seen_at: now };
        decision.events.push(notice.text(state.provider_id.as_deref()));
        state.notice = Some(notice);
        decision.concerns_jobs = true;
        decision.concerns_fleet = true;
    }
    if host.rebalance_at.is_some() && state.rebalance_at.is_none() {
        state.rebalance_at = host.rebalance_at;
        let machine = state.provider_id.as_deref().unwrap_or("the machine");
        decision.events.push(format!("Its cloud says that {machine} is likely to be taken back soon"));
    }
}

fn note_health(now: Timestamp, host: &HostInfo, decision: &mut InstanceDecision) {
    let instance = &mut decision.instance;
    // A machine of the user's own is what it turns out to be.
    let kind = instance.state.instance_type.as_ref().filter(|_| instance.launch_id.is_some());
    let gpus = kind.and_then(|kind| u32::try_from(kind.resources.gpus.len()).ok());
    let health = judge(host, Expected { efa: instance.state.efa_expected, gpus });
    if health != instance.state.health {
        // What waited for its devices may go there now.
        decision.concerns_jobs |= health.efa != instance.state.health.efa;
        instance.state.health = health;
        instance.state.health_at = Some(now);
    }
}

fn note_shortage(now: Timestamp, decision: &mut InstanceDecision) {
    let instance = &mut decision.instance;
    let Some(missing) = instance.state.health.incomplete_efa() else {
        let was_told = instance.state.efa_shortage.take().is_some_and(|shortage| shortage.told);
        if was_told {
            decision.events.push("All EFA devices are there".to_owned());
        }
        return;
    };
    let mut shortage = instance.state.efa_shortage.unwrap_or(EfaShortage { since: now, told: false });
    if !shortage.told && shortage.settled_at() <= now {
        shortage.told = true;
        decision.events.push(shortage_text(instance, &missing));
    } else if !shortage.told {
        let at = shortage.settled_at();
        decision.look_again_at = Some(decision.look_again_at.map_or(at, |known| known.min(at)));
    }
    decision.instance.state.efa_shortage = Some(shortage);
}

/// What is missing, what follows from it, and what to do.
fn shortage_text(instance: &Instance, missing: &str) -> String {
    let failed = instance.state.health.checks.iter().filter(|check| check.status == HealthStatus::Failure);
    let failed: Vec<String> = failed.map(Check::text).collect();
    let number = instance.instance_num;
    let fleet = instance.state.name.strip_suffix(&format!("-{number}")).unwrap_or(&instance.state.name);
    format!(
        "Instance has {missing} ({}), so that no job with several nodes is placed on it. Reboot the machine, or have it \
         replaced: `dstack fleet delete {fleet} -i {number}`. If the next one lacks them too, look whether its image has \
         the EFA driver (`modinfo efa`) and whether all of them are attached (`lspci -d 1d0f:`)",
        failed.join(", ")
    )
}

/// Whether a machine that is taken back is to be ended now, and why. Its jobs have until then to end by themselves.
pub(super) fn taken_back(
    now: Timestamp,
    busy_blocks: u32,
    decision: &mut InstanceDecision,
) -> Option<(InstanceTerminationReason, String)> {
    let state = &decision.instance.state;
    let notice = state.notice.as_ref()?;
    let deadline = notice.deadline();
    if 0 < busy_blocks && now < deadline {
        decision.look_again_at = Some(decision.look_again_at.map_or(deadline, |at| at.min(deadline)));
        return None;
    }
    Some((InstanceTerminationReason::Unreachable, notice.text(state.provider_id.as_deref())))
}
