//! The life of one gang: bought, used by one task, and given back.

use std::collections::HashMap;
use std::time::Duration;

use api::ids::RunId;
use api::instances::InstanceStatus;
use api::jobs::JobStatus;
use api::runs::RunStatus;
use serde_json::json;
use tokio::time::Instant;

use crate::world::World;

/// How long each part of a gang's life took, and how often AWS was called for it.
#[derive(Debug)]
pub(crate) struct Times {
    /// From the fleet's row to the request for its machines; nothing was known of the account before.
    pub(crate) asked: Duration,
    /// From there until all were idle. They boot at once.
    pub(crate) idle: Duration,
    /// From a task's row until it ran on all.
    pub(crate) running: Duration,
    /// From its stop to its end.
    pub(crate) over: Duration,
    /// From the fleet's end until nothing was left.
    pub(crate) gone: Duration,
    pub(crate) run_instances: u64,
    pub(crate) terminate_instances: u64,
}

/// A gang on so many machines from the purchase to its end.
pub(crate) async fn live(mut world: World, nodes: u32) -> Times {
    let mut began = Instant::now();
    let mut lap = || std::mem::replace(&mut began, Instant::now()).elapsed();
    world.add_fleet(json!(nodes), json!({})).await;
    world.wait_until("machines are asked for", async || world.count("RunInstances") > 0).await;
    let asked = lap();
    world.wait_for_instances(InstanceStatus::Idle, nodes as usize).await;
    let idle = lap();
    let run = world.submit(nodes, json!({})).await;
    world.wait_for_run(run, RunStatus::Running).await;
    world.wait_for_jobs(run, JobStatus::Running).await;
    let running = lap();
    check_neighbours(&world, run).await;
    lap();
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    let over = lap();
    world.delete_fleet().await;
    world.wait_for_end().await;
    let gone = lap();
    let (run_instances, terminate_instances) = (world.count("RunInstances"), world.count("TerminateInstances"));
    Times { asked, idle, running, over, gone, run_instances, terminate_instances }
}

/// Neighbouring ranks are neighbouring machines, and each node knows where the others are.
pub(crate) async fn check_neighbours(world: &World, run: RunId) {
    let machines = world.instances().await;
    let by_id: HashMap<_, _> = machines.iter().map(|one| (one.id, &one.state)).collect();
    let jobs = store::jobs::list_latest(&world.deps.db, run).await.unwrap();
    let of_rank: Vec<_> = jobs.iter().map(|job| by_id[&job.value.instance_id.unwrap()]).collect();
    let addresses: Vec<_> = of_rank.iter().map(|state| state.internal_ip.clone().unwrap()).collect();
    assert_eq!(jobs[0].value.state.cluster.as_ref().unwrap().node_ips, addresses);
    let by_rank: Vec<&Vec<String>> = of_rank.iter().map(|state| &state.network_path).collect();
    assert!(by_rank.iter().all(|path| path.len() == 3) && by_rank.is_sorted(), "{by_rank:?}");
}
