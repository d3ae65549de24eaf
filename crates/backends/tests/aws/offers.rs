//! What is offered, and what is said of an account that cannot be used.

use api::instances::InstanceAvailability;
use backends::{ErrorKind, OffersWanted};
use ec2sim::Settings;
use serde_json::json;

use crate::rig::{REGION, Rig};

fn cluster(nodes: u32) -> OffersWanted {
    OffersWanted { least: nodes, most: nodes, cluster: true, spot: Some(false), reservation: None }
}

#[tokio::test]
async fn the_example_is_offered_with_price_and_zones() {
    let rig = Rig::private().await;
    rig.backend.check().await.unwrap();
    let offer = rig.offer("p5.48xlarge", &cluster(2)).await;
    assert_eq!((offer.region.as_str(), offer.price_usd_per_hour), (REGION, 55.04));
    assert!(offer.availability.is_usable(), "{:?}", offer.unavailable_because);
    let gpus = &offer.instance_type.resources.gpus;
    assert_eq!((gpus.len(), gpus[0].name.as_str(), gpus[0].memory_mib), (8, "H100", 80 * 1024));
    assert_eq!(offer.backend_data["efa_interfaces"], 32);
    assert!(offer.zones.unwrap().iter().all(|zone| zone.starts_with("us-west-2")));
    let t3 = rig.offer("t3.medium", &cluster(2)).await;
    let because = "machines of t3.medium cannot be in a cluster placement group";
    assert_eq!(t3.unavailable_because.as_deref(), Some(because));
}

#[tokio::test]
async fn types_are_asked_for_once_and_kept() {
    let rig = Rig::private().await;
    rig.backend.offers(&cluster(1)).await.unwrap();
    let asked = rig.count("DescribeInstanceTypes");
    assert!(asked > 0);
    let again = rig.restarted();
    assert!(!again.offers(&cluster(1)).await.unwrap().found.is_empty());
    assert_eq!(rig.count("DescribeInstanceTypes"), asked);
}

#[tokio::test]
async fn a_quota_is_compared_with_what_is_needed() {
    let rig = Rig::private().await;
    rig.control("quotas", json!({ "region": REGION, "code": "L-417A185B", "value": 192.0 }));
    assert!(rig.offer("p5.48xlarge", &cluster(1)).await.availability.is_usable());
    let two = rig.offer("p5.48xlarge", &cluster(2)).await;
    assert_eq!(two.availability, InstanceAvailability::NoQuota);
    let because = two.unavailable_because.unwrap();
    assert!(because.contains("192 vCPUs, and 2 × 192 are needed"), "{because}");
    // Another family has another quota.
    assert!(rig.offer("g6e.48xlarge", &cluster(2)).await.availability.is_usable());
}

#[tokio::test]
async fn quotas_that_cannot_be_asked_for_stop_nobody() {
    let rig = Rig::private().await;
    rig.control("credentials/allow", json!({ "access_key": ec2sim::ACCESS_KEY, "allowed": ["ec2:*", "sts:*"] }));
    assert!(rig.offer("p5.48xlarge", &cluster(2)).await.availability.is_usable());
}

#[tokio::test]
async fn spot_machines_have_their_own_price() {
    let rig = Rig::private().await;
    let spot = OffersWanted { least: 1, most: 1, cluster: false, spot: Some(true), reservation: None };
    let offer = rig.offer("p5.48xlarge", &spot).await;
    assert!(offer.instance_type.resources.spot && offer.price_usd_per_hour < 55.04);
    let both = rig.backend.offers(&OffersWanted { spot: None, ..spot }).await.unwrap().found;
    assert_eq!(both.iter().filter(|offer| offer.instance_type.name == "p5.48xlarge").count(), 2);
}

#[tokio::test]
async fn the_price_list_is_asked_in_the_background_and_kept() {
    let rig = Rig::private().await;
    rig.control("prices", json!({ "region": REGION, "instance_type": "p5.48xlarge", "price": 31.5 }));
    let price = async |backend: &std::sync::Arc<dyn backends::Backend>| {
        let offers = backend.offers(&cluster(1)).await.unwrap().found;
        offers.iter().find(|offer| offer.instance_type.name == "p5.48xlarge").unwrap().price_usd_per_hour
    };
    // Nobody waits for the list, so the first answer has the prices that are built in.
    assert!((price(&rig.backend).await - 55.04).abs() < 1e-6);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_mins(1);
    while (price(&rig.backend).await - 31.5).abs() > 1e-6 {
        assert!(tokio::time::Instant::now() < deadline, "the price list is not asked");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // Who starts later has read it from the disk.
    let asked = rig.count("GetProducts");
    assert!((price(&rig.restarted()).await - 31.5).abs() < 1e-6);
    assert_eq!(rig.count("GetProducts"), asked);
}

#[tokio::test]
async fn an_account_that_cannot_be_used_says_why() {
    let rig = Rig::private().await;
    let check = async |more: serde_json::Value| rig.reconfigured(&more).check().await.unwrap_err();
    let wrong =
        check(json!({ "creds": { "type": "access_key", "access_key": "AKIANOBODY", "secret_key": "x" } })).await;
    assert_eq!(wrong.kind, ErrorKind::InvalidCredentials);
    assert!(wrong.message.contains("`creds.access_key`, `creds.secret_key`"), "{wrong}");
    let wrong = check(json!({ "vpc_name": "nothing" })).await;
    assert_eq!(wrong.message, "No VPC named nothing in region us-west-2");
    let wrong = check(json!({ "iam_instance_profile": "nothing" })).await;
    assert!(wrong.message.starts_with("IAM instance profile nothing not found"), "{wrong}");
    rig.reconfigured(&json!({ "iam_instance_profile": "dstack-instance" })).check().await.unwrap();
    let wrong = check(json!({ "subnet_ids": { "us-west-2": ["subnet-0123456789abcdef0"] } })).await;
    assert!(wrong.message.contains("subnet-0123456789abcdef0"), "{wrong}");
    let reads = ["ec2:Describe*", "sts:*"];
    rig.control("credentials/allow", json!({ "access_key": ec2sim::ACCESS_KEY, "allowed": reads }));
    let denied = rig.restarted().check().await.unwrap_err();
    assert_eq!(denied.kind, ErrorKind::PermissionDenied);
    assert!(denied.message.contains("ec2:CreatePlacementGroup, ec2:DeletePlacementGroup"), "{denied}");
}

#[tokio::test]
async fn a_network_without_a_way_out_is_no_offer_and_says_so() {
    let settings = Settings::immediate();
    let rig = Rig::with(json!({ "public_ips": false }), settings).await;
    // The default VPC has public subnets only.
    let offer = rig.offer("p5.48xlarge", &cluster(2)).await;
    assert_eq!(offer.availability, InstanceAvailability::NotAvailable);
    let because = offer.unavailable_because.unwrap();
    assert!(because.starts_with("Failed to find private subnets for default VPC"), "{because}");
}
