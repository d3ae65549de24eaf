//! Many machines at once. How long that takes is measured by `cargo xtask bench gangs`.

use ec2sim::Settings as Sky;

use crate::gang;
use crate::world::World;

async fn check(nodes: u32) {
    let times = gang::live(World::start(Sky::immediate()).await, nodes).await;
    let gang::Times { asked, idle, running, over, gone, .. } = times;
    println!(
        "{nodes} nodes: asked after {asked:.2?}, idle {idle:.2?} later; a task on all ran after {running:.2?}, was over \
         {over:.2?} after its stop, and all was gone after {gone:.2?}"
    );
    assert_eq!(times.run_instances, 1);
    // One by one they would be refused for a long time. How many go together depends on the machine that runs this.
    assert!(times.terminate_instances <= u64::from(nodes.div_ceil(2)), "{}", times.terminate_instances);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_are_one_call_and_run_one_task() {
    check(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_machines_are_one_call_and_run_one_task() {
    check(200).await;
}
