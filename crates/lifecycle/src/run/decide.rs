//! What happens next to a run.

use api::configurations::{RetryEvent, StartupOrder, StopCriteria};
use api::ids::JobId;
use api::jobs::{JobStatus, JobTerminationReason};
use api::runs::{RunStatus, RunTerminationReason};
use jiff::{SignedDuration, Timestamp};

use super::{Cause, RetryWait, Retrying, Run, StopRequest};
use crate::events::status_changed;
use crate::job::{EndOrder, Job, stop_grace_secs};
use crate::placement::profile_of;
use crate::planted::{self, Bug};

/// How often a run is looked at when nothing happens to it, in seconds.
const SAFETY_SECS: i64 = 300;

/// How long a run waits before its jobs are submitted again, by attempt, in seconds.
const RETRY_DELAYS_SECS: [i64; 6] = [15, 30, 60, 120, 300, 600];

/// A run that was healthy for this long, in seconds, waits no longer than one that fails for the first time.
const HEALTHY_SECS: i64 = 600;

/// How much later than a peer's exit the loss of a machine may be seen and still be what the peer failed of, in seconds.
/// The peer feels it at once; the machine is only missed when its agent has been silent for a while.
const LOSS_LEAD_SECS: i64 = 20;

/// The message of a job that ends because its gang is submitted again.
const RESUBMITTED: &str = "Run is to be resubmitted";

/// What happens next to a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunDecision {
    /// The run as it is from now on.
    pub run: Run,
    /// Jobs that are to end, and why.
    pub end_jobs: Vec<(JobId, EndOrder)>,
    /// Jobs whose commands may start.
    pub release_jobs: Vec<JobId>,
    /// Every job is submitted anew.
    pub resubmit: bool,
    /// The run waits for a place.
    pub wants_place: bool,
    /// What to tell users.
    pub events: Vec<String>,
    /// When to look again, unless something happens before.
    pub look_again_at: Option<Timestamp>,
}

/// Decides from the run and the latest submission of each of its jobs.
pub fn decide(now: Timestamp, run: &Run, jobs: &[Job]) -> RunDecision {
    let mut decision = RunDecision {
        run: run.clone(),
        end_jobs: vec![],
        release_jobs: vec![],
        resubmit: false,
        wants_place: false,
        events: vec![],
        look_again_at: None,
    };
    match run.status {
        RunStatus::Terminated | RunStatus::Failed | RunStatus::Done => {
            if !planted::has(Bug::FinishedRunJudgedAgain) {
                return decision;
            }
            go_on(now, jobs, &mut decision);
            decision.look_again_at = Some(now);
        }
        RunStatus::Terminating => end(now, jobs, &mut decision),
        RunStatus::Pending | RunStatus::Submitted | RunStatus::Provisioning | RunStatus::Running => {
            if let Some(reason) = stop_reason(run.stop) {
                begin_end(reason, jobs, &mut decision);
            } else if run.status == RunStatus::Pending {
                wait(now, jobs, &mut decision);
            } else {
                go_on(now, jobs, &mut decision);
            }
        }
    }
    tell_status(run, jobs, &mut decision);
    let changed = decision.run != *run || !decision.end_jobs.is_empty() || !decision.release_jobs.is_empty();
    if changed || decision.resubmit {
        decision.run.state.last_processed_at = Some(now);
    }
    if !decision.run.status.is_finished() || planted::has(Bug::FinishedRunJudgedAgain) {
        let safety = now + SignedDuration::from_secs(SAFETY_SECS);
        decision.look_again_at = Some(decision.look_again_at.map_or(safety, |at| at.min(safety)));
    }
    decision
}

fn tell_status(before: &Run, jobs: &[Job], decision: &mut RunDecision) {
    let run = &decision.run;
    // Who stopped it has said so in an event of their own.
    let told = before.stop.is_some() && run.status == RunStatus::Terminating;
    if run.status == before.status || told {
        return;
    }
    let (from, to) = (before.status.as_str(), run.status.as_str());
    let mut event = match run.state.termination_reason.filter(|_| run.status == RunStatus::Terminating) {
        Some(reason) => {
            let message = run.state.cause.as_ref().filter(|_| jobs.len() > 1).map(cause_text);
            status_changed("Run", from, to, Some((reason.as_str(), message.as_deref())))
        }
        None => status_changed("Run", from, to, None),
    };
    if let Some(wait) = run.state.retry.filter(|_| run.status == RunStatus::Pending) {
        let why =
            run.state.cause.as_ref().map(|cause| if jobs.len() > 1 { cause_text(cause) } else { what(cause) });
        let why = why.map(|why| format!("{why}; ")).unwrap_or_default();
        let at = wait.not_before.strftime("%Y-%m-%d %H:%M:%S UTC");
        event.push_str(&format!(" ({why}tried again at {at})"));
    }
    decision.events.push(event);
}

/// What happened, for people.
fn what(cause: &Cause) -> String {
    cause.message.clone().unwrap_or_else(|| cause.reason.as_str().replace('_', " "))
}

/// `node 1 exited (3)`: the cause of a gang's end, for people.
fn cause_text(cause: &Cause) -> String {
    format!("node {}: {}", cause.job_num, what(cause))
}

fn stop_reason(stop: Option<StopRequest>) -> Option<RunTerminationReason> {
    match stop {
        None => None,
        Some(StopRequest::Stop) => Some(RunTerminationReason::StoppedByUser),
        Some(StopRequest::Abort) => Some(RunTerminationReason::AbortedByUser),
    }
}

/// The reason that unfinished jobs get when their run ends.
fn job_reason(reason: RunTerminationReason) -> JobTerminationReason {
    match reason {
        RunTerminationReason::AllJobsDone => JobTerminationReason::DoneByRunner,
        RunTerminationReason::StoppedByUser => JobTerminationReason::TerminatedByUser,
        RunTerminationReason::AbortedByUser => JobTerminationReason::AbortedByUser,
        RunTerminationReason::GatewayError => JobTerminationReason::GatewayError,
        RunTerminationReason::JobFailed
        | RunTerminationReason::RetryLimitExceeded
        | RunTerminationReason::ServerError => JobTerminationReason::TerminatedByServer,
    }
}

/// Whether a run ends because of a job. What jobs do while their user ends them is nobody's fault.
fn is_failure(reason: RunTerminationReason) -> bool {
    match reason {
        RunTerminationReason::JobFailed | RunTerminationReason::RetryLimitExceeded => true,
        RunTerminationReason::AllJobsDone
        | RunTerminationReason::StoppedByUser
        | RunTerminationReason::AbortedByUser
        | RunTerminationReason::ServerError
        | RunTerminationReason::GatewayError => false,
    }
}

fn begin_end(reason: RunTerminationReason, jobs: &[Job], decision: &mut RunDecision) {
    decision.run.status = RunStatus::Terminating;
    decision.run.state.termination_reason = Some(reason);
    decision.run.state.retry = None;
    decision.run.state.retrying = None;
    if !is_failure(reason) {
        decision.run.state.cause = None;
    }
    let message = decision.run.state.cause.as_ref().filter(|_| jobs.len() > 1).map(cause_text);
    end_unfinished(job_reason(reason), message.as_deref(), jobs, decision);
}

fn end_unfinished(reason: JobTerminationReason, message: Option<&str>, jobs: &[Job], decision: &mut RunDecision) {
    for job in jobs.iter().filter(|job| !job.status.is_finished()) {
        let abort = reason == JobTerminationReason::AbortedByUser;
        let grace_secs = if abort { 0 } else { stop_grace_secs(&job.spec) };
        let order = EndOrder { reason, message: message.map(str::to_owned), grace_secs };
        let stands = job.end.as_ref().is_some_and(|end| !abort || end.reason == reason);
        if !stands {
            decision.end_jobs.push((job.id, order));
        }
    }
}

/// The run ends: waits until nothing of it runs.
fn end(now: Timestamp, jobs: &[Job], decision: &mut RunDecision) {
    let aborted = decision.run.stop == Some(StopRequest::Abort);
    if aborted && decision.run.state.termination_reason == Some(RunTerminationReason::StoppedByUser) {
        decision.run.state.termination_reason = Some(RunTerminationReason::AbortedByUser);
    }
    if decision.run.state.termination_reason.is_some_and(is_failure) {
        note_cause(jobs, decision);
    }
    // A run that ends without a reason was written by an older release; it ends as our mistake.
    let reason = decision.run.state.termination_reason.unwrap_or(RunTerminationReason::ServerError);
    let all_finished = jobs.iter().all(|job| job.status.is_finished());
    if all_finished {
        // The node that failed first may be one whose loss was noticed last.
        let failed = reason == RunTerminationReason::JobFailed && decision.run.stop.is_none();
        if failed && let RetryWindow::Open(retrying) = retry_window(now, jobs, decision) {
            decision.run.state.termination_reason = None;
            try_again(now, retrying, jobs, decision);
            return;
        }
        decision.run.status = reason.final_status();
        return;
    }
    // Who aborts wants no grace, whatever the run ends of.
    let job_reason = if aborted { JobTerminationReason::AbortedByUser } else { job_reason(reason) };
    end_unfinished(job_reason, None, jobs, decision);
}

/// The run waits to be submitted again.
fn wait(now: Timestamp, jobs: &[Job], decision: &mut RunDecision) {
    let Some(wait) = decision.run.state.retry else {
        decision.resubmit = true;
        decision.run.status = RunStatus::Submitted;
        return;
    };
    if wait.for_capacity {
        if wait.until <= now {
            begin_end(RunTerminationReason::RetryLimitExceeded, jobs, decision);
            return;
        }
        // What falls free is seen by the placement pass; what must be bought is tried again by and by.
        decision.wants_place = wait.not_before <= now;
        let next = if wait.not_before <= now { wait.until } else { wait.not_before.min(wait.until) };
        decision.look_again_at = Some(next);
        return;
    }
    if wait.not_before <= now {
        decision.run.state.retry = None;
        decision.run.state.cause = None;
        decision.run.status = RunStatus::Submitted;
        decision.resubmit = true;
        decision.wants_place = true;
    } else {
        decision.look_again_at = Some(wait.not_before);
    }
}

/// How far one job of an active run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Submitted,
    Provisioning,
    Running,
    Done,
    ScaledDown,
    Failed,
}

fn progress(job: &Job) -> Progress {
    let ended = |reason: Option<JobTerminationReason>| match reason {
        Some(JobTerminationReason::DoneByRunner) => Progress::Done,
        Some(JobTerminationReason::ScaledDown) => Progress::ScaledDown,
        _ => Progress::Failed,
    };
    match job.status {
        JobStatus::Submitted => Progress::Submitted,
        JobStatus::Provisioning | JobStatus::Pulling => Progress::Provisioning,
        JobStatus::Running => Progress::Running,
        JobStatus::Done => Progress::Done,
        JobStatus::Terminating | JobStatus::Terminated | JobStatus::Aborted | JobStatus::Failed => {
            ended(job.state.termination_reason)
        }
    }
}

/// The run is neither pending nor ending: judges its jobs.
fn go_on(now: Timestamp, jobs: &[Job], decision: &mut RunDecision) {
    note_cause(jobs, decision);
    let states: Vec<Progress> = jobs.iter().map(progress).collect();
    let any = |state: Progress| states.contains(&state);
    if any(Progress::Failed) {
        fail_or_retry(now, jobs, decision);
        return;
    }
    let profile = profile_of(&decision.run.spec);
    let master_done = jobs.iter().zip(&states).any(|(job, state)| job.job_num == 0 && *state == Progress::Done);
    let stops_with_master = profile.stop_criteria == Some(StopCriteria::MasterDone);
    let all_done = states.iter().all(|state| matches!(state, Progress::Done | Progress::ScaledDown));
    if all_done || (stops_with_master && master_done) {
        begin_end(RunTerminationReason::AllJobsDone, jobs, decision);
        return;
    }
    let status = if any(Progress::Running) {
        RunStatus::Running
    } else if any(Progress::Provisioning) {
        RunStatus::Provisioning
    } else if any(Progress::Submitted) {
        RunStatus::Submitted
    } else {
        // Some are done and the rest scaled down or done: nothing new to say.
        decision.run.status
    };
    decision.run.status = status;
    decision.wants_place = jobs.iter().any(|job| job.status == JobStatus::Submitted && job.instance_id.is_none());
    release(profile.startup_order, jobs, decision);
}

/// Lets commands start: no node starts before all nodes of the gang are ready.
fn release(order: Option<StartupOrder>, jobs: &[Job], decision: &mut RunDecision) {
    use api::agent::TaskPhase;
    let is_ready = |job: &Job| job.state.phase.is_some_and(|phase| phase >= TaskPhase::Ready);
    // "Has started" and not "runs": a peer that ended at once must not block anybody. The phase alone says only that
    // the agent is about to start it.
    let has_started = |job: &Job| {
        job.state.started_at.is_some()
            || job.state.phase.is_some_and(|phase| phase >= TaskPhase::Exited)
            || job.status.is_finished()
    };
    let all_ready =
        jobs.iter().all(|job| is_ready(job) || job.status.is_finished() || job.status == JobStatus::Terminating);
    if !all_ready && !planted::has(Bug::GoBeforeAllAreReady) {
        return;
    }
    let master_started = jobs.iter().filter(|job| job.job_num == 0).all(has_started);
    let workers_started = jobs.iter().filter(|job| job.job_num != 0).all(has_started);
    for job in jobs.iter().filter(|job| job.released_at.is_none() && !job.status.is_finished()) {
        let may_start = match order {
            None | Some(StartupOrder::Any) => true,
            Some(StartupOrder::MasterFirst) => job.job_num == 0 || master_started,
            Some(StartupOrder::WorkersFirst) => job.job_num != 0 || workers_started,
        };
        if may_start {
            decision.release_jobs.push(job.id);
        }
    }
}

/// Remembers the job that ended first by itself: its end is the cause, the others' are consequences.
fn note_cause(jobs: &[Job], decision: &mut RunDecision) {
    for job in jobs {
        let Some(reason) = own_failure(job) else { continue };
        let ended_at = job.state.exited_at.or(job.state.lost_since).or(job.state.ended_at);
        let at = ended_at.unwrap_or(job.submitted_at);
        let known = decision.run.state.cause.as_ref();
        let earlier = known.is_none_or(|cause| felt_at(reason, at) < felt_at(cause.reason, cause.at));
        let earlier = earlier || planted::has(Bug::PeersExitTakenForCause);
        if earlier {
            decision.run.state.cause = Some(Cause {
                job_id: job.id,
                job_num: job.job_num,
                reason,
                message: job.state.termination_message.clone(),
                at,
            });
        }
    }
}

/// When peers may have felt a failure first.
fn felt_at(reason: JobTerminationReason, at: Timestamp) -> Timestamp {
    use JobTerminationReason as Reason;
    let is_loss = matches!(reason, Reason::InterruptedByNoCapacity | Reason::InstanceUnreachable);
    if is_loss { at - SignedDuration::from_secs(LOSS_LEAD_SECS) } else { at }
}

/// Why a job failed, unless it only ended because the run or its user wanted it to.
fn own_failure(job: &Job) -> Option<JobTerminationReason> {
    use JobTerminationReason as Reason;
    let reason = job.state.termination_reason?;
    let own = match reason {
        Reason::DoneByRunner | Reason::ScaledDown | Reason::TerminatedByUser | Reason::AbortedByUser => false,
        // Given without an order when the job itself could never have been started.
        Reason::TerminatedByServer | Reason::GatewayError => job.end.is_none(),
        Reason::FailedToStartDueToNoCapacity
        | Reason::InterruptedByNoCapacity
        | Reason::InstanceUnreachable
        | Reason::InstanceAccessRevoked
        | Reason::WaitingInstanceLimitExceeded
        | Reason::WaitingRunnerLimitExceeded
        | Reason::VolumeError
        | Reason::InactivityDurationExceeded
        | Reason::TerminatedDueToUtilizationPolicy
        | Reason::ContainerExitedWithError
        | Reason::PortsBindingFailed
        | Reason::CreatingContainerError
        | Reason::ExecutorError
        | Reason::MaxDurationExceeded
        | Reason::LogQuotaExceeded => true,
    };
    own.then_some(reason)
}

fn fail_or_retry(now: Timestamp, jobs: &[Job], decision: &mut RunDecision) {
    let window = match decision.run.state.retrying {
        Some(retrying) => RetryWindow::Open(retrying),
        None => retry_window(now, jobs, decision),
    };
    match window {
        RetryWindow::Closed(reason) => begin_end(reason, jobs, decision),
        RetryWindow::Open(retrying) => {
            decision.run.state.retrying = Some(retrying);
            end_unfinished(JobTerminationReason::TerminatedByServer, Some(RESUBMITTED), jobs, decision);
            if jobs.iter().all(|job| job.status.is_finished()) {
                try_again(now, retrying, jobs, decision);
            }
        }
    }
}

/// All jobs have ended: the run waits for its next attempt.
fn try_again(now: Timestamp, retrying: Retrying, jobs: &[Job], decision: &mut RunDecision) {
    let state = &mut decision.run.state;
    if jobs.iter().any(was_healthy) {
        state.attempt = 0;
    }
    let delay = RETRY_DELAYS_SECS[(state.attempt as usize).min(RETRY_DELAYS_SECS.len() - 1)];
    let for_capacity = retrying.event == RetryEvent::NoCapacity;
    // However short the time for retries, it allows for one; and one that waits for a place needs some of that time.
    let left = retrying.until.duration_since(now).max(SignedDuration::ZERO);
    let longest = if for_capacity { left / 2 } else { left };
    let not_before = now + SignedDuration::from_secs(delay).min(longest);
    state.attempt += 1;
    state.retrying = None;
    state.retry = Some(RetryWait { not_before, until: retrying.until, for_capacity });
    decision.run.state.last_placed_at = last_placed(&decision.run, jobs);
    // A fleet is not in use by what may never come back to it.
    decision.run.state.previous_fleet = decision.run.fleet_id.take().or(decision.run.state.previous_fleet);
    decision.run.status = RunStatus::Pending;
    decision.look_again_at = Some(not_before.min(retrying.until));
}

/// Whether a job ran for so long that its failure says nothing about its start.
fn was_healthy(job: &Job) -> bool {
    let ended_at = job.state.exited_at.or(job.state.ended_at);
    let ran = job.state.started_at.zip(ended_at).map(|(started_at, ended_at)| ended_at.duration_since(started_at));
    ran.is_some_and(|ran| SignedDuration::from_secs(HEALTHY_SECS) <= ran)
}

enum RetryWindow {
    Open(Retrying),
    Closed(RunTerminationReason),
}

fn retry_window(now: Timestamp, jobs: &[Job], decision: &RunDecision) -> RetryWindow {
    let run = &decision.run;
    // Siblings that were ended for a resubmission are not judged; they were healthy.
    let failed: Vec<&Job> = jobs.iter().filter(|job| progress(job) == Progress::Failed).collect();
    let judged: Vec<&Job> = failed.iter().copied().filter(|job| own_failure(job).is_some()).collect();
    let judged = if judged.is_empty() { failed } else { judged };
    let mut open = None;
    for job in judged {
        let event = job.state.termination_reason.and_then(JobTerminationReason::retry_event);
        let retry =
            job.spec.retry.as_ref().filter(|retry| event.is_some_and(|event| retry.on_events.contains(&event)));
        let (Some(event), Some(retry)) = (event, retry) else {
            let consequence = run.state.cause.as_ref().is_some_and(|cause| cause.job_id != job.id);
            if consequence {
                continue;
            }
            return RetryWindow::Closed(RunTerminationReason::JobFailed);
        };
        let was_placed = job.state.placed_at.is_some();
        let since = if was_placed { job.state.last_processed_at.unwrap_or(now) } else { waiting_since(run) };
        let duration = i64::try_from(retry.duration).unwrap_or(i64::MAX / 2_000_000);
        let until = since.saturating_add(SignedDuration::from_secs(duration)).unwrap_or(Timestamp::MAX);
        if until <= now {
            return RetryWindow::Closed(RunTerminationReason::RetryLimitExceeded);
        }
        if open.is_none_or(|(_, earliest)| until < earliest) {
            open = Some((event, until));
        }
    }
    open.map_or(RetryWindow::Closed(RunTerminationReason::JobFailed), |(event, until)| {
        RetryWindow::Open(Retrying { event, until })
    })
}

/// Since when a run without a place waits: the end of what was placed last, or else its submission.
fn waiting_since(run: &Run) -> Timestamp {
    run.state.last_placed_at.unwrap_or(run.submitted_at)
}

/// When a job of the run that had a place was last heard of.
fn last_placed(run: &Run, jobs: &[Job]) -> Option<Timestamp> {
    let placed = jobs.iter().filter(|job| job.state.placed_at.is_some());
    placed.filter_map(|job| job.state.last_processed_at).max().or(run.state.last_placed_at)
}
