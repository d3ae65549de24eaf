//! Whose machines they are: what users find in their bills.

use api::instances::InstanceStatus;
use api::runs::RunStatus;
use api::users::GlobalRole;
use ec2sim::Kind;
use serde_json::json;
use store::users::UserRow;

use crate::world::{World, quick};

/// Gives the owner of the world's fleets and runs a name.
async fn name_owner(world: &World) {
    let owner = UserRow {
        id: world.user,
        name: "ann".to_owned(),
        role: GlobalRole::User,
        email: None,
        active: true,
        deleted: false,
        created_at: world.deps.clock.now(),
        token_hash: String::new(),
        sealed_token: String::new(),
        ssh_public_key: String::new(),
        sealed_ssh_private_key: String::new(),
    };
    store::users::insert(&world.deps.db, &owner).await.unwrap();
}

/// Checks the tags of every instance, interface and disk that lives.
#[track_caller]
fn check(world: &World, expected: &[(&str, Option<&str>)]) {
    for kind in [Kind::Instance, Kind::NetworkInterface, Kind::Volume] {
        let alive: Vec<_> = world.sim.alive().into_iter().filter(|entry| entry.kind == kind).collect();
        assert!(!alive.is_empty(), "{kind:?}");
        for entry in alive {
            for (key, value) in expected {
                assert_eq!(entry.tags.get(*key).map(String::as_str), *value, "`{key}` of {kind:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_carry_the_tags_of_their_fleet_and_of_the_run_that_they_are_bought_for() {
    let mut world = World::start(quick()).await;
    name_owner(&world).await;
    world.add_fleet(json!(2), json!({ "tags": { "team": "a", "dstack_fleet_id": "none" } })).await;
    world.wait_for_instances(InstanceStatus::Idle, 2).await;
    let fleet_id = world.fleet.to_string();
    let of_fleet = [
        ("team", Some("a")),
        ("dstack_name", Some("my-efa-fleet")),
        ("dstack_user", Some("ann")),
        ("dstack_fleet_id", Some(fleet_id.as_str())),
        ("purpose", None),
    ];
    check(&world, &of_fleet);
    world.delete_fleet().await;
    world.wait_for_end().await;
    world.add_fleet(json!("0..1"), json!({ "tags": { "team": "a", "owner": "ann" } })).await;
    let run = world.submit(1, json!({ "tags": { "team": "b", "purpose": "train" } })).await;
    world.wait_for_run(run, RunStatus::Running).await;
    let of_run = [
        ("team", Some("b")),
        ("purpose", Some("train")),
        ("owner", Some("dstack")),
        ("dstack_name", Some("my-efa-fleet-0")),
        ("Name", Some("dstack-main-my-efa-fleet-0")),
    ];
    check(&world, &of_run);
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}
