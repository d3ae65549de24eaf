//! The server dies at each of the first calls that it makes to the cloud, with the ways in which a call may go wrong in
//! turn.

use std::time::Duration;

use api::instances::InstanceStatus;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::world::{DEADLINE, World, quick};

/// Worlds that run at the same time. Most of their time they wait.
const AT_ONCE: usize = 6;

/// How a call goes wrong at which the server dies.
const FAULTS: [&str; 3] = ["lost_request", "lost_reply", "error_after"];

/// Waits until the call of that number was made, or until there are no more.
async fn calls(world: &World, number: u64, still_going: impl AsyncFn() -> bool) -> bool {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let made: u64 = world.sim.counts().values().sum();
        if number < made {
            return true;
        }
        if !still_going().await {
            return false;
        }
        assert!(Instant::now() < deadline, "nothing happens");
        sleep(Duration::from_millis(2)).await;
    }
}

fn break_call(world: &World, number: u64, what: &str) {
    let fault = json!({
        "action": "*", "after": number, "times": 1, "what": what,
        "code": (what == "error_after").then_some("InternalError"),
        "message": (what == "error_after").then_some("it is done, and nobody says so"),
        "status": (what == "error_after").then_some(500),
    });
    world.control("faults", fault);
}

/// One life: the server dies at a call of the launch. True: there was such a call.
async fn dies_while_launching(number: u64, what: &str) -> bool {
    let mut world = World::start(quick()).await;
    break_call(&world, number, what);
    world.add_fleet(json!(2), json!({})).await;
    let is_launching = async || {
        world.instances().await.iter().any(|one| one.status != InstanceStatus::Idle)
            || world.instances().await.is_empty()
    };
    let died = calls(&world, number, is_launching).await;
    if died {
        world.restart().await;
    }
    world.wait_for_instances(InstanceStatus::Idle, 2).await;
    // One token, one set of machines, whatever was lost.
    assert_eq!(world.made(), 2, "call {number}, {what}\n{}", world.story().await.join("\n"));
    world.delete_fleet().await;
    world.wait_for_end().await;
    died
}

/// One life: the server dies at a call of the end. True: there was such a call.
async fn dies_while_ending(number: u64, what: &str) -> bool {
    let mut world = World::start(quick()).await;
    world.add_fleet(json!(2), json!({})).await;
    world.wait_for_instances(InstanceStatus::Idle, 2).await;
    let before: u64 = world.sim.counts().values().sum();
    break_call(&world, number, what);
    world.delete_fleet().await;
    let is_ending = async || !world.orphans().is_empty();
    let died = calls(&world, before + number, is_ending).await;
    if died {
        world.restart().await;
    }
    world.wait_for_end().await;
    died
}

/// Lives one life for each of the first calls, and says in how many of them the server died.
async fn every_call<F: Future<Output = bool>>(most: u64, life: impl Fn(u64, &'static str) -> F) -> u64 {
    let mut numbers: Vec<(u64, &'static str)> =
        (0..most).map(|number| (number, FAULTS[(number % FAULTS.len() as u64) as usize])).collect();
    let mut died = 0;
    while !numbers.is_empty() {
        let some = numbers.split_off(numbers.len().saturating_sub(AT_ONCE));
        let lives = some.into_iter().map(|(number, what)| life(number, what));
        died += futures_util::future::join_all(lives).await.into_iter().filter(|died| *died).count() as u64;
    }
    died
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_anywhere_in_a_launch_makes_each_machine_once() {
    let died = every_call(36, dies_while_launching).await;
    assert!(died > 15, "the server died only {died} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_anywhere_in_the_end_leaves_nothing() {
    let died = every_call(18, dies_while_ending).await;
    assert!(died > 5, "the server died only {died} times");
}
