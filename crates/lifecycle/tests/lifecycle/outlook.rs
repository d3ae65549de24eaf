//! What people are told will happen next.

use api::instances::InstanceStatus;
use api::jobs::JobStatus;
use api::runs::RunStatus;
use api::why::NextStep;
use lifecycle::instance::InVain;
use lifecycle::launch::{Launch, LaunchError, LaunchStatus, Scope, Verdict};
use lifecycle::outlook;
use lifecycle::run::RetryWait;
use serde_json::json;

use crate::fixtures::{at, fleet, instance, job, launch, placed, run_in};

#[track_caller]
fn check(steps: impl IntoIterator<Item = NextStep>, expected: &[(Option<i64>, &str)]) {
    let steps: Vec<_> = steps.into_iter().map(|step| (step.at, step.what)).collect();
    let expected: Vec<_> = expected.iter().map(|(secs, what)| (secs.map(at), (*what).to_owned())).collect();
    assert_eq!(steps, expected);
}

fn refused(status: LaunchStatus, verdict: Verdict, message: &str) -> Launch {
    let mut launch = launch(status);
    launch.state.hear(Err(LaunchError {
        kind: "quota".to_owned(),
        verdict,
        code: Some("VcpuLimitExceeded".to_owned()),
        message: message.to_owned(),
        zones_with_capacity: vec![],
        at: Some(at(0)),
    }));
    launch
}

#[test]
fn an_instance_that_is_bought_says_what_its_purchase_waits_for() {
    let starting = instance(0, InstanceStatus::Provisioning);
    let of = |status| outlook::of_instance(at(1), &starting, Some(&launch(status)));
    check(of(LaunchStatus::Wanted), &[(None, "fleet-0: `fake` is asked for 2 × cpu-4 in fake-1")]);
    let asked = "fleet-0: `fake` was asked for 2 × cpu-4 in fake-1, which are to appear";
    check(of(LaunchStatus::Requested), &[(None, asked)]);
    check(of(LaunchStatus::Done), &[(None, "fleet-0: the machine starts, and its agent is to answer")]);
    check(of(LaunchStatus::Failed), &[(None, "fleet-0: its fleet buys the next offer")]);
    // Of a purchase of fewer than were asked for, the last ones are in vain.
    let mut in_part = launch(LaunchStatus::Done);
    in_part.state.made = Some(1);
    let second = instance(1, InstanceStatus::Provisioning);
    check(
        outlook::of_instance(at(1), &second, Some(&in_part)),
        &[(None, "fleet-1: its fleet buys the next offer")],
    );
    let pending = instance(0, InstanceStatus::Pending);
    check(outlook::of_instance(at(1), &pending, None), &[(None, "fleet-0: its fleet buys a machine")]);
}

#[test]
fn a_backend_that_said_to_ask_later_is_asked_again_at_the_time_that_is_told() {
    let limited = refused(LaunchStatus::Requested, Verdict::Later, "slowly");
    let told = outlook::of_instance(at(0), &instance(0, InstanceStatus::Provisioning), Some(&limited)).unwrap();
    assert_eq!(told.at, limited.next_try_at());
    assert!(told.at.is_some() && told.what.contains("is asked again for"), "{told:?}");
}

#[test]
fn a_purchase_tells_what_was_said_last_and_what_is_asked_next() {
    let buys = |launch_of_instance: &Launch| {
        let mut instance = instance(0, InstanceStatus::Provisioning);
        instance.launch_id = Some(launch_of_instance.id);
        instance
    };
    let in_zone = |number: u128, mut launch: Launch, zone: &str| {
        launch.id = crate::fixtures::id(number);
        launch.state.zone = Some(zone.to_owned());
        launch.state.instances = vec![instance(0, InstanceStatus::Provisioning).id];
        launch
    };
    let zone = Verdict::Refused(Scope::Zone);
    let first = in_zone(301, refused(LaunchStatus::Failed, zone, "no room"), "a");
    let told = |tried: &[Launch]| outlook::of_purchase(&buys(tried.last().unwrap()), tried);
    assert_eq!(told(std::slice::from_ref(&first)).as_deref(), Some("a: VcpuLimitExceeded"));
    let asked = in_zone(302, launch(LaunchStatus::Requested), "b");
    assert_eq!(told(&[first.clone(), asked.clone()]).as_deref(), Some("a: VcpuLimitExceeded; next b"));
    assert_eq!(told(std::slice::from_ref(&asked)), None, "nothing was refused");
    let limited = in_zone(302, refused(LaunchStatus::Requested, Verdict::Later, "slowly"), "b");
    let at = limited.next_try_at().unwrap().strftime("%H:%M:%S UTC").to_string();
    assert_eq!(told(&[first.clone(), limited]), Some(format!("b: VcpuLimitExceeded, asked again at {at}")));
    let bought = in_zone(302, launch(LaunchStatus::Done), "b");
    assert_eq!(told(&[first.clone(), bought.clone()]), None);
    // What was taken back while it started was not to be had either.
    let mut taken_back = buys(&bought);
    taken_back.status = InstanceStatus::Pending;
    taken_back.state.in_vain = vec![InVain { launch: bought.id, why: Some("no room after all".to_owned()) }];
    let tried = [first.clone(), bought.clone()];
    assert_eq!(outlook::of_purchase(&taken_back, &tried).as_deref(), Some("b: no room after all"));
    // Others' purchases, and machines that are there, are not told of.
    let mut others = first.clone();
    others.state.instances = vec![instance(1, InstanceStatus::Provisioning).id];
    assert_eq!(outlook::of_purchase(&buys(&others), &[others]), None);
    let mut idle = buys(&first);
    idle.status = InstanceStatus::Idle;
    assert_eq!(outlook::of_purchase(&idle, &[first]), None);
}

#[test]
fn an_instance_that_is_there_says_when_it_ends_only_if_it_may() {
    let of = |status| outlook::of_instance(at(2), &instance(0, status), None);
    check(of(InstanceStatus::Busy), &[]);
    check(of(InstanceStatus::Terminated), &[]);
    check(of(InstanceStatus::Terminating), &[(None, "fleet-0 is gone once its backend says so")]);
    let mut idle = instance(0, InstanceStatus::Idle);
    idle.state.idle_duration_secs = Some(300);
    let told = "fleet-0 ends if it is idle until then and its fleet can spare it";
    check(outlook::of_instance(at(2), &idle, None), &[(Some(301), told)]);
    idle.state.idle_duration_secs = Some(-1);
    check(outlook::of_instance(at(2), &idle, None), &[]);
}

#[test]
fn a_fleet_that_rests_says_what_it_lacks() {
    let mut resting = fleet(json!({"nodes": 2}));
    resting.state.not_before = Some(at(60));
    check(outlook::of_fleet(at(1), &resting, 1), &[(Some(60), "it buys again: it has 1 of at least 2 machines")]);
    check(outlook::of_fleet(at(61), &resting, 1), &[]);
    check(outlook::of_fleet(at(1), &resting, 2), &[]);
    resting.status = api::fleets::FleetStatus::Terminated;
    assert!(outlook::is_over(&resting));
    check(outlook::of_fleet(at(1), &resting, 0), &[]);
}

#[test]
fn a_run_says_what_each_of_its_nodes_waits_for() {
    let mut waiting = placed(1, 2, JobStatus::Pulling);
    waiting.state.waiting_for = Some("the other nodes".to_owned());
    let done = placed(2, 2, JobStatus::Done);
    let jobs = [job(0, 2), waiting, done];
    let run = run_in(RunStatus::Submitted);
    check(
        outlook::of_run(&run, &jobs),
        &[
            (None, "test-0-0 is given a free machine, or a fleet buys one"),
            (None, "test-1-0 waits for the other nodes"),
        ],
    );
    let mut again = run_in(RunStatus::Pending);
    again.state.retry = Some(RetryWait { for_capacity: true, not_before: at(10), until: at(3600) });
    check(
        outlook::of_run(&again, &[]),
        &[
            (Some(10), "machines are bought for it again; what falls free before serves it too"),
            (Some(3600), "it fails unless it has machines by then (`retry`)"),
        ],
    );
}

#[test]
fn what_somebody_has_to_do_is_said_once_and_until_something_is_bought() {
    let region = Verdict::Refused(Scope::Region);
    let quota = || refused(LaunchStatus::Failed, region, "You have requested more vCPU capacity.");
    let zone = refused(LaunchStatus::Failed, Verdict::Refused(Scope::Zone), "no room");
    let told = "for more in fake-1, ask `fake` to raise the quota: VcpuLimitExceeded (You have requested more vCPU \
                capacity)";
    check(outlook::remedies(&[quota(), zone.clone(), quota()]), &[(None, told)]);
    check(outlook::remedies(&[quota(), launch(LaunchStatus::Done), zone]), &[]);
    let region = refused(LaunchStatus::Failed, Verdict::Refused(Scope::WholeRegion), "500 groups.");
    let told =
        "for anything in fake-1, have `fake` remove what stands in the way there: VcpuLimitExceeded (500 groups)";
    check(outlook::remedies(&[region]), &[(None, told)]);
    let backend = refused(LaunchStatus::Failed, Verdict::Refused(Scope::Backend), "not you");
    check(
        outlook::remedies(&[launch(LaunchStatus::Done), backend]),
        &[(None, "for anything of `fake`, give its credentials what they lack: VcpuLimitExceeded (not you)")],
    );
}
