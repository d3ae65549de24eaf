//! What happens next to a job: every status by what is seen.

use std::sync::Arc;

use api::agent::{ClusterInfo, ExitReason, TaskPhase};
use api::instances::{InstanceStatus, InstanceTerminationReason as Why};
use api::jobs::{JobStatus, JobTerminationReason};
use lifecycle::instance::Instance;
use lifecycle::job::{Effect, EndOrder, Inactivity, Job, JobDecision, Refused, Seen, Surroundings, decide};

use crate::fixtures::{at, exit, exited, in_phase, instance, job, placed, task};

/// A job on a machine that answers; a case changes what it is about.
struct Case {
    now: i64,
    job: Job,
    seen: Seen,
    instance: Option<Instance>,
    cluster: Option<Arc<ClusterInfo>>,
    logs_received: u64,
    logs_lost: u64,
    log_error: Option<String>,
    unreachable_since: Option<i64>,
    inactivity: Option<Inactivity>,
}

fn case(job: Job, seen: Seen) -> Case {
    let instance = job.instance_id.map(|_| instance(0, InstanceStatus::Busy));
    let cluster = Some(Arc::new(ClusterInfo::default()));
    Case {
        now: 10,
        job,
        seen,
        instance,
        cluster,
        logs_received: 0,
        logs_lost: 0,
        log_error: None,
        unreachable_since: None,
        inactivity: None,
    }
}

impl Case {
    fn decide(&self) -> JobDecision {
        let around = Surroundings {
            instance: self.instance.as_ref(),
            cluster: self.cluster.clone(),
            logs_received: self.logs_received,
            logs_lost: self.logs_lost,
            log_error: self.log_error.clone(),
            unreachable_since: self.unreachable_since.map(at),
            unreachable_after_secs: 300,
            inactivity: self.inactivity,
        };
        decide(at(self.now), &self.job, &self.seen, &around)
    }
}

fn told(decision: &JobDecision) -> String {
    let mut words = vec![decision.job.status.as_str().to_owned()];
    let state = &decision.job.state;
    words.extend(state.termination_reason.map(|reason| reason.as_str().to_owned()));
    words.extend(match decision.effect {
        Some(Effect::Stop { grace_secs }) => Some(format!("stop {grace_secs}")),
        Some(effect) => Some(format!("{effect:?}").to_lowercase()),
        None => None,
    });
    words.extend(decision.releases_slot.then(|| "frees".to_owned()));
    words.extend(state.waiting_for.as_ref().map(|waits| format!("waits for {waits}")));
    words.join(", ")
}

#[track_caller]
fn check(case: &Case, expected: &str) {
    assert_eq!(told(&case.decide()), expected);
}

fn known(phase: TaskPhase) -> Seen {
    Seen::Known(Box::new(task(phase)))
}

fn known_exit(phase: TaskPhase, reason: ExitReason, status: i32) -> Seen {
    Seen::Known(Box::new(exited(phase, reason, status)))
}

fn order(reason: JobTerminationReason, grace_secs: u64) -> EndOrder {
    EndOrder { reason, message: None, grace_secs }
}

#[test]
fn a_submitted_job_waits_for_its_place_whatever_is_seen() {
    for seen in [Seen::Unknown, Seen::Absent, known(TaskPhase::Running)] {
        check(&case(job(0, 1), seen), "submitted");
    }
}

#[test]
fn a_submitted_job_that_is_not_wanted_ends_at_once() {
    let ends = |reason| Job { end: Some(order(reason, 300)), ..job(0, 1) };
    let reason = JobTerminationReason::TerminatedByUser;
    check(&case(ends(reason), Seen::Unknown), "terminated, terminated_by_user");
    let reason = JobTerminationReason::AbortedByUser;
    check(&case(ends(reason), Seen::Unknown), "aborted, aborted_by_user");
    let reason = JobTerminationReason::FailedToStartDueToNoCapacity;
    check(&case(ends(reason), Seen::Unknown), "failed, failed_to_start_due_to_no_capacity");
}

#[test]
fn a_placed_job_follows_its_task() {
    let placed = || placed(0, 2, JobStatus::Provisioning);
    check(&case(placed(), Seen::Unknown), "provisioning");
    check(&case(placed(), Seen::Absent), "provisioning, put");
    let without_peers = Case { cluster: None, ..case(placed(), Seen::Absent) };
    check(&without_peers, "provisioning, waits for the other nodes' instances to start");
    check(&case(placed(), known(TaskPhase::Accepted)), "pulling");
    check(&case(placed(), known(TaskPhase::Preparing)), "pulling");
    check(&case(placed(), known(TaskPhase::Pulling)), "pulling, waits for its image");
    check(&case(placed(), known(TaskPhase::Ready)), "pulling, waits for the other nodes to be ready");
    check(&case(placed(), known(TaskPhase::Running)), "running");
    check(&case(placed(), known(TaskPhase::Stopping)), "running");
}

#[test]
fn a_job_waits_for_a_machine_that_starts() {
    let starting = Case {
        instance: Some(instance(0, InstanceStatus::Provisioning)),
        ..case(placed(0, 1, JobStatus::Provisioning), Seen::Unknown)
    };
    check(&starting, "provisioning, waits for instance fleet-0 to start");
    let mut unbought = instance(0, InstanceStatus::Pending);
    let waits = |instance: &Instance| Case {
        instance: Some(instance.clone()),
        ..case(placed(0, 1, JobStatus::Provisioning), Seen::Unknown)
    };
    check(&waits(&unbought), "provisioning, waits for a machine for instance fleet-0");
    unbought.state.unsold = Some(crate::fixtures::id(300));
    let told = "another offer for instance fleet-0, as the last one was not to be had";
    check(&waits(&unbought), &format!("provisioning, waits for {told}"));
}

#[test]
fn nothing_starts_before_it_is_released() {
    let ready = in_phase(0, 2, TaskPhase::Ready);
    check(&case(ready.clone(), known(TaskPhase::Ready)), "pulling, waits for the other nodes to be ready");
    let released = Job { released_at: Some(at(9)), ..ready };
    check(&case(released.clone(), known(TaskPhase::Ready)), "pulling, go");
    // An order may be lost, so it is repeated until the task obeys.
    let decision = case(released, known(TaskPhase::Ready)).decide();
    assert_eq!(decision.look_again_at, Some(at(12)));
}

fn refused(mut job: Job, for_good: bool) -> Job {
    job.state.refused = Some(Refused { since: at(10), message: "the disk is full".to_owned(), for_good });
    job
}

#[test]
fn an_order_that_the_agent_refuses_is_shown_and_repeated_for_a_while() {
    let unplaced = || placed(0, 1, JobStatus::Provisioning);
    let given = |now| Case { now, ..case(refused(unplaced(), false), Seen::Absent) };
    let waits = "waits for instance fleet-0 to take it: the disk is full";
    check(&given(10), &format!("provisioning, put, {waits}"));
    check(&given(309), &format!("provisioning, put, {waits}"));
    check(&given(310), "failed, waiting_runner_limit_exceeded, frees");
    let message = given(310).decide().job.state.termination_message.unwrap();
    assert_eq!(message, "Instance fleet-0 refused the job: the disk is full");
    let released = || Job { released_at: Some(at(9)), ..in_phase(0, 2, TaskPhase::Ready) };
    let go = |now| Case { now, ..case(refused(released(), false), known(TaskPhase::Ready)) };
    check(&go(309), &format!("pulling, go, {waits}"));
    check(&go(310), "terminating, waiting_runner_limit_exceeded, stop 0");
}

#[test]
fn an_order_that_makes_no_sense_to_the_agent_ends_the_job_at_once() {
    let given = case(refused(placed(0, 1, JobStatus::Provisioning), true), Seen::Absent);
    check(&given, "failed, executor_error, frees");
}

#[test]
fn a_refusal_is_forgotten_once_the_agent_goes_on() {
    let taken = case(refused(placed(0, 1, JobStatus::Provisioning), false), known(TaskPhase::Accepted));
    check(&taken, "pulling");
    assert_eq!(taken.decide().job.state.refused, None);
}

#[test]
fn an_order_to_end_that_is_refused_is_shown() {
    let mut ending = refused(in_phase(0, 1, TaskPhase::Running), false);
    ending.status = JobStatus::Terminating;
    ending.state.termination_reason = Some(JobTerminationReason::TerminatedByUser);
    let waits = "waits for instance fleet-0 to end it: the disk is full";
    check(
        &Case { now: 10_000, ..case(ending, known(TaskPhase::Running)) },
        &format!("terminating, terminated_by_user, stop 0, {waits}"),
    );
}

#[test]
fn each_exit_has_its_official_reason() {
    let cases = [
        (ExitReason::Done, 0, "terminating, done_by_runner"),
        (ExitReason::Failed, 3, "terminating, container_exited_with_error"),
        (ExitReason::Stopped, 143, "terminating, terminated_by_server"),
        (ExitReason::MaxDurationExceeded, 143, "terminating, max_duration_exceeded"),
        (ExitReason::CreatingContainerError, 1, "terminating, creating_container_error"),
        (ExitReason::ExecutorError, 1, "terminating, executor_error"),
        (ExitReason::PortsBindingFailed, 1, "terminating, ports_binding_failed"),
        (ExitReason::HostInterrupted, 1, "terminating, executor_error"),
    ];
    for (reason, status, expected) in cases {
        let case = case(in_phase(0, 1, TaskPhase::Running), known_exit(TaskPhase::Exited, reason, status));
        check(&case, expected);
        let state = case.decide().job.state;
        assert_eq!((state.exit_status, state.exited_at), (Some(status), Some(at(5))));
    }
}

#[test]
fn each_reason_has_its_official_status() {
    use JobTerminationReason as Reason;
    let statuses = [
        (Reason::FailedToStartDueToNoCapacity, "failed"),
        (Reason::InterruptedByNoCapacity, "failed"),
        (Reason::InstanceUnreachable, "failed"),
        (Reason::InstanceAccessRevoked, "failed"),
        (Reason::WaitingInstanceLimitExceeded, "failed"),
        (Reason::WaitingRunnerLimitExceeded, "failed"),
        (Reason::TerminatedByUser, "terminated"),
        (Reason::VolumeError, "failed"),
        (Reason::GatewayError, "failed"),
        (Reason::ScaledDown, "terminated"),
        (Reason::DoneByRunner, "done"),
        (Reason::AbortedByUser, "aborted"),
        (Reason::TerminatedByServer, "terminated"),
        (Reason::InactivityDurationExceeded, "terminated"),
        (Reason::TerminatedDueToUtilizationPolicy, "terminated"),
        (Reason::ContainerExitedWithError, "failed"),
        (Reason::PortsBindingFailed, "failed"),
        (Reason::CreatingContainerError, "failed"),
        (Reason::ExecutorError, "failed"),
        (Reason::MaxDurationExceeded, "terminated"),
        (Reason::LogQuotaExceeded, "failed"),
    ];
    for (reason, status) in statuses {
        let mut ending = in_phase(0, 1, TaskPhase::Sealed);
        ending.status = JobStatus::Terminating;
        ending.state.termination_reason = Some(reason);
        let reason = reason.as_str();
        check(&case(ending, Seen::Absent), &format!("{status}, {reason}, frees"));
    }
}

#[test]
fn memory_that_ran_out_is_said() {
    let mut seen = exited(TaskPhase::Exited, ExitReason::Failed, 137);
    seen.exit.as_mut().unwrap().oom_killed = true;
    let decision = case(in_phase(0, 1, TaskPhase::Running), Seen::Known(Box::new(seen))).decide();
    let message = decision.job.state.termination_message.unwrap();
    assert_eq!(message, "The job ran out of memory and was killed");
}

#[test]
fn what_a_task_did_by_itself_counts_before_what_the_run_wants() {
    let wanted_to_end = Job {
        end: Some(order(JobTerminationReason::TerminatedByUser, 300)),
        ..in_phase(0, 1, TaskPhase::Running)
    };
    let done = known_exit(TaskPhase::Exited, ExitReason::Done, 0);
    check(&case(wanted_to_end.clone(), done), "terminating, done_by_runner");
    check(&case(wanted_to_end, known(TaskPhase::Running)), "terminating, terminated_by_user, stop 300");
}

#[test]
fn an_older_answer_takes_nothing_back() {
    let running = in_phase(0, 2, TaskPhase::Running);
    let decision = case(running, known(TaskPhase::Ready)).decide();
    assert_eq!(decision.job.state.phase, Some(TaskPhase::Running));
    // The order to start is repeated, for a task that obeyed it before that is harmless.
    assert_eq!(told(&decision), "running, go");
}

#[test]
fn a_task_that_the_agent_forgot_is_mourned_and_never_given_twice() {
    for phase in [TaskPhase::Accepted, TaskPhase::Ready, TaskPhase::Running] {
        let case = case(in_phase(0, 1, phase), Seen::Absent);
        check(&case, "failed, executor_error, frees");
    }
}

#[test]
fn silence_is_no_reason_to_act_until_it_has_lasted() {
    let silent = |now| Case {
        now,
        unreachable_since: Some(100),
        ..case(in_phase(0, 1, TaskPhase::Running), Seen::Unknown)
    };
    let waiting = "running, waits for instance fleet-0 to answer again";
    check(&case(in_phase(0, 1, TaskPhase::Running), Seen::Unknown), "running");
    check(&silent(100), waiting);
    check(&silent(399), waiting);
    assert_eq!(silent(399).decide().look_again_at, Some(at(400)));
    check(&silent(400), "failed, instance_unreachable, frees");
    let mut on_spot = silent(400);
    let kind = on_spot.instance.as_mut().unwrap().state.instance_type.as_mut().unwrap();
    kind.resources.spot = true;
    check(&on_spot, "failed, interrupted_by_no_capacity, frees");
}

#[test]
fn a_job_ends_with_its_machine() {
    let ends = |reason, joined, spot| {
        let mut machine = instance(0, InstanceStatus::Terminated);
        machine.state.termination_reason = Some(reason);
        machine.state.joined_at = machine.state.joined_at.filter(|_| joined);
        machine.state.instance_type.as_mut().unwrap().resources.spot = spot;
        Case { instance: Some(machine), ..case(placed(0, 1, JobStatus::Provisioning), Seen::Unknown) }
    };
    check(&ends(Why::NoOffers, false, false), "failed, failed_to_start_due_to_no_capacity, frees");
    check(&ends(Why::ProvisioningTimeout, false, false), "failed, waiting_instance_limit_exceeded, frees");
    check(&ends(Why::Unreachable, true, false), "failed, instance_unreachable, frees");
    check(&ends(Why::Unreachable, true, true), "failed, interrupted_by_no_capacity, frees");
    let gone = Case { instance: None, ..ends(Why::Error, true, false) };
    check(&gone, "failed, instance_unreachable, frees");
}

#[test]
fn an_ending_job_waits_until_nothing_of_it_runs_and_its_log_is_here() {
    let mut ending = in_phase(0, 1, TaskPhase::Running);
    ending.status = JobStatus::Terminating;
    ending.end = Some(order(JobTerminationReason::TerminatedByUser, 20));
    ending.state.termination_reason = Some(JobTerminationReason::TerminatedByUser);
    let seen = |seen| case(ending.clone(), seen);
    check(&seen(known(TaskPhase::Running)), "terminating, terminated_by_user, stop 20");
    check(&seen(known(TaskPhase::Stopping)), "terminating, terminated_by_user, stop 20");
    check(&seen(known_exit(TaskPhase::Exited, ExitReason::Stopped, 143)), "terminating, terminated_by_user");
    let sealed = || {
        let mut task = exited(TaskPhase::Sealed, ExitReason::Stopped, 143);
        task.log_end = 5;
        Seen::Known(Box::new(task))
    };
    let short = Case { logs_received: 4, ..seen(sealed()) };
    check(&short, "terminating, terminated_by_user, waits for the rest of its log");
    let whole = Case { logs_received: 5, ..seen(sealed()) };
    check(&whole, "terminated, terminated_by_user, forget, frees");
    check(&seen(Seen::Absent), "terminated, terminated_by_user, frees");
    check(&seen(Seen::Unknown), "terminating, terminated_by_user");
}

/// A job whose task is over and has written 100 bytes.
fn sealed(reason: JobTerminationReason) -> Case {
    let mut ending = in_phase(0, 1, TaskPhase::Sealed);
    ending.status = JobStatus::Terminating;
    ending.end = Some(order(reason, 0));
    ending.state.termination_reason = Some(reason);
    let mut task = exited(TaskPhase::Sealed, ExitReason::Stopped, 143);
    task.log_end = 100;
    case(ending, Seen::Known(Box::new(task)))
}

#[test]
fn a_machine_is_not_held_for_a_log_that_does_not_come() {
    let mut waiting = sealed(JobTerminationReason::TerminatedByUser);
    let waits = "terminating, terminated_by_user, waits for the rest of its log";
    // It comes slowly, so it is waited for.
    for (now, received) in [(10, 0), (500, 10), (1_000, 20), (1_500, 30), (2_099, 30)] {
        (waiting.now, waiting.logs_received) = (now, received);
        check(&waiting, waits);
        waiting.job = waiting.decide().job;
    }
    assert_eq!(waiting.decide().look_again_at, Some(at(2_100)));
    waiting.now = 2_100;
    // The agent keeps what it has: it is taken whenever it comes.
    check(&waiting, "terminated, terminated_by_user, frees");
    let events = waiting.decide().events;
    assert!(events.contains(&"Job's log is incomplete: 70 bytes of output are missing".to_owned()), "{events:?}");
}

#[test]
fn who_aborts_does_not_wait_for_a_log() {
    let mut waiting = sealed(JobTerminationReason::AbortedByUser);
    check(&waiting, "terminating, aborted_by_user, waits for the rest of its log");
    waiting.job = waiting.decide().job;
    (waiting.now, waiting.logs_received) = (24, 10);
    check(&waiting, "terminating, aborted_by_user, waits for the rest of its log");
    waiting.now = 25;
    check(&waiting, "aborted, aborted_by_user, frees");
}

#[test]
fn a_log_that_the_server_cannot_keep_is_said() {
    let mut waiting = sealed(JobTerminationReason::TerminatedByUser);
    waiting.log_error = Some("no space left".to_owned());
    check(
        &waiting,
        "terminating, terminated_by_user, waits for the rest of its log: the server cannot keep it: no space left",
    );
    let whole = Case { logs_received: 100, logs_lost: 40, ..sealed(JobTerminationReason::TerminatedByUser) };
    check(&whole, "terminated, terminated_by_user, forget, frees");
    let events = whole.decide().events;
    assert!(events.contains(&"Job's log is incomplete: 40 bytes of output are missing".to_owned()), "{events:?}");
}

#[test]
fn a_node_that_went_with_its_machine_was_not_ended_by_a_peer() {
    let mut gone = instance(0, InstanceStatus::Terminated);
    gone.state.termination_reason = Some(Why::Unreachable);
    gone.state.absent_since = Some(at(7));
    gone.state.instance_type.as_mut().unwrap().resources.spot = true;
    let ordered = |reason| Job { end: Some(order(reason, 300)), ..in_phase(0, 2, TaskPhase::Running) };
    let by_peer = ordered(JobTerminationReason::TerminatedByServer);
    let lost = Case { instance: Some(gone.clone()), ..case(by_peer.clone(), Seen::Unknown) };
    check(&lost, "failed, interrupted_by_no_capacity, frees");
    assert_eq!(lost.decide().job.state.lost_since, Some(at(7)));
    // The order came first, and the loss was seen later.
    let ending = case(by_peer, Seen::Unknown).decide().job;
    assert_eq!(ending.status, JobStatus::Terminating);
    let lost = Case { instance: Some(gone.clone()), ..case(ending.clone(), Seen::Unknown) };
    check(&lost, "failed, interrupted_by_no_capacity, frees");
    let silent = Case { now: 400, unreachable_since: Some(8), ..case(ending, Seen::Unknown) };
    check(&silent, "failed, instance_unreachable, frees");
    assert_eq!(silent.decide().job.state.lost_since, Some(at(8)));
    // What a user wanted stays what a user wanted.
    let by_user = ordered(JobTerminationReason::TerminatedByUser);
    let lost = Case { instance: Some(gone), ..case(by_user, Seen::Unknown) };
    check(&lost, "terminated, terminated_by_user, frees");
}

#[test]
fn the_order_to_end_is_repeated_until_the_task_obeys() {
    let mut ending = in_phase(0, 1, TaskPhase::Running);
    ending.status = JobStatus::Terminating;
    ending.end = Some(order(JobTerminationReason::TerminatedByUser, 20));
    for _ in 0..3 {
        let decision = case(ending, known(TaskPhase::Running)).decide();
        assert_eq!(decision.effect, Some(Effect::Stop { grace_secs: 20 }));
        assert_eq!(decision.look_again_at, Some(at(12)));
        ending = decision.job;
    }
}

#[test]
fn a_stop_becomes_an_abort_and_loses_its_grace() {
    let mut ending = in_phase(0, 1, TaskPhase::Running);
    ending.status = JobStatus::Terminating;
    ending.state.termination_reason = Some(JobTerminationReason::TerminatedByUser);
    ending.end = Some(order(JobTerminationReason::AbortedByUser, 0));
    check(&case(ending, known(TaskPhase::Stopping)), "terminating, aborted_by_user, stop 0");
}

#[test]
fn an_abort_hurries_a_job_that_failed_and_leaves_its_reason() {
    let mut ending = in_phase(0, 1, TaskPhase::Running);
    ending.status = JobStatus::Terminating;
    ending.state.termination_reason = Some(JobTerminationReason::TerminatedByServer);
    ending.end = Some(order(JobTerminationReason::AbortedByUser, 0));
    check(&case(ending, known(TaskPhase::Stopping)), "terminating, terminated_by_server, stop 0");
}

#[test]
fn a_job_ends_unseen_when_its_agent_stays_silent_or_its_machine_is_gone() {
    let mut ending = in_phase(0, 1, TaskPhase::Running);
    ending.status = JobStatus::Terminating;
    ending.state.termination_reason = Some(JobTerminationReason::TerminatedByUser);
    let silent = |now| Case { now, unreachable_since: Some(100), ..case(ending.clone(), Seen::Unknown) };
    check(&silent(399), "terminating, terminated_by_user");
    check(&silent(400), "terminated, terminated_by_user, frees");
    let gone =
        Case { instance: Some(instance(0, InstanceStatus::Terminated)), ..case(ending.clone(), Seen::Unknown) };
    check(&gone, "terminated, terminated_by_user, frees");
    let mut never_given = ending;
    never_given.state.given = false;
    never_given.state.phase = None;
    check(&case(never_given, Seen::Unknown), "terminated, terminated_by_user, frees");
}

#[test]
fn the_first_reason_is_the_true_one() {
    let mut failing = in_phase(0, 1, TaskPhase::Running);
    failing.status = JobStatus::Terminating;
    failing.state.termination_reason = Some(JobTerminationReason::ContainerExitedWithError);
    failing.end = Some(order(JobTerminationReason::TerminatedByServer, 300));
    check(&case(failing, Seen::Absent), "failed, container_exited_with_error, frees");
}

#[test]
fn a_node_that_failed_unseen_before_its_peer_is_no_consequence() {
    let mut ending = in_phase(0, 2, TaskPhase::Running);
    ending.status = JobStatus::Terminating;
    ending.end = Some(order(JobTerminationReason::TerminatedByServer, 300));
    ending.state.termination_reason = Some(JobTerminationReason::TerminatedByServer);
    let seen = |reason, status| case(ending.clone(), known_exit(TaskPhase::Sealed, reason, status));
    check(&seen(ExitReason::Failed, 3), "failed, container_exited_with_error, forget, frees");
    check(&seen(ExitReason::Done, 0), "done, done_by_runner, forget, frees");
    check(&seen(ExitReason::Stopped, 143), "terminated, terminated_by_server, forget, frees");
    // What a user wanted stays what a user wanted.
    let mut stopped = ending.clone();
    stopped.end = Some(order(JobTerminationReason::TerminatedByUser, 300));
    stopped.state.termination_reason = Some(JobTerminationReason::TerminatedByUser);
    let failed = case(stopped, known_exit(TaskPhase::Sealed, ExitReason::Failed, 3));
    check(&failed, "terminated, terminated_by_user, forget, frees");
}

#[test]
fn final_is_final() {
    for status in [JobStatus::Terminated, JobStatus::Aborted, JobStatus::Failed, JobStatus::Done] {
        let mut over = in_phase(0, 1, TaskPhase::Sealed);
        over.status = status;
        over.end = Some(order(JobTerminationReason::AbortedByUser, 0));
        for seen in [Seen::Unknown, Seen::Absent, known(TaskPhase::Running)] {
            let decision = case(over.clone(), seen).decide();
            assert_eq!((decision.job, decision.effect), (over.clone(), None));
            assert_eq!((decision.releases_slot, decision.look_again_at), (false, None));
        }
    }
}

#[test]
fn events_tell_the_official_story() {
    let told = |case: Case| case.decide().events;
    let pulling = told(case(placed(0, 1, JobStatus::Provisioning), known(TaskPhase::Pulling)));
    assert_eq!(pulling, ["Job status changed PROVISIONING -> PULLING"]);
    let failed =
        told(case(in_phase(0, 1, TaskPhase::Running), known_exit(TaskPhase::Exited, ExitReason::Failed, 3)));
    assert_eq!(
        failed,
        ["Job status changed RUNNING -> TERMINATING. Termination reason: CONTAINER_EXITED_WITH_ERROR"]
    );
    let refused = told(case(
        Job { end: Some(order(JobTerminationReason::TerminatedByUser, 0)), ..job(0, 1) },
        Seen::Unknown,
    ));
    assert_eq!(
        refused,
        [
            "Job status changed SUBMITTED -> TERMINATING. Termination reason: TERMINATED_BY_USER",
            "Job status changed TERMINATING -> TERMINATED",
        ]
    );
    let unchanged = told(case(in_phase(0, 1, TaskPhase::Running), known(TaskPhase::Running)));
    assert_eq!(unchanged, Vec::<String>::new());
}

#[test]
fn a_run_is_told_of_what_concerns_it_and_of_nothing_else() {
    let concerns = |case: Case| case.decide().concerns_run;
    assert!(concerns(case(in_phase(0, 2, TaskPhase::Pulling), known(TaskPhase::Ready))));
    assert!(concerns(case(in_phase(0, 2, TaskPhase::Ready), known(TaskPhase::Running))));
    assert!(!concerns(case(in_phase(0, 2, TaskPhase::Ready), known(TaskPhase::Ready))));
    let mut about_to_start = in_phase(0, 2, TaskPhase::Running);
    about_to_start.state.started_at = None;
    assert!(concerns(case(about_to_start, known(TaskPhase::Running))));
    let mut done = task(TaskPhase::Exited);
    done.exit = Some(exit(ExitReason::Done, 0));
    assert!(concerns(case(in_phase(0, 2, TaskPhase::Running), Seen::Known(Box::new(done)))));
}

/// A job in which nobody has been since a moment, and that ends after a minute of that.
fn unvisited_since(since: i64, now: i64) -> Case {
    let inactivity = Some(Inactivity { since: at(since), limit_secs: 60 });
    Case { now, inactivity, ..case(in_phase(0, 1, TaskPhase::Running), known(TaskPhase::Running)) }
}

#[test]
fn a_job_ends_once_nobody_has_been_in_it_for_too_long() {
    let decision = unvisited_since(10, 69).decide();
    assert_eq!((decision.look_again_at, decision.job.state.unvisited_since), (Some(at(70)), Some(at(10))));
    assert_eq!(told(&decision), "running");
    let decision = unvisited_since(10, 70).decide();
    assert_eq!(told(&decision), "terminating, inactivity_duration_exceeded, stop 300");
    assert_eq!(
        decision.job.state.termination_message.as_deref(),
        Some("The job was inactive for 60 seconds, exceeding the inactivity_duration of 60 seconds")
    );
    assert!(decision.concerns_run);
    // The run's own order comes later and says the same.
    let mut case = unvisited_since(10, 71);
    case.job = decision.job;
    check(&case, "terminating, inactivity_duration_exceeded, stop 300");
    case.job.spec.stop_duration = Some(5);
    check(&case, "terminating, inactivity_duration_exceeded, stop 5");
    case.job.end = Some(order(JobTerminationReason::AbortedByUser, 0));
    check(&case, "terminating, inactivity_duration_exceeded, stop 0");
    case.seen = known_exit(TaskPhase::Sealed, ExitReason::Stopped, 130);
    check(&case, "terminated, inactivity_duration_exceeded, forget, frees");
}

#[test]
fn a_visit_begins_the_time_of_absence_anew() {
    let away = unvisited_since(10, 30).decide().job;
    let visited = Case { job: away, inactivity: None, ..unvisited_since(10, 40) }.decide().job;
    assert_eq!(visited.state.unvisited_since, None);
    let left = Case { job: visited, ..unvisited_since(50, 100) };
    check(&left, "running");
    assert_eq!(left.decide().look_again_at, Some(at(110)));
}

#[test]
fn an_agent_that_does_not_answer_says_nothing_of_absence() {
    let mut case = unvisited_since(10, 1000);
    case.job = unvisited_since(10, 30).decide().job;
    case.seen = Seen::Unknown;
    let decision = case.decide();
    assert_eq!((decision.job.status, decision.job.state.unvisited_since), (JobStatus::Running, None));
}

#[test]
fn who_stops_a_job_in_the_same_moment_is_its_end() {
    let mut case = unvisited_since(10, 70);
    case.job.end = Some(order(JobTerminationReason::TerminatedByUser, 7));
    check(&case, "terminating, terminated_by_user, stop 7");
}
