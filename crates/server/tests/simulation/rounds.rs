//! What a round of buying finds, without anything else that goes wrong.

use std::time::Duration;

use api::ids::FleetId;
use api::instances::InstanceStatus;
use backends::fake::{FakeOffer, FakeSetup, Refusal};
use backends::{Error, ErrorKind};
use jiff::SignedDuration;
use lifecycle::launch::{Launch, LaunchStatus};
use serde_json::{Value, json};
use store::Db;
use store::events::EventFilter;

use crate::world::World;

/// A world with one fleet and a cloud of two types in three zones of one region, and the dearer one in another too.
async fn world(fleet: Value) -> World {
    let db = Db::open_memory().await.unwrap();
    store::migrate(&db).await.unwrap();
    let mut world = World::new(1, db).await;
    for fleet in world.fleets.clone() {
        world.delete_fleet(fleet).await;
    }
    let zones = ["fake-1a", "fake-1b", "fake-1c"].map(str::to_owned).to_vec();
    let cheap = FakeOffer { zones: zones.clone(), ..FakeOffer::cpu("small", 4, 16, 0.1) };
    let dear = FakeOffer { zones, ..FakeOffer::cpu("medium", 8, 32, 0.2) };
    let far = FakeOffer {
        region: "fake-2".to_owned(),
        zones: vec!["fake-2a".to_owned()],
        ..FakeOffer::cpu("medium", 8, 32, 0.3)
    };
    world.outside.cloud.change_setup(|setup| {
        setup.capabilities.consistent_list = false;
        setup.capabilities.admins_only = false;
        *setup = FakeSetup { offers: vec![cheap, dear, far], lists_tick: false, ..setup.clone() };
        (setup.list_lag_ticks, setup.boot_ticks, setup.gives_hints) = (1, 2, false);
    });
    world.outside.cloud.set_plan(backends::fake::NoFaults);
    for zone in ["fake-1a", "fake-1b"] {
        for name in ["small", "medium"] {
            world.outside.cloud.set_capacity(name, Some(zone), None);
            world.outside.cloud.end_on_arrival(zone, None);
        }
    }
    world.add_fleet(fleet).await;
    world
}

fn cluster(nodes: &str) -> Value {
    json!({"nodes": nodes, "placement": "cluster", "idle_duration": "1h"})
}

impl World {
    fn fleet(&self) -> FleetId {
        *self.fleets.last().unwrap()
    }

    /// The server works for so many seconds, or until the fleet has so many machines that run.
    async fn work(&mut self, secs: i64, machines: usize) -> i64 {
        let began_at = self.now();
        while self.now() < began_at + SignedDuration::from_secs(secs) {
            self.settle_down().await;
            self.check().await.unwrap();
            if self.machines().len() == machines {
                break;
            }
            self.pass_time(Duration::from_secs(1)).await;
        }
        self.now().duration_since(began_at).as_secs()
    }

    /// The fleet's first slots, as a request makes them.
    async fn begin_with(&mut self, count: u32) {
        let deps = &self.server.deps;
        let fleet = store::fleets::get(&deps.db, self.fleet()).await.unwrap().unwrap().value;
        for number in 0..count {
            let instance = server::reconcile::fleet::new_instance(deps, &fleet, number);
            store::instances::insert(&deps.db, &instance, deps.clock.now()).await.unwrap();
        }
    }

    /// The zones of the fleet's machines that run.
    fn machines(&self) -> Vec<String> {
        let of_fleet = self.known.rows.instances.iter().filter(|instance| instance.fleet_id == self.fleet());
        let joined = of_fleet.filter(|it| matches!(it.status, InstanceStatus::Idle | InstanceStatus::Busy));
        joined.filter_map(|instance| instance.state.zone.clone()).collect()
    }

    fn ended(&self) -> Vec<String> {
        let of_fleet = self.known.rows.instances.iter().filter(|instance| instance.fleet_id == self.fleet());
        let ended = of_fleet.filter(|instance| instance.status == InstanceStatus::Terminated);
        ended.map(|instance| instance.state.termination_message.clone().unwrap_or_default()).collect()
    }

    /// What was tried, and what came of it, by the alphabet: much happens in one moment here.
    fn tried(&self) -> Vec<String> {
        let launches: Vec<&Launch> =
            self.known.rows.launches.values().filter(|launch| launch.fleet_id == self.fleet()).collect();
        let told = |launch: &&Launch| {
            let (state, status) = (&launch.state, launch.status.as_str());
            format!("{} {} {status}", state.offer.instance.name, state.place())
        };
        let mut told: Vec<String> = launches.iter().map(told).collect();
        told.sort();
        told
    }
}

fn run<T>(story: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story)
}

#[test]
fn a_gang_finds_room_in_the_third_zone_in_one_round_without_a_pause() {
    run(async {
        let mut world = world(cluster("0..4")).await;
        // One machine is there, and half a gang is none.
        world.outside.cloud.set_capacity("small", Some("fake-1a"), Some(1));
        world.outside.cloud.set_capacity("small", Some("fake-1b"), Some(0));
        world.submit_gang(2).await;
        let secs = world.work(60, 2).await;
        assert_eq!(world.machines(), ["fake-1c", "fake-1c"]);
        let expected = ["small fake-1a failed", "small fake-1b failed", "small fake-1c done"];
        assert_eq!(world.tried(), expected);
        assert_eq!(world.ended(), Vec::<String>::new());
        assert!(secs < 15, "it took {secs} s");
        assert_eq!(world.outside.cloud.ledger().machines.len(), 2, "nothing else was made");
    });
}

#[test]
fn a_fixed_cluster_is_made_whole_where_all_of_it_fits() {
    run(async {
        let mut world = world(cluster("3")).await;
        for zone in ["fake-1a", "fake-1b", "fake-1c"] {
            world.outside.cloud.set_capacity("small", Some(zone), Some(2));
        }
        world.outside.cloud.set_capacity("medium", Some("fake-1a"), Some(2));
        let secs = world.work(60, 3).await;
        assert_eq!(world.machines(), ["fake-1b", "fake-1b", "fake-1b"], "{:?}", world.tried());
        let of_small = ["small fake-1a failed", "small fake-1b failed", "small fake-1c failed"];
        let expected = [["medium fake-1a failed", "medium fake-1b done"].as_slice(), &of_small].concat();
        assert_eq!(world.tried(), expected);
        assert!(secs < 15, "it took {secs} s");
        assert_eq!(world.outside.cloud.ledger().machines.len(), 3, "never a part of it");
    });
}

#[test]
fn a_cluster_of_a_range_takes_what_there_is_from_its_least_size_on() {
    run(async {
        let mut world = world(json!({"nodes": {"min": 2, "target": 4, "max": 8}, "placement": "cluster"})).await;
        world.begin_with(4).await;
        world.outside.cloud.set_capacity("small", Some("fake-1a"), Some(1));
        world.outside.cloud.set_capacity("small", Some("fake-1b"), Some(3));
        world.work(200, 3).await;
        assert_eq!(world.machines(), ["fake-1b", "fake-1b", "fake-1b"], "{:?}", world.tried());
        // The fourth is given up: a cluster does not become one of two kinds or zones.
        world.work(400, 9).await;
        assert_eq!(world.machines().len(), 3, "{:?}", world.tried());
    });
}

#[test]
fn a_quota_is_of_a_region_and_the_next_one_is_tried_at_once() {
    run(async {
        let mut world = world(cluster("2")).await;
        let quota = Error::new(ErrorKind::QuotaExceeded, "limit of 8 vCPUs").with_code("VcpuLimitExceeded");
        let region = Some("fake-1".to_owned());
        world.outside.cloud.set_refusals(vec![Refusal { instance_type: None, region, zone: None, error: quota }]);
        world.work(60, 2).await;
        assert_eq!(world.machines(), ["fake-2a", "fake-2a"]);
        let expected = ["medium fake-1a failed", "medium fake-2a done", "small fake-1a failed"];
        assert_eq!(world.tried(), expected, "no other zone of a region is tried for a quota");
    });
}

#[test]
fn a_backend_that_refuses_everything_is_asked_once_in_a_round() {
    run(async {
        let mut world = world(cluster("2")).await;
        let error = Error::new(ErrorKind::PermissionDenied, "not for you").with_code("UnauthorizedOperation");
        let refusal = |error| Refusal { instance_type: None, region: None, zone: None, error };
        world.outside.cloud.set_refusals(vec![refusal(error)]);
        world.work(30, 2).await;
        assert_eq!(world.tried(), ["small fake-1a failed"]);
        let message = "Tried 1 offer in vain: small in fake-1a: UnauthorizedOperation (not for you)";
        assert_eq!(world.ended(), [message, message]);
        let fleet = world.known.rows.fleets.iter().find(|fleet| fleet.id == world.fleet()).unwrap();
        assert_eq!(fleet.state.status_message.as_deref(), Some(message));
        // The administrator grants it: the next round comes by itself.
        world.outside.cloud.set_refusals(vec![]);
        world.work(70, 2).await;
        assert_eq!(world.machines(), ["fake-1a", "fake-1a"]);
    });
}

#[test]
fn a_limited_rate_is_waited_for_with_the_same_purchase() {
    run(async {
        let mut world = world(cluster("2")).await;
        world.outside.cloud.limit_rate(100);
        let secs = world.work(400, 2).await;
        assert!((100..200).contains(&secs), "{secs} s");
        assert_eq!(world.tried(), ["small fake-1a done"]);
        let launch = world.known.rows.launches.values().find(|launch| launch.fleet_id == world.fleet()).unwrap();
        assert_eq!((launch.status, launch.state.attempts), (LaunchStatus::Done, 1));
        let calls = world.outside.cloud.ledger().launches[&launch.id].calls;
        assert!((5..12).contains(&calls), "{calls} calls");
    });
}

#[test]
fn what_the_cloud_accepts_and_ends_is_bought_elsewhere() {
    run(async {
        let mut world = world(cluster("2")).await;
        world.outside.cloud.change_setup(|setup| (setup.boot_ticks, setup.gone_ticks) = (5, 60));
        world.outside.cloud.end_on_arrival("fake-1a", Some("Server.InsufficientInstanceCapacity"));
        world.work(60, 2).await;
        assert_eq!(world.tried(), ["small fake-1a done", "small fake-1b done"]);
        let because = "The machine ended while it started: Server.InsufficientInstanceCapacity";
        let filter = EventFilter { limit: 1000, ..EventFilter::default() };
        let story = store::events::list(&world.server.deps.db, &filter).await.unwrap();
        assert!(story.iter().any(|event| event.message.contains(because)), "it is told");
        assert_eq!(world.ended(), Vec::<String>::new());
    });
}

#[test]
fn what_the_cloud_accepts_and_ends_is_told_with_its_reason_when_nothing_is_left() {
    run(async {
        let mut world = world(json!({"nodes": 1, "availability_zones": ["fake-1a"]})).await;
        world.outside.cloud.change_setup(|setup| (setup.boot_ticks, setup.gone_ticks) = (5, 60));
        world.outside.cloud.end_on_arrival("fake-1a", Some("Server.InsufficientInstanceCapacity"));
        world.work(20, 1).await;
        let because = "The machine ended while it started: Server.InsufficientInstanceCapacity";
        let ended = world.ended();
        assert!(ended.len() == 1 && ended[0].contains(because), "{ended:?}");
        assert_eq!(world.machines(), Vec::<String>::new());
    });
}
