//! Launches: what is refused, who gets how many, and under which token.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ec2sim::{Kind, Settings};
use serde_json::json;

use crate::account::{Account, calm, fields, set, slow, texts};

#[test]
fn one_call_makes_a_gang_in_one_zone() {
    let account = Account::new(calm());
    let answer = account.ask_with("RunInstances", &account.launch("p5.48xlarge", "us-west-2b", (4, 4))).unwrap();
    assert_eq!(texts(&answer, "amiLaunchIndex"), ["0", "1", "2", "3"]);
    assert_eq!(texts(&answer, "reservationId").len(), 1);
    assert!(texts(&answer, "availabilityZone").iter().all(|zone| zone == "us-west-2b"));
    let mut addresses = texts(&answer, "privateIpAddress");
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 4);
}

/// A launch with changes is refused with that code and these words, and leaves nothing behind.
#[track_caller]
fn refused(changes: &[(&str, &str)], code: &str, words: &str) {
    let account = Account::new(calm());
    account.ask("CreatePlacementGroup", &[("GroupName", "group"), ("Strategy", "cluster")]).unwrap();
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    for (name, value) in changes {
        set(&mut launch, name, value);
    }
    launch.retain(|(_, value)| !value.is_empty());
    let refused = account.ask_with("RunInstances", &launch).expect_err("it is refused");
    assert_eq!(refused.code, code, "{}", refused.message);
    assert!(refused.message.contains(words), "{}", refused.message);
    assert_eq!((account.alive(Kind::Instance), account.alive(Kind::NetworkInterface)), (0, 0));
}

#[test]
fn wrong_launches_are_refused_in_the_words_of_ec2() {
    const VALUE: &str = "InvalidParameterValue";
    const COMBINATION: &str = "InvalidParameterCombination";
    let second = |kind| {
        [
            ("NetworkInterface.2.DeviceIndex", "1"),
            ("NetworkInterface.2.NetworkCardIndex", "1"),
            ("NetworkInterface.2.InterfaceType", kind),
        ]
    };
    refused(&[("MinCount", "0")], VALUE, "minCount");
    refused(&[("MinCount", "2")], COMBINATION, "minimum");
    refused(&[("ImageId", "ami-0123456789abcdef0")], "InvalidAMIID.NotFound", "ami-0123456789abcdef0");
    refused(&[("ImageId", "image")], "InvalidAMIID.Malformed", "expecting");
    refused(&[("InstanceType", "p99.large")], VALUE, "'p99.large' for InstanceType");
    refused(&[("InstanceType", "c7gn.16xlarge")], VALUE, "architecture");
    refused(&[("SubnetId", "subnet-1")], COMBINATION, "may not be specified on the same request");
    refused(&[("NetworkInterface.1.SubnetId", "subnet-1")], "InvalidSubnetID.NotFound", "subnet-1");
    refused(&[("NetworkInterface.1.SecurityGroupId.1", "sg-1")], "InvalidGroup.NotFound", "sg-1");
    refused(&[("NetworkInterface.1.DeviceIndex", "")], COMBINATION, "requires a device index");
    refused(
        &second("efa-only").map(|(name, value)| (name, if name.ends_with("CardIndex") { "9" } else { value })),
        VALUE,
        "networkCardIndex",
    );
    refused(&[("NetworkInterface.1.InterfaceType", "efa-only")], COMBINATION, "primary");
    let mut public = second("efa-only").to_vec();
    public.push(("NetworkInterface.1.AssociatePublicIpAddress", "true"));
    refused(&public, COMBINATION, "associatePublicIPAddress");
    refused(&[("Placement.GroupName", "other")], "InvalidPlacementGroup.Unknown", "'other' is unknown");
    refused(&[("InstanceType", "t3.small"), ("Placement.GroupName", "group")], COMBINATION, "t3.small");
    refused(&[("Placement.AvailabilityZone", "us-west-2b")], VALUE, "availability zone");
    refused(&[("KeyName", "key")], "InvalidKeyPair.NotFound", "'key'");
    refused(&[("IamInstanceProfile.Name", "no")], VALUE, "Invalid IAM Instance Profile name");
    refused(&[("UserData", "%%%")], "InvalidUserData.Malformed", "BASE64");
    refused(&[("UserData", &STANDARD.encode(vec![b'x'; 16_385]))], VALUE, "16384 bytes");
    refused(&[("MetadataOptions.HttpPutResponseHopLimit", "65")], VALUE, "HttpPutResponseHopLimit");
    refused(
        &[("BlockDeviceMapping.1.DeviceName", "/dev/sda1"), ("BlockDeviceMapping.1.Ebs.VolumeSize", "64")],
        "InvalidBlockDeviceMapping",
        "is smaller than snapshot",
    );
    refused(&[("InstanceMarketOptions.MarketType", "capacity-block")], COMBINATION, "reservation");
    refused(&[("LicenseSpecification.1.LicenseConfigurationArn", "x")], "NotSimulated", "LicenseSpecifications");
    refused(&[("Colour", "red")], "UnknownParameter", "Colour");
    let tag = [("TagSpecification.1.ResourceType", "instance"), ("TagSpecification.1.Tag.1.Key", "aws:x")];
    refused(&tag, VALUE, "reserved");
}

#[test]
fn a_zone_without_the_type_names_those_that_have_it() {
    let account = Account::new(calm());
    let refused =
        account.ask_with("RunInstances", &account.launch("p6-b300.48xlarge", "us-west-2d", (1, 1))).unwrap_err();
    assert_eq!(refused.code, "Unsupported");
    assert!(
        refused.message.contains("(us-west-2d)") && refused.message.ends_with("choosing us-west-2a, us-west-2b.")
    );
}

#[test]
fn the_same_token_makes_the_same_instances() {
    let account = Account::new(calm());
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (2, 2));
    set(&mut launch, "ClientToken", "token");
    let made = account.run(&launch);
    assert_eq!(account.run(&launch), made);
    assert_eq!(account.alive(Kind::Instance), 2);

    let mut other = launch.clone();
    set(&mut other, "MaxCount", "3");
    assert_eq!(account.ask_with("RunInstances", &other).unwrap_err().code, "IdempotentParameterMismatch");

    account.terminate(&made);
    assert_eq!(account.ask_with("RunInstances", &launch).unwrap_err().code, "IdempotentInstanceTerminated");
    assert_eq!(account.alive(Kind::Instance), 0);
}

#[test]
fn capacity_is_for_a_type_a_zone_and_a_market() {
    let account = Account::new(calm());
    let place =
        |zone, left| json!({"region": "us-west-2", "instance_type": "p5.48xlarge", "zone": zone, "left": left});
    account.order("capacity", &place("us-west-2a", 0));
    account.order("capacity", &place("us-west-2b", 2));
    let refused =
        account.ask_with("RunInstances", &account.launch("p5.48xlarge", "us-west-2a", (2, 2))).unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (500, "InsufficientInstanceCapacity"));
    assert!(refused.message.ends_with("or choosing us-west-2b, us-west-2c, us-west-2d."), "{}", refused.message);
    account.run(&account.launch("p4d.24xlarge", "us-west-2a", (2, 2)));

    // All or nothing, unless less is good enough.
    let gang = account.launch("p5.48xlarge", "us-west-2b", (3, 3));
    assert_eq!(account.ask_with("RunInstances", &gang).unwrap_err().code, "InsufficientInstanceCapacity");
    let some = account.launch("p5.48xlarge", "us-west-2b", (1, 3));
    let made = account.run(&some);
    assert_eq!(made.len(), 2);
    assert_eq!(account.ask_with("RunInstances", &some).unwrap_err().code, "InsufficientInstanceCapacity");

    // What ends is there again.
    account.terminate(&made[..1]);
    assert_eq!(account.run(&some).len(), 1);
}

#[test]
fn quotas_and_addresses_run_out() {
    let account = Account::new(calm());
    let quota =
        |code, value: u32| account.order("quotas", &json!({"region": "us-west-2", "code": code, "value": value}));
    quota("L-417A185B", 200);
    let launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 4));
    assert_eq!(account.run(&launch).len(), 2);
    let refused = account.ask_with("RunInstances", &launch).unwrap_err();
    assert_eq!(refused.code, "VcpuLimitExceeded");
    assert!(refused.message.contains("vCPU limit of 200"), "{}", refused.message);

    quota("L-7212CCBC", 0);
    let mut spot = launch.clone();
    set(&mut spot, "InstanceMarketOptions.MarketType", "spot");
    assert_eq!(account.ask_with("RunInstances", &spot).unwrap_err().code, "MaxSpotInstanceCountExceeded");

    quota("L-417A185B", 100_000);
    account.order("settings", &json!({"max_instances": 2}));
    assert_eq!(account.ask_with("RunInstances", &launch).unwrap_err().code, "InstanceLimitExceeded");
    account.order("settings", &json!({"max_instances": null}));

    // The official layout takes an address for each `efa`; an interface for EFA only takes none.
    let subnet = account.subnet("private-us-west-2a");
    account.order("addresses/taken", &json!({"region": "us-west-2", "subnet_id": subnet, "taken": 4091 - 2 - 3}));
    let mut wide = account.launch("p4d.24xlarge", "us-west-2a", (1, 4));
    for (number, kind) in [(2, "efa"), (3, "efa-only")] {
        let field = |name: &str| format!("NetworkInterface.{number}.{name}");
        set(&mut wide, &field("DeviceIndex"), "1");
        set(&mut wide, &field("NetworkCardIndex"), &(number - 1).to_string());
        set(&mut wide, &field("InterfaceType"), kind);
        set(&mut wide, &field("SubnetId"), &subnet);
    }
    assert_eq!(account.run(&wide).len(), 1);
    assert_eq!(account.ask_with("RunInstances", &wide).unwrap_err().code, "InsufficientFreeAddressesInSubnet");
}

#[test]
fn a_cluster_group_stays_in_one_zone() {
    let account = Account::new(calm());
    account.ask("CreatePlacementGroup", &[("GroupName", "group"), ("Strategy", "cluster")]).unwrap();
    let mut first = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    set(&mut first, "Placement.GroupName", "group");
    let made = account.run(&first);
    let mut second = account.launch("p4d.24xlarge", "us-west-2b", (1, 1));
    set(&mut second, "Placement.GroupName", "group");
    assert_eq!(account.ask_with("RunInstances", &second).unwrap_err().code, "InvalidParameterCombination");
    account.terminate(&made);
    account.run(&second);
}

#[test]
fn reservations_and_capacity_blocks_have_their_rules() {
    let account = Account::new(calm());
    account.ask("CreatePlacementGroup", &[("GroupName", "group"), ("Strategy", "cluster")]).unwrap();
    let place = json!({"region": "us-west-2", "zone": "us-west-2a", "instance_type": "p5.48xlarge", "count": 2});
    let mut block = place.clone();
    block["block"] = json!(true);
    block["starts_at"] = json!("2026-03-01T13:00:00Z");
    block["ends_at"] = json!("2026-03-02T13:00:00Z");
    let plain = account.order("reservations", &place)["reservation_id"].as_str().unwrap().to_owned();
    let block = account.order("reservations", &block)["reservation_id"].as_str().unwrap().to_owned();
    let target = "CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId";
    let mut launch = account.launch("p5.48xlarge", "us-west-2a", (2, 2));
    let code = |launch: &_| account.ask_with("RunInstances", launch).unwrap_err().code;

    set(&mut launch, target, "cr-0123456789abcdef0");
    assert_eq!(code(&launch), "InvalidCapacityReservationId.NotFound");
    set(&mut launch, target, &plain);
    // What was reserved is there even where nothing else is.
    account.order(
        "capacity",
        &json!({"region": "us-west-2", "instance_type": "p5.48xlarge", "zone": "us-west-2a", "left": 0}),
    );
    let made = account.run(&launch);
    assert_eq!(code(&launch), "ReservationCapacityExceeded");
    account.terminate(&made);

    set(&mut launch, target, &block);
    assert_eq!(code(&launch), "InvalidCapacityReservationState");
    account.pass(3_600_000);
    assert_eq!(code(&launch), "InvalidParameterValue");
    set(&mut launch, "InstanceMarketOptions.MarketType", "capacity-block");
    set(&mut launch, "Placement.GroupName", "group");
    assert_eq!(code(&launch), "InvalidParameterCombination");
    launch.retain(|(name, _)| name != "Placement.GroupName");
    let made = account.run(&launch);
    account.pass(23 * 3_600_000 + 29 * 60_000);
    assert_eq!(account.state(&made[0]).unwrap(), "running");
    account.pass(60_000);
    assert_eq!(account.state(&made[0]).unwrap(), "terminated");
}

#[test]
fn a_group_of_reservations_is_used_up_before_machines_are_bought_by_the_hour() {
    let account = Account::new(calm());
    let place = json!({"region": "us-west-2", "zone": "us-west-2a", "instance_type": "p5.48xlarge", "count": 2,
        "groups": ["training"]});
    for _ in 0..2 {
        account.order("reservations", &place);
    }
    let described = account.ask("DescribeCapacityReservations", &[]).unwrap();
    let id = texts(&described, "capacityReservationId").remove(0);
    let groups = account.ask("GetGroupsForCapacityReservation", &[("CapacityReservationId", &id)]).unwrap();
    let arn = texts(&groups, "groupArn").remove(0);
    assert_eq!(arn, "arn:aws:resource-groups:us-west-2:123456789012:group/training");
    let reserved = "CapacityReservationSpecification";
    let target = format!("{reserved}.CapacityReservationTarget.CapacityReservationResourceGroupArn");
    let preference = format!("{reserved}.CapacityReservationPreference");
    let free = || {
        let described = account.ask("DescribeCapacityReservations", &[]).unwrap();
        texts(&described, "availableInstanceCount").join(" ")
    };
    let code = |launch: &_| account.ask_with("RunInstances", launch).unwrap_err().code;

    let mut launch = account.launch("p5.48xlarge", "us-west-2a", (3, 3));
    set(&mut launch, &target, &arn.replace("training", "unknown"));
    assert_eq!(code(&launch), "InvalidParameterValue");
    set(&mut launch, &target, &arn);
    set(&mut launch, &preference, "open");
    assert_eq!(code(&launch), "InvalidParameterCombination");
    set(&mut launch, &preference, "capacity-reservations-only");
    account.run(&launch);
    assert_eq!(free(), "0 1");
    // Two more are not there, and who does not insist on reservations gets them all the same.
    let mut two = account.launch("p5.48xlarge", "us-west-2a", (2, 2));
    set(&mut two, &target, &arn);
    set(&mut two, &preference, "capacity-reservations-only");
    assert_eq!(code(&two), "ReservationCapacityExceeded");
    two.retain(|(name, _)| *name != preference);
    account.run(&two);
    assert_eq!(free(), "0 1");
}

#[test]
fn new_instances_are_seen_late_and_their_states_later() {
    let account = Account::new(slow());
    let id = account.run(&account.launch("p4d.24xlarge", "us-west-2a", (1, 1))).remove(0);
    let code = |account: &Account| account.state(&id).map_err(|refused| refused.code);
    assert_eq!(code(&account), Err("InvalidInstanceID.NotFound".to_owned()));
    assert_eq!(account.refused("TerminateInstances", &[("InstanceId.1", &id)]), "InvalidInstanceID.NotFound");
    assert!(texts(&account.ask("DescribeInstances", &[]).unwrap(), "instanceId").is_empty());
    account.pass(500);
    assert_eq!(code(&account), Ok("pending".to_owned()));
    account.pass(2_600);
    // It runs since 100 ms, and nobody is told yet.
    assert_eq!(code(&account), Ok("pending".to_owned()));
    account.pass(200);
    assert_eq!(code(&account), Ok("running".to_owned()));
    let answer = account.ask("TerminateInstances", &[("InstanceId.1", &id)]).unwrap();
    let state = |which: &str| texts(answer.split(which).nth(1).unwrap(), "name").remove(0);
    assert_eq!(
        (state("<previousState>"), state("<currentState>")),
        ("running".to_owned(), "shutting-down".to_owned())
    );
    assert_eq!(code(&account), Ok("running".to_owned()));
    account.pass(2_300);
    assert_eq!(code(&account), Ok("terminated".to_owned()));
    account.pass(3_600_000);
    assert_eq!(code(&account), Err("InvalidInstanceID.NotFound".to_owned()));
}

#[test]
fn an_instance_may_be_taken_and_ended_before_it_runs() {
    let account = Account::new(slow());
    account.order(
        "late-refusals",
        &json!({
            "region": "us-west-2", "instance_type": "p4d.24xlarge", "times": 1,
            "code": "Server.InsufficientInstanceCapacity",
            "message": "Server.InsufficientInstanceCapacity: Insufficient capacity to satisfy instance request",
        }),
    );
    let made = account.run(&account.launch("p4d.24xlarge", "us-west-2a", (2, 2)));
    account.pass(6_000);
    let states: Vec<String> = made.iter().map(|id| account.state(id).unwrap()).collect();
    assert_eq!(states, ["terminated", "running"]);
    let described = account.ask("DescribeInstances", &[("InstanceId.1", &made[0])]).unwrap();
    let reason = described.split("<stateReason>").nth(1).unwrap();
    assert_eq!(texts(reason, "code")[0], "Server.InsufficientInstanceCapacity");
}

#[test]
fn a_thousand_machines_at_once_empty_the_bucket() {
    let account = Account::new(Settings { boot_ms: 3_000, ..Settings::immediate() });
    let launch = account.launch("p5.48xlarge", "us-west-2a", (1000, 1000));
    assert_eq!(account.run(&launch).len(), 1000);
    let one = account.launch("p5.48xlarge", "us-west-2a", (1, 1));
    let refused = account.ask_with("RunInstances", &one).unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (503, "RequestLimitExceeded"));
    account.pass(500);
    account.run(&one);

    // They are listed in pages of at most a thousand.
    account.pass(3_000);
    let first = account.ask("DescribeInstances", &[]).unwrap();
    let token = texts(&first, "nextToken").remove(0);
    let second = account.ask("DescribeInstances", &[("NextToken", &token)]).unwrap();
    assert_eq!((texts(&first, "clientToken").len(), texts(&second, "clientToken").len()), (1000, 1));
}

#[test]
fn the_same_seed_and_calls_give_the_same_answers() {
    let story = || {
        let account = Account::new(slow());
        let launch = account.launch("p4d.24xlarge", "us-west-2a", (2, 2));
        let answers = [account.call("RunInstances", &launch), account.call("DescribeInstances", &fields(&[]))];
        (answers, account.simulator.ledger())
    };
    assert_eq!(story(), story());
}
