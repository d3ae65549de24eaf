//! What users are told while machines are bought: by what they follow, and by `why`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use api::runs::RunStatus;
use api::users::GlobalRole;
use serde_json::{Value, json};
use server::http::router;
use server::sealing::token_hash;
use store::users::UserRow;
use tokio::net::TcpListener;

use crate::world::{REGION, World, quick};

const TOKEN: &str = "tok-admin-123";

/// Where the server's API answers, for its admin.
struct Api {
    url: String,
    client: reqwest::Client,
}

impl Api {
    async fn of(world: &World) -> Api {
        let admin = UserRow {
            id: world.user,
            name: "admin".to_owned(),
            role: GlobalRole::Admin,
            email: None,
            active: true,
            deleted: false,
            created_at: world.deps.clock.now(),
            token_hash: token_hash(TOKEN),
            sealed_token: String::new(),
            ssh_public_key: String::new(),
            sealed_ssh_private_key: String::new(),
        };
        store::users::insert(&world.deps.db, &admin).await.unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/api/project/main", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router(world.deps.clone())).into_future());
        Api { url, client: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        let request = self.client.post(format!("{}/{path}", self.url)).bearer_auth(TOKEN).json(&body);
        request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }
}

fn has_part(told: &BTreeSet<String>, part: &str) -> bool {
    told.iter().any(|one| one.contains(part))
}

/// AWS asks twice to be asked later, then the first zone has no room, and the other one is slow to say that it has.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_is_told_what_aws_said_and_what_is_asked_next() {
    let mut world = World::start(quick()).await;
    let api = Api::of(&world).await;
    for zone in ["us-west-2a", "us-west-2b", "us-west-2d"] {
        let of = json!({ "region": REGION, "instance_type": "p5.48xlarge", "zone": zone, "market": "on-demand" });
        let mut nothing = of;
        nothing["left"] = json!(0);
        world.control("capacity", nothing);
    }
    let run_instances = |more: Value| {
        let mut fault = json!({ "action": "RunInstances" });
        fault.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fault
    };
    world.control("faults", run_instances(json!({ "after": 3, "times": 1, "what": "delay", "ms": 2000 })));
    let limited = json!({
        "times": 2, "what": "error_before", "code": "RequestLimitExceeded",
        "message": "Request limit exceeded.", "status": 503,
    });
    world.control("faults", run_instances(limited));
    world.add_fleet(json!("0..2"), json!({})).await;
    let run = world.submit(2, json!({})).await;
    let [mut of_fleet, mut of_run, mut next] = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
    world
        .wait_until("the run has its machines", async || {
            let fleet = api.ask("fleets/get", json!({ "name": "my-efa-fleet" })).await;
            of_fleet.extend(fleet["instances"][0]["purchase"].as_str().map(str::to_owned));
            let shown = api.ask("runs/get", json!({ "run_name": "efa-task" })).await;
            let waits = &shown["jobs"][0]["job_submissions"][0]["waiting_for"];
            of_run.extend(waits.as_str().map(str::to_owned));
            let why = api.ask("why", json!({ "name": "my-efa-fleet" })).await;
            next.extend(why["next"].as_array().unwrap().iter().map(|step| step["what"].to_string()));
            shown["status"] == "running"
        })
        .await;
    world.wait_for_run(run, RunStatus::Running).await;
    for told in [&of_fleet, &of_run] {
        assert!(has_part(told, "us-west-2a: InsufficientInstanceCapacity; next us-west-2c"), "{told:?}");
        assert!(has_part(told, "us-west-2a: RequestLimitExceeded, asked again at "), "{told:?}");
    }
    assert!(has_part(&next, "`aws` is asked again for 2 × p5.48xlarge in us-west-2a"), "{next:?}");
    let why = api.ask("why", json!({ "name": "my-efa-fleet" })).await;
    let attempt = |attempt: &Value| {
        let text = |key: &str| attempt[key].as_str().unwrap_or_default().to_owned();
        (text("zone"), text("outcome"), text("code"))
    };
    let attempts: Vec<_> = why["attempts"].as_array().unwrap().iter().map(attempt).collect();
    let expected = [("us-west-2a", "failed", "InsufficientInstanceCapacity"), ("us-west-2c", "bought", "")];
    assert_eq!(attempts, expected.map(|(zone, outcome, code)| (zone.into(), outcome.into(), code.into())));
    let story = why["story"].to_string();
    assert!(story.contains("Next: the other zones, then other offers"), "{story}");
    assert!(story.contains("So it said 2 times since") && story.contains("It is asked again at"), "{story}");
    world.stop_run(run).await;
    world.wait_for_run(run, RunStatus::Terminated).await;
    world.delete_fleet().await;
    world.wait_for_end().await;
}
