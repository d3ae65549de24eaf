//! What is measured: before anything is bought, regions, quotas and reservations; and where in the network machines are.

use api::instances::InstanceStatus;
use api::runs::RunStatus;
use serde_json::json;

use crate::gang::check_neighbours;
use crate::world::{REGION, World, documented, quick};

/// The vCPUs of two machines of the example.
const TWO: f64 = 2.0 * 192.0;

async fn in_regions(regions: [&str; 2]) -> World {
    let mut keys = documented();
    keys["regions"] = json!(regions);
    World::configured(quick(), keys).await
}

fn set_quota(world: &World, vcpus: f64) {
    world.control("quotas", json!({ "region": REGION, "code": "L-417A185B", "value": vcpus }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_denied_keeps_no_machine_of_another_from_living_and_ending() {
    let mut world = in_regions(["us-east-1", REGION]).await;
    world.control(
        "faults",
        json!({ "action": "*", "region": "us-east-1", "what": "error_before", "code": "UnauthorizedOperation",
            "message": "with an explicit deny in a service control policy", "status": 403 }),
    );
    world.add_fleet(json!(2), json!({})).await;
    let machines = world.wait_for_instances(InstanceStatus::Idle, 2).await;
    assert!(machines.iter().all(|one| one.state.region.as_deref() == Some(REGION)));
    world.restart().await;
    world.wait_for_instances(InstanceStatus::Idle, 2).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
    assert_eq!((world.made(), world.count("RunInstances")), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_region_falls_silent_is_kept() {
    let mut world = in_regions([REGION, "us-east-1"]).await;
    world.add_fleet(json!(1), json!({})).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 1).await;
    let region = there[0].state.region.clone().unwrap();
    world.control(
        "faults",
        json!({ "action": "DescribeInstances", "region": region, "what": "error_before", "code": "UnauthorizedOperation",
            "message": "no", "status": 403 }),
    );
    let asked = world.count("DescribeInstances");
    // For longer than a machine may be missing from a list.
    let later = world.later(std::time::Duration::from_mins(10));
    world
        .wait_until("the region is asked again and again", async || {
            server::reconcile::instance::reconcile(&later, there[0].id).await.unwrap();
            asked + 2 < world.count("DescribeInstances")
        })
        .await;
    assert_eq!(world.instances().await[0].status, InstanceStatus::Idle);
    world.control("faults/clear", json!({}));
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_may_grow_is_not_measured_by_all_that_it_may_become() {
    let mut world = World::start(quick()).await;
    set_quota(&world, TWO);
    world.add_fleet(json!("0..16"), json!({})).await;
    let run = world.submit(2, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
    assert_eq!(world.made(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_for_which_the_quota_is_too_small_is_not_asked_for() {
    let mut world = World::start(quick()).await;
    set_quota(&world, TWO);
    world.add_fleet(json!("0..16"), json!({})).await;
    let run = world.submit(3, json!({})).await;
    world.wait_for_run(run, RunStatus::Failed).await;
    assert_eq!(world.count("RunInstances"), 0);
    let story = world.story().await.join("\n");
    assert!(story.contains("3 × 192 are needed"), "{story}");
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_on_machines_of_the_reservation_that_they_name() {
    let mut world = World::start(quick()).await;
    let zone = format!("{REGION}a");
    let reservation = json!({ "region": REGION, "zone": zone, "instance_type": "p5.48xlarge", "count": 4 });
    let made = world.sim.control("reservations", &reservation).unwrap();
    let reservation = made["reservation_id"].clone();
    // It has fewer machines than the fleet may grow to.
    world.add_fleet(json!("2..8"), json!({ "reservation": reservation })).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 2).await;
    assert!(there.iter().all(|one| one.state.reservation.as_deref() == reservation.as_str()));
    let run = world.submit(2, json!({ "reservation": reservation })).await;
    world.wait_for_run(run, RunStatus::Running).await;
    assert_eq!(world.made(), 2);
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_follow_the_network_also_on_machines_that_are_bought_for_the_run() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!("0..8"), json!({})).await;
    let run = world.submit(8, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    check_neighbours(&world, run).await;
    let story = world.story().await;
    assert!(story.iter().any(|message| message.starts_with("Job moved to instance my-efa-fleet-")), "{story:?}");
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}
