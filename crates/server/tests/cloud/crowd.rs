//! Many machines at once.

use api::instances::InstanceStatus;
use api::runs::RunStatus;
use serde_json::json;

use crate::world::{World, quick};

#[tokio::test(flavor = "multi_thread")]
async fn forty_machines_are_one_call_and_run_one_task() {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(40), json!({})).await;
    world.wait_for_instances(InstanceStatus::Idle, 40).await;
    assert_eq!((world.count("RunInstances"), world.made()), (1, 40));
    let run = world.submit(40, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}
