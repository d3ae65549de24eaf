//! Things beside machines: how they hang on each other, and what is left of them.

use ec2sim::{Entry, Kind, Settings};
use serde_json::json;

use crate::account::{Account, calm, set, texts};

fn group(account: &Account) -> String {
    let vpc =
        account.ask("DescribeVpcs", &[("Filter.1.Name", "tag:Name"), ("Filter.1.Value.1", "my-vpc")]).unwrap();
    let vpc = texts(&vpc, "vpcId").remove(0);
    let fields = [("GroupName", "test"), ("GroupDescription", "A test"), ("VpcId", vpc.as_str())];
    texts(&account.ask("CreateSecurityGroup", &fields).unwrap(), "groupId").remove(0)
}

#[test]
fn what_hangs_on_something_is_not_deleted() {
    let account = Account::new(Settings { shutdown_ms: 2_000, ..calm() });
    account.ask("CreatePlacementGroup", &[("GroupName", "group"), ("Strategy", "cluster")]).unwrap();
    let duplicate = account.refused("CreatePlacementGroup", &[("GroupName", "group"), ("Strategy", "cluster")]);
    assert_eq!(duplicate, "InvalidPlacementGroup.Duplicate");
    let security_group = group(&account);
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    set(&mut launch, "Placement.GroupName", "group");
    set(&mut launch, "NetworkInterface.1.SecurityGroupId.1", &security_group);
    let made = account.run(&launch);
    account.terminate(&made);
    // While it is shutting down, all of it is still in use.
    assert_eq!(account.refused("DeletePlacementGroup", &[("GroupName", "group")]), "InvalidPlacementGroup.InUse");
    assert_eq!(account.refused("DeleteSecurityGroup", &[("GroupId", &security_group)]), "DependencyViolation");
    account.pass(2_000);
    account.ask("DeletePlacementGroup", &[("GroupName", "group")]).unwrap();
    account.ask("DeleteSecurityGroup", &[("GroupId", &security_group)]).unwrap();
    assert_eq!(
        account.refused("DeletePlacementGroup", &[("GroupName", "group")]),
        "InvalidPlacementGroup.Unknown"
    );
    assert_eq!(account.simulator.alive(), []);
}

#[test]
fn rules_refuse_to_be_made_twice_and_go_with_their_group() {
    let account = Account::new(calm());
    let id = group(&account);
    let own = [
        ("GroupId", id.as_str()),
        ("IpPermissions.1.IpProtocol", "-1"),
        ("IpPermissions.1.Groups.1.GroupId", id.as_str()),
    ];
    for action in ["AuthorizeSecurityGroupIngress", "AuthorizeSecurityGroupEgress"] {
        account.ask(action, &own).unwrap();
        assert_eq!(account.refused(action, &own), "InvalidPermission.Duplicate");
    }
    assert_eq!(account.alive(Kind::SecurityGroupRule), 2);
    account.ask("RevokeSecurityGroupIngress", &own).unwrap();
    assert_eq!(account.refused("RevokeSecurityGroupIngress", &own), "InvalidPermission.NotFound");
    account.ask("DeleteSecurityGroup", &[("GroupId", &id)]).unwrap();
    assert_eq!(account.simulator.alive(), []);
    assert_eq!(account.refused("AuthorizeSecurityGroupIngress", &own), "InvalidGroup.NotFound");
}

#[test]
fn an_address_outlives_its_machine() {
    let account = Account::new(calm());
    let subnet = account.subnet("public-us-west-2a");
    let mut launch = account.launch("m5.large", "us-west-2a", (1, 1));
    set(&mut launch, "NetworkInterface.1.SubnetId", &subnet);
    let answer = account.ask_with("RunInstances", &launch).unwrap();
    let (instance, interface) =
        (texts(&answer, "instanceId").remove(0), texts(&answer, "networkInterfaceId").remove(0));
    let allocate = || account.ask("AllocateAddress", &[]).map(|answer| texts(&answer, "allocationId").remove(0));
    let id = allocate().unwrap();
    for _ in 1..5 {
        allocate().unwrap();
    }
    assert_eq!(allocate().unwrap_err().code, "AddressLimitExceeded");
    let place = [("AllocationId", id.as_str()), ("NetworkInterfaceId", interface.as_str())];
    account.ask("AssociateAddress", &place).unwrap();
    assert_eq!(account.refused("ReleaseAddress", &[("AllocationId", &id)]), "InvalidIPAddress.InUse");
    account.terminate(&[instance]);
    assert_eq!(account.alive(Kind::ElasticIp), 5);
    account.ask("ReleaseAddress", &[("AllocationId", &id)]).unwrap();
    assert_eq!(account.refused("ReleaseAddress", &[("AllocationId", &id)]), "InvalidAllocationID.NotFound");

    // A private network has no way out for it.
    let private = account.ask_with("RunInstances", &account.launch("m5.large", "us-west-2a", (1, 1))).unwrap();
    let id = texts(&account.ask("DescribeAddresses", &[]).unwrap(), "allocationId").remove(0);
    let interface = texts(&private, "networkInterfaceId").remove(0);
    let place = [("AllocationId", id.as_str()), ("NetworkInterfaceId", interface.as_str())];
    assert_eq!(account.refused("AssociateAddress", &place), "Gateway.NotAttached");
}

#[test]
fn the_book_knows_what_was_left_behind() {
    let account = Account::new(calm());
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    set(&mut launch, "NetworkInterface.1.DeleteOnTermination", "false");
    set(&mut launch, "BlockDeviceMapping.1.DeviceName", "/dev/sdf");
    set(&mut launch, "BlockDeviceMapping.1.Ebs.VolumeSize", "10");
    set(&mut launch, "BlockDeviceMapping.1.Ebs.DeleteOnTermination", "false");
    set(&mut launch, "TagSpecification.1.ResourceType", "volume");
    set(&mut launch, "TagSpecification.1.Tag.1.Key", "owner");
    set(&mut launch, "TagSpecification.1.Tag.1.Value", "dstack");
    let made = account.run(&launch);
    account.terminate(&made);
    let left = account.simulator.alive();
    let kinds: Vec<Kind> = left.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [Kind::NetworkInterface, Kind::Volume]);
    assert_eq!(left[1].tags["owner"], "dstack");
    assert!(left.iter().all(|entry: &Entry| entry.made_by == "RunInstances"));
    account.ask("DeleteNetworkInterface", &[("NetworkInterfaceId", &left[0].id)]).unwrap();
    account.ask("DeleteVolume", &[("VolumeId", &left[1].id)]).unwrap();
    assert_eq!(account.simulator.alive(), []);
    // An instance, an interface, and two disks.
    let ledger = account.simulator.ledger();
    assert!(ledger.len() == 4 && ledger.iter().all(|entry| entry.gone_at.is_some()), "{ledger:?}");
}

#[test]
fn addresses_of_a_subnet_are_given_back() {
    let account = Account::new(calm());
    let subnet = account.subnet("private-us-west-2a");
    let free = || {
        let described = account.ask("DescribeSubnets", &[("SubnetId.1", &subnet)]).unwrap();
        texts(&described, "availableIpAddressCount").remove(0).parse::<u32>().unwrap()
    };
    let before = free();
    let made = account.run(&account.launch("p4d.24xlarge", "us-west-2a", (3, 3)));
    assert_eq!(free(), before - 3);
    account.terminate(&made);
    assert_eq!(free(), before);
}

#[test]
fn new_groups_may_be_seen_late() {
    let account = Account::new(Settings { resource_unseen_ms: 1_000, ..calm() });
    let id = group(&account);
    account.ask("CreatePlacementGroup", &[("GroupName", "group"), ("Strategy", "cluster")]).unwrap();
    assert_eq!(account.refused("DescribeSecurityGroups", &[("GroupId.1", &id)]), "InvalidGroup.NotFound");
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    set(&mut launch, "Placement.GroupName", "group");
    assert_eq!(account.ask_with("RunInstances", &launch).unwrap_err().code, "InvalidPlacementGroup.Unknown");
    account.pass(1_000);
    account.ask("DescribeSecurityGroups", &[("GroupId.1", &id)]).unwrap();
    account.run(&launch);
}

#[test]
fn disks_stay_in_their_zone() {
    let account = Account::new(calm());
    let instance = account.run(&account.launch("m5.large", "us-west-2a", (1, 1))).remove(0);
    let make = |zone| {
        let fields = [("AvailabilityZone", zone), ("Size", "10"), ("VolumeType", "gp3")];
        texts(&account.ask("CreateVolume", &fields).unwrap(), "volumeId").remove(0)
    };
    let (near, far) = (make("us-west-2a"), make("us-west-2b"));
    let attach = |volume: &str, device: &str| {
        let fields = [("VolumeId", volume), ("InstanceId", &instance), ("Device", device)];
        account.ask("AttachVolume", &fields).map(drop).map_err(|refused| refused.code)
    };
    assert_eq!(attach(&far, "/dev/sdf"), Err("InvalidVolume.ZoneMismatch".to_owned()));
    assert_eq!(attach(&near, "/dev/sda1"), Err("InvalidParameterValue".to_owned()));
    assert_eq!(attach(&near, "/dev/sdf"), Ok(()));
    assert_eq!(attach(&near, "/dev/sdg"), Err("VolumeInUse".to_owned()));
    account.terminate(&[instance]);
    account.ask("DeleteVolume", &[("VolumeId", &near)]).unwrap();
    assert_eq!(account.alive(Kind::Volume), 1);
}

#[test]
fn throttling_is_by_the_action_and_ends_by_itself() {
    let account = Account::new(Settings::immediate());
    account.order("rates", &json!({"bucket": "DescribeInstances", "capacity": 2, "per_second": 1}));
    let ask = || account.ask("DescribeInstances", &[]).map(drop).map_err(|refused| (refused.status, refused.code));
    let throttled = Err((503, "RequestLimitExceeded".to_owned()));
    assert_eq!([ask(), ask(), ask()], [Ok(()), Ok(()), throttled.clone()]);
    account.ask("DescribeVpcs", &[]).unwrap();
    account.pass(1_000);
    assert_eq!([ask(), ask()], [Ok(()), throttled]);
    assert_eq!(account.simulator.counts()["DescribeInstances"], 5);
}
