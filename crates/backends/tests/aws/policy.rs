//! The policy that the documentation tells people to give: enough for everything, and nothing of it in vain.
//!
//! The simulation knows of a policy only which actions it names. Whether its conditions and resources are right is
//! for AWS to say.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::config::Credentials;
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use backends::{ErrorKind, LaunchOrder, MachineState, OffersWanted, parse_config};
use ec2sim::{ACCESS_KEY, ACCOUNT, Kind, SECRET_KEY, Settings};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::rig::{REGION, Rig, zone_of};

const DOCUMENT: &str = include_str!("../../../../docs/aws.md");

/// Permissions that are asked for beside those for actions, so that no call has their name.
const IMPLIED: [&str; 2] = ["ec2:CreateTags", "iam:PassRole"];

/// The statements that not everybody needs, by their names.
const OPTIONAL: [&str; 3] = ["PublicAddresses", "LookAtProfile", "GiveProfile"];

/// Somebody else of the account, who may do everything.
const ADMIN: &str = "AKIAI44QH8DHBEXAMPLE";

/// The codes of refusals for want of a permission.
const DENIED: [&str; 3] = ["UnauthorizedOperation", "AccessDenied", "AccessDeniedException"];

/// How long prices may be asked for behind everybody's back.
const DEADLINE: Duration = Duration::from_mins(1);

/// The policy: the first block of JSON.
fn policy() -> Value {
    let (_, rest) = DOCUMENT.split_once("```json\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    serde_json::from_str(text).unwrap()
}

/// The actions of the policy's statements but for some of these.
fn actions(without: &[&str]) -> BTreeSet<String> {
    let policy = policy();
    let mut actions = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        if !without.iter().any(|name| statement["Sid"] == *name) {
            let named = statement["Action"].as_array().unwrap().iter();
            actions.extend(named.map(|action| action.as_str().unwrap().to_owned()));
        }
    }
    actions
}

/// The keys of the account: the server's, which may do these and nothing else, and one that may do everything.
fn set_keys(rig: &Rig, allowed: &BTreeSet<String>) {
    let key = |access_key: &str, allowed: Value| {
        json!({
            "access_key": access_key, "secret_key": SECRET_KEY, "allowed": allowed,
            "arn": format!("arn:aws:iam::{ACCOUNT}:user/{access_key}"),
        })
    };
    let credentials = [key(ACCESS_KEY, json!(allowed)), key(ADMIN, Value::Null)];
    rig.control("credentials", json!({ "credentials": credentials }));
}

/// What was done with the server's key, as policies name it. What was only asked for whether it might be done does not
/// count.
fn done(rig: &Rig) -> BTreeSet<String> {
    let calls = rig.sim.calls();
    let done = calls.iter().filter(|call| call.access_key == ACCESS_KEY && call.error.is_none());
    done.map(|call| format!("{}:{}", call.service, call.action)).collect()
}

/// What was refused for want of a permission.
fn denied(rig: &Rig) -> BTreeSet<String> {
    let calls = rig.sim.calls();
    let denied =
        calls.iter().filter(|call| call.error.as_ref().is_some_and(|code| DENIED.contains(&code.as_str())));
    denied.map(|call| format!("{}:{}", call.service, call.action)).collect()
}

#[test]
fn the_policy_names_each_action_once_and_without_patterns() {
    let policy = policy();
    assert_eq!(policy["Version"], "2012-10-17");
    let statements = policy["Statement"].as_array().unwrap();
    let names: BTreeSet<&str> = statements.iter().map(|statement| statement["Sid"].as_str().unwrap()).collect();
    assert_eq!(names.len(), statements.len());
    assert!(OPTIONAL.iter().all(|name| names.contains(name)), "{names:?}");
    let mut count = 0;
    for statement in statements {
        assert_eq!(statement["Effect"], "Allow");
        assert!(statement["Resource"].is_string(), "{statement}");
        count += statement["Action"].as_array().unwrap().len();
    }
    let all = actions(&[]);
    assert_eq!(all.len(), count);
    assert!(all.iter().all(|action| !action.contains('*')), "{all:?}");
}

#[tokio::test]
async fn the_policy_is_enough_for_everything_and_nothing_of_it_is_in_vain() {
    // Machines take a while to end, so that their addresses are still theirs when these are given back.
    let settings = Settings { shutdown_ms: 2_000, throttle: false, ..Settings::immediate() };
    let rig = Rig::with(json!({ "iam_instance_profile": "dstack-instance" }), settings).await;
    let allowed = actions(&[]);
    set_keys(&rig, &allowed);
    Box::pin(do_everything(&rig)).await;
    let deadline = Instant::now() + DEADLINE;
    while !done(&rig).contains("pricing:GetProducts") {
        assert!(Instant::now() < deadline, "the price list is not asked");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(denied(&rig), BTreeSet::new());
    let called: BTreeSet<String> =
        allowed.into_iter().filter(|action| !IMPLIED.contains(&action.as_str())).collect();
    assert_eq!(done(&rig), called);
}

/// All that a server does in an account, from the look at it until nothing is left.
async fn do_everything(rig: &Rig) {
    rig.backend.check().await.unwrap();
    let gang = rig.launch(rig.order(1, 2).await).await.unwrap();
    let wanted = OffersWanted { least: 1, most: 1, cluster: false, spot: Some(true), reservation: None };
    let spot = rig.offer("p5.48xlarge", &wanted).await;
    rig.launch(rig.order_for(2, spot, 1, false)).await.unwrap();
    rig.launch(reserved_order(rig, 3).await).await.unwrap();
    let group = format!("arn:aws:resource-groups:{REGION}:{ACCOUNT}:group/training");
    let of_group = OffersWanted { least: 1, most: 1, cluster: false, spot: Some(false), reservation: Some(group) };
    rig.backend.offers(&of_group).await.unwrap();
    let machines = rig.machines(MachineState::Running, 4).await;
    for machine in &machines {
        rig.backend.agent_access(machine).await.unwrap();
    }
    // Two of them have several interfaces, to which AWS gives no address.
    assert_eq!(rig.sim.count_alive(Kind::ElasticIp), 2);
    // With the new rule, the old one goes.
    let narrower = rig.reconfigured(&json!({ "ssh_cidrs": ["198.51.100.0/24"] }));
    narrower.prepare(&rig.order(4, 1).await).await.unwrap();
    Box::pin(leave_behind(rig, &gang.prepared)).await;
    for machine in &machines {
        rig.backend.terminate(&machine.key).await.unwrap();
    }
    rig.machines(MachineState::Gone, 4).await;
    rig.end_everything().await;
}

async fn reserved_order(rig: &Rig, number: u128) -> LaunchOrder {
    let reservation = json!({
        "region": REGION, "zone": zone_of("p5.48xlarge").unwrap(), "instance_type": "p5.48xlarge", "count": 1,
        "block": false, "starts_at": null, "ends_at": null, "placement_group": null, "groups": ["training"],
    });
    let made = rig.sim.control("reservations", &reservation).unwrap();
    let id = made["reservation_id"].as_str().unwrap().to_owned();
    let wanted = OffersWanted { least: 1, most: 1, cluster: false, spot: Some(false), reservation: Some(id) };
    let offer = rig.offer("p5.48xlarge", &wanted).await;
    rig.order_for(number, offer, 1, false)
}

/// Makes what the end of a machine may leave behind: an interface and a disk with the marks of the first launch.
async fn leave_behind(rig: &Rig, prepared: &Value) {
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .endpoint_url(rig.url())
        .credentials_provider(Credentials::new(ADMIN, SECRET_KEY, None, None, "test"))
        .load()
        .await;
    let ec2 = aws_sdk_ec2::Client::new(&config);
    let machine = rig.sim.ledger().into_iter().find(|entry| entry.kind == Kind::Instance).unwrap();
    let marked = |kind: ResourceType| {
        let tags = machine.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
        let tags: Vec<Tag> = tags.collect();
        TagSpecification::builder().resource_type(kind).set_tags(Some(tags)).build()
    };
    let interface = ec2
        .create_network_interface()
        .subnet_id(prepared["subnet_id"].as_str().unwrap())
        .tag_specifications(marked(ResourceType::NetworkInterface));
    interface.send().await.unwrap();
    let disk = ec2
        .create_volume()
        .availability_zone(prepared["zone"].as_str().unwrap())
        .size(8)
        .tag_specifications(marked(ResourceType::Volume));
    disk.send().await.unwrap();
}

/// What cannot be asked for before it is needed: other services have no calls that only ask, and the rest is allowed only
/// for what is marked as ours. Where machines are in the network is no right that anything depends on.
const NOT_ASKED: [&str; 14] = [
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteSecurityGroup",
    "ec2:DeleteVolume",
    "ec2:DescribeInstanceTopology",
    "ec2:TerminateInstances",
    "pricing:GetProducts",
    "servicequotas:ListServiceQuotas",
    // These are called, so that their absence has words of its own.
    "ec2:DescribeAvailabilityZones",
    "ec2:DescribeRouteTables",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "iam:GetInstanceProfile",
    "sts:GetCallerIdentity",
    "ec2:DescribeImages",
];

#[tokio::test]
async fn the_check_names_each_permission_that_is_missing() {
    let with_profile = json!({ "iam_instance_profile": "dstack-instance" });
    let rig = Rig::with(with_profile, Settings { throttle: false, ..Settings::immediate() }).await;
    let all = actions(&[]);
    set_keys(&rig, &all);
    rig.restarted().check().await.unwrap();
    for action in all.iter().filter(|action| !NOT_ASKED.contains(&action.as_str())) {
        let mut fewer = all.clone();
        fewer.remove(action);
        set_keys(&rig, &fewer);
        let refused = rig.restarted().check().await.expect_err(action);
        assert_eq!(refused.kind, ErrorKind::PermissionDenied, "{action}: {refused}");
        assert!(refused.message.contains(&format!("{action} in {REGION}")), "{action}: {refused}");
    }
}

#[tokio::test]
async fn what_no_call_has_the_name_of_is_needed_too() {
    for implied in IMPLIED {
        let with_profile = json!({ "iam_instance_profile": "dstack-instance" });
        let rig = Rig::with(with_profile, Settings::immediate()).await;
        let order = rig.order(1, 1).await;
        let mut allowed = actions(&[]);
        assert!(allowed.remove(implied), "{implied}");
        set_keys(&rig, &allowed);
        let error = rig.launch(order).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::PermissionDenied, "{implied}: {error}");
        assert!(error.message.contains(implied), "{error}");
        set_keys(&rig, &actions(&[]));
        rig.end_everything().await;
    }
}

#[tokio::test]
async fn private_machines_without_a_profile_need_less() {
    let rig = Rig::private().await;
    set_keys(&rig, &actions(&OPTIONAL));
    rig.backend.check().await.unwrap();
    rig.launch(rig.order(1, 2).await).await.unwrap();
    for machine in rig.machines(MachineState::Running, 2).await {
        rig.backend.agent_access(&machine).await.unwrap();
    }
    rig.end_everything().await;
    assert_eq!(denied(&rig), BTreeSet::new());
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    let unknown = parse_config(&json!({ "type": "aws", "zzzzzz": 1 })).unwrap_err();
    let (_, keys) = unknown.message.split_once("its keys are ").unwrap();
    let missing: Vec<&str> = keys.split(", ").filter(|key| !DOCUMENT.contains(&format!("\n| {key} |"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
