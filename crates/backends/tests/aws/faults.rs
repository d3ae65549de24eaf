//! What AWS may answer, and that nothing is left behind whatever it is.

use std::time::Duration;

use backends::{ErrorKind, LaunchOrder, MachineState};
use ec2sim::{Kind, Settings};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::rig::{REGION, Rig, key};

#[tokio::test]
async fn a_zone_without_capacity_is_told_with_those_that_have_it() {
    let rig = Rig::private().await;
    let order = rig.order(1, 2).await;
    let zone = order.zone.clone().unwrap();
    rig.control(
        "capacity",
        json!({
            "region": REGION, "instance_type": "p5.48xlarge", "zone": zone, "market": "on-demand", "left": 1,
        }),
    );
    let error = rig.launch(order.clone()).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::NoCapacity, Some("InsufficientInstanceCapacity")));
    assert_eq!(rig.sim.count_alive(Kind::Instance), 0);
    // Another zone has a group of its own: one is bound to a zone until the last machine in it is gone.
    let other = order.offer.zones.clone().unwrap().into_iter().find(|other| *other != zone);
    let mut again = rig.order(2, 2).await;
    again.zone = other;
    rig.launch(again).await.unwrap();
    assert_eq!(rig.sim.count_alive(Kind::PlacementGroup), 2);
    rig.end_everything().await;
}

#[tokio::test]
async fn codes_become_classes() {
    let rig = Rig::private().await;
    for (number, (code, kind)) in (1..).zip([
        ("VcpuLimitExceeded", ErrorKind::QuotaExceeded),
        ("PlacementGroupLimitExceeded", ErrorKind::RegionLimit),
        ("OptInRequired", ErrorKind::RegionClosed),
        ("UnauthorizedOperation", ErrorKind::PermissionDenied),
        ("AuthFailure", ErrorKind::InvalidCredentials),
        ("InvalidParameterCombination", ErrorKind::InvalidRequest),
        ("InsufficientFreeAddressesInSubnet", ErrorKind::NoAddresses),
        ("ReservationCapacityExceeded", ErrorKind::ReservationUsedUp),
        ("RequestLimitExceeded", ErrorKind::RateLimited),
    ]) {
        let status = if code == "RequestLimitExceeded" { 503 } else { 400 };
        rig.control(
            "faults",
            json!({ "action": "RunInstances", "times": 1, "what": "error_before", "code": code,
            "message": "so it is", "status": status }),
        );
        let error = rig.launch(rig.order(number, 2).await).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (kind, Some(code)), "{error}");
        rig.control("faults/clear", json!({}));
    }
    assert_eq!(rig.sim.count_alive(Kind::Instance), 0);
    rig.end_everything().await;
}

#[tokio::test]
async fn an_effect_whose_error_lies_is_found_again() {
    let rig = Rig::private().await;
    rig.control(
        "faults",
        json!({ "action": "RunInstances", "times": 1, "what": "error_after",
        "code": "InternalError", "message": "oh", "status": 500 }),
    );
    let mut order = rig.order(1, 2).await;
    order.prepared = rig.backend.prepare(&order).await.unwrap();
    assert_eq!(rig.backend.launch(&order).await.unwrap_err().kind, ErrorKind::Unavailable);
    rig.control("faults/clear", json!({}));
    assert_eq!(rig.machines(MachineState::Running, 2).await.len(), 2);
    rig.backend.launch(&order).await.unwrap();
    assert_eq!(rig.sim.count_alive(Kind::Instance), 2);
    rig.end_everything().await;
}

#[tokio::test]
async fn a_token_that_stands_for_something_else_says_nothing_about_the_zone() {
    let rig = Rig::private().await;
    let order = rig.launch(rig.order(1, 2).await).await.unwrap();
    // Another request with the same token.
    let other = LaunchOrder { count: 3, least: 3, ..order.clone() };
    let error = rig.backend.launch(&other).await.unwrap_err();
    let told = (error.kind, error.code.as_deref());
    assert_eq!(told, (ErrorKind::LaunchUsedUp, Some("IdempotentParameterMismatch")));
    assert_eq!(rig.machines(MachineState::Running, 2).await.len(), 2, "what stands is not touched");
    for index in 0..2 {
        rig.backend.terminate(&key(1, index)).await.unwrap();
    }
    rig.machines(MachineState::Gone, 2).await;
    let error = rig.backend.launch(&order).await.unwrap_err();
    let told = (error.kind, error.code.as_deref());
    assert_eq!(told, (ErrorKind::LaunchUsedUp, Some("IdempotentInstanceTerminated")));
    assert!(error.zones_with_capacity.is_empty());
    // The same with another token.
    rig.launch(LaunchOrder { launch_id: rig.order(2, 2).await.launch_id, ..order }).await.unwrap();
    assert_eq!(rig.machines(MachineState::Running, 2).await.len(), 2);
    rig.end_everything().await;
}

#[tokio::test]
async fn a_gang_of_several_calls_is_undone_whole() {
    let rig = Rig::private().await;
    let parts = rig.reconfigured(&json!({ "machines_per_call": 100 }));
    let mut order = rig.order(1, 200).await;
    order.prepared = parts.prepare(&order).await.unwrap();
    rig.control(
        "capacity",
        json!({ "region": REGION, "instance_type": "p5.48xlarge",
        "zone": order.zone, "market": "on-demand", "left": 150 }),
    );
    let error = parts.launch(&order).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoCapacity);
    assert_eq!(
        (rig.count("RunInstances"), rig.sim.ledger().iter().filter(|one| one.kind == Kind::Instance).count()),
        (2, 100)
    );
    assert_eq!(rig.machines(MachineState::Gone, 100).await.len(), 100);
    assert_eq!(rig.sim.count_alive(Kind::Instance), 0);
    rig.control(
        "capacity",
        json!({ "region": REGION, "instance_type": "p5.48xlarge",
        "zone": order.zone, "market": "on-demand", "left": null }),
    );
    let mut again = rig.order(2, 200).await;
    again.prepared = parts.prepare(&again).await.unwrap();
    parts.launch(&again).await.unwrap();
    assert_eq!(rig.count("RunInstances"), 4);
    assert_eq!(rig.machines(MachineState::Running, 200).await.len(), 200);
    rig.end_everything().await;
}

#[tokio::test]
async fn a_subnet_without_addresses_is_no_zone_without_capacity() {
    let rig = Rig::private().await;
    let order = rig.launch(rig.order(1, 1).await).await.unwrap();
    let subnet = order.prepared["subnet_id"].as_str().unwrap();
    rig.control("addresses/taken", json!({ "region": REGION, "subnet_id": subnet, "taken": 10_000_000 }));
    let backend = rig.restarted();
    let error = backend.prepare(&rig.order(2, 2).await).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoAddresses);
    assert!(error.message.contains(subnet), "{error}");
    rig.end_everything().await;
}

#[tokio::test]
async fn a_machine_that_aws_takes_and_ends_tells_why() {
    let settings = Settings { boot_ms: 300, ..Settings::immediate() };
    let rig = Rig::with(json!({ "public_ips": false, "vpc_name": "my-vpc" }), settings).await;
    rig.control(
        "late-refusals",
        json!({ "region": REGION, "instance_type": "p5.48xlarge", "zone": null, "times": 1,
        "code": "Server.InternalError", "message": "Server.InternalError: Internal error on launch" }),
    );
    rig.launch(rig.order(1, 1).await).await.unwrap();
    let gone = rig.machines(MachineState::Gone, 1).await;
    assert_eq!(gone[0].ended_because.as_deref(), Some("Server.InternalError: Internal error on launch"));
    rig.end_everything().await;
}

#[tokio::test]
async fn machines_are_listed_from_the_moment_that_aws_says_it_made_them() {
    let settings = Settings { instance_unseen_ms: 1_500, stale_ms: 500, ..Settings::immediate() };
    let rig = Rig::with(json!({ "public_ips": false, "vpc_name": "my-vpc" }), settings).await;
    rig.launch(rig.order(1, 2).await).await.unwrap();
    assert_eq!(rig.backend.list().await.unwrap().found.len(), 2);
    // An end that comes too early for AWS is repeated by who wants it.
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    while rig.sim.count_alive(Kind::Instance) > 0 {
        assert!(tokio::time::Instant::now() < deadline, "it does not end");
        for index in 0..2 {
            let ended = rig.backend.terminate(&key(1, index)).await;
            assert!(ended.err().is_none_or(|error| error.kind.is_transient()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.end_everything().await;
}

#[tokio::test]
async fn an_account_that_may_have_no_address_says_so() {
    let rig = Rig::public().await;
    rig.control("quotas", json!({ "region": REGION, "code": "L-0263D0A3", "value": 1.0 }));
    rig.launch(rig.order(1, 2).await).await.unwrap();
    let machines = rig.machines(MachineState::Running, 2).await;
    rig.backend.agent_access(&machines[0]).await.unwrap();
    let error = rig.backend.agent_access(&machines[1]).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::RegionLimit, Some("AddressLimitExceeded")));
    assert!(error.message.contains("EC2-VPC Elastic IPs"), "{error}");
    rig.end_everything().await;
}

#[tokio::test]
async fn a_machine_that_aws_does_not_show_yet_is_ended_all_the_same() {
    let settings = Settings { instance_unseen_ms: 1_000, ..Settings::immediate() };
    let rig =
        Rig::with(json!({ "public_ips": false, "vpc_name": "my-vpc", "machines_per_call": 1 }), settings).await;
    // The end of a machine that was just made is not there yet, and is ordered again.
    rig.launch(rig.order(1, 1).await).await.unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while let Err(error) = rig.backend.terminate(&key(1, 0)).await {
        assert!(error.kind == ErrorKind::Unavailable && error.message.contains("does not show"), "{error}");
        assert!(Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(50)).await;
    }
    rig.machines(MachineState::Running, 0).await;
    // So is the first part of a launch that is undone.
    let mut order = rig.order(2, 2).await;
    let zone = order.zone.clone().unwrap();
    let capacity = json!({ "region": REGION, "instance_type": "p5.48xlarge", "zone": zone, "market": "on-demand", "left": 1 });
    rig.control("capacity", capacity);
    order.prepared = rig.backend.prepare(&order).await.unwrap();
    let refused = rig.backend.launch(&order).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NoCapacity);
    rig.machines(MachineState::Running, 0).await;
    assert_eq!(rig.sim.count_alive(Kind::Instance), 0);
    rig.end_everything().await;
}

#[tokio::test]
async fn one_machine_that_may_not_be_ended_does_not_keep_the_others() {
    let rig = Rig::private().await;
    rig.launch(rig.order(1, 4).await).await.unwrap();
    let machines = rig.machines(MachineState::Running, 4).await;
    // All together, then half of them, then one of that half.
    rig.control(
        "faults",
        json!({ "action": "TerminateInstances", "times": 3, "what": "error_before",
        "code": "OperationNotPermitted", "message": "It is protected", "status": 400 }),
    );
    let ends = machines.iter().map(|machine| rig.backend.terminate(&machine.key));
    let ended = futures_util::future::join_all(ends).await;
    assert_eq!(ended.iter().filter(|ended| ended.is_err()).count(), 1, "{ended:?}");
    assert_eq!(rig.count("TerminateInstances"), 5);
    rig.end_everything().await;
}
