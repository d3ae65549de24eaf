//! Several regions, one of which does not answer, and what is left behind when something cannot be removed.

use backends::{ErrorKind, LaunchOrder, Living, MachineState, OffersWanted};
use ec2sim::{Kind, Settings};
use serde_json::json;

use crate::rig::{REGION, Rig, key};

const OTHER: &str = "us-east-1";

async fn two_regions() -> Rig {
    Rig::with(json!({ "regions": [REGION, OTHER] }), Settings::immediate()).await
}

fn wanted() -> OffersWanted {
    OffersWanted { least: 1, most: 1, cluster: false, spot: Some(false), reservation: None }
}

async fn order_in(rig: &Rig, region: &str, number: u128) -> LaunchOrder {
    let offers = rig.backend.offers(&wanted()).await.unwrap().found;
    let is_it =
        |offer: &&backends::BackendOffer| offer.region == region && offer.instance_type.name == "t3.medium";
    let offer = offers.iter().find(is_it).unwrap().clone();
    rig.order_for(number, offer, 1, false)
}

fn deny(rig: &Rig, region: &str) {
    rig.control(
        "faults",
        json!({ "action": "*", "region": region, "what": "error_before", "code": "UnauthorizedOperation",
            "message": "an explicit deny in a service control policy", "status": 403 }),
    );
}

#[tokio::test]
async fn a_region_that_does_not_answer_keeps_nobody_from_the_others() {
    let rig = two_regions().await;
    rig.launch(order_in(&rig, REGION, 1).await).await.unwrap();
    rig.launch(order_in(&rig, OTHER, 2).await).await.unwrap();
    rig.machines(MachineState::Running, 2).await;
    deny(&rig, OTHER);
    let restarted = rig.restarted();
    for backend in [&rig.backend, &restarted] {
        let listed = backend.list().await.unwrap();
        let seen: Vec<&str> = listed.found.iter().map(|machine| machine.region.as_str()).collect();
        assert_eq!(seen, [REGION]);
        assert!(listed.knows(REGION) && !listed.knows(OTHER), "{:?}", listed.silent);
        assert_eq!(listed.silent[0].error.kind, ErrorKind::PermissionDenied);
    }
    let offered = restarted.offers(&wanted()).await.unwrap();
    assert!(!offered.found.is_empty() && offered.found.iter().all(|offer| offer.region == REGION));
    assert!(!offered.knows(OTHER));
    // Who does not know where a machine is cannot say that it is gone.
    let unknown = restarted.terminate(&key(2, 0)).await.unwrap_err();
    assert!(unknown.message.contains(OTHER), "{unknown}");
    let left = restarted.tidy(&Living { is_leaving: true, ..Living::default() }).await.unwrap();
    assert!(left.iter().any(|what| what.ends_with(OTHER)), "{left:?}");
    restarted.terminate(&key(1, 0)).await.unwrap();
    rig.control("faults/clear", json!({}));
    rig.machines(MachineState::Running, 1).await;
    rig.end_everything().await;
}

#[tokio::test]
async fn an_account_that_refuses_everywhere_says_so() {
    let rig = two_regions().await;
    deny(&rig, REGION);
    deny(&rig, OTHER);
    assert_eq!(rig.backend.list().await.unwrap_err().kind, ErrorKind::PermissionDenied);
    assert_eq!(rig.backend.offers(&wanted()).await.unwrap_err().kind, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn what_cannot_be_removed_keeps_nothing_else() {
    let rig = Rig::public().await;
    rig.launch(rig.order(1, 1).await).await.unwrap();
    let machines = rig.machines(MachineState::Running, 1).await;
    rig.backend.agent_access(&machines[0]).await.unwrap();
    assert_eq!(rig.sim.count_alive(Kind::ElasticIp), 1);
    let ended = json!({ "region": REGION, "instance_id": machines[0].provider_id, "by": "console" });
    rig.control("instances/terminate", ended);
    rig.control(
        "faults",
        json!({ "action": "DeletePlacementGroup", "what": "error_before", "code": "UnauthorizedOperation",
            "message": "no", "status": 403 }),
    );
    // A group is removed only when nobody wants it for the second time.
    let nobody = Living { is_leaving: true, ..Living::default() };
    rig.backend.tidy(&nobody).await.unwrap();
    let left = rig.backend.tidy(&nobody).await.unwrap();
    assert!(left.iter().any(|what| what.starts_with("placement group")), "{left:?}");
    assert_eq!(rig.sim.count_alive(Kind::ElasticIp), 0);
    rig.control("faults/clear", json!({}));
    rig.end_everything().await;
}

#[tokio::test]
async fn a_backend_that_leaves_stays_until_its_last_machine_is_gone() {
    // With groups that are given there is none of ours that could not be removed.
    let rig = Rig::private().await;
    let order = rig.order(1, 1).await;
    let group = rig.backend.prepare(&order).await.unwrap()["security_group_ids"][0].clone();
    let given = rig.reconfigured(&json!({ "security_group_ids": { REGION: [group] } }));
    let mut order = rig.order_of(1, "t3.medium", 1, false).await;
    order.prepared = given.prepare(&order).await.unwrap();
    given.launch(&order).await.unwrap();
    rig.machines(MachineState::Running, 1).await;
    // No row knows of it.
    let nobody = Living { is_leaving: true, ..Living::default() };
    let left = given.tidy(&nobody).await.unwrap();
    assert!(left.contains(&format!("1 machine in {REGION}")), "{left:?}");
    given.terminate(&key(1, 0)).await.unwrap();
    rig.end_everything().await;
}

#[tokio::test]
async fn credentials_of_another_account_do_not_make_machines_vanish() {
    let rig = Rig::private().await;
    rig.launch(rig.order(1, 1).await).await.unwrap();
    rig.machines(MachineState::Running, 1).await;
    // As after a change of the configuration, with another simulation for the other account.
    let other =
        Rig::with(json!({}), Settings { account: "999999999999".to_owned(), ..Settings::immediate() }).await;
    let changed = rig.reconfigured(&json!({ "endpoint_url": other.url(), "vpc_name": null }));
    let refused = changed.list().await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidCredentials);
    assert!(
        refused.message.contains("of account 999999999999, and what this backend has made is in 123456789012"),
        "{refused}"
    );
    assert!(changed.terminate(&key(1, 0)).await.is_err());
    let living = Living { is_leaving: true, ..Living::default() };
    assert_eq!(changed.tidy(&living).await.unwrap().len(), 1);
    let order = rig.order(2, 1).await;
    assert_eq!(changed.prepare(&order).await.unwrap_err().kind, ErrorKind::InvalidCredentials);
    // When nothing is left there, the account may be another one.
    rig.end_everything().await;
    assert!(rig.reconfigured(&json!({ "endpoint_url": other.url(), "vpc_name": null })).list().await.is_ok());
}
