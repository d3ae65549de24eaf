//! The server dies at calls that it makes to the cloud, each of which goes wrong in one of the ways in which a call may.
//!
//! Calls that change something go wrong in every way. Of all others only the answer matters, so each of them goes wrong
//! in one way, which changes from call to call.

use std::collections::BTreeMap;
use std::time::Duration;

use api::instances::InstanceStatus;
use ec2sim::{Entry, Kind};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::world::{DEADLINE, REGION, World, documented, quick};

/// Worlds that run at the same time. Most of their time they wait.
const AT_ONCE: usize = 8;

/// How a call goes wrong at which the server dies.
const FAULTS: [&str; 5] = ["lost_request", "lost_reply", "error_before", "error_after", "delay"];

/// How long nothing may happen before the clock is put forward.
const LATE: Duration = Duration::from_secs(4);

/// How far: machines that are not listed by then are not there.
const NIGHT: Duration = Duration::from_secs(130);

/// How often, so that what boots has the time for it.
const NIGHTS: u32 = 4;

/// The machines of each cluster.
const NODES: usize = 2;

/// What is bought, and in which account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// The documented example.
    Documented,
    /// Machines with several interfaces in public subnets, so that each has an Elastic IP.
    Public,
    /// A call for each machine.
    SeveralCalls,
    /// A call for each machine, and the first zone has room for one.
    SeveralCallsInVain,
    /// Machines that AWS may take back.
    Spot,
}

impl Scene {
    async fn begin(self) -> World {
        let mut keys = documented();
        match self {
            Scene::Documented | Scene::Spot => {}
            Scene::Public => keys = json!({ "public_ips": true }),
            Scene::SeveralCalls | Scene::SeveralCallsInVain => keys["machines_per_call"] = json!(1),
        }
        let mut world = World::configured(quick(), keys).await;
        if self == Scene::SeveralCallsInVain {
            world.take_the_clock().await;
            let place = json!({ "region": REGION, "instance_type": "p5.48xlarge", "zone": "us-west-2a" });
            let mut capacity = place.as_object().unwrap().clone();
            capacity.extend([("market".to_owned(), json!("on-demand")), ("left".to_owned(), json!(1))]);
            world.control("capacity", Value::Object(capacity));
        }
        world
    }

    async fn buy(self, world: &mut World) {
        let more = if self == Scene::Spot { json!({ "spot_policy": "spot" }) } else { json!({}) };
        world.add_fleet(json!(NODES), more).await;
    }

    /// Waits until all machines are there. What an earlier request may have made is waited for longer than a test is.
    async fn wait(self, world: &World) {
        let mut is_late_at = Instant::now() + LATE;
        let mut nights = if self == Scene::SeveralCallsInVain { NIGHTS } else { 0 };
        let all_idle = async || {
            if 0 < nights && is_late_at < Instant::now() {
                world.put_clock_forward(NIGHT);
                (nights, is_late_at) = (nights - 1, Instant::now() + LATE);
            }
            let there = world.instances().await;
            there.len() == NODES && there.iter().all(|one| one.status == InstanceStatus::Idle)
        };
        world.wait_until(&format!("{self:?}: all machines are idle"), all_idle).await;
    }

    /// Checks what was ever made, once all machines are there.
    async fn check(self, world: &World, broken: &Broken) {
        let ledger = world.sim.ledger();
        let machines = || ledger.iter().filter(|entry| entry.kind == Kind::Instance);
        let tag = |entry: &Entry, name: &str| entry.tags.get(name).cloned().unwrap_or_default();
        let mut by_token: BTreeMap<(String, String), usize> = BTreeMap::new();
        for one in machines() {
            *by_token.entry((tag(one, "dstack_launch_id"), tag(one, "dstack_first_index"))).or_default() += 1;
        }
        let each = match self {
            Scene::SeveralCalls | Scene::SeveralCallsInVain => 1,
            Scene::Documented | Scene::Public | Scene::Spot => NODES,
        };
        let story = || async { world.story().await.join("\n") };
        // One token, one set of machines, whatever was lost.
        let is_once = by_token.values().all(|made| *made == each);
        assert!(is_once, "{self:?}, {broken:?}: {by_token:?}\n{}", story().await);
        let alive: Vec<&Entry> = machines().filter(|entry| entry.gone_at.is_none()).collect();
        assert_eq!(alive.len(), NODES, "{self:?}, {broken:?}: {alive:?}\n{}", story().await);
        let there = world.instances().await;
        let is_in_one_zone = there.windows(2).all(|pair| pair[0].state.zone == pair[1].state.zone);
        assert!(is_in_one_zone, "{self:?}, {broken:?}: {there:?}");
        // What was undone was made before.
        let made = machines().count();
        assert!(
            made == NODES || self == Scene::SeveralCallsInVain,
            "{made}: {self:?}, {broken:?}\n{}",
            story().await
        );
    }
}

/// A call at which the server dies, and how it goes wrong.
#[derive(Debug, Clone, Copy)]
struct Broken {
    /// The action, or `*` for every one.
    action: &'static str,
    /// How many such calls there are before.
    after: u64,
    what: &'static str,
}

impl Broken {
    fn arm(&self, world: &World) {
        let mut fault = json!({ "action": self.action, "after": self.after, "times": 1, "what": self.what });
        let more = match self.what {
            "error_before" | "error_after" => json!({
                "code": "InternalError", "message": "nobody says whether it is done", "status": 500,
            }),
            "delay" => json!({ "ms": 400 }),
            _ => json!({}),
        };
        fault.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.control("faults", fault);
    }

    /// How many such calls were made.
    fn count(&self, world: &World) -> u64 {
        if self.action == "*" { world.sim.counts().values().sum() } else { world.count(self.action) }
    }

    /// Waits until the call was made, counted from a number on, or until there are no more.
    async fn happens(&self, world: &World, from: u64, still_going: impl AsyncFn() -> bool) -> bool {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if from + self.after < self.count(world) {
                return true;
            }
            if !still_going().await {
                // The last call of all may have been made since.
                return from + self.after < self.count(world);
            }
            assert!(Instant::now() < deadline, "nothing happens: {self:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// When the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Launch,
    End,
}

/// One life of a cluster, in which the server dies at a call. True: there was such a call.
async fn live(scene: Scene, moment: Moment, broken: Broken) -> bool {
    let mut world = scene.begin().await;
    let mut died = false;
    if moment == Moment::Launch {
        broken.arm(&world);
    }
    scene.buy(&mut world).await;
    if moment == Moment::Launch {
        let is_launching = async || {
            let there = world.instances().await;
            there.is_empty() || there.iter().any(|one| one.status != InstanceStatus::Idle)
        };
        died = broken.happens(&world, 0, is_launching).await;
        if died {
            world.restart().await;
        }
    }
    scene.wait(&world).await;
    scene.check(&world, &broken).await;
    let before = broken.count(&world);
    if moment == Moment::End {
        broken.arm(&world);
    }
    world.delete_fleet().await;
    if moment == Moment::End {
        died = broken.happens(&world, before, async || !world.orphans().is_empty()).await;
        if died {
            world.restart().await;
        }
    }
    world.wait_for_end().await;
    died
}

/// Lives some lives, and says in how many of them the server died.
async fn live_all(scene: Scene, moment: Moment, all: Vec<Broken>) -> usize {
    let mut died = 0;
    for some in all.chunks(AT_ONCE) {
        let lives = some.iter().map(|broken| live(scene, moment, *broken));
        died += futures_util::future::join_all(lives).await.into_iter().filter(|died| *died).count();
    }
    died
}

/// The first calls, each of which goes wrong in the next way.
async fn at_each_call(scene: Scene, moment: Moment, first: u64) -> usize {
    let faults = FAULTS.into_iter().cycle();
    let all = (0..first).zip(faults).map(|(after, what)| Broken { action: "*", after, what });
    live_all(scene, moment, all.collect()).await
}

/// The calls that change something, by action and how many such calls there are before. Each goes wrong in every way,
/// and each must be there.
async fn in_every_way(scene: Scene, moment: Moment, calls: &[(&'static str, u64)]) {
    let ways = |(action, after)| FAULTS.map(|what| Broken { action, after, what });
    let all: Vec<Broken> = calls.iter().copied().flat_map(ways).collect();
    let wanted = all.len();
    assert_eq!(live_all(scene, moment, all).await, wanted, "some of the calls were not made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_anywhere_in_a_launch_makes_each_machine_once() {
    let died = at_each_call(Scene::Documented, Moment::Launch, 36).await;
    assert!(died > 15, "the server died only {died} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_anywhere_in_the_end_leaves_nothing() {
    let died = at_each_call(Scene::Documented, Moment::End, 15).await;
    assert!(died > 5, "the server died only {died} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_a_call_that_makes_something_each_machine_is_made_once() {
    let calls = [("CreateSecurityGroup", 0), ("CreatePlacementGroup", 0), ("RunInstances", 0)];
    in_every_way(Scene::Documented, Moment::Launch, &calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_a_call_that_ends_something_nothing_is_left() {
    let calls = [("TerminateInstances", 0), ("DeletePlacementGroup", 0)];
    in_every_way(Scene::Documented, Moment::End, &calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_with_elastic_ips_are_made_once_and_all_is_given_back() {
    let made = [("AllocateAddress", 0), ("AssociateAddress", 1)];
    in_every_way(Scene::Public, Moment::Launch, &made).await;
    in_every_way(Scene::Public, Moment::End, &[("ReleaseAddress", 0)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_of_several_calls_is_made_once() {
    in_every_way(Scene::SeveralCalls, Moment::Launch, &[("RunInstances", 0), ("RunInstances", 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gang_of_several_calls_that_is_undone_is_undone_whole() {
    let calls = [("RunInstances", 1), ("TerminateInstances", 0), ("RunInstances", 2)];
    in_every_way(Scene::SeveralCallsInVain, Moment::Launch, &calls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_may_be_taken_back_are_made_once_too() {
    in_every_way(Scene::Spot, Moment::Launch, &[("RunInstances", 0)]).await;
    let died = at_each_call(Scene::Spot, Moment::End, 5).await;
    assert!(died > 2, "the server died only {died} times");
}
