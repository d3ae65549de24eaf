//! What happens next to a job.

use std::sync::Arc;

use api::agent::{ClusterInfo, ExitReason, TaskExit, TaskPhase, TaskState};
use api::instances::{InstanceStatus, InstanceTerminationReason};
use api::jobs::{JobStatus, JobTerminationReason};
use jiff::{SignedDuration, Timestamp};

use super::machine::{grace_left, has_incomplete_efa, taken_back};
use super::{EndOrder, Job, JobState, LogWait, stop_grace_secs};
use crate::events::status_changed;
use crate::instance::Instance;

/// How often a job is looked at when nothing happens to it, in seconds.
const SAFETY_SECS: i64 = 60;

/// How soon an order is repeated that the agent may not have heard, in seconds.
const REPEAT_SECS: i64 = 2;

/// How long an agent may refuse a job's orders before the job is given up, in seconds. A full disk may be emptied.
const REFUSED_SECS: i64 = 300;

/// How long the rest of a log is waited for that does not grow, in seconds: the machine is held meanwhile.
const LOG_STALL_SECS: i64 = 600;

/// How long somebody who aborts waits for the rest of a log, in seconds.
const LOG_ABORT_SECS: i64 = 15;

/// A task as its agent tells it.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// The agent could not be asked, which is never a reason to act.
    Unknown,
    /// The agent answers and does not know the task.
    Absent,
    /// The agent answers.
    Known(Box<TaskState>),
}

/// What else a decision about a job depends on.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    /// Its machine.
    pub instance: Option<&'a Instance>,
    /// The addresses of the gang's nodes, once each has one.
    pub cluster: Option<Arc<ClusterInfo>>,
    /// The log bytes that the server has, lost ones counted.
    pub logs_received: u64,
    /// How many of them are lost.
    pub logs_lost: u64,
    /// Why the server cannot keep the log.
    pub log_error: Option<String>,
    /// Since when the agent does not answer.
    pub unreachable_since: Option<Timestamp>,
    /// How long an agent may be silent before its jobs are given up, in seconds.
    pub unreachable_after_secs: u64,
    /// Nobody is in the job, and that ends it some time.
    pub inactivity: Option<Inactivity>,
}

/// How long nobody has been in a job, and how long nobody may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inactivity {
    /// When it began, by the server's clock.
    pub since: Timestamp,
    /// How long it may last, in seconds.
    pub limit_secs: u64,
}

/// What to do, once the decision is recorded. Each is safe to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Give the agent the task.
    Put,
    /// Let its command start.
    Go,
    /// Tell it to end.
    Stop {
        /// Seconds between the polite signal and the kill.
        grace_secs: u64,
    },
    /// Let the agent forget it.
    Forget,
}

/// What happens next to a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobDecision {
    /// The job as it is from now on.
    pub job: Job,
    /// What to do, once that is recorded.
    pub effect: Option<Effect>,
    /// Its machine's blocks are free again.
    pub releases_slot: bool,
    /// Its run must be judged again.
    pub concerns_run: bool,
    /// The other nodes of its gang have waited for what it remembers now.
    pub concerns_gang: bool,
    /// What to tell users.
    pub events: Vec<String>,
    /// When to look again, unless something happens before.
    pub look_again_at: Option<Timestamp>,
}

/// Decides from the job, what its agent says, and what surrounds it.
pub fn decide(now: Timestamp, job: &Job, seen: &Seen, around: &Surroundings<'_>) -> JobDecision {
    let mut decision = JobDecision {
        job: job.clone(),
        effect: None,
        releases_slot: false,
        concerns_run: false,
        concerns_gang: false,
        events: vec![],
        look_again_at: None,
    };
    match job.status {
        JobStatus::Submitted => submitted(&mut decision),
        JobStatus::Provisioning | JobStatus::Pulling | JobStatus::Running => {
            remember_gang(around, &mut decision);
            go_on(now, seen, around, &mut decision);
        }
        // Final is final, whatever is seen later.
        JobStatus::Terminated | JobStatus::Aborted | JobStatus::Failed | JobStatus::Done => return decision,
        JobStatus::Terminating => {}
    }
    if decision.job.status == JobStatus::Terminating {
        if job.status != JobStatus::Terminating {
            tell_status(job.status, &mut decision);
        }
        end(now, seen, around, &mut decision);
    }
    settle(now, job, &mut decision);
    decision
}

/// The first node remembers for all where they are, so that every node is told the same.
fn remember_gang(around: &Surroundings<'_>, decision: &mut JobDecision) {
    let job = &mut decision.job;
    if job.job_num == 0 && job.state.cluster.is_none() {
        job.state.cluster = around.cluster.as_deref().cloned();
        decision.concerns_gang = job.state.cluster.is_some() && job.spec.jobs_per_replica > 1;
    }
}

/// Events, times and wake-ups that follow from what was decided.
fn settle(now: Timestamp, before: &Job, decision: &mut JobDecision) {
    let told = if decision.job.status.is_finished() { JobStatus::Terminating } else { before.status };
    if decision.job.status != told && decision.job.status != JobStatus::Terminating {
        tell_status(told, decision);
    }
    if decision.job.state.termination_reason.is_some() {
        decision.job.state.ended_at.get_or_insert(now);
    }
    let phase_changed = decision.job.state.phase != before.state.phase;
    decision.concerns_run = decision.job.status != before.status
        || phase_changed
        || decision.job.state.started_at != before.state.started_at
        || decision.job.state.termination_reason != before.state.termination_reason;
    if decision.job != *before {
        decision.job.state.last_processed_at = Some(now);
    }
    if !decision.job.status.is_finished() {
        let secs = if decision.effect.is_some() { REPEAT_SECS } else { SAFETY_SECS };
        let next = now + SignedDuration::from_secs(secs);
        decision.look_again_at = Some(decision.look_again_at.map_or(next, |at| at.min(next)));
    }
}

fn tell_status(from: JobStatus, decision: &mut JobDecision) {
    let state = &decision.job.state;
    let reason = state
        .termination_reason
        .filter(|_| decision.job.status == JobStatus::Terminating)
        .map(|reason| (reason.as_str(), state.termination_message.as_deref()));
    decision.events.push(status_changed("Job", from.as_str(), decision.job.status.as_str(), reason));
}

fn submitted(decision: &mut JobDecision) {
    if let Some(end) = decision.job.end.clone() {
        begin_end(end.reason, end.message, decision);
    }
}

pub(super) fn begin_end(reason: JobTerminationReason, message: Option<String>, decision: &mut JobDecision) {
    decision.job.status = JobStatus::Terminating;
    decision.job.state.waiting_for = None;
    decision.job.state.refused = None;
    // The first reason is the true one.
    if decision.job.state.termination_reason.is_none() {
        decision.job.state.termination_reason = Some(reason);
        decision.job.state.termination_message = message;
    }
}

/// The job has a machine and is not ending yet.
fn go_on(now: Timestamp, seen: &Seen, around: &Surroundings<'_>, decision: &mut JobDecision) {
    // What the task did by itself counts before what the run wants of it.
    if let Seen::Known(task) = seen {
        observe(task, &mut decision.job.state);
        if let Some(exit) = &task.exit {
            let (reason, message) = exit_reason(exit);
            begin_end(reason, message, decision);
            return;
        }
    }
    // A node that went with its machine is not a node that was ended because of a peer: it may be what the peer failed
    // of. What a user wants is done, and their machine's end changes nothing.
    let lost = lost_machine(around.instance);
    let taken_back = taken_back(around.instance).filter(|_| lost.is_none());
    let lost = lost.map(|lost| (lost, lost_since(around))).or(taken_back.map(|taken| (taken, None)));
    let because_of_peer = |end: &EndOrder| end.reason == JobTerminationReason::TerminatedByServer;
    let end = decision.job.end.clone();
    if let Some(end) = end.filter(|end| lost.is_none() || !because_of_peer(end)) {
        begin_end(end.reason, end.message, decision);
        return;
    }
    if let Some(((reason, message), since)) = lost {
        decision.job.state.lost_since = since;
        begin_end(reason, Some(message), decision);
        return;
    }
    match seen {
        Seen::Unknown => silent(now, around, decision),
        Seen::Absent => absent(now, around, decision),
        Seen::Known(task) => advance(now, task, around, decision),
    }
}

/// Since when a machine that is lost does not answer, or is not listed any more.
fn lost_since(around: &Surroundings<'_>) -> Option<Timestamp> {
    let state = around.instance.map(|instance| &instance.state);
    let known = [
        around.unreachable_since,
        state.and_then(|state| state.unreachable_since),
        state.and_then(|state| state.absent_since),
    ];
    known.into_iter().flatten().min()
}

fn observe(task: &TaskState, state: &mut JobState) {
    // An answer may be older than the last one, and what has happened has happened.
    if state.phase < Some(task.phase) {
        state.phase = Some(task.phase);
        // Whatever was refused before, the agent has gone on.
        state.refused = None;
    }
    state.pull.clone_from(&task.pull);
    state.started_at = state.started_at.or(task.started_at);
    state.warnings.clone_from(&task.warnings);
    if let Some(runtime) = &mut state.runtime {
        runtime.working_dir.clone_from(&task.resolved.working_dir);
        runtime.username.clone_from(&task.resolved.username);
        if !task.resolved.ports.is_empty() {
            runtime.ports = Some(task.resolved.ports.clone());
        }
    }
    if let Some(exit) = &task.exit {
        state.exit_status = exit.exit_status;
        state.exited_at = Some(exit.finished_at);
    }
}

/// The official reason for how a task ended.
fn exit_reason(exit: &TaskExit) -> (JobTerminationReason, Option<String>) {
    let reason = match exit.reason {
        ExitReason::Done => JobTerminationReason::DoneByRunner,
        ExitReason::Failed => JobTerminationReason::ContainerExitedWithError,
        ExitReason::Stopped => JobTerminationReason::TerminatedByServer,
        ExitReason::MaxDurationExceeded => JobTerminationReason::MaxDurationExceeded,
        ExitReason::CreatingContainerError => JobTerminationReason::CreatingContainerError,
        ExitReason::ExecutorError | ExitReason::HostInterrupted => JobTerminationReason::ExecutorError,
        ExitReason::PortsBindingFailed => JobTerminationReason::PortsBindingFailed,
    };
    let message = match (exit.oom_killed, &exit.message) {
        (true, Some(message)) => Some(format!("The job ran out of memory and was killed. {message}")),
        (true, None) => Some("The job ran out of memory and was killed".to_owned()),
        (false, message) => message.clone(),
    };
    (reason, message)
}

/// Why the job cannot go on because of its machine.
fn lost_machine(instance: Option<&Instance>) -> Option<(JobTerminationReason, String)> {
    let Some(instance) = instance else {
        return Some((JobTerminationReason::InstanceUnreachable, "its instance no longer exists".to_owned()));
    };
    if !matches!(instance.status, InstanceStatus::Terminating | InstanceStatus::Terminated) {
        return None;
    }
    let spot = instance.state.instance_type.as_ref().is_some_and(|kind| kind.resources.spot);
    let never_sold = instance.state.termination_reason == Some(InstanceTerminationReason::NoOffers);
    let reason = if never_sold {
        JobTerminationReason::FailedToStartDueToNoCapacity
    } else if instance.state.joined_at.is_none() {
        JobTerminationReason::WaitingInstanceLimitExceeded
    } else if spot {
        JobTerminationReason::InterruptedByNoCapacity
    } else {
        JobTerminationReason::InstanceUnreachable
    };
    let why = instance
        .state
        .termination_message
        .clone()
        .or_else(|| instance.state.termination_reason.map(|reason| reason.as_str().replace('_', " ")));
    let name = &instance.state.name;
    Some((reason, why.map_or(format!("Instance {name} is terminated"), |why| format!("Instance {name}: {why}"))))
}

/// The agent does not answer.
fn silent(now: Timestamp, around: &Surroundings<'_>, decision: &mut JobDecision) {
    // Somebody may be in the job, for all that is known.
    decision.job.state.unvisited_since = None;
    let Some(instance) = around.instance else { return };
    if instance.state.joined_at.is_none() {
        let name = &instance.state.name;
        decision.job.state.waiting_for = Some(match (instance.status, instance.state.unsold) {
            (InstanceStatus::Pending, Some(_)) => {
                format!("another offer for instance {name}, as the last one was not to be had")
            }
            (InstanceStatus::Pending, None) if instance.state.host.is_none() => {
                format!("a machine for instance {name}")
            }
            _ => format!("instance {name} to start"),
        });
        return;
    }
    let Some(since) = around.unreachable_since else { return };
    let until = given_up_at(since, around);
    if until <= now {
        let (reason, message) = lost_agent(instance, around);
        decision.job.state.lost_since = Some(since);
        begin_end(reason, Some(message), decision);
        return;
    }
    decision.job.state.waiting_for = Some(format!("instance {} to answer again", instance.state.name));
    decision.look_again_at = Some(until);
}

/// When an agent that has been silent since then is given up.
fn given_up_at(since: Timestamp, around: &Surroundings<'_>) -> Timestamp {
    let limit = SignedDuration::from_secs(i64::try_from(around.unreachable_after_secs).unwrap_or(i64::MAX));
    since.saturating_add(limit).unwrap_or(Timestamp::MAX)
}

/// Why a job ends whose agent is given up.
fn lost_agent(instance: &Instance, around: &Surroundings<'_>) -> (JobTerminationReason, String) {
    let spot = instance.state.instance_type.as_ref().is_some_and(|kind| kind.resources.spot);
    let reason = if spot {
        JobTerminationReason::InterruptedByNoCapacity
    } else {
        JobTerminationReason::InstanceUnreachable
    };
    let secs = around.unreachable_after_secs;
    (reason, format!("Instance {} has not answered for {secs} s", instance.state.name))
}

/// The agent does not know the task: gives it, or mourns it.
fn absent(now: Timestamp, around: &Surroundings<'_>, decision: &mut JobDecision) {
    let name = around.instance.map_or("", |instance| instance.state.name.as_str());
    if decision.job.state.phase.is_some() {
        let message = format!("Instance {name} no longer knows the job: the agent's records are gone");
        begin_end(JobTerminationReason::ExecutorError, Some(message), decision);
        return;
    }
    if around.cluster.is_none() {
        decision.job.state.waiting_for = Some("the other nodes' instances to start".to_owned());
        return;
    }
    if has_incomplete_efa(now, around.instance, decision) {
        return;
    }
    decision.job.state.given = true;
    decision.job.state.waiting_for = None;
    decision.effect = Some(Effect::Put);
    give_up_if_refused(now, around, decision);
}

/// An order that the agent refuses is shown while it is repeated, and ends the job when no repetition helps.
fn give_up_if_refused(now: Timestamp, around: &Surroundings<'_>, decision: &mut JobDecision) {
    let Some(refused) = decision.job.state.refused.clone() else { return };
    let name = around.instance.map_or("", |instance| instance.state.name.as_str());
    let until = refused.since + SignedDuration::from_secs(REFUSED_SECS);
    if !refused.for_good && now < until {
        decision.job.state.waiting_for = Some(format!("instance {name} to take it: {}", refused.message));
        return;
    }
    let reason = if refused.for_good {
        JobTerminationReason::ExecutorError
    } else {
        JobTerminationReason::WaitingRunnerLimitExceeded
    };
    decision.effect = None;
    begin_end(reason, Some(format!("Instance {name} refused the job: {}", refused.message)), decision);
}

/// The task goes its way.
fn advance(now: Timestamp, task: &TaskState, around: &Surroundings<'_>, decision: &mut JobDecision) {
    let job = &mut decision.job;
    job.state.waiting_for = None;
    let status = if task.phase.has_started() { JobStatus::Running } else { JobStatus::Pulling };
    job.status = job.status.max(status);
    match task.phase {
        TaskPhase::Pulling => job.state.waiting_for = Some("its image".to_owned()),
        TaskPhase::Ready => {
            if job.released_at.is_some() {
                decision.effect = Some(Effect::Go);
                give_up_if_refused(now, around, decision);
            } else {
                job.state.waiting_for = Some("the other nodes to be ready".to_owned());
            }
        }
        TaskPhase::Running => end_if_inactive(now, around, decision),
        // An exit is handled before; an order to stop came from the agent itself.
        TaskPhase::Accepted
        | TaskPhase::Preparing
        | TaskPhase::Stopping
        | TaskPhase::Exited
        | TaskPhase::Sealed => {}
    }
}

/// A job in which nobody has been for too long ends, with the grace that its configuration gives.
fn end_if_inactive(now: Timestamp, around: &Surroundings<'_>, decision: &mut JobDecision) {
    decision.job.state.unvisited_since = around.inactivity.map(|inactivity| inactivity.since);
    let Some(Inactivity { since, limit_secs }) = around.inactivity else { return };
    let limit = SignedDuration::from_secs(i64::try_from(limit_secs).unwrap_or(i64::MAX));
    let until = since.saturating_add(limit).unwrap_or(Timestamp::MAX);
    if now < until {
        decision.look_again_at = Some(until);
        return;
    }
    let message = format!(
        "The job was inactive for {} seconds, exceeding the inactivity_duration of {limit_secs} seconds",
        now.duration_since(since).as_secs()
    );
    begin_end(JobTerminationReason::InactivityDurationExceeded, Some(message), decision);
}

/// The job ends: makes sure that nothing of it runs and that its log is here.
fn end(now: Timestamp, seen: &Seen, around: &Surroundings<'_>, decision: &mut JobDecision) {
    escalate(decision);
    match seen {
        Seen::Known(task) => {
            observe(task, &mut decision.job.state);
            correct_reason(task, decision);
            end_task(now, task, around, decision);
        }
        Seen::Absent => finish(decision),
        Seen::Unknown => end_unseen(now, around, decision),
    }
}

/// A node that was to end because of a peer, and whose agent could not be asked, may have ended by itself before:
/// perhaps it was the first, and the peer only followed.
fn correct_reason(task: &TaskState, decision: &mut JobDecision) {
    let state = &mut decision.job.state;
    let ordered =
        decision.job.end.is_some() && state.termination_reason == Some(JobTerminationReason::TerminatedByServer);
    if let Some(exit) = task.exit.as_ref().filter(|exit| ordered && exit.reason != ExitReason::Stopped) {
        let (reason, message) = exit_reason(exit);
        state.termination_reason = Some(reason);
        state.termination_message = message;
    }
}

/// A user who stopped a run may still abort it.
fn escalate(decision: &mut JobDecision) {
    let aborted = decision.job.end.as_ref().is_some_and(|end| end.reason == JobTerminationReason::AbortedByUser);
    if aborted && decision.job.state.termination_reason == Some(JobTerminationReason::TerminatedByUser) {
        decision.job.state.termination_reason = Some(JobTerminationReason::AbortedByUser);
    }
}

fn end_task(now: Timestamp, task: &TaskState, around: &Surroundings<'_>, decision: &mut JobDecision) {
    if task.phase == TaskPhase::Sealed {
        let complete = around.logs_received >= task.log_end;
        if complete {
            tell_lost_output(around.logs_lost, decision);
            finish(decision);
            decision.effect = Some(Effect::Forget);
        } else {
            wait_for_log(now, task.log_end, around, decision);
        }
        return;
    }
    if task.exit.is_some() {
        return;
    }
    // Repeated until the task obeys: an order may be lost. Without an order of the run nothing is worth a grace, but for
    // what somebody left running in a job that ends because they are away, and for what can be saved of a job whose
    // machine is taken back.
    let grace_left = grace_left(now, around.instance);
    let has_grace = match decision.job.state.termination_reason {
        Some(JobTerminationReason::InactivityDurationExceeded) => true,
        Some(JobTerminationReason::InterruptedByNoCapacity) => grace_left.is_some(),
        _ => false,
    };
    let own_grace = if has_grace { stop_grace_secs(&decision.job.spec) } else { 0 };
    let grace_secs = decision.job.end.as_ref().map_or(own_grace, |end| end.grace_secs);
    let grace_secs = grace_left.map_or(grace_secs, |left| grace_secs.min(left));
    decision.effect = Some(Effect::Stop { grace_secs });
    decision.job.state.stop_sent = Some(grace_secs);
    if let Some(refused) = &decision.job.state.refused {
        let name = around.instance.map_or("", |instance| instance.state.name.as_str());
        decision.job.state.waiting_for = Some(format!("instance {name} to end it: {}", refused.message));
    }
}

/// Waits while the log grows. A machine is dearer than the rest of a log that does not come; that is taken whenever it
/// comes, and the agent keeps it until then.
fn wait_for_log(now: Timestamp, log_end: u64, around: &Surroundings<'_>, decision: &mut JobDecision) {
    let state = &mut decision.job.state;
    let received = around.logs_received;
    let wait = state.log_wait.get_or_insert(LogWait { since: now, from: now, received });
    if wait.received < received {
        (wait.since, wait.received) = (now, received);
    }
    let stalled_at = wait.since + SignedDuration::from_secs(LOG_STALL_SECS);
    let aborted = decision.job.end.as_ref().is_some_and(|end| end.reason == JobTerminationReason::AbortedByUser);
    let aborted_at = wait.from + SignedDuration::from_secs(LOG_ABORT_SECS);
    let until = if aborted { stalled_at.min(aborted_at) } else { stalled_at };
    if now < until {
        state.waiting_for = Some(match &around.log_error {
            Some(error) => format!("the rest of its log: the server cannot keep it: {error}"),
            None => "the rest of its log".to_owned(),
        });
        decision.look_again_at = Some(until);
        return;
    }
    tell_lost_output(log_end.saturating_sub(received).saturating_add(around.logs_lost), decision);
    finish(decision);
}

fn tell_lost_output(bytes: u64, decision: &mut JobDecision) {
    if bytes > 0 {
        decision.events.push(format!("Job's log is incomplete: {bytes} bytes of output are missing"));
    }
}

/// The agent does not answer while the job should end.
fn end_unseen(now: Timestamp, around: &Surroundings<'_>, decision: &mut JobDecision) {
    let machine_is_gone = around.instance.is_none_or(|instance| instance.status == InstanceStatus::Terminated);
    let was_given = decision.job.state.given || decision.job.state.phase.is_some();
    if machine_is_gone || !was_given {
        if was_given {
            blame_machine(lost_machine(around.instance), lost_since(around), decision);
        }
        finish(decision);
        return;
    }
    // An agent that comes back later is told to end what it still runs: see the sweep of unclaimed tasks.
    let Some(since) = around.unreachable_since else { return };
    let until = given_up_at(since, around);
    if until <= now {
        let lost = around.instance.map(|instance| lost_agent(instance, around));
        blame_machine(lost, Some(since), decision);
        finish(decision);
    } else {
        decision.look_again_at = Some(until);
    }
}

/// A node that was to end because of a peer, and whose machine turns out to be lost, may be what the peer failed of:
/// when each happened tells.
fn blame_machine(
    lost: Option<(JobTerminationReason, String)>,
    since: Option<Timestamp>,
    decision: &mut JobDecision,
) {
    let state = &mut decision.job.state;
    let because_of_peer =
        decision.job.end.as_ref().is_some_and(|end| end.reason == JobTerminationReason::TerminatedByServer);
    let ordered = because_of_peer && state.termination_reason == Some(JobTerminationReason::TerminatedByServer);
    if let Some((reason, message)) = lost.filter(|_| ordered) {
        state.termination_reason = Some(reason);
        state.termination_message = Some(message);
        state.lost_since = since;
    }
}

fn finish(decision: &mut JobDecision) {
    let reason = decision.job.state.termination_reason.unwrap_or(JobTerminationReason::TerminatedByServer);
    decision.job.state.termination_reason = Some(reason);
    decision.job.status = reason.final_status();
    decision.job.state.waiting_for = None;
    decision.releases_slot = decision.job.instance_id.is_some();
}
