//! Addresses that the world can reach, for machines to which AWS gives none.

use api::instances::InstanceAvailability;
use backends::{AgentAccess, Machine, MachineState, OffersWanted};
use ec2sim::Kind;
use serde_json::json;

use crate::rig::Rig;

fn made(rig: &Rig) -> usize {
    rig.sim.ledger().iter().filter(|entry| entry.kind == Kind::ElasticIp).count()
}

async fn one_machine() -> (Rig, Machine) {
    let rig = Rig::public().await;
    rig.launch(rig.order(1, 1).await).await.unwrap();
    let machine = rig.machines(MachineState::Running, 1).await.remove(0);
    (rig, machine)
}

/// Asks for the way to a machine until it is told; every failure on the way is one that may pass.
async fn address_of(rig: &Rig, machine: &Machine) -> String {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
    loop {
        match rig.backend.agent_access(machine).await {
            Ok(AgentAccess::Ssh { address, .. }) => return address,
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(error.kind.is_transient(), "{error}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "no address is told");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn one_address_is_made_whatever_becomes_of_the_answers() {
    let faults = [
        json!({ "action": "AllocateAddress", "times": 1, "what": "lost_reply" }),
        json!({ "action": "AllocateAddress", "times": 1, "what": "error_after", "code": "InternalError",
            "message": "an internal error has occurred", "status": 500 }),
        json!({ "action": "AssociateAddress", "times": 1, "what": "error_before",
            "code": "InvalidAllocationID.NotFound", "message": "does not exist" }),
        json!({ "action": "AssociateAddress", "times": 1, "what": "lost_reply" }),
        json!({ "action": "AssociateAddress", "times": 1, "what": "error_before", "code": "RequestExpired",
            "message": "Request has expired." }),
    ];
    for fault in faults {
        let (rig, machine) = one_machine().await;
        rig.control("faults", fault.clone());
        let address = address_of(&rig, &machine).await;
        assert_eq!(made(&rig), 1, "{fault}");
        let listed = rig.machines(MachineState::Running, 1).await.remove(0);
        assert_eq!(listed.hostname, Some(address), "{fault}");
        rig.end_everything().await;
    }
}

#[tokio::test]
async fn an_address_that_aws_does_not_show_yet_is_waited_for() {
    let (rig, machine) = one_machine().await;
    rig.control("settings", json!({ "resource_unseen_ms": 300 }));
    address_of(&rig, &machine).await;
    assert_eq!(made(&rig), 1);
    rig.end_everything().await;
}

#[tokio::test]
async fn addresses_are_counted_before_machines_are_bought_for_them() {
    let rig = Rig::public().await;
    let cluster = |least| OffersWanted { least, most: least, cluster: true, spot: Some(false), reservation: None };
    assert!(rig.offer("p5.48xlarge", &cluster(5)).await.availability.is_usable());
    let refused = rig.offer("p5.48xlarge", &cluster(6)).await;
    assert_eq!(refused.availability, InstanceAvailability::NoQuota);
    let because = refused.unavailable_because.unwrap();
    assert!(because.contains("`EC2-VPC Elastic IPs` is 5, of which 0 are used, and 6 are needed"), "{because}");
    // With one interface, AWS gives the address by itself.
    assert!(rig.offer("g6.8xlarge", &cluster(6)).await.availability.is_usable());
    let inside = Rig::private().await;
    assert!(inside.offer("p5.48xlarge", &cluster(6)).await.availability.is_usable());
}
