//! What the configuration's keys make of a launch.

use backends::MachineState;
use ec2sim::{ACCESS_KEY, SECRET_KEY};
use serde_json::{Value, json};

use crate::rig::{REGION, Rig, key};

/// What was asked with the last request for machines.
fn last_launch(rig: &Rig) -> Value {
    let calls = rig.sim.calls();
    let launch = calls.iter().rev().find(|call| call.action == "RunInstances" && call.error.is_none());
    launch.unwrap().parameters.clone()
}

#[tokio::test]
async fn networks_groups_and_disks_are_those_that_are_given() {
    let rig = Rig::private().await;
    let order = rig.order(1, 1).await;
    let usual = rig.backend.prepare(&order).await.unwrap();
    let (subnet, group) = (usual["subnet_id"].clone(), usual["security_group_ids"][0].clone());
    let groups = rig.count("AuthorizeSecurityGroupIngress");
    let given = rig.reconfigured(&json!({
        "vpc_name": null, "subnet_ids": { REGION: [subnet] }, "security_group_ids": { REGION: [group] },
        "root_volume": { "type": "io2", "iops": 5000, "encrypted": true }, "tags": { "team": "research" },
    }));
    given.check().await.unwrap();
    let mut order = rig.order(2, 1).await;
    order.prepared = given.prepare(&order).await.unwrap();
    given.launch(&order).await.unwrap();
    let asked = last_launch(&rig);
    for interface in asked["NetworkInterfaces"].as_array().unwrap() {
        assert_eq!((&interface["SubnetId"], &interface["Groups"]), (&subnet, &json!([group])));
    }
    let disk = &asked["BlockDeviceMappings"][0]["Ebs"];
    assert_eq!(
        (&disk["VolumeType"], &disk["Iops"], &disk["Encrypted"]),
        (&json!("io2"), &json!(5000), &json!(true))
    );
    assert!(asked["TagSpecifications"].to_string().contains("research"), "{asked}");
    // What is given is not changed.
    assert_eq!(rig.count("AuthorizeSecurityGroupIngress"), groups);
    given.terminate(&key(2, 0)).await.unwrap();
    rig.end_everything().await;
}

#[tokio::test]
async fn a_role_is_taken_and_used_for_everything() {
    let rig = Rig::private().await;
    let role = "arn:aws:iam::123456789012:role/dstack-instance-role";
    let source = json!({ "type": "access_key", "access_key": ACCESS_KEY, "secret_key": SECRET_KEY });
    let creds = json!({ "type": "assume_role", "role_arn": role, "source": source });
    let of_role = rig.reconfigured(&json!({ "creds": creds }));
    of_role.check().await.unwrap();
    let mut order = rig.order(1, 1).await;
    order.prepared = of_role.prepare(&order).await.unwrap();
    of_role.launch(&order).await.unwrap();
    let calls = rig.sim.calls();
    let launch = calls.iter().find(|call| call.action == "RunInstances" && call.error.is_none()).unwrap();
    assert!(launch.access_key.starts_with("ASIA"), "{}", launch.access_key);
    rig.machines(MachineState::Running, 1).await;
    rig.end_everything().await;
    let unknown = json!({ "type": "assume_role", "role_arn": role.replace("dstack", "no"), "source": source });
    let refused = rig.reconfigured(&json!({ "creds": unknown })).check().await.unwrap_err();
    assert!(refused.message.contains("`creds` of backend `aws`: Invalid credentials"), "{refused}");
}
