//! Machines, from the order to the end.

use std::collections::BTreeSet;

use backends::{AgentAccess, Living, MachineState, OffersWanted};
use ec2sim::{Kind, Settings};
use serde_json::json;

use crate::rig::{REGION, Rig, key, zone_of};

#[tokio::test]
async fn a_gang_is_one_call_and_leaves_nothing() {
    let rig = Rig::private().await;
    let order = rig.launch(rig.order(1, 2).await).await.unwrap();
    assert_eq!(rig.count("RunInstances"), 1);
    let machines = rig.machines(MachineState::Running, 2).await;
    let keys: BTreeSet<_> = machines.iter().map(|machine| machine.key.clone()).collect();
    assert_eq!(keys, BTreeSet::from([key(1, 0), key(1, 1)]));
    let zones: BTreeSet<_> = machines.iter().map(|machine| machine.zone.clone()).collect();
    assert_eq!(zones, BTreeSet::from([order.zone]));
    for machine in &machines {
        assert_eq!(machine.hostname, machine.internal_ip);
        let access = rig.backend.agent_access(machine).await.unwrap();
        let AgentAccess::Ssh { address, login, jump: None, .. } = access else { panic!("{access:?}") };
        assert_eq!((Some(address), login.user.as_str()), (machine.internal_ip.clone(), "ubuntu"));
    }
    // One plain interface and 32 for EFA, of which only the first has an address.
    assert_eq!(rig.sim.count_alive(Kind::NetworkInterface), 2 * 33);
    assert_eq!(rig.sim.count_alive(Kind::PlacementGroup), 1);
    rig.end_everything().await;
}

#[tokio::test]
async fn whatever_is_made_carries_the_tags_of_backend_and_order() {
    let more = json!({ "public_ips": false, "vpc_name": "my-vpc", "tags": { "team": "backend", "cost": "12" } });
    let rig = Rig::with(more, Settings::immediate()).await;
    let mut order = rig.order(1, 2).await;
    order.tags = [("team", "fleet"), ("purpose", "train"), ("dstack_launch_id", "none")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    rig.launch(order).await.unwrap();
    rig.machines(MachineState::Running, 2).await;
    let expected = [
        ("owner", "dstack"),
        ("dstack_project", "main"),
        ("dstack_name", "my-efa-fleet"),
        ("dstack_user", "ann"),
        ("team", "backend"),
        ("cost", "12"),
        ("purpose", "train"),
        ("dstack_launch_id", "00000000-0000-0000-0000-000000000001"),
    ];
    let made = rig.sim.ledger();
    for kind in [Kind::Instance, Kind::Volume, Kind::NetworkInterface] {
        let of_kind: Vec<_> = made.iter().filter(|entry| entry.kind == kind).collect();
        assert!(of_kind.len() >= 2, "{kind:?}");
        for entry in of_kind {
            for (key, value) in expected {
                assert_eq!(entry.tags.get(key).map(String::as_str), Some(value), "{key} of {kind:?}");
            }
        }
    }
    rig.end_everything().await;
}

#[tokio::test]
async fn the_same_launch_again_makes_nothing_more() {
    let rig = Rig::private().await;
    rig.control("faults", json!({ "action": "RunInstances", "times": 1, "what": "lost_reply" }));
    let mut order = rig.order(1, 2).await;
    order.prepared = rig.backend.prepare(&order).await.unwrap();
    let lost = rig.backend.launch(&order).await.unwrap_err();
    assert!(lost.kind.is_transient(), "{lost}");
    let again = rig.restarted();
    again.launch(&order).await.unwrap();
    again.launch(&order).await.unwrap();
    assert_eq!(rig.machines(MachineState::Running, 2).await.len(), 2);
    assert_eq!(rig.sim.ledger().iter().filter(|entry| entry.kind == Kind::Instance).count(), 2);
    // Who knows nothing of it ends it all the same.
    for index in 0..2 {
        rig.restarted().terminate(&key(1, index)).await.unwrap();
    }
    rig.machines(MachineState::Running, 0).await;
    rig.end_everything().await;
}

#[tokio::test]
async fn every_type_with_efa_gets_a_layout_that_is_taken() {
    let mut settings = Settings::immediate();
    settings.throttle = false;
    let rig = Rig::with(json!({ "public_ips": false, "vpc_name": "my-vpc" }), settings).await;
    let wanted = OffersWanted { least: 1, most: 1, cluster: true, spot: Some(false), reservation: None };
    let some = rig.offer("p5.48xlarge", &wanted).await;
    let mut tried = 0;
    for (number, (name, zone)) in (1..).zip(efa_types()) {
        let mut offer = some.clone();
        offer.instance_type.name.clone_from(&name);
        offer.zones = Some(vec![zone]);
        let order = rig.order_for(number, offer, 1, true);
        rig.launch(order).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        rig.backend.terminate(&key(number, 0)).await.unwrap();
        tried += 1;
    }
    assert!(tried > 100, "{tried} types");
    rig.end_everything().await;
}

/// The types with EFA that the region sells, each with a zone.
fn efa_types() -> Vec<(String, String)> {
    let with_efa = ec2sim::instance_types().filter(|(_, row)| row["NetworkInfo"]["EfaSupported"] == true);
    with_efa.filter_map(|(name, _)| Some((name.to_owned(), zone_of(name)?))).collect()
}

#[tokio::test]
async fn machines_with_many_interfaces_get_a_public_address_and_give_it_back() {
    let rig = Rig::public().await;
    rig.launch(rig.order(1, 2).await).await.unwrap();
    let machines = rig.machines(MachineState::Running, 2).await;
    let mut addresses = BTreeSet::new();
    for machine in &machines {
        assert_eq!(machine.hostname, None);
        for _ in 0..2 {
            let access = rig.backend.agent_access(machine).await.unwrap();
            let AgentAccess::Ssh { address, .. } = access else { panic!("{access:?}") };
            addresses.insert(address);
        }
    }
    assert_eq!((addresses.len(), rig.count("AllocateAddress")), (2, 2));
    assert!(rig.machines(MachineState::Running, 2).await.iter().all(|machine| machine.hostname.is_some()));
    // What lives is not touched.
    let living = Living {
        machines: BTreeSet::from([key(1, 0), key(1, 1)]).into_iter().collect(),
        fleets: [rig.fleet].into(),
        ..Living::default()
    };
    assert_eq!(rig.backend.tidy(&living).await.unwrap(), Vec::<String>::new());
    assert_eq!(rig.sim.count_alive(Kind::ElasticIp), 2);
    rig.end_everything().await;
    assert_eq!(rig.sim.count_alive(Kind::ElasticIp), 0);
}

#[tokio::test]
async fn one_interface_has_its_public_address_from_aws() {
    let rig = Rig::public().await;
    // Outside of a cluster, EFA is not worth an address that must be bought.
    for (number, name) in [(1, "p5.48xlarge"), (2, "g6.8xlarge"), (3, "m7i.large")] {
        let order = rig.order_of(number, name, 1, false).await;
        rig.launch(order).await.unwrap();
    }
    let machines = rig.machines(MachineState::Running, 3).await;
    assert!(machines.iter().all(|machine| machine.hostname.is_some()));
    assert_eq!((rig.count("AllocateAddress"), rig.sim.count_alive(Kind::NetworkInterface)), (0, 3));
    rig.end_everything().await;
}

#[tokio::test]
async fn a_fleet_keeps_its_image() {
    let rig = Rig::private().await;
    let first = rig.launch(rig.order(1, 1).await).await.unwrap();
    let image = first.prepared["image"]["id"].clone();
    let newest = json!({
        "name": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20991231", "owner": "898082745236",
        "architecture": "x86_64", "root_device": "/dev/sda1", "root_gib": 75,
        "created_at": "2099-12-31T00:00:00.000Z", "state": "available",
    });
    rig.control("images", json!({ "region": REGION, "image": newest }));
    let newer = rig.restarted();
    let mut second = rig.order(2, 1).await;
    assert_ne!(newer.prepare(&second).await.unwrap()["image"]["id"], image);
    second.fleet_prepared = vec![first.prepared];
    assert_eq!(newer.prepare(&second).await.unwrap()["image"]["id"], image);
    rig.end_everything().await;
}

#[tokio::test]
async fn a_group_stays_with_its_fleet_and_goes_with_it() {
    let rig = Rig::private().await;
    rig.launch(rig.order(1, 2).await).await.unwrap();
    rig.machines(MachineState::Running, 2).await;
    rig.launch(rig.order(2, 1).await).await.unwrap();
    assert_eq!(rig.sim.count_alive(Kind::PlacementGroup), 1);
    for (number, index) in [(1, 0), (1, 1), (2, 0)] {
        rig.backend.terminate(&key(number, index)).await.unwrap();
    }
    let living = Living { fleets: [rig.fleet].into(), ..Living::default() };
    rig.backend.tidy(&living).await.unwrap();
    assert_eq!(rig.sim.count_alive(Kind::PlacementGroup), 1);
    rig.end_everything().await;
}

#[tokio::test]
async fn a_reservation_is_bought_from_and_a_block_has_no_group() {
    let rig = Rig::private().await;
    let zone = zone_of("p5.48xlarge").unwrap();
    for (number, block) in [(1, false), (2, true)] {
        let made = rig.sim.control("reservations", &json!({
            "region": REGION, "zone": zone, "instance_type": "p5.48xlarge", "count": 2, "block": block,
            "starts_at": null, "ends_at": block.then(|| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)),
            "placement_group": null,
        })).unwrap();
        let id = made["reservation_id"].as_str().unwrap().to_owned();
        let wanted =
            OffersWanted { least: 2, most: 2, cluster: true, spot: Some(false), reservation: Some(id.clone()) };
        let offers = rig.backend.offers(&wanted).await.unwrap().found;
        let [offer] = &offers[..] else { panic!("{offers:?}") };
        assert!(offer.availability.is_usable(), "{:?}", offer.unavailable_because);
        let price = if block { 0.0 } else { 55.04 };
        assert!((offer.price_usd_per_hour - price).abs() < 1e-6);
        let too_many = OffersWanted { least: 3, most: 3, ..wanted.clone() };
        let refused = rig.backend.offers(&too_many).await.unwrap().found;
        assert!(refused[0].unavailable_because.as_ref().unwrap().contains("3 are needed"));
        let order = rig.order_for(number, offer.clone(), 2, true);
        let order = rig.launch(order).await.unwrap();
        assert_eq!(order.prepared["placement_group"].is_null(), block);
        assert_eq!(order.offer.backend_data["ends_at"].is_string(), block);
    }
    rig.machines(MachineState::Running, 4).await;
    for (number, index) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        rig.backend.terminate(&key(number, index)).await.unwrap();
    }
}

#[tokio::test]
async fn it_is_asked_once_how_machines_are_connected() {
    let rig = Rig::private().await;
    rig.launch(rig.order(1, 2).await).await.unwrap();
    let machines = rig.machines(MachineState::Running, 2).await;
    assert!(machines.iter().all(|machine| machine.network_path.len() == 3), "{machines:?}");
    rig.backend.list().await.unwrap();
    assert_eq!(rig.count("DescribeInstanceTopology"), 1);
    // Who may not know it does without.
    rig.control(
        "faults",
        json!({ "action": "DescribeInstanceTopology", "times": 9, "what": "error_before",
        "code": "UnauthorizedOperation", "message": "no", "status": 403 }),
    );
    let backend = rig.restarted();
    for _ in 0..3 {
        let listed = backend.list().await.unwrap().found;
        assert!(listed.len() == 2 && listed.iter().all(|machine| machine.network_path.is_empty()), "{listed:?}");
    }
    assert_eq!(rig.count("DescribeInstanceTopology"), 2);
    rig.end_everything().await;
}
