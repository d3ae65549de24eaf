//! Fleets: names, changes in place, instances, deletion, lists.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Home, TestServer};
use crate::support::{events, main, server_with_cloud, task};

#[tokio::test]
async fn a_fleet_without_a_name_gets_one() {
    let server = TestServer::new().await;
    let fleet = server.apply_fleet(json!({})).await;
    let name = fleet["name"].as_str().unwrap();
    assert_eq!(name.split('-').count(), 2, "{name}");
    assert_eq!(fleet["spec"]["configuration"]["name"], name);
}

#[tokio::test]
async fn a_fleet_is_changed_in_place_as_planned() {
    let server = TestServer::new().await;
    let made = server.apply_fleet(json!({"name": "tpl"})).await;
    let spec = |keys: Value| {
        let mut configuration = json!({"type": "fleet", "name": "tpl", "nodes": "0..3"});
        configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        json!({"configuration": configuration, "profile": {}})
    };
    let plan = server.post(&main("fleets/get_plan"), json!({"spec": spec(json!({}))})).await.ok();
    assert_eq!((&plan["action"], &plan["current_resource"]["id"]), (&json!("update"), &made["id"]));
    let recreate = server.post(&main("fleets/get_plan"), json!({"spec": spec(json!({"blocks": 2}))})).await.ok();
    assert_eq!(recreate["action"], "create");
    let apply = |current: Value, force: bool| json!({"plan": {"spec": plan["spec"], "current_resource": current}, "force": force});
    let message = "Failed to apply plan. Resource has been changed. Try again or use force apply.";
    server.post(&main("fleets/apply"), apply(Value::Null, false)).await.expect_bad_request(message, "error");
    let mut seen = plan["current_resource"].clone();
    seen["spec"].as_object_mut().unwrap().remove("autocreated");
    let changed = server.post(&main("fleets/apply"), apply(seen, false)).await.ok();
    assert_eq!(changed["id"], made["id"]);
    assert_eq!(changed["spec"]["configuration"]["nodes"], json!({"min": 0, "max": 3}));
    let told = events(&server, json!({"target_fleets": [made["id"]]})).await;
    let message = "Fleet updated. Changed fields: nodes".to_owned();
    assert_eq!(told[0], (message, Some("admin".to_owned())));
    let blocks = json!({"plan": {"spec": spec(json!({"blocks": 2}))}, "force": true});
    let refused = server.post(&main("fleets/apply"), blocks).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
}

#[tokio::test]
async fn a_host_without_a_key_is_refused() {
    let server = TestServer::new().await;
    let spec = json!({"configuration": {"type": "fleet", "ssh_config": {"user": "u", "hosts": ["1.2.3.4"]}}, "profile": {}});
    let message = "no private key for 1.2.3.4: `identity_file` is needed";
    server.post(&main("fleets/get_plan"), json!({ "spec": spec })).await.expect_bad_request(message, "error");
    let apply = json!({"plan": {"spec": spec}, "force": false});
    server.post(&main("fleets/apply"), apply).await.expect_bad_request(message, "error");
}

/// Nobody answers there.
const NOBODY: &str = "127.0.0.1:1";

/// A fleet of hosts where nobody answers.
fn own(name: &str, hosts: &[&str], key: &str) -> Value {
    let hosts: Vec<Value> = hosts.iter().map(|host| json!({"hostname": host, "port": 1})).collect();
    let key = json!({"public": "", "private": key});
    json!({
        "configuration": {"type": "fleet", "name": name, "ssh_config": {"user": "u", "hosts": hosts, "ssh_key": key}},
        "profile": {},
    })
}

#[tokio::test]
async fn a_host_belongs_to_one_fleet_and_its_key_is_told_to_nobody() {
    let server = TestServer::new().await;
    let me = server.post("/api/users/get_my_user", Value::Null).await.ok();
    let key = me["ssh_private_key"].as_str().unwrap().to_owned();
    let apply = async |spec: &Value| {
        let plan = server.post(&main("fleets/get_plan"), json!({ "spec": spec })).await.ok();
        assert_eq!(
            plan["spec"]["configuration"]["ssh_config"]["ssh_key"]["private"], *key,
            "clients apply the plan"
        );
        assert!(plan["effective_spec"]["configuration"]["ssh_config"]["ssh_key"].is_null());
        let plan = json!({"spec": plan["spec"], "current_resource": plan["current_resource"]});
        server.post(&main("fleets/apply"), json!({"plan": plan, "force": false})).await
    };
    let fleet = apply(&own("own", &["127.0.0.1", "127.0.0.2"], &key)).await.ok();
    let hosts: Vec<&str> =
        fleet["instances"].as_array().unwrap().iter().map(|it| it["hostname"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["127.0.0.1", "127.0.0.2"]);
    assert!(!fleet.to_string().contains("PRIVATE KEY"));
    let message = format!("The host {NOBODY} belongs to the fleet own already.");
    apply(&own("other", &["127.0.0.3", "127.0.0.1"], &key)).await.expect_bad_request(&message, "error");
    server
        .post(&main("fleets/get"), json!({"name": "other"}))
        .await
        .expect_bad_request("Resource not found", "resource_not_exists");
    // One is taken out, another comes, and the third is as it was.
    let kept = fleet["instances"][1]["id"].clone();
    let fleet = apply(&own("own", &["127.0.0.2", "127.0.0.3"], &key)).await.ok();
    let with = |hostname: &str| {
        let all = fleet["instances"].as_array().unwrap();
        all.iter().find(|it| it["hostname"] == hostname).cloned().unwrap_or_default()
    };
    assert_eq!(with("127.0.0.2")["id"], kept);
    assert_eq!(with("127.0.0.3")["instance_num"], 2);
    let wrong = json!([{"hostname": "127.0.0.2", "port": 1, "blocks": 2}]);
    let mut changed = own("own", &[], &key);
    changed["configuration"]["ssh_config"]["hosts"] = wrong;
    let message =
        "The host 127.0.0.2 cannot be changed in place. Remove it from `hosts` and apply, then add it again.";
    apply(&changed).await.expect_bad_request(message, "error");
}

#[tokio::test]
async fn a_deleted_fleet_ends_at_once_and_is_gone_when_its_instances_are() {
    let server = server_with_cloud().await;
    let fleet = server.apply_fleet(json!({"name": "fix", "nodes": 1})).await;
    assert_eq!(fleet["instances"][0]["name"], "fix-0");
    server.post(&main("fleets/delete"), json!({"names": ["fix", "nosuch"]})).await.ok();
    let mut statuses = vec![];
    for _ in 0..3_000 {
        let got = server.post(&main("fleets/get"), json!({"name": "fix"})).await;
        if got.status == 400 {
            got.expect_bad_request("Resource not found", "resource_not_exists");
            break;
        }
        statuses.push(got.ok()["status"].as_str().unwrap().to_owned());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(statuses.iter().all(|status| status == "terminating"), "{statuses:?}");
    assert!(statuses.len() < 3_000);
    let by_id = server.post(&main("fleets/get"), json!({"id": fleet["id"]})).await.ok();
    assert_eq!(by_id["status"], "terminated");
    let told = events(&server, json!({"target_fleets": [fleet["id"]]})).await;
    let ends: Vec<_> = told.iter().filter(|(message, _)| message.contains("-> TERMINATING")).collect();
    assert_eq!(ends, [&("Fleet status changed ACTIVE -> TERMINATING".to_owned(), Some("admin".to_owned()))]);
    assert_eq!(server.post(&main("fleets/list"), Value::Null).await.ok(), json!([]));
    let all = server.post("/api/fleets/list", json!({})).await.ok();
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!(server.post("/api/fleets/list", json!({"only_active": true})).await.ok(), json!([]));
    let instances = server.post("/api/instances/list", json!({})).await.ok();
    assert_eq!(instances[0]["status"], "terminated");
    let one = server.post(&main("instances/get"), json!({"id": instances[0]["id"]})).await.ok();
    assert_eq!(one, instances[0]);
}

#[tokio::test]
async fn lists_of_all_projects_come_in_pages() {
    let server = TestServer::new().await;
    for name in ["aa", "bb", "cc"] {
        server.apply_fleet(json!({ "name": name })).await;
    }
    let mut page = json!({"limit": 1});
    let mut names = vec![];
    loop {
        let fleets = server.post("/api/fleets/list", page.clone()).await.ok();
        let Some(last) = fleets.as_array().unwrap().last() else { break };
        page["prev_created_at"] = last["created_at"].clone();
        page["prev_id"] = last["id"].clone();
        names.push(last["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names, ["cc", "bb", "aa"]);
    let bob = server.user("bob").await;
    assert_eq!(server.post_as(&bob, "/api/fleets/list", json!({})).await.ok(), json!([]));
}

#[tokio::test]
async fn accelerators_are_grouped() {
    let server = server_with_cloud().await;
    let spec = json!({"configuration": {"type": "task", "image": "scratch", "commands": [":"],
        "resources": {"cpu": "1..", "memory": "0..", "gpu": "H100", "disk": null}}});
    let list = |group_by: Value| json!({"run_spec": spec, "group_by": group_by});
    let grouped = server.post(&main("gpus/list"), list(json!(["backend", "region"]))).await.ok();
    let expected = json!({"gpus": [{
        "name": "H100", "memory_mib": 81920, "vendor": "nvidia", "availability": ["available"], "spot": ["on-demand"],
        "count": {"min": 8, "max": 8}, "price": {"min": 2.5, "max": 2.5}, "offer_price": {"min": 20.0, "max": 20.0},
        "backend": "cudo", "region": "fake-1",
    }]});
    assert_eq!(grouped, expected);
    let plain = server.post(&main("gpus/list"), list(Value::Null)).await.ok();
    assert_eq!(plain["gpus"][0]["backends"], json!(["cudo"]));
    assert!(plain["gpus"][0].get("regions").is_none() && plain.get("cpus").is_none());
    let wrong = server.post(&main("gpus/list"), list(json!(["region"]))).await;
    wrong.expect_bad_request("Cannot group by 'region' without also grouping by 'backend'", "error");
}

#[tokio::test]
async fn a_fleet_buys_what_the_waiting_job_needs() {
    let server = server_with_cloud().await;
    server.apply_fleet(json!({"name": "tpl"})).await;
    let keys = |gpu: &str| json!({"resources": {"gpu": gpu, "cpu": "1..", "memory": "1..", "disk": null}});
    server.apply(task("fits", keys("H100:8"))).await;
    // The cheapest machine has no accelerator.
    let mut bought = Value::Null;
    for _ in 0..3_000 {
        let fleet = server.post(&main("fleets/get"), json!({"name": "tpl"})).await.ok();
        bought = fleet["instances"][0]["instance_type"]["name"].clone();
        if !bought.is_null() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bought, "large");
    server.apply(task("does-not", keys("H100:64"))).await;
    let run = server.wait_for_run("does-not", &["failed"]).await;
    let submission = &run["latest_job_submission"];
    assert_eq!(submission["status_message"], "no capacity");
    let message = submission["termination_reason_message"].as_str().unwrap();
    assert!(message.contains("`gpu` count 64 is needed, 8 is there"), "{message}");
}

/// A server whose pretended cloud is for global admins only, and a user who is none.
async fn server_for_admins() -> (TestServer, String) {
    let home = Home::new();
    home.configure("projects:\n- name: main\n  backends:\n  - type: fake\n    admins_only: true\n");
    let server = home.start(&["--test-backends"]).await;
    let bob = server.user("bob").await;
    let add = json!({"members": [{"username": "bob", "project_role": "user"}]});
    server.post("/api/projects/main/add_members", add).await.ok();
    (server, bob)
}

async fn apply_as(server: &TestServer, token: &str, run_spec: Value) {
    let body = json!({"plan": {"run_spec": run_spec}, "force": false});
    server.post_as(token, &main("runs/apply"), body).await.ok();
}

const ADMINS_ONLY: &str = "only global admins may use";

#[tokio::test]
async fn an_admins_fleet_buys_nothing_for_others_that_only_admins_may_use() {
    let (server, bob) = server_for_admins().await;
    server.apply_fleet(json!({"name": "own"})).await;
    apply_as(&server, &bob, task("of-bob", json!({"image": "scratch"}))).await;
    let run = server.wait_for_run("of-bob", &["failed", "provisioning", "running"]).await;
    let submission = &run["latest_job_submission"];
    assert_eq!((&run["status"], &submission["status_message"]), (&json!("failed"), &json!("no capacity")));
    let message = submission["termination_reason_message"].as_str().unwrap();
    assert!(message.contains(ADMINS_ONLY), "{message}");
    let fleet = server.post(&main("fleets/get"), json!({"name": "own"})).await.ok();
    assert_eq!(fleet["instances"], json!([]));
    server.apply(task("of-admin", json!({"image": "scratch"}))).await;
    wait_for_types(&server, "own", &["small"]).await;
}

#[tokio::test]
async fn only_admins_run_processes_without_a_container() {
    let (server, bob) = server_for_admins().await;
    let spec = task("bare", json!({"runtime": "process"}));
    let apply = json!({"plan": {"run_spec": spec}, "force": false});
    for (verb, body) in [("runs/apply", apply.clone()), ("runs/get_plan", json!({"run_spec": spec}))] {
        let refused = server.post_as(&bob, &main(verb), body).await;
        let said = (refused.status, refused.body.to_string());
        assert!(said.0 == 400 && said.1.contains("`runtime: process` is for global admins only"), "{said:?}");
    }
    server.post(&main("runs/apply"), apply).await.ok();
}

#[tokio::test]
async fn a_fleet_that_somebody_else_changed_no_longer_buys_with_an_admins_rights() {
    let (server, bob) = server_for_admins().await;
    server.apply_fleet(json!({"name": "own"})).await;
    let spec = json!({"configuration": {"type": "fleet", "name": "own", "nodes": "0..3"}, "profile": {}});
    let apply = json!({"plan": {"spec": spec}, "force": true});
    server.post_as(&bob, &main("fleets/apply"), apply).await.ok();
    server.apply(task("of-admin", json!({"image": "scratch"}))).await;
    let run = server.wait_for_run("of-admin", &["failed", "provisioning", "running"]).await;
    assert_eq!(run["status"], "failed");
    let message = run["latest_job_submission"]["termination_reason_message"].as_str().unwrap();
    assert!(message.contains(ADMINS_ONLY), "{message}");
}

/// Waits until a fleet has machines of just these types, in any order.
async fn wait_for_types(server: &TestServer, fleet: &str, expected: &[&str]) {
    let mut types: Vec<String> = vec![];
    for _ in 0..500 {
        let got = server.post(&main("fleets/get"), json!({ "name": fleet })).await.ok();
        let of = |instance: &Value| instance["instance_type"]["name"].as_str().map(str::to_owned);
        types = got["instances"].as_array().unwrap().iter().filter_map(of).collect();
        types.sort();
        if types == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("fleet `{fleet}` has {types:?} and not {expected:?}");
}

#[tokio::test]
async fn runs_that_need_different_machines_are_bought_for_one_by_one() {
    let server = server_with_cloud().await;
    server.apply_fleet(json!({"name": "tpl", "nodes": "0..4"})).await;
    let needs = |gpu: Value| json!({"gpu": gpu, "cpu": "1..", "memory": "1..", "disk": null});
    let cheap = json!({"resources": needs(json!("0..")), "max_price": 0.5});
    // Both are asked for before anybody looks.
    let dear = task("dear", json!({"resources": needs(json!("H100:8"))}));
    tokio::join!(server.apply(dear), server.apply(task("cheap", cheap)));
    wait_for_types(&server, "tpl", &["large", "small"]).await;
}

#[tokio::test]
async fn the_fleet_that_can_buy_what_is_needed_grows() {
    let server = server_with_cloud().await;
    let fleet = |name: &str, gpu: &str| {
        let resources = json!({"gpu": gpu, "cpu": "1..", "memory": "1..", "disk": null});
        json!({"name": name, "nodes": "0..4", "resources": resources})
    };
    server.apply_fleet(fleet("older", "0")).await;
    server.apply_fleet(fleet("newer", "8")).await;
    let resources = json!({"gpu": "H100:8", "cpu": "1..", "memory": "1..", "disk": null});
    server.apply(task("large", json!({ "resources": resources }))).await;
    wait_for_types(&server, "newer", &["large"]).await;
}

#[tokio::test]
async fn machines_made_for_a_run_are_idle_as_long_as_run_and_fleet_allow() {
    let server = server_with_cloud().await;
    server.apply_fleet(json!({"name": "tpl", "nodes": "0..4", "idle_duration": "1h"})).await;
    server.apply(task("short", json!({"idle_duration": "2m"}))).await;
    wait_for_types(&server, "tpl", &["small"]).await;
    let rows = store::projects::find_by_name(&server.server.deps.db, "main").await.unwrap().unwrap();
    let instances = store::instances::list_by_project(&server.server.deps.db, rows.id).await.unwrap();
    assert_eq!(instances[0].value.state.idle_duration_secs, Some(120));
}

#[tokio::test]
async fn instances_are_ended_by_whoever_asked() {
    let server = server_with_cloud().await;
    let fleet = server.apply_fleet(json!({"name": "fix", "nodes": 1})).await;
    wait_for_types(&server, "fix", &["small"]).await;
    server.post(&main("fleets/delete_instances"), json!({"name": "fix", "instance_nums": [0]})).await.ok();
    let told = events(&server, json!({"target_instances": [fleet["instances"][0]["id"]]})).await;
    assert!(told.contains(&("Instance termination requested".to_owned(), Some("admin".to_owned()))), "{told:?}");
}

#[tokio::test]
async fn an_instance_has_no_health_checks_to_tell_of() {
    let server = server_with_cloud().await;
    server.apply_fleet(json!({"name": "checked", "nodes": 1})).await;
    let path = main("instances/get_instance_health_checks");
    let ask = |num: u32, fleet: &str| server.post(&path, json!({"fleet_name": fleet, "instance_num": num}));
    assert_eq!(ask(0, "checked").await.ok(), json!({"health_checks": []}));
    ask(7, "checked").await.expect_bad_request("Resource not found", "resource_not_exists");
    ask(0, "other").await.expect_bad_request("Resource not found", "resource_not_exists");
}

#[tokio::test]
async fn what_was_found_of_an_instance_is_told_as_the_original_tells_it() {
    let server = server_with_cloud().await;
    server.apply_fleet(json!({"name": "tpl", "nodes": 1})).await;
    let path = main("instances/get_instance_health_checks");
    let asked = |keys: Value| {
        let mut body = json!({"fleet_name": "tpl", "instance_num": 0});
        body.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        server.post(&path, body)
    };
    let found_at: jiff::Timestamp = "2026-11-26T08:00:00Z".parse().unwrap();
    let db = &server.server.deps.db;
    let project = store::projects::find_by_name(db, "main").await.unwrap().unwrap().id;
    // Whoever moves the instance on may be faster.
    let mut is_saved = false;
    for _ in 0..3_000 {
        let rows = store::instances::list_by_project(db, project).await.unwrap();
        if let Some(mut row) = rows.into_iter().next() {
            let check = |name: &str, status, detail: &str| lifecycle::instance::Check {
                name: name.to_owned(),
                status,
                detail: detail.to_owned(),
            };
            row.value.status = api::instances::InstanceStatus::Idle;
            row.value.state.joined_at = Some(found_at);
            row.value.state.health_at = Some(found_at);
            row.value.state.health.checks = vec![
                check("efa", api::instances::HealthStatus::Failure, "31/32"),
                check("gpus", api::instances::HealthStatus::Healthy, "8/8"),
            ];
            let mut tx = db.begin().await.unwrap();
            is_saved = store::instances::save(&mut tx, &row).await.is_ok() && tx.commit().await.is_ok();
        }
        if is_saved {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_saved);
    let event = |status: &str, message: &str| json!({"timestamp": "2026-11-26T08:00:00Z", "status": status, "message": message});
    let events = [event("failure", "efa 31/32"), event("healthy", "gpus 8/8")];
    let expected = json!({"collected_at": "2026-11-26T08:00:00Z", "status": "failure", "events": events});
    assert_eq!(asked(json!({})).await.ok(), json!({ "health_checks": [expected] }));
    assert_eq!(asked(json!({"after": "2026-11-26T07:00:00Z"})).await.ok(), json!({ "health_checks": [expected] }));
    for nothing in
        [json!({"after": "2026-11-26T08:00:00Z"}), json!({"before": "2026-11-26T08:00:00Z"}), json!({"limit": 0})]
    {
        assert_eq!(asked(nothing).await.ok(), json!({"health_checks": []}));
    }
    let fleet = server.post(&main("fleets/get"), json!({"name": "tpl"})).await.ok();
    assert_eq!(fleet["instances"][0]["health_status"], "failure");
}
