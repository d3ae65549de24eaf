//! What happens next to a run: its jobs' states, retries, the start barrier, and who was the cause.

use api::agent::TaskPhase;
use api::configurations::RetryEvent;
use api::jobs::{JobStatus, JobTerminationReason as Reason, Retry};
use api::runs::{RunStatus, RunTerminationReason};
use lifecycle::job::{EndOrder, Job};
use lifecycle::run::{RetryWait, Run, RunDecision, StopRequest, decide};
use serde_json::json;

use crate::fixtures::{at, ended, ended_by_run, in_phase, job, placed, retry, run_in, run_with};

fn told(decision: &RunDecision) -> String {
    let mut words = vec![decision.run.status.as_str().to_owned()];
    words.extend(decision.run.state.termination_reason.map(|reason| reason.as_str().to_owned()));
    words.extend(
        decision
            .end_jobs
            .iter()
            .map(|(job, order)| format!("ends {} {} {}", rank_of(*job), order.reason.as_str(), order.grace_secs)),
    );
    words.extend(decision.release_jobs.iter().map(|job| format!("releases {}", rank_of(*job))));
    words.extend(decision.resubmit.then(|| "resubmits".to_owned()));
    words.extend(decision.wants_place.then(|| "wants place".to_owned()));
    words.join(", ")
}

fn rank_of(job: api::ids::JobId) -> u128 {
    (100..200).find(|number| job == crate::fixtures::id(*number)).unwrap() - 100
}

#[track_caller]
fn check(now: i64, run: &Run, jobs: &[Job], expected: &str) {
    assert_eq!(told(&decide(at(now), run, jobs)), expected);
}

fn submitted() -> Run {
    run_in(RunStatus::Submitted)
}

fn running() -> Run {
    run_in(RunStatus::Running)
}

fn with_retry(retry: impl Into<Option<Retry>>, mut job: Job) -> Job {
    job.spec.retry = retry.into();
    job
}

/// The jobs of a gang in these phases.
fn gang(phases: &[TaskPhase]) -> Vec<Job> {
    let nodes = phases.len() as u32;
    (0..).zip(phases).map(|(number, phase)| in_phase(number, nodes, *phase)).collect()
}

#[test]
fn a_run_shows_how_far_its_furthest_job_is() {
    use TaskPhase::{Pulling, Ready, Running};
    check(10, &submitted(), &[job(0, 1)], "submitted, wants place");
    check(10, &submitted(), &[placed(0, 1, JobStatus::Provisioning)], "provisioning");
    check(10, &submitted(), &gang(&[Pulling]), "provisioning");
    check(10, &running(), &gang(&[Running, Pulling]), "running");
    check(10, &running(), &gang(&[Running, Ready]), "running, releases 1");
    let done = ended(0, 2, Reason::DoneByRunner, 9);
    check(10, &running(), &[done.clone(), in_phase(1, 2, Running)], "running");
    let others_done = ended(1, 2, Reason::DoneByRunner, 9);
    check(10, &running(), &[done, others_done], "terminating, all_jobs_done");
}

#[test]
fn a_run_whose_jobs_all_ended_well_is_done_by_way_of_terminating() {
    let done = [ended(0, 1, Reason::DoneByRunner, 9)];
    let decision = decide(at(10), &running(), &done);
    assert_eq!(told(&decision), "terminating, all_jobs_done");
    let decision = decide(at(10), &decision.run, &done);
    assert_eq!(told(&decision), "done, all_jobs_done");
}

#[test]
fn every_reason_of_a_run_has_its_official_end() {
    let ends = [
        (RunTerminationReason::AllJobsDone, "done", "done_by_runner 300"),
        (RunTerminationReason::JobFailed, "failed", "terminated_by_server 300"),
        (RunTerminationReason::RetryLimitExceeded, "failed", "terminated_by_server 300"),
        (RunTerminationReason::StoppedByUser, "terminated", "terminated_by_user 300"),
        (RunTerminationReason::AbortedByUser, "terminated", "aborted_by_user 0"),
        (RunTerminationReason::ServerError, "failed", "terminated_by_server 300"),
        (RunTerminationReason::GatewayError, "failed", "gateway_error 300"),
    ];
    for (reason, status, order) in ends {
        let mut run = run_in(RunStatus::Terminating);
        run.state.termination_reason = Some(reason);
        let name = reason.as_str();
        check(10, &run, &gang(&[TaskPhase::Running]), &format!("terminating, {name}, ends 0 {order}"));
        check(10, &run, &[ended(0, 1, Reason::DoneByRunner, 9)], &format!("{status}, {name}"));
    }
}

#[test]
fn a_user_stops_a_run_in_every_status() {
    use RunStatus::{Pending, Provisioning, Running, Submitted};
    for status in [Pending, Submitted, Provisioning, Running] {
        let stopped = Run { stop: Some(StopRequest::Stop), ..run_in(status) };
        let jobs = gang(&[TaskPhase::Running, TaskPhase::Ready]);
        check(
            10,
            &stopped,
            &jobs,
            "terminating, stopped_by_user, ends 0 terminated_by_user 300, ends 1 terminated_by_user 300",
        );
        let aborted = Run { stop: Some(StopRequest::Abort), ..run_in(status) };
        check(
            10,
            &aborted,
            &jobs,
            "terminating, aborted_by_user, ends 0 aborted_by_user 0, ends 1 aborted_by_user 0",
        );
    }
}

#[test]
fn a_stop_is_ordered_once_and_becomes_an_abort_when_the_user_loses_patience() {
    let mut run = Run { stop: Some(StopRequest::Stop), ..run_in(RunStatus::Terminating) };
    run.state.termination_reason = Some(RunTerminationReason::StoppedByUser);
    let mut stopping = in_phase(0, 1, TaskPhase::Stopping);
    stopping.status = JobStatus::Terminating;
    stopping.end = Some(EndOrder { reason: Reason::TerminatedByUser, message: None, grace_secs: 300 });
    check(10, &run, &[stopping.clone()], "terminating, stopped_by_user");
    run.stop = Some(StopRequest::Abort);
    check(10, &run, &[stopping.clone()], "terminating, aborted_by_user, ends 0 aborted_by_user 0");
    stopping.end = Some(EndOrder { reason: Reason::AbortedByUser, message: None, grace_secs: 0 });
    check(10, &run, &[stopping], "terminating, aborted_by_user");
}

#[test]
fn an_abort_hurries_a_run_that_ends_for_another_reason() {
    let mut run = Run { stop: Some(StopRequest::Abort), ..run_in(RunStatus::Terminating) };
    run.state.termination_reason = Some(RunTerminationReason::JobFailed);
    let mut stopping = in_phase(1, 2, TaskPhase::Stopping);
    stopping.end = Some(EndOrder { reason: Reason::TerminatedByServer, message: None, grace_secs: 300 });
    let failed = ended(0, 2, Reason::ContainerExitedWithError, 5);
    check(10, &run, &[failed, stopping], "terminating, job_failed, ends 1 aborted_by_user 0");
}

#[test]
fn the_grace_is_what_the_configuration_says() {
    let stopped = Run { stop: Some(StopRequest::Stop), ..running() };
    let mut jobs = gang(&[TaskPhase::Running]);
    jobs[0].spec.stop_duration = Some(7);
    check(10, &stopped, &jobs, "terminating, stopped_by_user, ends 0 terminated_by_user 7");
    jobs[0].spec.stop_duration = None;
    check(10, &stopped, &jobs, "terminating, stopped_by_user, ends 0 terminated_by_user 31536000");
}

#[test]
fn one_failure_ends_the_gang() {
    let failed = ended(1, 3, Reason::ContainerExitedWithError, 5);
    let jobs = [in_phase(0, 3, TaskPhase::Running), failed, in_phase(2, 3, TaskPhase::Running)];
    check(
        10,
        &running(),
        &jobs,
        "terminating, job_failed, ends 0 terminated_by_server 300, ends 2 terminated_by_server 300",
    );
}

#[test]
fn the_master_alone_may_decide_that_a_task_is_done() {
    let jobs = [ended(0, 2, Reason::DoneByRunner, 9), in_phase(1, 2, TaskPhase::Running)];
    check(10, &running(), &jobs, "running");
    let master_done = Run { status: RunStatus::Running, ..run_with(json!({"stop_criteria": "master-done"})) };
    check(10, &master_done, &jobs, "terminating, all_jobs_done, ends 1 done_by_runner 300");
    // A worker that is done says nothing.
    let jobs = [in_phase(0, 2, TaskPhase::Running), ended(1, 2, Reason::DoneByRunner, 9)];
    check(10, &master_done, &jobs, "running");
}

#[test]
fn no_node_starts_before_all_are_ready() {
    use TaskPhase::{Accepted, Preparing, Pulling, Ready};
    for slow in [Accepted, Preparing, Pulling] {
        check(10, &run_in(RunStatus::Provisioning), &gang(&[Ready, slow, Ready]), "provisioning");
    }
    let unseen = [in_phase(0, 2, Ready), placed(1, 2, JobStatus::Provisioning)];
    check(10, &run_in(RunStatus::Provisioning), &unseen, "provisioning");
    check(
        10,
        &run_in(RunStatus::Provisioning),
        &gang(&[Ready, Ready, Ready]),
        "provisioning, releases 0, releases 1, releases 2",
    );
}

#[test]
fn a_node_is_released_once() {
    let mut jobs = gang(&[TaskPhase::Ready, TaskPhase::Ready]);
    jobs[0].released_at = Some(at(9));
    check(10, &run_in(RunStatus::Provisioning), &jobs, "provisioning, releases 1");
}

#[test]
fn nodes_start_in_the_order_that_the_task_asks_for() {
    use TaskPhase::{Ready, Running};
    let master_first = run_with(json!({"startup_order": "master-first"}));
    let workers_first = run_with(json!({"startup_order": "workers-first"}));
    let all_ready = gang(&[Ready, Ready, Ready]);
    check(10, &master_first, &all_ready, "provisioning, releases 0");
    check(10, &master_first, &gang(&[Running, Ready, Ready]), "running, releases 1, releases 2");
    check(10, &workers_first, &all_ready, "provisioning, releases 1, releases 2");
    // The agent is about to start it, and has not yet.
    let mut about_to = gang(&[Running, Ready, Ready]);
    about_to[0].state.started_at = None;
    check(10, &master_first, &about_to, "running");
    let one_worker = gang(&[Ready, Running, Ready]);
    check(10, &workers_first, &one_worker, "running, releases 2");
    check(10, &workers_first, &gang(&[Ready, Running, Running]), "running, releases 0");
}

#[test]
fn a_peer_that_ends_at_once_blocks_nobody() {
    use TaskPhase::{Ready, Running};
    let master_first = run_with(json!({"startup_order": "master-first"}));
    let jobs = [ended(0, 2, Reason::DoneByRunner, 4), in_phase(1, 2, Ready)];
    check(10, &master_first, &jobs, "provisioning, releases 1");
    let workers_first = run_with(json!({"startup_order": "workers-first"}));
    let mut ending = ended(1, 3, Reason::DoneByRunner, 4);
    ending.status = JobStatus::Terminating;
    let jobs = [in_phase(0, 3, Ready), ending, in_phase(2, 3, Running)];
    check(10, &workers_first, &jobs, "running, releases 0");
}

#[test]
fn each_event_is_retried_only_if_it_is_asked_for() {
    use RetryEvent::{Error, Interruption, NoCapacity};
    let cases = [
        (Reason::ContainerExitedWithError, Some(Error)),
        (Reason::ExecutorError, Some(Error)),
        (Reason::CreatingContainerError, Some(Error)),
        (Reason::InstanceUnreachable, Some(Error)),
        (Reason::WaitingInstanceLimitExceeded, Some(Error)),
        (Reason::WaitingRunnerLimitExceeded, Some(Error)),
        (Reason::VolumeError, Some(Error)),
        (Reason::PortsBindingFailed, Some(Error)),
        (Reason::LogQuotaExceeded, Some(Error)),
        (Reason::InterruptedByNoCapacity, Some(Interruption)),
        (Reason::FailedToStartDueToNoCapacity, Some(NoCapacity)),
        (Reason::MaxDurationExceeded, None),
        (Reason::InactivityDurationExceeded, None),
        (Reason::TerminatedDueToUtilizationPolicy, None),
    ];
    for (reason, event) in cases {
        let failed = |on_events: &[RetryEvent]| with_retry(retry(on_events, 3600), ended(0, 1, reason, 5));
        check(10, &running(), &[with_retry(None::<Retry>, ended(0, 1, reason, 5))], "terminating, job_failed");
        let all = [Error, Interruption, NoCapacity];
        let Some(event) = event else {
            check(10, &running(), &[failed(&all)], "terminating, job_failed");
            continue;
        };
        check(10, &running(), &[failed(&[event])], "pending");
        check(10, &running(), &[failed(&all)], "pending");
        let others: Vec<RetryEvent> = all.into_iter().filter(|other| *other != event).collect();
        check(10, &running(), &[failed(&others)], "terminating, job_failed");
    }
}

#[test]
fn a_retry_waits_longer_each_time() {
    for (attempt, delay) in (0..).zip([15, 30, 60, 120, 300, 600, 600, 600]) {
        let mut run = running();
        run.state.attempt = attempt;
        let failed = with_retry(retry(&RetryEvent::ALL, 36_000), ended(0, 1, Reason::ContainerExitedWithError, 5));
        let decision = decide(at(10), &run, std::slice::from_ref(&failed));
        assert_eq!((told(&decision), decision.run.state.attempt), ("pending".to_owned(), attempt + 1));
        let wait = decision.run.state.retry.unwrap();
        assert_eq!((wait.not_before, wait.until, wait.for_capacity), (at(10 + delay), at(5 + 36_000), false));
        // Until then it says why it waits.
        assert_eq!(decision.run.state.cause.as_ref().map(|cause| cause.job_num), Some(0));
        check(10 + delay - 1, &decision.run, std::slice::from_ref(&failed), "pending");
        check(10 + delay, &decision.run, &[failed], "submitted, resubmits, wants place");
    }
}

#[test]
fn the_time_for_retries_is_a_window() {
    let failed = |reason| with_retry(retry(&RetryEvent::ALL, 100), ended(0, 1, reason, 50));
    // What ran is counted from when it was last heard of.
    check(149, &running(), &[failed(Reason::ContainerExitedWithError)], "pending");
    check(150, &running(), &[failed(Reason::ContainerExitedWithError)], "terminating, retry_limit_exceeded");
    // What never had a place is counted from the run's submission.
    let unplaced = || {
        let mut job = failed(Reason::FailedToStartDueToNoCapacity);
        job.state.placed_at = None;
        job
    };
    check(99, &submitted(), &[unplaced()], "pending");
    check(100, &submitted(), &[unplaced()], "terminating, retry_limit_exceeded");
    // What had a place in an earlier attempt is counted from then.
    let mut retried = submitted();
    retried.state.last_placed_at = Some(at(60));
    check(159, &retried, &[unplaced()], "pending");
    check(160, &retried, &[unplaced()], "terminating, retry_limit_exceeded");
}

#[test]
fn however_short_the_time_for_retries_there_is_one() {
    let short = |reason| with_retry(retry(&RetryEvent::ALL, 10), ended(0, 1, reason, 50));
    let failed = [short(Reason::ContainerExitedWithError)];
    let decision = decide(at(51), &running(), &failed);
    assert_eq!(decision.run.state.retry.unwrap().not_before, at(60));
    check(59, &decision.run, &failed, "pending");
    check(60, &decision.run, &failed, "submitted, resubmits, wants place");
    // Where there is no capacity, some of the time is left to find it.
    let failed = [short(Reason::FailedToStartDueToNoCapacity)];
    let decision = decide(at(52), &running(), &failed);
    assert_eq!(decision.run.state.retry.unwrap().not_before, at(56));
    check(56, &decision.run, &failed, "pending, wants place");
    check(60, &decision.run, &failed, "terminating, retry_limit_exceeded");
}

#[test]
fn the_time_for_retries_does_not_run_out_while_peers_end() {
    let short = |job| with_retry(retry(&RetryEvent::ALL, 10), job);
    let failed = short(ended(0, 2, Reason::ContainerExitedWithError, 50));
    let decision = decide(at(51), &running(), &[failed.clone(), short(in_phase(1, 2, TaskPhase::Running))]);
    assert_eq!(told(&decision), "running, ends 1 terminated_by_server 300");
    let peer = short(ended_by_run(1, 2, Reason::TerminatedByServer, 300));
    let decision = decide(at(301), &decision.run, &[failed.clone(), peer.clone()]);
    assert_eq!(told(&decision), "pending");
    check(302, &decision.run, &[failed, peer], "submitted, resubmits, wants place");
}

#[test]
fn a_run_that_was_healthy_waits_as_if_it_failed_for_the_first_time() {
    let mut run = running();
    run.state.attempt = 5;
    let not_before = |exited_at| {
        let failed = ended(0, 1, Reason::ContainerExitedWithError, exited_at);
        let failed = with_retry(retry(&RetryEvent::ALL, 36_000), failed);
        decide(at(1_000), &run, &[failed]).run.state.retry.unwrap().not_before
    };
    assert_eq!(not_before(3 + 599), at(1_600));
    assert_eq!(not_before(3 + 600), at(1_015));
}

#[test]
fn a_run_that_waits_to_be_tried_again_uses_no_fleet() {
    let fleet = crate::fixtures::id(4);
    let mut run = running();
    run.fleet_id = Some(fleet);
    let failed = with_retry(retry(&RetryEvent::ALL, 3600), ended(0, 1, Reason::ContainerExitedWithError, 50));
    let decision = decide(at(60), &run, &[failed]);
    assert_eq!((decision.run.fleet_id, decision.run.state.previous_fleet), (None, Some(fleet)));
}

#[test]
fn an_attempt_remembers_when_it_last_had_a_place() {
    let failed = with_retry(retry(&RetryEvent::ALL, 3600), ended(0, 1, Reason::ContainerExitedWithError, 50));
    let decision = decide(at(60), &running(), &[failed]);
    assert_eq!(decision.run.state.last_placed_at, Some(at(50)));
}

#[test]
fn a_retry_waits_for_all_of_the_gang_to_end() {
    let failed = with_retry(retry(&RetryEvent::ALL, 3600), ended(0, 2, Reason::ContainerExitedWithError, 5));
    let peer = with_retry(retry(&RetryEvent::ALL, 3600), in_phase(1, 2, TaskPhase::Running));
    let decision = decide(at(10), &running(), &[failed.clone(), peer]);
    assert_eq!(told(&decision), "running, ends 1 terminated_by_server 300");
    assert_eq!(decision.end_jobs[0].1.message.as_deref(), Some("Run is to be resubmitted"));
    let mut ending = ended_by_run(1, 2, Reason::TerminatedByServer, 8);
    ending.status = JobStatus::Terminating;
    check(10, &running(), &[failed.clone(), with_retry(failed.spec.retry.clone(), ending)], "running");
    let over = with_retry(failed.spec.retry.clone(), ended_by_run(1, 2, Reason::TerminatedByServer, 8));
    check(10, &running(), &[failed, over], "pending");
}

#[test]
fn a_run_that_waits_for_capacity_takes_what_falls_free() {
    let wait = RetryWait { not_before: at(100), until: at(1_000), for_capacity: true };
    let mut run = run_in(RunStatus::Pending);
    run.state.retry = Some(wait);
    let jobs = [ended(0, 1, Reason::FailedToStartDueToNoCapacity, 5)];
    check(99, &run, &jobs, "pending");
    assert_eq!(decide(at(99), &run, &jobs).look_again_at, Some(at(100)));
    // Its place is found by the placement, which submits its jobs anew.
    check(100, &run, &jobs, "pending, wants place");
    check(999, &run, &jobs, "pending, wants place");
    check(1_000, &run, &jobs, "terminating, retry_limit_exceeded");
}

#[test]
fn the_first_to_fail_is_the_cause_and_the_others_are_consequences() {
    let cause = |jobs: &[Job]| {
        let cause = decide(at(10), &running(), jobs).run.state.cause.unwrap();
        (cause.job_num, cause.reason, cause.at)
    };
    let first = || ended(1, 3, Reason::ContainerExitedWithError, 4);
    let later = || ended(0, 3, Reason::ContainerExitedWithError, 6);
    let by_run = || ended_by_run(2, 3, Reason::TerminatedByServer, 2);
    let expected = (1, Reason::ContainerExitedWithError, at(4));
    assert_eq!(cause(&[later(), first(), by_run()]), expected);
    let unreachable = || {
        let mut lost = ended(2, 3, Reason::InstanceUnreachable, 3);
        lost.state.exited_at = None;
        lost
    };
    assert_eq!(cause(&[later(), first(), unreachable()]), (2, Reason::InstanceUnreachable, at(3)));
}

#[test]
fn a_cause_that_is_seen_late_is_still_the_cause() {
    let later = ended(0, 2, Reason::ContainerExitedWithError, 6);
    let decision = decide(at(10), &running(), &[later.clone(), in_phase(1, 2, TaskPhase::Running)]);
    assert_eq!(decision.run.state.cause.as_ref().unwrap().job_num, 0);
    let first = ended(1, 2, Reason::ContainerExitedWithError, 4);
    let decision = decide(at(11), &decision.run, &[later.clone(), first.clone()]);
    assert_eq!(decision.run.state.cause.as_ref().unwrap().job_num, 1);
    // And stays it.
    let decision = decide(at(12), &run_in_of(decision), &[later, first]);
    assert_eq!(decision.run.state.cause.as_ref().unwrap().job_num, 1);
}

fn run_in_of(decision: RunDecision) -> Run {
    Run { status: RunStatus::Terminating, ..decision.run }
}

#[test]
fn a_user_who_stops_a_run_is_no_cause() {
    let mut run = Run { stop: Some(StopRequest::Stop), ..run_in(RunStatus::Terminating) };
    run.state.termination_reason = Some(RunTerminationReason::StoppedByUser);
    let jobs = [ended_by_run(0, 2, Reason::TerminatedByUser, 4), ended_by_run(1, 2, Reason::AbortedByUser, 4)];
    assert_eq!(decide(at(10), &run, &jobs).run.state.cause, None);
    // Nor is a job that fails while its user ends it.
    let jobs = [ended(0, 2, Reason::ContainerExitedWithError, 4), in_phase(1, 2, TaskPhase::Running)];
    assert_eq!(decide(at(10), &run, &jobs).run.state.cause, None);
    let stopped = Run { stop: Some(StopRequest::Stop), ..running() };
    assert_eq!(decide(at(10), &stopped, &jobs).run.state.cause, None);
}

#[test]
fn a_consequence_does_not_decide_whether_a_run_is_retried() {
    // A spot machine was taken back; its peer then lost the connection and exited by itself.
    let interrupted = |job: Job| with_retry(retry(&[RetryEvent::Interruption], 3600), job);
    let jobs = [
        interrupted(ended(0, 2, Reason::ContainerExitedWithError, 6)),
        interrupted(ended(1, 2, Reason::InterruptedByNoCapacity, 4)),
    ];
    check(10, &running(), &jobs, "pending");
    // The peer felt it before the server did.
    let jobs = [
        interrupted(ended(0, 2, Reason::ContainerExitedWithError, 3)),
        interrupted(ended(1, 2, Reason::InterruptedByNoCapacity, 4)),
    ];
    check(10, &running(), &jobs, "pending");
    let jobs = [
        interrupted(ended(0, 2, Reason::ContainerExitedWithError, 3)),
        interrupted(ended(1, 2, Reason::InterruptedByNoCapacity, 40)),
    ];
    check(50, &running(), &jobs, "terminating, job_failed");
}

#[test]
fn a_machine_whose_loss_is_noticed_last_is_still_the_cause() {
    let interrupted = |job: Job| with_retry(retry(&[RetryEvent::Interruption], 3600), job);
    let exited = interrupted(ended(0, 2, Reason::ContainerExitedWithError, 5));
    let decision = decide(at(6), &running(), &[exited.clone(), interrupted(in_phase(1, 2, TaskPhase::Running))]);
    assert_eq!(told(&decision), "terminating, job_failed, ends 1 terminated_by_server 300");
    // Its peer's agent had fallen silent before, and is given up long after.
    let mut lost = interrupted(ended_by_run(1, 2, Reason::InterruptedByNoCapacity, 300));
    lost.end.as_mut().unwrap().reason = Reason::TerminatedByServer;
    lost.state.exited_at = None;
    lost.state.lost_since = Some(at(2));
    let mut ending = lost.clone();
    ending.status = JobStatus::Terminating;
    ending.state.termination_reason = Some(Reason::TerminatedByServer);
    check(100, &decision.run, &[exited.clone(), ending], "terminating, job_failed");
    let decision = decide(at(301), &decision.run, &[exited.clone(), lost.clone()]);
    assert_eq!(told(&decision), "pending");
    let cause = decision.run.state.cause.unwrap();
    assert_eq!((cause.job_num, cause.at), (1, at(2)));
    // A machine that was lost while the gang ended is no cause.
    let mut run = run_in(RunStatus::Terminating);
    run.state.termination_reason = Some(RunTerminationReason::JobFailed);
    lost.state.lost_since = Some(at(100));
    check(301, &run, &[exited.clone(), lost.clone()], "failed, job_failed");
    // Nor is a run tried again whose user has stopped it meanwhile.
    lost.state.lost_since = Some(at(2));
    run.stop = Some(StopRequest::Stop);
    check(301, &run, &[exited, lost], "failed, job_failed");
}

#[test]
fn a_job_that_could_not_be_made_is_the_cause() {
    let mut refused = ended(1, 2, Reason::TerminatedByServer, 4);
    refused.state.termination_message = Some("Secrets interpolation error: no secret `a`".to_owned());
    let decision = decide(at(10), &running(), &[in_phase(0, 2, TaskPhase::Ready), refused]);
    assert_eq!(told(&decision), "terminating, job_failed, ends 0 terminated_by_server 300");
    assert_eq!(decision.run.state.cause.unwrap().job_num, 1);
    assert_eq!(
        decision.end_jobs[0].1.message.as_deref(),
        Some("node 1: Secrets interpolation error: no secret `a`")
    );
}

#[test]
fn final_is_final() {
    for status in [RunStatus::Done, RunStatus::Failed, RunStatus::Terminated] {
        for stop in [None, Some(StopRequest::Stop), Some(StopRequest::Abort)] {
            let over = Run { stop, ..run_in(status) };
            for jobs in [gang(&[TaskPhase::Running]), vec![ended(0, 1, Reason::DoneByRunner, 3)]] {
                let decision = decide(at(10), &over, &jobs);
                assert_eq!((told(&decision), decision.run), (status.as_str().to_owned(), over.clone()));
            }
        }
    }
}

#[test]
fn events_tell_the_official_story() {
    let events = |run: &Run, jobs: &[Job]| decide(at(10), run, jobs).events;
    let started = events(&run_in(RunStatus::Provisioning), &gang(&[TaskPhase::Running]));
    assert_eq!(started, ["Run status changed PROVISIONING -> RUNNING"]);
    // Who stops a run says so in an event of their own.
    let stopped = Run { stop: Some(StopRequest::Stop), ..running() };
    assert_eq!(events(&stopped, &gang(&[TaskPhase::Running])), Vec::<String>::new());
    let jobs = [in_phase(0, 2, TaskPhase::Running), ended(1, 2, Reason::ContainerExitedWithError, 5)];
    assert_eq!(
        events(&running(), &jobs),
        ["Run status changed RUNNING -> TERMINATING. \
          Termination reason: JOB_FAILED (node 1: container exited with error)"]
    );
    let failed = with_retry(retry(&RetryEvent::ALL, 3600), ended(0, 1, Reason::ContainerExitedWithError, 5));
    assert_eq!(
        events(&running(), &[failed]),
        [
            "Run status changed RUNNING -> PENDING (container exited with error; tried again at 2023-11-14 22:13:45 UTC)"
        ]
    );
}
