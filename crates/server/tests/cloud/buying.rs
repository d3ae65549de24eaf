//! Where a fleet buys, and what it does not buy.

use api::instances::InstanceStatus;
use api::runs::RunStatus;
use serde_json::json;

use crate::world::{REGION, World, quick};

fn left(world: &World, name: &str, zone: &str, left: u32) {
    let body =
        json!({ "region": REGION, "instance_type": name, "zone": zone, "market": "on-demand", "left": left });
    world.control("capacity", body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_fleet_begins_with_a_zone_that_is_not_sold_out() {
    let mut world = World::start(quick()).await;
    left(&world, "p5.48xlarge", "us-west-2a", 0);
    for calls in [2, 3] {
        world.add_fleet(json!(1), json!({})).await;
        let there = world.wait_for_instances(InstanceStatus::Idle, 1).await;
        assert_eq!(there[0].state.zone.as_deref(), Some("us-west-2b"));
        assert_eq!(world.count("RunInstances"), calls, "{}", world.story().await.join("\n"));
        world.delete_fleet().await;
        world.wait_for_end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_does_not_grow_by_another_type() {
    let mut world = World::start(quick()).await;
    let gpus = json!({ "resources": { "gpu": "8", "disk": null } });
    let mut fleet = gpus.clone();
    fleet["instance_types"] = json!(["p4d.24xlarge", "p5.48xlarge"]);
    world.add_fleet(json!("1..2"), fleet).await;
    let there = world.wait_for_instances(InstanceStatus::Idle, 1).await;
    let name = there[0].state.instance_type.clone().unwrap().name;
    left(&world, &name, &there[0].state.zone.clone().unwrap(), 0);
    let run = world.submit(2, gpus).await;
    world.wait_for_run(run, RunStatus::Failed).await;
    let story = world.story().await.join("\n");
    let expected = format!("The cluster's machines are `{name}`, and no other type is bought for it");
    assert!(story.contains(&expected), "{story}");
    assert_eq!(world.made(), 1, "{story}");
    world.delete_fleet().await;
    world.wait_for_end().await;
}
