//! What simulations rely on in the pretended cloud: faults where they were planned, and books that tell the truth.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use api::ids::{BackendId, ServerId};
use backends::fake::{Call, CallFault, FakeCloud, FakeSetup, FaultPlan, Refusal};
use backends::{Error, ErrorKind, MachineKey, MachineState, open, parse_config};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Rig, context, kind_of};

/// Answers the calls of launches, in their order.
fn launches(faults: impl IntoIterator<Item = CallFault>) -> impl FaultPlan {
    let mut faults: VecDeque<CallFault> = faults.into_iter().collect();
    move |call: &Call| match call {
        Call::Launch(_) => faults.pop_front().unwrap_or_default(),
        _ => CallFault::None,
    }
}

/// Omits every machine from every listing.
struct Omits;

impl FaultPlan for Omits {
    fn call(&mut self, _call: &Call) -> CallFault {
        CallFault::None
    }

    fn omits(&mut self, _machine: &MachineKey) -> bool {
        true
    }
}

fn cloud(rig: &Rig) -> FakeCloud {
    rig.context.fake.clone().unwrap()
}

#[tokio::test]
async fn a_lost_reply_hides_an_effect_that_is_not_repeated() {
    let mut rig = Rig::fake();
    let order = rig.order(2).await;
    cloud(&rig).set_plan(launches([CallFault::Refuse(ErrorKind::RateLimited), CallFault::LoseReply]));
    assert_eq!(kind_of(rig.backend.launch(&order).await), Some(ErrorKind::RateLimited));
    assert_eq!(cloud(&rig).ledger().living().count(), 0);
    assert_eq!(kind_of(rig.backend.launch(&order).await), Some(ErrorKind::Unavailable));
    assert_eq!(cloud(&rig).ledger().living().count(), 2);
    rig.backend.launch(&order).await.unwrap();
    let ledger = cloud(&rig).ledger();
    assert_eq!(ledger.of_launch(order.launch_id).count(), 2);
    let seen = &ledger.launches[&order.launch_id];
    assert_eq!((seen.calls, seen.made), (3, Some(2)));
    rig.end().await;
}

#[tokio::test]
async fn one_token_is_good_for_one_order() {
    let mut rig = Rig::fake();
    let mut order = rig.order(1).await;
    rig.backend.launch(&order).await.unwrap();
    order.count = 2;
    assert_eq!(kind_of(rig.backend.launch(&order).await), Some(ErrorKind::InvalidRequest));
}

#[tokio::test]
async fn lists_come_late_and_omit() {
    let mut rig = Rig::slow_fake();
    let order = rig.order(1).await;
    rig.backend.launch(&order).await.unwrap();
    let mut states = Vec::new();
    for _ in 0..7 {
        let listed = rig.backend.list().await.unwrap().found;
        states.push(listed.first().map(|machine| machine.state));
    }
    let starting = Some(MachineState::Starting);
    let running = Some(MachineState::Running);
    assert_eq!(states, [None, starting, starting, starting, running, running, running]);

    cloud(&rig).set_plan(Omits);
    assert_eq!(rig.backend.list().await.unwrap().found, []);
    cloud(&rig).set_plan(|_: &Call| CallFault::None);
    let key = MachineKey { launch_id: order.launch_id, index: 0 };
    rig.backend.terminate(&key).await.unwrap();
    let mut states = Vec::new();
    for _ in 0..6 {
        let listed = rig.backend.list().await.unwrap().found;
        states.push(listed.first().map(|machine| machine.state));
    }
    let stopping = Some(MachineState::Stopping);
    let gone = Some(MachineState::Gone);
    assert_eq!(states, [running, stopping, stopping, gone, gone, None]);
    let machine = cloud(&rig).ledger().machine(&key).unwrap().clone();
    assert_eq!((machine.terminations, machine.ended.unwrap().vanished_because), (1, None));
}

#[tokio::test]
async fn time_passes_only_when_the_test_says_so() {
    let cloud = FakeCloud::new(FakeSetup { boot_ticks: 2, lists_tick: false, ..FakeSetup::default() });
    let mut rig = Rig::fake();
    rig.backend = cloud.backend(rig.context.server_id);
    let order = rig.order(1).await;
    rig.backend.launch(&order).await.unwrap();
    let key = MachineKey { launch_id: order.launch_id, index: 0 };
    for (ticks, is_running) in [(0, false), (1, false), (1, true)] {
        (0..ticks).for_each(|_| cloud.tick());
        for _ in 0..3 {
            let listed = rig.backend.list().await.unwrap().found;
            assert_eq!(listed[0].state == MachineState::Running, is_running);
            assert_eq!(rig.backend.agent_access(&listed[0]).await.is_ok(), is_running);
        }
        assert_eq!(cloud.is_running(&key), is_running);
    }
    assert_eq!(cloud.ledger().machine_ticks(cloud.now_tick()), 2);
}

#[tokio::test]
async fn machines_vanish_as_planned() {
    struct Vanishes(Arc<Mutex<u32>>);
    impl FaultPlan for Vanishes {
        fn call(&mut self, _call: &Call) -> CallFault {
            CallFault::None
        }
        fn vanishes(&mut self, machine: &MachineKey) -> Option<String> {
            *self.0.lock().unwrap() += 1;
            (machine.index == 1).then(|| "taken back".to_owned())
        }
    }
    let mut rig = Rig::fake();
    let machines = rig.launch(2).await;
    let asked = Arc::new(Mutex::new(0));
    cloud(&rig).set_plan(Vanishes(Arc::clone(&asked)));
    cloud(&rig).tick();
    cloud(&rig).tick();
    assert_eq!(*asked.lock().unwrap(), 3, "the dead are not asked");
    let living: Vec<MachineKey> = cloud(&rig).ledger().living().map(|machine| machine.key.clone()).collect();
    assert_eq!(living, [machines[0].key.clone()]);
}

#[tokio::test]
async fn servers_see_only_what_carries_their_mark() {
    let mut rig = Rig::fake();
    rig.launch(1).await;
    let other = cloud(&rig).backend(ServerId(Uuid::from_u128(2)));
    assert_eq!(other.list().await.unwrap().found, []);
}

#[tokio::test]
async fn capacity_is_by_zone_and_comes_back() {
    let mut rig = Rig::fake();
    let mut order = rig.order(1).await;
    let name = order.offer.instance_type.name.clone();
    cloud(&rig).set_capacity(&name, Some("fake-1a"), Some(0));
    cloud(&rig).set_capacity(&name, Some("fake-1b"), Some(1));
    order.zone = Some("fake-1a".to_owned());
    assert_eq!(kind_of(rig.backend.launch(&order).await), Some(ErrorKind::NoCapacity));
    // The cloud chooses where nobody else does.
    order.zone = None;
    rig.backend.launch(&order).await.unwrap();
    let machines = rig.running(order.launch_id, 1).await;
    assert_eq!(machines[0].zone.as_deref(), Some("fake-1b"));
    let next = rig.order(1).await;
    assert_eq!(kind_of(rig.backend.launch(&next).await), Some(ErrorKind::NoCapacity));
    rig.backend.terminate(&machines[0].key).await.unwrap();
    rig.backend.launch(&next).await.unwrap();
}

#[tokio::test]
async fn a_zone_that_has_none_says_who_has_some_if_it_is_told_to() {
    let mut rig = Rig::fake();
    let mut order = rig.order(2).await;
    let name = order.offer.instance_type.name.clone();
    cloud(&rig).set_capacity(&name, Some("fake-1a"), Some(1));
    order.zone = Some("fake-1a".to_owned());
    (order.count, order.least) = (2, 2);
    let said = rig.backend.launch(&order).await.unwrap_err();
    assert_eq!(said.code.as_deref(), Some("InsufficientInstanceCapacity"));
    assert_eq!(said.zones_with_capacity, Vec::<String>::new());
    cloud(&rig).change_setup(|setup| setup.gives_hints = true);
    assert_eq!(rig.backend.launch(&order).await.unwrap_err().zones_with_capacity, ["fake-1b"]);
}

#[tokio::test]
async fn it_refuses_what_it_is_told_to_where_it_is_told_to() {
    let mut rig = Rig::fake();
    let quota = Error::new(ErrorKind::QuotaExceeded, "over the quota").with_code("VcpuLimitExceeded");
    let refusal = |zone: &str, error: &Error| Refusal {
        instance_type: None,
        region: None,
        zone: Some(zone.to_owned()),
        error: error.clone(),
    };
    cloud(&rig).set_refusals(vec![refusal("fake-1a", &quota)]);
    let mut order = rig.order(1).await;
    order.zone = Some("fake-1a".to_owned());
    assert_eq!(rig.backend.launch(&order).await.unwrap_err(), quota);
    order.zone = Some("fake-1b".to_owned());
    rig.backend.launch(&order).await.unwrap();
    rig.running(order.launch_id, 1).await;
}

#[tokio::test]
async fn a_limited_rate_passes_with_time() {
    let mut rig = Rig::fake();
    cloud(&rig).limit_rate(2);
    let order = rig.order(1).await;
    assert_eq!(kind_of(rig.backend.launch(&order).await), Some(ErrorKind::RateLimited));
    cloud(&rig).tick();
    cloud(&rig).tick();
    rig.backend.launch(&order).await.unwrap();
    rig.running(order.launch_id, 1).await;
}

#[tokio::test]
async fn what_is_accepted_may_be_ended_by_the_cloud_with_a_reason() {
    let mut rig = Rig::fake();
    cloud(&rig).change_setup(|setup| {
        setup.boot_ticks = 10;
        setup.gone_ticks = 10;
        setup.lists_tick = false;
    });
    cloud(&rig).end_on_arrival("fake-1a", Some("Server.InsufficientInstanceCapacity"));
    let mut order = rig.order(1).await;
    order.zone = Some("fake-1a".to_owned());
    rig.backend.launch(&order).await.unwrap();
    assert_eq!(rig.backend.list().await.unwrap().found[0].state, MachineState::Starting);
    cloud(&rig).tick();
    let listed = rig.backend.list().await.unwrap().found;
    assert_eq!(listed[0].state, MachineState::Gone);
    assert_eq!(listed[0].ended_because.as_deref(), Some("Server.InsufficientInstanceCapacity"));
}

#[test]
fn nobody_configures_it_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), dir.path().to_owned());
    let config = parse_config(&json!({ "type": "fake", "wire_type": "aws" })).unwrap();
    assert_eq!(config.wire_type().unwrap().as_str(), "aws");
    let refusal = Error::new(ErrorKind::InvalidRequest, "the backend `fake` is only for tests");
    assert_eq!(open(&config, &context, BackendId(Uuid::from_u128(2))).unwrap_err(), refusal);
}
