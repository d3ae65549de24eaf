//! Who may do what, and trying without doing.

use ec2sim::Kind;
use serde_json::json;

use crate::account::{Account, calm, set};

fn allow(account: &Account, actions: &[&str]) {
    account.order("credentials/allow", &json!({"access_key": account.access_key, "allowed": actions}));
}

#[test]
fn what_the_policy_does_not_name_is_refused() {
    let account = Account::new(calm());
    let launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    let code = |launch: &_| account.ask_with("RunInstances", launch).map_err(|refused| refused.code);
    allow(&account, &["ec2:Describe*"]);
    let refused = account.ask_with("RunInstances", &launch).unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (403, "UnauthorizedOperation"));
    assert!(refused.message.contains("ec2:RunInstances"), "{}", refused.message);

    // Tags and profiles need a permission of their own.
    allow(&account, &["ec2:Describe*", "ec2:RunInstances"]);
    let mut tagged = launch.clone();
    set(&mut tagged, "TagSpecification.1.ResourceType", "instance");
    set(&mut tagged, "TagSpecification.1.Tag.1.Key", "owner");
    assert_eq!(code(&tagged), Err("UnauthorizedOperation".to_owned()));
    let mut profiled = launch.clone();
    set(&mut profiled, "IamInstanceProfile.Name", "dstack-instance");
    assert_eq!(code(&profiled), Err("UnauthorizedOperation".to_owned()));
    assert_eq!(account.alive(Kind::Instance), 0);
    account.run(&launch);
    allow(&account, &["ec2:*", "iam:PassRole"]);
    account.run(&tagged);
    account.run(&profiled);
}

#[test]
fn a_dry_run_tells_whether_one_might_and_does_nothing() {
    let account = Account::new(calm());
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    set(&mut launch, "DryRun", "true");
    let refused = account.ask_with("RunInstances", &launch).unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (412, "DryRunOperation"));
    let dry = |action: &str, fields: &[(&str, &str)]| {
        let mut fields = fields.to_vec();
        fields.push(("DryRun", "true"));
        account.refused(action, &fields)
    };
    assert_eq!(dry("CreatePlacementGroup", &[("GroupName", "group"), ("Strategy", "cluster")]), "DryRunOperation");
    assert_eq!(dry("AllocateAddress", &[]), "DryRunOperation");
    assert_eq!(dry("DescribeInstances", &[]), "DryRunOperation");
    assert_eq!(dry("CreateSecurityGroup", &[("GroupName", "x"), ("GroupDescription", "x")]), "DryRunOperation");
    assert_eq!(account.simulator.alive(), []);
    allow(&account, &["ec2:Describe*"]);
    assert_eq!(dry("AllocateAddress", &[]), "UnauthorizedOperation");
}

#[test]
fn keys_expire_and_are_taken_away() {
    let account = Account::new(calm());
    let key = account.access_key;
    account.order("credentials/expire", &json!({"access_key": key, "at": "2026-03-01T12:01:00Z"}));
    account.ask("DescribeVpcs", &[]).unwrap();
    account.pass(61_000);
    assert_eq!(account.refused("DescribeVpcs", &[]), "RequestExpired");
    account.order("credentials", &json!({"credentials": []}));
    assert_eq!(account.refused("DescribeVpcs", &[]), "AuthFailure");
}

#[test]
fn regions_that_the_account_has_not_asked_for_refuse() {
    let mut account = Account::new(calm());
    account.region = "ap-southeast-3";
    assert_eq!(account.refused("DescribeVpcs", &[]), "AuthFailure");
    account.order("settings", &json!({"opted_in": ["ap-southeast-3"]}));
    account.ask("DescribeVpcs", &[]).unwrap();
    account.region = "mars-north-1";
    assert_eq!(account.refused("DescribeVpcs", &[]), "AuthFailure");
}
