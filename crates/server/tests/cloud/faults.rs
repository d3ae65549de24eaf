//! What may go wrong in the cloud, and what users are told of it.

use std::time::Duration;

use api::instances::InstanceStatus;
use api::runs::RunStatus;
use ec2sim::Settings as Sky;
use serde_json::json;
use server::reconcile::{self, sweep};
use store::leases::Table;

use crate::world::{REGION, World, quick};

fn capacity(world: &World, zone: &str, left: Option<u32>) {
    world.control(
        "capacity",
        json!({
            "region": REGION, "instance_type": "p5.48xlarge", "zone": zone, "market": "on-demand", "left": left,
        }),
    );
}

/// The zones of the region in which the documented machine is sold.
const ZONES: [&str; 3] = ["us-west-2a", "us-west-2b", "us-west-2c"];

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_is_one_call_and_all_is_given_back() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(2), json!({})).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 2).await;
    assert_eq!((world.count("RunInstances"), world.made()), (1, 2));
    assert_eq!(there[0].state.zone, there[1].state.zone);
    assert!(there.iter().all(|one| one.state.efa_expected == Some(32)));
    let run = world.submit(2, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capacity_in_the_last_zone_is_found_at_once() {
    let mut world = World::start(quick()).await;
    // One machine is not a gang: nothing of it is kept.
    capacity(&world, ZONES[0], Some(0));
    capacity(&world, ZONES[1], Some(1));
    world.add_fleet(json!(2), json!({})).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 2).await;
    assert!(there.iter().all(|one| one.state.zone.as_deref() == Some(ZONES[2])), "{there:?}");
    assert_eq!(world.made(), 2);
    let story = world.story().await.join("\n");
    assert!(story.contains("InsufficientInstanceCapacity") && story.contains(ZONES[0]), "{story}");
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_without_capacity_is_told_zone_by_zone() {
    let mut world = World::start(quick()).await;
    for zone in ZONES {
        capacity(&world, zone, Some(0));
    }
    capacity(&world, "us-west-2d", Some(0));
    world.add_fleet(json!(2), json!({ "instance_types": ["p5.48xlarge"] })).await;
    world
        .wait_until("the fleet says why", async || {
            let fleet = store::fleets::get(&world.deps.db, world.fleet).await.unwrap().unwrap().value;
            fleet.state.status_message.is_some_and(|said| said.contains("InsufficientInstanceCapacity"))
        })
        .await;
    assert_eq!(world.made(), 0);
    let story = world.story().await.join("\n");
    assert!(ZONES.iter().all(|zone| story.contains(zone)), "{story}");
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_is_waited_out_with_the_same_token() {
    let mut world = World::start(quick()).await;
    world.control(
        "faults",
        json!({ "action": "RunInstances", "times": 4, "what": "error_before",
        "code": "RequestLimitExceeded", "message": "Request limit exceeded.", "status": 503 }),
    );
    world.add_fleet(json!(2), json!({})).await;
    world.wait_for_instances(InstanceStatus::Idle, 2).await;
    assert_eq!((world.made(), world.count("RunInstances")), (2, 5));
    let tokens: std::collections::BTreeSet<String> = world
        .sim
        .calls()
        .iter()
        .filter(|call| call.action == "RunInstances" && !call.parameters["ClientToken"].is_null())
        .map(|call| call.parameters["ClientToken"].to_string())
        .collect();
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_keep_the_rows_until_they_are_good_again() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(2), json!({})).await;
    world.wait_for_instances(InstanceStatus::Idle, 2).await;
    world.control("credentials/expire", json!({ "access_key": ec2sim::ACCESS_KEY, "at": "2020-01-01T00:00:00Z" }));
    world.delete_fleet().await;
    world.wait_for_instances(InstanceStatus::Terminating, 2).await;
    world
        .wait_until("the server has tried in vain", async || {
            world.sim.calls().iter().filter(|call| call.error.is_some()).count() > 2
        })
        .await;
    assert_eq!(world.instances().await.len(), 2);
    let project = store::projects::get(&world.deps.db, world.project).await.unwrap().unwrap();
    let notes = async || server::accounts::backend_notes(&world.deps, &project).await.unwrap();
    world.wait_until("the project's users are told", async || !notes().await.is_empty()).await;
    let told = notes().await.join("\n");
    assert!(told.starts_with("backend aws of project main cannot be asked since"), "{told}");
    assert!(told.contains("its credentials are refused (") && told.contains("expired"), "{told}");
    world.control("credentials/expire", json!({ "access_key": ec2sim::ACCESS_KEY, "at": null }));
    world.wait_until("it is over", async || notes().await.is_empty()).await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_deleted_leaves_nothing_in_its_account() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(1), json!({})).await;
    world.wait_for_instances(InstanceStatus::Idle, 1).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
    assert!(world.sim.count_alive(ec2sim::Kind::SecurityGroup) > 0);
    let project = store::projects::get(&world.deps.db, world.project).await.unwrap().unwrap();
    server::accounts::delete_projects(&world.deps, world.user, &[project]).await.unwrap().unwrap();
    world
        .wait_until("the backend is forgotten", async || {
            store::backends::all(&world.deps.db).await.unwrap().is_empty()
        })
        .await;
    assert_eq!(world.sim.alive(), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_aws_ends_before_it_runs_tells_the_reason() {
    let mut world = World::start(Sky { boot_ms: 400, ..quick() }).await;
    world.control(
        "late-refusals",
        json!({ "region": REGION, "instance_type": "p5.48xlarge", "zone": null, "times": 1,
        "code": "Server.InternalError", "message": "Server.InternalError: Internal error on launch" }),
    );
    world.add_fleet(json!(2), json!({})).await;
    world
        .wait_until("the reason is told", async || {
            world.story().await.iter().any(|line| line.contains("Internal error on launch"))
        })
        .await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_that_aws_takes_and_ends_for_want_of_room_is_bought_in_the_next_zone() {
    let mut world = World::start(Sky { boot_ms: 400, ..quick() }).await;
    world.control(
        "late-refusals",
        json!({ "region": REGION, "instance_type": "p5.48xlarge", "zone": null, "times": 2,
        "code": "Server.InsufficientInstanceCapacity",
        "message": "Server.InsufficientInstanceCapacity: Insufficient capacity to satisfy instance request" }),
    );
    world.add_fleet(json!(2), json!({})).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 2).await;
    assert_eq!((world.count("RunInstances"), world.made()), (2, 4));
    assert_eq!(there[0].state.zone, there[1].state.zone);
    let story = world.story().await.join("\n");
    assert!(story.contains("ended while it started: Server.InsufficientInstanceCapacity"), "{story}");
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_ended_in_the_console_is_missed() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(2), json!({})).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 2).await;
    let lost = there[0].state.provider_id.clone().unwrap();
    world.control("instances/terminate", json!({ "region": REGION, "instance_id": lost, "by": "console" }));
    world
        .wait_until("the instance is over, with the reason", async || {
            let story = world.story().await.join("\n");
            story.contains("Client.UserInitiatedShutdown")
        })
        .await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_of_spot_machines_ends_whole_when_one_is_taken_back() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(2), json!({ "spot_policy": "spot" })).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 2).await;
    let run = world.submit(2, json!({ "spot_policy": "spot" })).await;
    world.wait_for_run(run, RunStatus::Running).await;
    let taken = there[1].state.provider_id.clone().unwrap();
    world.control("instances/interrupt", json!({ "region": REGION, "instance_id": taken, "notice_ms": 20_000 }));
    world.wait_for_run(run, RunStatus::Failed).await;
    let jobs = store::jobs::list_by_runs(&world.deps.db, &[run]).await.unwrap();
    let reasons: Vec<_> = jobs.iter().filter_map(|job| job.value.state.termination_reason).collect();
    assert!(reasons.iter().any(|reason| reason.as_str() == "interrupted_by_no_capacity"), "{reasons:?}");
    world.delete_fleet().await;
    world.wait_for_end().await;
}

/// Of three machines that a database that was put back knows nothing of, one works, one is idle, and one says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn machines_that_work_are_told_of_and_not_ended_by_a_server_that_does_not_know_them() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(3), json!({})).await;
    world.wait_for_instances(InstanceStatus::Idle, 3).await;
    let run = world.submit(1, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    let there = world.wait_for_busy(1).await;
    let id_of = |status: InstanceStatus, nth: usize| {
        let ids = there.iter().filter(|instance| instance.status == status);
        ids.map(|instance| instance.state.provider_id.clone().unwrap()).nth(nth).unwrap()
    };
    let (works, idle, silent) =
        (id_of(InstanceStatus::Busy, 0), id_of(InstanceStatus::Idle, 0), id_of(InstanceStatus::Idle, 1));
    world.put_database_back().await;
    world.park.deafen(&silent);
    let unclaimed = sweep::Unclaimed::default();
    let alive = |world: &World| {
        let alive = world.sim.alive();
        let ids = alive.iter().filter(|entry| entry.kind == ec2sim::Kind::Instance).map(|entry| entry.id.clone());
        ids.collect::<std::collections::BTreeSet<String>>()
    };
    let all = [&works, &idle, &silent].map(Clone::clone).into();
    sweep::pass(&world.deps, &unclaimed).await.unwrap();
    assert_eq!(alive(&world), all, "nobody is ended at first sight");
    let minute = Duration::from_secs(61);
    sweep::pass(&world.later(minute), &unclaimed).await.unwrap();
    world.wait_until("the idle one is gone", async || !alive(&world).contains(&idle)).await;
    assert_eq!(alive(&world), [&works, &silent].map(Clone::clone).into());
    sweep::pass(&world.later(minute * 5), &unclaimed).await.unwrap();
    world.wait_until("the silent one is gone", async || !alive(&world).contains(&silent)).await;
    sweep::pass(&world.later(minute * 60), &unclaimed).await.unwrap();
    assert_eq!(alive(&world), [works.clone()].into());
    let told =
        world.story().await.into_iter().filter(|message| message.contains("knows nothing of")).collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(&works) && told[0].contains("1 task"), "{told:?}");
    world.park.finish_tasks(&works);
    sweep::pass(&world.later(minute * 61), &unclaimed).await.unwrap();
    world.wait_until("nothing is left in the cloud", async || world.orphans().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_boots_and_never_answers_is_given_back_with_the_reason() {
    let mut world = World::start(quick()).await;
    world.park.silence(true);
    world.add_fleet(json!(1), json!({})).await;
    world
        .wait_until("the machine runs", async || {
            world.instances().await.iter().any(|instance| instance.state.internal_ip.is_some())
        })
        .await;
    let silent = world.instances().await.remove(0).state.provider_id.unwrap();
    world.crash().await;
    let patience = Duration::from_mins(20);
    for (late, status) in [(patience / 2, InstanceStatus::Provisioning), (patience, InstanceStatus::Terminating)] {
        let deps = world.later(late + Duration::from_secs(1));
        reconcile::touch_all(&deps).await.unwrap();
        reconcile::pass(&deps, Table::Instances, "late", 10).await.unwrap();
        assert_eq!(world.instances().await[0].status, status);
    }
    let told = world.instances().await.remove(0).state.termination_message.unwrap();
    assert!(told.contains("did not become reachable in 1200 s: no answer"), "{told}");
    world.park.silence(false);
    world.restart().await;
    world
        .wait_until("the machine is gone", async || !world.sim.alive().iter().any(|entry| entry.id == silent))
        .await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}

/// What runs there has no row any more, and what was bought is remembered, so nothing was forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_left_over_of_a_purchase_that_is_remembered_is_ended_whatever_runs_there() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(1), json!({})).await;
    world.wait_for_instances(InstanceStatus::Idle, 1).await;
    let run = world.submit(1, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    let there = world.wait_for_busy(1).await;
    world.crash().await;
    let mut row = store::instances::get(&world.deps.db, there[0].id).await.unwrap().unwrap();
    row.value.status = InstanceStatus::Terminated;
    store::instances::save(&world.deps.db, &row).await.unwrap();
    let unclaimed = sweep::Unclaimed::default();
    sweep::pass(&world.deps, &unclaimed).await.unwrap();
    assert_eq!(world.sim.count_alive(ec2sim::Kind::Instance), 1, "nobody is ended at first sight");
    sweep::pass(&world.later(Duration::from_secs(61)), &unclaimed).await.unwrap();
    world.wait_until("the machine is gone", async || world.sim.count_alive(ec2sim::Kind::Instance) == 0).await;
}
