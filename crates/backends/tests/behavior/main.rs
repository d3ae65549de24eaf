//! What the server may rely on, whatever the backend: one suite that every backend passes. A check may need a
//! capability; a capability that no backend brings, or that no check needs, fails the suite too.

#![cfg(test)]

mod fake;
mod local;
mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};

use backends::{AgentAccess, Capabilities, ErrorKind, MachineKey, MachineState, OffersWanted};

use self::support::{Rig, kill_agent, kind_of, processes_with};

/// A check, and the capability that it needs.
struct Check {
    name: &'static str,
    needs: Option<&'static str>,
}

const CHECKS: &[Check] = &[
    check("offers are sane", None),
    check("a launch repeated is one launch", Some("launches")),
    check("the list shows what lives", Some("consistent_list")),
    check("a launch is whole or not at all", Some("launches")),
    check("a launch takes as many as there are", Some("launches")),
    check("nothing is held twice", Some("launches")),
    check("termination may be repeated", Some("launches")),
    check("a launch stays made when its machines are gone", Some("launches")),
    check("machines outlive the server", Some("launches")),
    check("running machines are reached", Some("provisioning_timeout_secs")),
    check("clusters are launched", Some("cluster")),
    check("machines are taken back", Some("spot")),
    check("machines are in the zone that was named", Some("zonal")),
    check("agents are on this machine", Some("admins_only")),
    check("processes have an address of their own", Some("processes_without_image")),
];

/// Capabilities that no backend of this suite has. What AWS does with them is in the tests of `aws`.
const AWAITED: &[&str] = &["reservations"];

const fn check(name: &'static str, needs: Option<&'static str>) -> Check {
    Check { name, needs }
}

async fn run(check: &Check, rig: &mut Rig) {
    match check.name {
        "offers are sane" => offers_are_sane(rig).await,
        "a launch repeated is one launch" => a_launch_repeated_is_one_launch(rig).await,
        "the list shows what lives" => the_list_shows_what_lives(rig).await,
        "a launch is whole or not at all" => a_launch_is_whole_or_not_at_all(rig).await,
        "a launch takes as many as there are" => a_launch_takes_as_many_as_there_are(rig).await,
        "nothing is held twice" => nothing_is_held_twice(rig).await,
        "termination may be repeated" => termination_may_be_repeated(rig).await,
        "a launch stays made when its machines are gone" => a_launch_stays_made(rig).await,
        "machines outlive the server" => machines_outlive_the_server(rig).await,
        "running machines are reached" => running_machines_are_reached(rig).await,
        "clusters are launched" => clusters_are_launched(rig).await,
        "machines are taken back" => machines_are_taken_back(rig).await,
        "machines are in the zone that was named" => machines_are_in_their_zone(rig).await,
        "agents are on this machine" => agents_are_on_this_machine(rig).await,
        "processes have an address of their own" => processes_have_an_address(rig).await,
        other => panic!("the suite has no check `{other}`"),
    }
}

/// What a backend can do, by name. A new capability does not compile until it is named here.
fn names_of(capabilities: Capabilities) -> BTreeSet<&'static str> {
    let Capabilities {
        launches,
        cluster,
        zonal,
        consistent_list,
        admins_only,
        spot,
        reservations,
        processes_without_image,
        provisioning_timeout_secs,
    } = capabilities;
    let named = [
        ("launches", launches),
        ("cluster", cluster),
        ("zonal", zonal),
        ("consistent_list", consistent_list),
        ("admins_only", admins_only),
        ("spot", spot),
        ("reservations", reservations),
        ("processes_without_image", processes_without_image),
        ("provisioning_timeout_secs", 0 < provisioning_timeout_secs),
    ];
    named.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

async fn suite(mut rig: Rig) {
    let capabilities = names_of(rig.capabilities());
    for check in CHECKS {
        if check.needs.is_some_and(|needed| !capabilities.contains(needed)) {
            continue;
        }
        println!("{}: {}", rig.name, check.name);
        run(check, &mut rig).await;
        rig.end().await;
    }
}

#[tokio::test]
async fn the_pretended_cloud_behaves() {
    suite(Rig::fake()).await;
}

#[tokio::test]
async fn the_slow_pretended_cloud_behaves() {
    suite(Rig::slow_fake()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_behaves() {
    suite(Rig::local()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_behaves_with_the_real_agent() {
    match Rig::local_with_agent() {
        Some(rig) => suite(rig).await,
        None => println!("DSTACK_TEST_AGENT names no agent"),
    }
}

#[test]
fn every_capability_is_exercised() {
    let all = names_of(Capabilities {
        launches: true,
        cluster: true,
        zonal: true,
        consistent_list: true,
        admins_only: true,
        spot: true,
        reservations: true,
        processes_without_image: true,
        provisioning_timeout_secs: 1,
    });
    let rigs = [Rig::fake(), Rig::slow_fake(), Rig::local()];
    for capability in all {
        let is_brought = rigs.iter().any(|rig| names_of(rig.capabilities()).contains(capability));
        let is_needed = CHECKS.iter().any(|check| check.needs == Some(capability));
        if AWAITED.contains(&capability) {
            assert!(!is_brought, "a backend brings `{capability}`: give it a check");
            continue;
        }
        assert!(is_brought, "no backend brings `{capability}`");
        assert!(is_needed, "no check needs `{capability}`");
    }
}

async fn offers_are_sane(rig: &mut Rig) {
    for (nodes, cluster) in [(1, false), (2, false), (2, rig.capabilities().cluster)] {
        let wanted = OffersWanted { least: nodes, most: nodes, cluster, ..OffersWanted::default() };
        let offers = rig.backend.offers(&wanted).await.unwrap().found;
        assert!(offers.iter().any(|offer| offer.availability.is_usable()));
        assert!(offers.is_sorted_by_key(|offer| (offer.price_usd_per_hour * 1e6) as u64));
        for offer in offers {
            assert!(0.0 <= offer.price_usd_per_hour && !offer.region.is_empty());
            assert!(!offer.instance_type.name.is_empty());
            assert!(0 < offer.instance_type.resources.cpus);
            assert!(rig.capabilities().spot || !offer.instance_type.resources.spot);
            assert_eq!(offer.availability.is_usable(), offer.unavailable_because.is_none());
            let kept = serde_json::to_string(&offer).unwrap();
            assert_eq!(serde_json::from_str::<backends::BackendOffer>(&kept).unwrap(), offer);
        }
    }
}

async fn a_launch_repeated_is_one_launch(rig: &mut Rig) {
    let order = rig.order(2).await;
    rig.backend.launch(&order).await.unwrap();
    rig.backend.launch(&order).await.unwrap();
    let first = rig.running(order.launch_id, 2).await;
    rig.backend.launch(&order).await.unwrap();
    assert_eq!(rig.running(order.launch_id, 2).await, first);
    let indexes: Vec<u32> = first.iter().map(|machine| machine.key.index).collect();
    assert_eq!(indexes, [0, 1]);
}

async fn the_list_shows_what_lives(rig: &mut Rig) {
    assert_eq!(rig.backend.list().await.unwrap().found, []);
    let order = rig.order(2).await;
    rig.backend.launch(&order).await.unwrap();
    let listed = rig.backend.list().await.unwrap().found;
    assert_eq!(listed.len(), 2);
    rig.backend.terminate(&listed[0].key).await.unwrap();
    let is_over = |state| matches!(state, MachineState::Stopping | MachineState::Gone);
    let left = rig.backend.list().await.unwrap().found;
    let left: Vec<u32> =
        left.iter().filter(|machine| !is_over(machine.state)).map(|machine| machine.key.index).collect();
    assert_eq!(left, [1]);
}

async fn a_launch_is_whole_or_not_at_all(rig: &mut Rig) {
    let mut order = rig.limit_to(2).await;
    (order.count, order.least) = (3, 3);
    assert_eq!(kind_of(rig.backend.launch(&order).await), Some(ErrorKind::NoCapacity));
    for _ in 0..5 {
        assert_eq!(rig.backend.list().await.unwrap().found, []);
    }
    // The refusal left nothing behind that takes the room away.
    (order.count, order.least) = (2, 2);
    rig.backend.launch(&order).await.unwrap();
    rig.running(order.launch_id, 2).await;
    let mut absurd = order;
    absurd.launch_id = rig.new_launch_id();
    (absurd.count, absurd.least) = (1, 2);
    assert_eq!(kind_of(rig.backend.launch(&absurd).await), Some(ErrorKind::InvalidRequest));
}

async fn a_launch_takes_as_many_as_there_are(rig: &mut Rig) {
    let mut order = rig.limit_to(2).await;
    (order.count, order.least) = (3, 1);
    rig.backend.launch(&order).await.unwrap();
    rig.running(order.launch_id, 2).await;
}

async fn nothing_is_held_twice(rig: &mut Rig) {
    let mut order = rig.order(2).await;
    (order.count, order.least) = (1, 1);
    rig.backend.launch(&order).await.unwrap();
    rig.running(order.launch_id, 1).await;
    // The second launch takes what the first has left.
    let second = rig.launch(1).await;
    assert_ne!(second[0].key.launch_id, order.launch_id);
    let mut seen = BTreeSet::new();
    let listed = rig.backend.list().await.unwrap().found;
    assert_eq!(listed.len(), 2);
    for machine in listed {
        for thing in rig.exclusive(&machine) {
            assert!(seen.insert(thing.clone()), "`{thing}` is held twice");
        }
    }
}

async fn termination_may_be_repeated(rig: &mut Rig) {
    let machines = rig.launch(2).await;
    rig.backend.terminate(&machines[0].key).await.unwrap();
    rig.backend.terminate(&machines[0].key).await.unwrap();
    let only = |key: &MachineKey| {
        let key = key.clone();
        move |machines: &[backends::Machine]| machines.len() == 1 && machines[0].key == key
    };
    let left = rig.list_until(only(&machines[1].key)).await;
    assert_eq!(left[0].state, MachineState::Running);
    rig.backend.terminate(&machines[0].key).await.unwrap();
    let never = MachineKey { launch_id: machines[0].key.launch_id, index: 77 };
    rig.backend.terminate(&never).await.unwrap();
}

async fn a_launch_stays_made(rig: &mut Rig) {
    let order = rig.order(1).await;
    rig.backend.launch(&order).await.unwrap();
    let machines = rig.running(order.launch_id, 1).await;
    rig.backend.terminate(&machines[0].key).await.unwrap();
    rig.list_until(<[_]>::is_empty).await;
    // A late repetition must not buy again what was given back.
    rig.backend.launch(&order).await.unwrap();
    for _ in 0..5 {
        assert_eq!(rig.backend.list().await.unwrap().found, []);
    }
}

async fn machines_outlive_the_server(rig: &mut Rig) {
    let order = rig.order(2).await;
    rig.backend.launch(&order).await.unwrap();
    rig.reopen();
    let machines = rig.running(order.launch_id, 2).await;
    rig.backend.launch(&order).await.unwrap();
    rig.reopen();
    assert_eq!(rig.running(order.launch_id, 2).await, machines);
    rig.access(&machines[1]).await;
    rig.backend.terminate(&machines[0].key).await.unwrap();
    rig.reopen();
    rig.backend.terminate(&machines[0].key).await.unwrap();
    rig.list_until(|machines| machines.len() == 1).await;
}

async fn running_machines_are_reached(rig: &mut Rig) {
    let machines = rig.launch(1).await;
    rig.access(&machines[0]).await;
    rig.access(&machines[0]).await;
    rig.backend.terminate(&machines[0].key).await.unwrap();
    assert!(rig.backend.agent_access(&machines[0]).await.is_err());
}

async fn clusters_are_launched(rig: &mut Rig) {
    let mut order = rig.order(2).await;
    let offers = rig.offers(2, true).await;
    order.offer = offers.into_iter().next().unwrap();
    order.cluster = true;
    rig.backend.launch(&order).await.unwrap();
    let machines = rig.running(order.launch_id, 2).await;
    let addresses: BTreeSet<_> =
        machines.iter().map(|machine| machine.internal_ip.clone().expect("peers need it")).collect();
    assert_eq!(addresses.len(), 2);
    let networks: BTreeSet<_> = machines
        .iter()
        .map(|machine| machine.container_network.as_ref().map(|network| (&network.name, &network.subnet)))
        .collect();
    assert_eq!(networks.len(), 1, "the machines' containers do not share a network");
    assert_eq!(machines[0].zone, machines[1].zone);
}

async fn machines_are_in_their_zone(rig: &mut Rig) {
    let mut order = rig.order(2).await;
    for zone in order.offer.zones.clone().expect("a backend with zones names them") {
        order.launch_id = rig.new_launch_id();
        order.zone = Some(zone.clone());
        rig.backend.launch(&order).await.unwrap();
        let made = rig.running(order.launch_id, 2).await;
        assert!(made.iter().all(|machine| machine.zone.as_ref() == Some(&zone)), "{made:?}");
    }
}

async fn machines_are_taken_back(rig: &mut Rig) {
    let machines = rig.launch(1).await;
    let cloud = rig.context.fake.clone().expect("only the pretended cloud takes machines back");
    assert!(cloud.vanish(&machines[0].key, "the spot price rose"));
    let gone = rig.list_until(|machines| machines[0].state == MachineState::Gone).await;
    assert_eq!(gone[0].ended_because.as_deref(), Some("the spot price rose"));
    assert!(rig.backend.agent_access(&machines[0]).await.is_err());
    rig.backend.terminate(&machines[0].key).await.unwrap();
}

async fn agents_are_on_this_machine(rig: &mut Rig) {
    let machines = rig.launch(2).await;
    let mut sockets = BTreeSet::new();
    for machine in &machines {
        let AgentAccess::UnixSocket(socket) = rig.access(machine).await else {
            panic!("an agent beside the server is reached by a socket");
        };
        assert!(sockets.insert(socket));
    }
    // An agent that is killed comes back when it is asked for.
    let killed = kill_agent(rig, &machines[0]).await;
    let access = rig.access(&machines[0]).await;
    assert!(matches!(access, AgentAccess::UnixSocket(socket) if sockets.contains(&socket)));
    assert_ne!(processes_with(&rig.folder(&machines[0].key)), [killed]);
}

async fn processes_have_an_address(rig: &mut Rig) {
    let machines = rig.launch(2).await;
    let address = |machine: &backends::Machine| -> IpAddr {
        machine.internal_ip.as_ref().expect("peers need it").parse().unwrap()
    };
    // Nodes on one machine may all use the same port.
    let first = TcpListener::bind((address(&machines[0]), 0)).unwrap();
    let port = first.local_addr().unwrap().port();
    TcpListener::bind((address(&machines[1]), port)).unwrap();
}
