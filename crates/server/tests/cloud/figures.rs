//! How long it takes, for whoever wants to know: `cargo nextest run --workspace -E 'test(figures)' --run-ignored all
//! --no-capture`. The cloud boots machines at once here, so what is told is the server's own time.

use std::time::Duration;

use api::instances::InstanceStatus;
use api::runs::RunStatus;
use ec2sim::Settings as Sky;
use serde_json::json;
use tokio::time::Instant;

use crate::world::World;

async fn figures(nodes: u32) {
    let sky =
        Sky { boot_ms: 0, shutdown_ms: 0, instance_unseen_ms: 0, stale_ms: 0, throttle: false, ..Sky::default() };
    let mut world = World::start(sky).await;
    let began = Instant::now();
    world.add_fleet(json!(nodes), json!({})).await;
    while world.count("RunInstances") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let asked = began.elapsed();
    world.wait_for_instances(InstanceStatus::Idle, nodes as usize).await;
    let idle = began.elapsed();
    let submitted = Instant::now();
    let run = world.submit(nodes, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    let running = submitted.elapsed();
    println!(
        "{nodes} nodes: asked after {asked:.2?}, all idle after {idle:.2?}, a task on all runs {running:.2?} after its \
         submission; {} calls of RunInstances",
        world.count("RunInstances")
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures"]
async fn figures_of_two_and_of_two_hundred_nodes() {
    for nodes in [2, 2, 2, 200] {
        figures(nodes).await;
    }
}
