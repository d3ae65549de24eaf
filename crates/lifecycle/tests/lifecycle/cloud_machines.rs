//! What is done about a cloud's machine that is another one, lacks devices, or is taken back, and about its jobs.

use std::collections::BTreeMap;

use api::agent::{Cloud, CloudMachine, ClusterInfo, Fabric, HostInfo, Interruption, TaskPhase, UverbsDevice};
use api::configurations::RetryEvent;
use api::instances::{HealthStatus, InstanceStatus};
use api::jobs::{JobStatus, JobTerminationReason};
use api::runs::RunStatus;
use lifecycle::instance::{
    AgentSeen, Effect, Instance, InstanceDecision, Leaving, Machine, MachineSeen, Notice, Surroundings, decide,
};
use lifecycle::job::{self, Effect as JobEffect, EndOrder, Job, JobDecision, Seen};
use lifecycle::launch::LaunchStatus;
use lifecycle::run;
use serde_json::json;

use crate::fixtures::{at, in_phase, instance, launch, placed, retry, run_in, task};

const PROVIDER_ID: &str = "i-0a";

/// A machine that was bought with 32 EFA devices and runs.
fn bought(status: InstanceStatus) -> Instance {
    let mut instance = instance(0, status);
    instance.state.efa_expected = Some(32);
    if status != InstanceStatus::Pending {
        instance.state.provider_id = Some(PROVIDER_ID.to_owned());
    }
    instance
}

fn host(efa: u32) -> HostInfo {
    let uverbs = (0..efa).map(|number| UverbsDevice {
        name: format!("uverbs{number}"),
        device: format!("rdmap{number}"),
        driver: "efa".to_owned(),
        has_node: true,
    });
    HostInfo { fabric: Fabric { uverbs: uverbs.collect(), ..Fabric::default() }, ..HostInfo::default() }
}

fn of_machine(instance_id: &str) -> HostInfo {
    let machine =
        CloudMachine { cloud: Cloud::Ec2, instance_id: instance_id.to_owned(), instance_type: None, zone: None };
    HostInfo { cloud: Some(machine), ..host(32) }
}

fn interruption(at_secs: Option<i64>) -> Interruption {
    Interruption { cloud: Cloud::Ec2, action: "terminate".to_owned(), at: at_secs.map(at) }
}

#[track_caller]
fn seen(now: i64, instance: &Instance, host: &HostInfo, busy_blocks: u32) -> InstanceDecision {
    let launch = launch(LaunchStatus::Done);
    let machine = Machine {
        network_path: vec![],
        running: true,
        gone: false,
        provider_id: PROVIDER_ID.to_owned(),
        hostname: Some("10.0.0.1".to_owned()),
        internal_ip: Some("10.0.0.1".to_owned()),
        container_network: None,
        region: "r1".to_owned(),
        zone: None,
        ended_because: None,
        lacked_room: false,
        login: None,
    };
    let around = Surroundings {
        machine: MachineSeen::Present(Box::new(machine)),
        agent: AgentSeen::Connected(Box::new(host.clone())),
        busy_blocks,
        launch: Some(&launch),
        consistent_list: false,
        provisioning_timeout_secs: 600,
        admins_only: false,
        runs_processes: false,
        blocks: Some(1),
        host_keys: BTreeMap::new(),
        leaving: Leaving::NotYet,
    };
    decide(at(now), instance, &around)
}

#[test]
fn jobs_are_told_before_what_a_machine_was_bought_from_ends() {
    let mut busy = bought(InstanceStatus::Busy);
    busy.state.ends_at = Some(at(10_000));
    let before = seen(9_300, &busy, &of_machine(PROVIDER_ID), 1);
    assert_eq!(before.instance.state.notice, None);
    assert!(before.look_again_at.is_some_and(|next| next <= at(9_400)));
    let near = seen(9_400, &busy, &of_machine(PROVIDER_ID), 1);
    let notice = near.instance.state.notice.clone().unwrap();
    assert_eq!(notice.interruption, interruption(Some(10_000)));
    assert!(near.concerns_jobs && !near.instance.is_kept());
    // The cloud's own notice is the better one.
    let told = HostInfo { interruption: Some(interruption(Some(9_500))), ..of_machine(PROVIDER_ID) };
    let told = seen(9_400, &busy, &told, 1);
    assert_eq!(told.instance.state.notice.unwrap().interruption, interruption(Some(9_500)));
}

#[test]
fn a_machine_has_the_devices_and_the_reservation_that_its_offer_says() {
    let check = |backend_data: serde_json::Value, expected: Option<u32>, reservation: Option<&str>| {
        let mut launch = launch(LaunchStatus::Done);
        launch.state.offer.backend_data = backend_data;
        let pending =
            Instance { launch_id: Some(launch.id), launch_index: Some(0), ..instance(0, InstanceStatus::Pending) };
        let around = Surroundings {
            machine: MachineSeen::Unknown,
            agent: AgentSeen::Unknown { since: None, error: None, is_final: false },
            busy_blocks: 0,
            launch: Some(&launch),
            consistent_list: false,
            provisioning_timeout_secs: 600,
            admins_only: false,
            runs_processes: false,
            blocks: Some(1),
            host_keys: BTreeMap::new(),
            leaving: Leaving::NotYet,
        };
        let state = decide(at(1), &pending, &around).instance.state;
        assert_eq!((state.efa_expected, state.reservation.as_deref()), (expected, reservation));
    };
    check(json!({"efa_interfaces": 32}), Some(32), None);
    check(json!({"efa_interfaces": 0, "reservation": {"id": "cr-1"}}), Some(0), Some("cr-1"));
    check(json!({"efa_interfaces": "32", "reservation": null}), None, None);
    check(json!(null), None, None);
}

#[test]
fn the_agent_of_another_machine_is_not_joined() {
    let provisioning = bought(InstanceStatus::Provisioning);
    let stranger = seen(10, &provisioning, &of_machine("i-0b"), 0);
    assert_eq!(stranger.instance.status, InstanceStatus::Provisioning);
    assert_eq!(stranger.instance.state.joined_at, None);
    let late = seen(601, &provisioning, &of_machine("i-0b"), 0).instance;
    let message = late.state.termination_message.unwrap();
    assert!(message.ends_with("another machine answers at 10.0.0.1: i-0b instead of i-0a"), "{message}");
    assert_eq!(seen(10, &provisioning, &of_machine(PROVIDER_ID), 0).instance.status, InstanceStatus::Idle);
    // Not every cloud says which machine it is.
    assert_eq!(seen(10, &provisioning, &host(32), 0).instance.status, InstanceStatus::Idle);
}

#[test]
fn a_joined_machine_whose_address_is_anothers_counts_as_silent() {
    let joined = bought(InstanceStatus::Idle);
    let stranger = seen(10, &joined, &of_machine("i-0b"), 0).instance;
    assert_eq!(stranger.state.unreachable_since, Some(at(10)));
    // It stays silent, and counts from the first time.
    let still = seen(20, &stranger, &of_machine("i-0b"), 0).instance;
    assert_eq!(still.state.unreachable_since, Some(at(10)));
    assert_eq!(seen(30, &still, &of_machine(PROVIDER_ID), 0).instance.state.unreachable_since, None);
}

#[test]
fn devices_that_come_late_are_waited_for_before_anybody_is_told() {
    let joined = seen(10, &bought(InstanceStatus::Provisioning), &host(31), 0);
    assert_eq!(joined.instance.status, InstanceStatus::Idle);
    assert_eq!(joined.instance.state.health.status(), HealthStatus::Failure);
    assert_eq!(joined.instance.state.health.incomplete_efa().as_deref(), Some("31 of 32 EFA devices"));
    assert_eq!(joined.look_again_at, Some(at(70)).min(joined.look_again_at));
    let early = seen(69, &joined.instance, &host(31), 0);
    assert_eq!((early.events.len(), early.look_again_at), (0, Some(at(70))));
    let told = seen(70, &early.instance, &host(31), 0);
    let [event] = &told.events[..] else { panic!("{:?}", told.events) };
    assert!(event.starts_with("Instance has 31 of 32 EFA devices (efa 31/32"), "{event}");
    assert!(event.contains("`dstack fleet delete fleet -i 0`"), "{event}");
    assert_eq!(seen(200, &told.instance, &host(31), 0).events, Vec::<String>::new());
    // The last one shows up: whoever waits for such a machine must look.
    let whole = seen(210, &told.instance, &host(32), 0);
    assert!(whole.concerns_jobs);
    assert_eq!(whole.events, ["All EFA devices are there"]);
    assert_eq!(whole.instance.state.efa_shortage, None);
    assert_eq!(whole.instance.state.health_at, Some(at(210)));
}

#[test]
fn devices_that_come_in_time_are_no_news() {
    let joined = seen(10, &bought(InstanceStatus::Provisioning), &host(30), 0);
    let whole = seen(20, &joined.instance, &host(32), 0);
    assert_eq!((whole.events.len(), whole.concerns_jobs), (0, true));
    let later = seen(30, &whole.instance, &host(32), 0);
    assert!(!later.concerns_jobs);
    assert_eq!(later.instance.state, whole.instance.state);
}

fn taken_back(at_secs: Option<i64>) -> HostInfo {
    HostInfo { interruption: Some(interruption(at_secs)), ..of_machine(PROVIDER_ID) }
}

#[test]
fn a_machine_that_is_taken_back_takes_no_jobs_and_ends_after_those_that_it_has() {
    let busy = bought(InstanceStatus::Busy);
    let noticed = seen(10, &busy, &taken_back(Some(130)), 1);
    assert_eq!(noticed.events, ["AWS takes i-0a back at 2023-11-14 22:15:30 UTC (terminate)"]);
    assert!(noticed.concerns_jobs && noticed.concerns_fleet);
    assert_eq!(noticed.instance.status, InstanceStatus::Busy);
    assert!(!noticed.instance.is_kept(), "a new one takes its place");
    assert_ne!(noticed.effect, Some(Effect::Terminate));
    let waiting = seen(20, &noticed.instance, &taken_back(Some(130)), 1);
    assert_eq!((waiting.instance.status, waiting.events.len()), (InstanceStatus::Busy, 0));
    // A notice stands, whatever the agent says later.
    let free = seen(40, &waiting.instance, &of_machine(PROVIDER_ID), 0);
    assert_eq!((free.instance.status, free.effect), (InstanceStatus::Terminating, Some(Effect::Terminate)));
    let message = free.instance.state.termination_message.unwrap();
    assert_eq!(message, "AWS takes i-0a back at 2023-11-14 22:15:30 UTC (terminate)");
    // What is left then is lost anyway.
    let over = seen(130, &waiting.instance, &taken_back(Some(130)), 1);
    assert_eq!(over.instance.status, InstanceStatus::Terminating);
}

#[test]
fn a_machine_that_is_taken_back_before_it_is_used_ends_at_once() {
    let joined = seen(10, &bought(InstanceStatus::Provisioning), &taken_back(None), 0);
    assert_eq!(joined.instance.status, InstanceStatus::Idle);
    let ending = seen(11, &joined.instance, &taken_back(None), 0);
    assert_eq!((ending.instance.status, ending.effect), (InstanceStatus::Terminating, Some(Effect::Terminate)));
    // Without a time, it has the two minutes that clouds give.
    let busy = seen(11, &joined.instance, &taken_back(None), 1);
    assert_eq!(
        (busy.instance.status, busy.look_again_at),
        (InstanceStatus::Busy, Some(at(71)).min(busy.look_again_at))
    );
    assert_eq!(seen(130, &busy.instance, &taken_back(None), 1).instance.status, InstanceStatus::Terminating);
}

#[test]
fn a_machine_that_may_be_taken_back_is_told_of_once_and_used_on() {
    let likely = HostInfo { rebalance_at: Some(at(5)), ..of_machine(PROVIDER_ID) };
    let told = seen(10, &bought(InstanceStatus::Idle), &likely, 0);
    assert_eq!(told.events, ["Its cloud says that i-0a is likely to be taken back soon"]);
    assert!(told.instance.is_kept());
    assert_eq!(seen(20, &told.instance, &likely, 0).events, Vec::<String>::new());
}

/// A job whose task is in a phase, on a machine that is taken back in 130 seconds.
fn on_interrupted(now: i64, job: &Job, phase: Option<TaskPhase>) -> JobDecision {
    let mut machine = bought(InstanceStatus::Busy);
    machine.state.notice = Some(Notice { interruption: interruption(Some(130)), seen_at: at(10) });
    let around = job::Surroundings {
        instance: Some(&machine),
        cluster: Some(ClusterInfo::default().into()),
        logs_received: 0,
        logs_lost: 0,
        log_error: None,
        unreachable_since: None,
        unreachable_after_secs: 300,
        inactivity: None,
    };
    let seen = phase.map_or(Seen::Absent, |phase| Seen::Known(Box::new(task(phase))));
    job::decide(at(now), job, &seen, &around)
}

#[test]
fn a_job_on_a_machine_that_is_taken_back_may_end_by_itself() {
    let running = in_phase(0, 1, TaskPhase::Running);
    let decision = on_interrupted(10, &running, Some(TaskPhase::Running));
    assert_eq!(decision.job.status, JobStatus::Terminating);
    assert_eq!(decision.job.state.termination_reason, Some(JobTerminationReason::InterruptedByNoCapacity));
    let message = decision.job.state.termination_message.clone().unwrap();
    assert_eq!(message, "Instance fleet-0: AWS takes i-0a back at 2023-11-14 22:15:30 UTC (terminate)");
    // It wants 300 s; 120 are left, of which 10 are for its log.
    assert_eq!(decision.effect, Some(JobEffect::Stop { grace_secs: 110 }));
    assert!(decision.concerns_run);
    let later = on_interrupted(125, &decision.job, Some(TaskPhase::Stopping));
    assert_eq!(later.effect, Some(JobEffect::Stop { grace_secs: 0 }));
    let mut short = running;
    short.spec.stop_duration = Some(5);
    let decision = on_interrupted(10, &short, Some(TaskPhase::Running));
    assert_eq!(decision.effect, Some(JobEffect::Stop { grace_secs: 5 }));
}

#[test]
fn what_users_want_and_what_a_job_did_counts_before_the_notice() {
    let wanted = |reason, grace_secs| Some(EndOrder { reason, message: None, grace_secs });
    let stopped =
        Job { end: wanted(JobTerminationReason::TerminatedByUser, 300), ..in_phase(0, 1, TaskPhase::Running) };
    let decision = on_interrupted(10, &stopped, Some(TaskPhase::Running));
    assert_eq!(decision.job.state.termination_reason, Some(JobTerminationReason::TerminatedByUser));
    assert_eq!(decision.effect, Some(JobEffect::Stop { grace_secs: 110 }));
    // A node that is ended because of a peer is lost by itself as well.
    let of_gang =
        Job { end: wanted(JobTerminationReason::TerminatedByServer, 300), ..in_phase(0, 2, TaskPhase::Running) };
    let decision = on_interrupted(10, &of_gang, Some(TaskPhase::Running));
    assert_eq!(decision.job.state.termination_reason, Some(JobTerminationReason::InterruptedByNoCapacity));
}

#[test]
fn a_job_that_was_not_given_yet_is_not_given_any_more() {
    let decision = on_interrupted(10, &placed(0, 1, JobStatus::Provisioning), None);
    assert_eq!(decision.job.state.termination_reason, Some(JobTerminationReason::InterruptedByNoCapacity));
    assert_eq!((decision.job.status.is_finished(), decision.effect), (true, None));
}

#[test]
fn a_gang_one_of_whose_machines_is_taken_back_ends_whole_and_is_tried_again() {
    let mut nodes = [0, 1].map(|number| in_phase(number, 2, TaskPhase::Running));
    for node in &mut nodes {
        node.spec.retry = Some(retry(&[RetryEvent::Interruption], 3600));
    }
    nodes[1] = on_interrupted(10, &nodes[1], Some(TaskPhase::Running)).job;
    let decision = run::decide(at(11), &run_in(RunStatus::Running), &nodes);
    let order =
        |node: &Job| decision.end_jobs.iter().find(|(id, _)| *id == node.id).map(|(_, order)| order.clone());
    let of_peer = order(&nodes[0]).unwrap();
    assert_eq!((of_peer.reason, of_peer.grace_secs), (JobTerminationReason::TerminatedByServer, 300));
    // The run orders the same of the node itself, which keeps its reason and what is left of its grace.
    nodes[1].end = order(&nodes[1]);
    nodes[1] = on_interrupted(11, &nodes[1], Some(TaskPhase::Stopping)).job;
    assert_eq!(nodes[1].state.stop_sent, Some(109));
    let cause = decision.run.state.cause.as_ref().unwrap();
    assert_eq!((cause.job_num, cause.reason), (1, JobTerminationReason::InterruptedByNoCapacity));
    nodes[0].end = Some(of_peer);
    nodes[0].state.termination_reason = Some(JobTerminationReason::TerminatedByServer);
    for node in &mut nodes {
        let reason = node.state.termination_reason.unwrap();
        node.status = reason.final_status();
    }
    assert_eq!(nodes[1].state.termination_reason, Some(JobTerminationReason::InterruptedByNoCapacity));
    let decision = run::decide(at(12), &decision.run, &nodes);
    assert_eq!(decision.run.status, RunStatus::Pending);
    assert!(decision.run.state.retry.is_some_and(|wait| !wait.for_capacity));
}

/// A job of so many nodes on a machine with too few EFA devices since 10 s.
fn without_devices(now: i64, nodes: u32) -> JobDecision {
    let machine = seen(10, &bought(InstanceStatus::Provisioning), &host(31), 1).instance;
    let around = job::Surroundings {
        instance: Some(&machine),
        cluster: Some(ClusterInfo::default().into()),
        logs_received: 0,
        logs_lost: 0,
        log_error: None,
        unreachable_since: None,
        unreachable_after_secs: 300,
        inactivity: None,
    };
    job::decide(at(now), &placed(0, nodes, JobStatus::Provisioning), &Seen::Absent, &around)
}

#[test]
fn nodes_are_given_to_machines_with_all_of_their_devices_only() {
    assert_eq!(without_devices(20, 1).effect, Some(JobEffect::Put));
    let early = without_devices(20, 2);
    assert_eq!((early.effect, early.job.status), (None, JobStatus::Provisioning));
    let waits_for = early.job.state.waiting_for.unwrap();
    assert_eq!(waits_for, "the rest of the EFA devices of instance fleet-0: it has 31 of 32 EFA devices");
    assert_eq!(early.look_again_at, Some(at(70)));
    let late = without_devices(70, 2);
    let reason = late.job.state.termination_reason.unwrap();
    assert_eq!(reason, JobTerminationReason::FailedToStartDueToNoCapacity);
    assert_eq!(reason.retry_event(), Some(RetryEvent::NoCapacity));
    let message = late.job.state.termination_message.unwrap();
    assert!(message.contains("fleet-0 has 31 of 32 EFA devices"), "{message}");
}
