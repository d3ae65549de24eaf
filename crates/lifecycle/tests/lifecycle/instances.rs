//! What happens next to an instance: every status by what its backend and its agent say.

use std::collections::BTreeMap;

use api::agent::{DockerInfo, HostInfo};
use api::instances::{InstanceStatus, InstanceTerminationReason};
use lifecycle::instance::{
    AgentSeen, EndOrder, Host, Instance, InstanceDecision, InstanceState, Leaving, Machine, MachineSeen,
    Surroundings, decide, idle_duration_for_job,
};
use lifecycle::launch::{Launch, LaunchState, LaunchStatus};

use crate::fixtures::{at, instance, launch};

/// An instance whose machine runs and whose agent answers; a case changes what it is about.
struct Case {
    now: i64,
    instance: Instance,
    machine: MachineSeen,
    agent: AgentSeen,
    busy_blocks: u32,
    launch: Option<Launch>,
    consistent_list: bool,
    blocks: Option<u32>,
    leaving: Leaving,
}

fn case(instance: Instance, machine: MachineSeen, agent: AgentSeen) -> Case {
    let launch = instance.launch_id.map(|_| launch(LaunchStatus::Done));
    Case {
        now: 10,
        instance,
        machine,
        agent,
        busy_blocks: 0,
        launch,
        consistent_list: false,
        blocks: Some(1),
        leaving: Leaving::NotYet,
    }
}

impl Case {
    fn decide(&self) -> InstanceDecision {
        let around = Surroundings {
            machine: self.machine.clone(),
            agent: self.agent.clone(),
            busy_blocks: self.busy_blocks,
            launch: self.launch.as_ref(),
            consistent_list: self.consistent_list,
            provisioning_timeout_secs: 600,
            admins_only: false,
            runs_processes: false,
            blocks: self.blocks,
            host_keys: BTreeMap::from([("gpu-1:22".to_owned(), "ssh-ed25519 AAAA".to_owned())]),
            leaving: self.leaving.clone(),
        };
        decide(at(self.now), &self.instance, &around)
    }
}

#[track_caller]
fn check(case: &Case, expected: &str) {
    let decision = case.decide();
    let mut words = vec![decision.instance.status.as_str().to_owned()];
    words.extend(decision.instance.state.termination_reason.map(|reason| reason.as_str().to_owned()));
    words.extend(decision.effect.map(|effect| format!("{effect:?}").to_lowercase()));
    assert_eq!(words.join(", "), expected);
}

fn machine(running: bool, gone: bool) -> MachineSeen {
    MachineSeen::Present(Box::new(Machine {
        network_path: vec![],
        running,
        gone,
        provider_id: "fake-0".to_owned(),
        hostname: running.then(|| "10.0.0.1".to_owned()),
        internal_ip: running.then(|| "10.0.0.1".to_owned()),
        container_network: None,
        region: "fake-1".to_owned(),
        zone: Some("fake-1a".to_owned()),
        ended_because: gone.then(|| "taken back".to_owned()),
        lacked_room: gone,
        login: None,
    }))
}

fn starting() -> MachineSeen {
    machine(false, false)
}

fn running() -> MachineSeen {
    machine(true, false)
}

fn gone() -> MachineSeen {
    machine(false, true)
}

fn silent(since: Option<i64>) -> AgentSeen {
    AgentSeen::Unknown { since: since.map(at), error: None, is_final: false }
}

fn connected() -> AgentSeen {
    AgentSeen::Connected(Box::new(HostInfo { internal_ip: Some("10.9.9.9".to_owned()), ..HostInfo::default() }))
}

fn unwanted(instance: Instance) -> Instance {
    let reason = InstanceTerminationReason::TerminatedByUser;
    Instance { end: Some(EndOrder { reason, message: None }), ..instance }
}

fn in_status(status: InstanceStatus) -> Instance {
    instance(0, status)
}

#[test]
fn a_pending_instance_waits_for_its_launch() {
    let pending = || in_status(InstanceStatus::Pending);
    check(&case(pending(), MachineSeen::Unknown, silent(None)), "pending");
    let bought =
        Case { launch: Some(launch(LaunchStatus::Wanted)), ..case(pending(), MachineSeen::Unknown, silent(None)) };
    check(&bought, "provisioning");
    let state = bought.decide().instance.state;
    assert_eq!((state.price, state.region.as_deref(), state.total_blocks), (Some(1.0), Some("fake-1"), 1));
    let by_cpu = Case { blocks: None, ..bought };
    assert_eq!(by_cpu.decide().instance.state.total_blocks, 4);
}

#[test]
fn a_pending_instance_that_nobody_wants_is_gone_at_once_unless_something_was_bought() {
    let pending = || unwanted(in_status(InstanceStatus::Pending));
    check(&case(pending(), MachineSeen::Unknown, silent(None)), "terminated, terminated_by_user, disconnect");
    let mut bought = pending();
    bought.launch_id = Some(launch(LaunchStatus::Requested).id);
    let bought = case(bought, MachineSeen::Absent, silent(None));
    let asked = Case { launch: Some(launch(LaunchStatus::Requested)), ..bought };
    check(&asked, "terminating, terminated_by_user, terminate");
}

#[test]
fn a_provisioning_instance_joins_when_its_agent_answers() {
    let provisioning = || in_status(InstanceStatus::Provisioning);
    check(&case(provisioning(), MachineSeen::Unknown, silent(None)), "provisioning");
    check(&case(provisioning(), starting(), silent(None)), "provisioning");
    check(&case(provisioning(), running(), silent(None)), "provisioning, connect");
    check(&case(provisioning(), running(), connected()), "idle, connect");
    let held = Case { busy_blocks: 1, ..case(provisioning(), running(), connected()) };
    check(&held, "busy, connect");
    let state = case(provisioning(), running(), connected()).decide().instance.state;
    assert_eq!(state.internal_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!((state.joined_at, state.idle_since), (Some(at(10)), Some(at(10))));
}

#[test]
fn a_provisioning_instance_ends_with_its_launch_its_machine_or_its_time() {
    let provisioning = || in_status(InstanceStatus::Provisioning);
    let refused = Case {
        launch: Some(launch(LaunchStatus::Failed)),
        ..case(provisioning(), MachineSeen::Absent, silent(None))
    };
    check(&refused, "pending, disconnect");
    // It was sold and taken back, and the fleet knows why.
    let taken_back = case(provisioning(), gone(), silent(None));
    check(&taken_back, "pending, disconnect");
    let in_vain = taken_back.decide().instance.state.in_vain;
    assert_eq!(in_vain.len(), 1);
    assert!(in_vain[0].why.as_deref().unwrap().starts_with("The machine ended while it started: "), "{in_vain:?}");
    // While the purchase is under way nobody knows yet what is bought instead.
    let open =
        Case { launch: Some(launch(LaunchStatus::Requested)), ..case(provisioning(), gone(), silent(None)) };
    check(&open, "provisioning");
    let MachineSeen::Present(mut machine) = gone() else { panic!("it is listed") };
    machine.lacked_room = false;
    let broken = Case { machine: MachineSeen::Present(machine), ..taken_back };
    check(&broken, "terminated, error, disconnect");
    // Its time begins when it is asked for, and not when it was first wanted.
    let late = |now, requested_at: Option<i64>| {
        let mut asked = launch(LaunchStatus::Done);
        asked.state.requested_at = requested_at.map(at);
        Case { now, launch: Some(asked), ..case(provisioning(), running(), silent(None)) }
    };
    check(&late(10_000, None), "provisioning, connect");
    check(&late(10_000, Some(9_400)), "provisioning, connect");
    check(&late(10_001, Some(9_400)), "terminating, provisioning_timeout, connect");
}

#[test]
fn an_instance_whose_purchase_came_to_nothing_waits_for_the_next_one() {
    let mut bought = in_status(InstanceStatus::Provisioning);
    bought.state.zone = Some("fake-1a".to_owned());
    let failed = Launch {
        state: LaunchState { ended_at: Some(at(9)), ..launch(LaunchStatus::Failed).state },
        ..launch(LaunchStatus::Failed)
    };
    let back =
        Case { launch: Some(failed.clone()), busy_blocks: 1, ..case(bought, MachineSeen::Absent, silent(None)) };
    let decision = back.decide();
    let waiting = decision.instance.clone();
    assert_eq!((waiting.status, waiting.state.unsold), (InstanceStatus::Pending, Some(failed.id)));
    assert!(decision.concerns_fleet, "it is to buy the next one");
    assert_eq!(decision.events, ["Instance status changed PROVISIONING -> PENDING"]);
    // Nothing is left of what was not had.
    let state = &waiting.state;
    assert_eq!((&state.backend, &state.region, &state.zone, &state.instance_type), (&None, &None, &None, &None));
    // It is not taken for bought, and waits only so long for a fleet that cannot ask.
    let looked_at = |now, launch: &Launch| Case {
        now,
        launch: Some(launch.clone()),
        busy_blocks: 1,
        ..case(waiting.clone(), MachineSeen::Absent, silent(None))
    };
    check(&looked_at(1208, &failed), "pending");
    check(&looked_at(1209, &failed), "terminated, provisioning_timeout, disconnect");
    let next = Launch { id: crate::fixtures::id(301), ..launch(LaunchStatus::Wanted) };
    check(&looked_at(10_000, &next), "provisioning");
    let described = looked_at(10_000, &next).decide().instance.state;
    assert_eq!((described.facts_of, described.unsold), (Some(next.id), None));
}

#[test]
fn an_instance_learns_of_the_next_purchase_even_where_it_never_saw_the_first_fail() {
    let mut bought = in_status(InstanceStatus::Provisioning);
    bought.state.facts_of = Some(crate::fixtures::id(299));
    bought.state.zone = Some("fake-1a".to_owned());
    let mut next = launch(LaunchStatus::Requested);
    next.state.offer.price = 7.0;
    let state =
        Case { launch: Some(next), ..case(bought, MachineSeen::Absent, silent(None)) }.decide().instance.state;
    assert_eq!((state.facts_of, state.price, state.zone), (Some(launch(LaunchStatus::Done).id), Some(7.0), None));
}

#[test]
fn a_machine_that_was_not_among_those_made_is_bought_elsewhere() {
    let mut second = instance(1, InstanceStatus::Provisioning);
    second.launch_index = Some(1);
    let mut partly = launch(LaunchStatus::Done);
    partly.state.made = Some(1);
    let look = |now, second: &Instance, consistent_list| {
        let case = case(second.clone(), MachineSeen::Absent, silent(None));
        Case { now, launch: Some(partly.clone()), consistent_list, ..case }
    };
    check(&look(10, &second, true), "pending, disconnect");
    assert_eq!(look(10, &second, true).decide().instance.state.unsold, Some(partly.id));
    // An old list proves nothing.
    check(&look(10, &second, false), "provisioning");
    let seen_absent = look(10, &second, false).decide().instance;
    check(&look(129, &seen_absent, false), "provisioning");
    check(&look(130, &seen_absent, false), "pending, disconnect");
    // What was promised and never came is another matter.
    let first = instance(0, InstanceStatus::Provisioning);
    check(&look(10, &first, true), "terminated, error, disconnect");
}

#[test]
fn an_absence_is_believed_only_after_a_grace() {
    for (status, reason) in [(InstanceStatus::Provisioning, "error"), (InstanceStatus::Idle, "unreachable")] {
        let mut current = in_status(status);
        let mut look = |now, machine: MachineSeen, expected: &str| {
            let case = Case { now, ..case(current.clone(), machine, silent(None)) };
            check(&case, expected);
            current = case.decide().instance;
        };
        let stays = status.as_str();
        look(10, MachineSeen::Absent, stays);
        look(129, MachineSeen::Absent, stays);
        // Its agent may answer although its backend does not.
        let connects = if status == InstanceStatus::Idle { ", connect" } else { "" };
        look(129, MachineSeen::Unknown, &format!("{stays}{connects}"));
        // It was only left out.
        look(130, running(), &format!("{stays}, connect"));
        look(131, MachineSeen::Absent, stays);
        look(250, MachineSeen::Absent, stays);
        look(251, MachineSeen::Absent, &format!("terminated, {reason}, disconnect"));
    }
}

#[test]
fn an_absence_is_believed_at_once_where_lists_are_the_truth_and_nobody_is_buying() {
    let provisioning = || case(in_status(InstanceStatus::Provisioning), MachineSeen::Absent, silent(None));
    let settled = Case { consistent_list: true, ..provisioning() };
    check(&settled, "terminated, error, disconnect");
    for status in [LaunchStatus::Wanted, LaunchStatus::Requested] {
        let buying = Case { consistent_list: true, launch: Some(launch(status)), ..provisioning() };
        check(&buying, "provisioning");
    }
}

#[test]
fn a_backend_that_cannot_be_asked_is_no_reason_to_act() {
    for status in [InstanceStatus::Idle, InstanceStatus::Busy] {
        for now in [10, 10_000, 10_000_000] {
            let busy_blocks = u32::from(status == InstanceStatus::Busy);
            let case = Case { now, busy_blocks, ..case(in_status(status), MachineSeen::Unknown, connected()) };
            check(&case, &format!("{}, connect", status.as_str()));
        }
    }
    let ending = Case {
        now: 10_000_000,
        ..case(in_status(InstanceStatus::Terminating), MachineSeen::Unknown, silent(None))
    };
    check(&ending, "terminating, terminate");
}

#[test]
fn a_joined_instance_is_busy_while_jobs_hold_blocks() {
    let joined = |status, busy_blocks| Case { busy_blocks, ..case(in_status(status), running(), connected()) };
    check(&joined(InstanceStatus::Idle, 0), "idle, connect");
    check(&joined(InstanceStatus::Idle, 1), "busy, connect");
    check(&joined(InstanceStatus::Busy, 1), "busy, connect");
    check(&joined(InstanceStatus::Busy, 0), "idle, connect");
    assert_eq!(joined(InstanceStatus::Idle, 1).decide().instance.state.idle_since, None);
    assert_eq!(joined(InstanceStatus::Busy, 0).decide().instance.state.idle_since, Some(at(10)));
    // Idle since it became so, not since it was last looked at.
    assert_eq!(joined(InstanceStatus::Idle, 0).decide().instance.state.idle_since, Some(at(1)));
}

#[test]
fn a_joined_instance_ends_when_its_machine_is_gone() {
    for status in [InstanceStatus::Idle, InstanceStatus::Busy] {
        check(&case(in_status(status), gone(), connected()), "terminated, unreachable, disconnect");
    }
    let why =
        case(in_status(InstanceStatus::Idle), gone(), connected()).decide().instance.state.termination_message;
    assert_eq!(why.as_deref(), Some("taken back"));
}

#[test]
fn a_silent_agent_costs_the_machine_only_after_a_long_time() {
    let silent_for = |now| Case { now, ..case(in_status(InstanceStatus::Idle), running(), silent(Some(100))) };
    check(&silent_for(100), "idle, connect");
    check(&silent_for(100 + 1199), "idle, connect");
    assert_eq!(silent_for(200).decide().instance.state.unreachable_since, Some(at(100)));
    check(&silent_for(100 + 1200), "terminating, unreachable, connect");
    let mut answered_again = in_status(InstanceStatus::Idle);
    answered_again.state.unreachable_since = Some(at(5));
    let case = case(answered_again, running(), connected());
    assert_eq!(case.decide().instance.state.unreachable_since, None);
}

#[test]
fn silence_does_not_count_while_the_server_itself_was_away() {
    let mut instance = in_status(InstanceStatus::Busy);
    instance.state.unreachable_since = Some(at(100));
    let restarted = Case { now: 5_000, busy_blocks: 1, ..case(instance, running(), silent(Some(4_990))) };
    check(&restarted, "busy, connect");
    assert_eq!(restarted.decide().instance.state.unreachable_since, Some(at(4_990)));
}

#[test]
fn an_unwanted_instance_ends_from_every_status() {
    use InstanceStatus::{Busy, Idle, Provisioning};
    for status in [Provisioning, Idle, Busy] {
        for machine in [starting(), running(), MachineSeen::Absent, MachineSeen::Unknown] {
            let case = case(unwanted(in_status(status)), machine, connected());
            check(&case, "terminating, terminated_by_user, terminate");
        }
        check(
            &case(unwanted(in_status(status)), gone(), connected()),
            "terminated, terminated_by_user, disconnect",
        );
    }
}

#[test]
fn the_order_to_end_is_repeated_until_the_machine_is_gone() {
    let mut current = in_status(InstanceStatus::Terminating);
    current.state.termination_reason = Some(InstanceTerminationReason::IdleTimeout);
    let mut look = |now, machine: MachineSeen, expected: &str| {
        let case = Case { now, ..case(current.clone(), machine, connected()) };
        check(&case, expected);
        current = case.decide().instance;
    };
    look(10, running(), "terminating, idle_timeout, terminate");
    look(19, running(), "terminating, idle_timeout");
    look(20, running(), "terminating, idle_timeout, terminate");
    look(30, MachineSeen::Unknown, "terminating, idle_timeout, terminate");
    look(40, MachineSeen::Absent, "terminating, idle_timeout, terminate");
    look(41, gone(), "terminated, idle_timeout, disconnect");
}

#[test]
fn terminated_is_what_the_backend_says_and_never_what_we_asked_for() {
    let ending = |machine, consistent_list| Case {
        consistent_list,
        ..case(in_status(InstanceStatus::Terminating), machine, silent(None))
    };
    check(&ending(running(), true), "terminating, terminate");
    check(&ending(MachineSeen::Absent, false), "terminating, terminate");
    check(&ending(MachineSeen::Absent, true), "terminated, error, disconnect");
    // A launch that is still being asked for may yet make the machine.
    let buying = Case { launch: Some(launch(LaunchStatus::Requested)), ..ending(MachineSeen::Absent, true) };
    check(&buying, "terminating, terminate");
    let refused = Case { launch: Some(launch(LaunchStatus::Failed)), ..ending(MachineSeen::Unknown, true) };
    check(&refused, "terminated, error, disconnect");
}

#[test]
fn final_is_final() {
    for machine in [MachineSeen::Absent, MachineSeen::Unknown, running(), gone()] {
        let over = unwanted(in_status(InstanceStatus::Terminated));
        let decision = case(over.clone(), machine, connected()).decide();
        assert_eq!((decision.instance, decision.effect, decision.look_again_at), (over, None, None));
    }
}

#[test]
fn events_tell_the_official_story() {
    let told = |case: Case| case.decide().events;
    let joined = told(case(in_status(InstanceStatus::Provisioning), running(), connected()));
    assert_eq!(joined, ["Instance status changed PROVISIONING -> IDLE"]);
    let mut idle = in_status(InstanceStatus::Idle);
    let message = Some("Instance idle for 300s".to_owned());
    idle.end = Some(EndOrder { reason: InstanceTerminationReason::IdleTimeout, message });
    assert_eq!(
        told(case(idle, running(), connected())),
        ["Instance status changed IDLE -> TERMINATING. Termination reason: IDLE_TIMEOUT (Instance idle for 300s)"]
    );
}

#[test]
fn a_job_waits_for_offers_only_for_so_long() {
    let pending = |now, busy_blocks| Case {
        now,
        busy_blocks,
        ..case(in_status(InstanceStatus::Pending), MachineSeen::Unknown, silent(None))
    };
    check(&pending(1199, 1), "pending");
    check(&pending(1200, 1), "terminated, provisioning_timeout, disconnect");
    let why = pending(1200, 1).decide().instance.state.termination_message;
    assert_eq!(why.as_deref(), Some("Nothing could be bought for it for 20 min"));
    // Nobody waits for what is only kept in store.
    check(&pending(100_000, 0), "pending");
}

#[test]
fn what_a_launch_did_not_make_was_not_sold() {
    let mut partly = launch(LaunchStatus::Done);
    (partly.state.count, partly.state.made) = (3, Some(2));
    let look = |index| {
        let mut instance = in_status(InstanceStatus::Provisioning);
        instance.launch_index = Some(index);
        let case = case(instance, MachineSeen::Absent, silent(None));
        Case { launch: Some(partly.clone()), consistent_list: true, ..case }
    };
    check(&look(1), "terminated, error, disconnect");
    check(&look(2), "pending, disconnect");
    assert_eq!(look(2).decide().events[0], "The backend made only 2 of 3 machines, and not this one");
}

#[test]
fn what_is_known_of_a_machine_is_not_forgotten_when_a_list_omits_it() {
    let mut known = in_status(InstanceStatus::Idle);
    known.state.internal_ip = Some("10.0.0.7".to_owned());
    known.state.hostname = Some("host".to_owned());
    let state = case(known, starting(), connected()).decide().instance.state;
    assert_eq!((state.internal_ip.as_deref(), state.hostname.as_deref()), (Some("10.0.0.7"), Some("host")));
}

#[test]
fn the_shorter_idle_time_of_run_and_fleet_counts() {
    let cases = [
        (None, None, 300),
        (None, Some(3600), 3600),
        (Some(60), None, 60),
        (Some(600), Some(3600), 600),
        (Some(3600), Some(600), 600),
        // Negative is for ever.
        (Some(-1), None, -1),
        (Some(-1), Some(600), 600),
        (Some(600), Some(-1), 600),
    ];
    for (run_secs, fleet_secs, expected) in cases {
        assert_eq!(idle_duration_for_job(run_secs, fleet_secs), expected, "{run_secs:?} {fleet_secs:?}");
    }
}

/// A machine of the user's own, asked for at 0.
fn host(status: InstanceStatus) -> Instance {
    let host = Host { hostname: "gpu-1".to_owned(), port: 22, blocks: Some(2), ..Host::default() };
    let mut instance = Instance { launch_id: None, launch_index: None, ..instance(0, status) };
    instance.created_at = at(0);
    instance.state = InstanceState { host: Some(host), ..instance.state };
    instance
}

fn refused(error: &str, is_final: bool) -> AgentSeen {
    AgentSeen::Unknown { since: Some(at(0)), error: Some(error.to_owned()), is_final }
}

fn greeted() -> AgentSeen {
    let docker = DockerInfo {
        version: "20".to_owned(),
        cgroup_version: "1".to_owned(),
        live_restore: false,
        runtimes: vec![],
        ..DockerInfo::default()
    };
    let internal_ip = Some("10.0.0.5".to_owned());
    let host =
        HostInfo { cpus: 8, memory_bytes: 16 << 30, docker: Some(docker), internal_ip, ..HostInfo::default() };
    AgentSeen::Connected(Box::new(host))
}

#[test]
fn a_host_is_joined_by_nobody_who_sells_it() {
    let asked_for = case(host(InstanceStatus::Pending), MachineSeen::Unknown, silent(None));
    check(&asked_for, "provisioning, connect");
    assert_eq!(asked_for.decide().instance.state.backend.as_deref(), Some("ssh"));
    let mut joining = case(host(InstanceStatus::Provisioning), MachineSeen::Unknown, refused("no route", false));
    check(&joining, "provisioning, connect");
    joining.agent = greeted();
    check(&joining, "idle, connect");
    let state = joining.decide().instance.state;
    assert_eq!((state.total_blocks, state.internal_ip.as_deref()), (2, Some("10.0.0.5")));
    assert_eq!(state.instance_type.unwrap().resources.cpus, 8);
    assert_eq!(state.host.unwrap().known_keys["gpu-1:22"], "ssh-ed25519 AAAA");
}

#[test]
fn a_host_that_cannot_be_joined_says_why() {
    let mut joining = case(host(InstanceStatus::Provisioning), MachineSeen::Unknown, refused("sudo asks", true));
    check(&joining, "terminating, error, terminate");
    assert_eq!(joining.decide().instance.state.termination_message.as_deref(), Some("sudo asks"));
    joining.agent = refused("no route", false);
    joining.now = 600;
    check(&joining, "terminating, provisioning_timeout, terminate");
    let message = joining.decide().instance.state.termination_message.unwrap();
    assert_eq!(message, "The host could not be joined for 10 min: no route");
    joining.agent = AgentSeen::Connected(Box::new(HostInfo { cpus: 8, ..HostInfo::default() }));
    check(&joining, "terminating, error, terminate");
}

#[test]
fn a_host_that_is_silent_is_waited_for() {
    let mut joined = case(host(InstanceStatus::Idle), MachineSeen::Unknown, refused("no route", false));
    joined.now = 30 * 24 * 3600;
    check(&joined, "idle, connect");
    assert!(joined.decide().instance.state.unreachable_since.is_some());
    joined.agent = greeted();
    assert!(joined.decide().instance.state.unreachable_since.is_none());
}

#[test]
fn a_host_is_left_before_it_is_over() {
    let mut instance = host(InstanceStatus::Idle);
    instance.state.joined_at = Some(at(1));
    instance.end = Some(EndOrder { reason: InstanceTerminationReason::TerminatedByUser, message: None });
    let mut leaving = case(instance, MachineSeen::Unknown, greeted());
    check(&leaving, "terminating, terminated_by_user, terminate");
    leaving.instance = leaving.decide().instance;
    leaving.now = 25;
    leaving.leaving = Leaving::Failed("no route".to_owned());
    check(&leaving, "terminating, terminated_by_user, terminate");
    leaving.now = 10 + 600;
    check(&leaving, "terminated, terminated_by_user, disconnect");
    assert!(leaving.decide().events.iter().any(|event| event.contains("could not be cleaned up: no route")));
    leaving.now = 12;
    leaving.leaving = Leaving::Done;
    check(&leaving, "terminated, terminated_by_user, disconnect");
    // One that was never joined holds nothing that anybody waits for.
    leaving.instance.state.joined_at = None;
    leaving.leaving = Leaving::Failed("no route".to_owned());
    check(&leaving, "terminated, terminated_by_user, disconnect");
}
