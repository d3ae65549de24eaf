//! Many machines at once. How long it took is printed and never judged: `docs/BENCHMARKS.md` says how to see it.

use api::instances::InstanceStatus;
use api::runs::RunStatus;
use ec2sim::Settings as Sky;
use serde_json::json;
use tokio::time::Instant;

use crate::world::World;

/// A gang on so many machines, which boot at once, from the purchase to its end.
async fn gang(nodes: u32) {
    let mut world = World::start(Sky::immediate()).await;
    let began = Instant::now();
    world.add_fleet(json!(nodes), json!({})).await;
    world.wait_until("machines are asked for", async || world.count("RunInstances") > 0).await;
    let asked = began.elapsed();
    world.wait_for_instances(InstanceStatus::Idle, nodes as usize).await;
    let idle = began.elapsed();
    assert_eq!((world.count("RunInstances"), world.made()), (1, nodes as usize));
    let submitted = Instant::now();
    let run = world.submit(nodes, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    let running = submitted.elapsed();
    println!(
        "{nodes} nodes: asked after {asked:.2?}, idle after {idle:.2?}; a task on all ran {running:.2?} later"
    );
    let stopped = Instant::now();
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    let ended = stopped.elapsed();
    world.delete_fleet().await;
    world.wait_for_end().await;
    let gone = stopped.elapsed() - ended;
    let calls = world.count("TerminateInstances");
    println!(
        "{nodes} nodes: the task was over {ended:.2?} after its stop, and all was gone {gone:.2?} later by {calls} calls"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_are_one_call_and_run_one_task() {
    gang(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_machines_are_one_call_and_run_one_task() {
    gang(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_machines_are_one_call_and_run_one_task() {
    gang(1000).await;
}
