//! Backends of projects through the API.

use serde_json::{Value, json};

use crate::harness::{Answer, Home, TestServer};

/// The backend that every build has.
fn own_kind() -> &'static str {
    "local"
}

#[tokio::test]
async fn backends_are_made_changed_shown_and_removed() {
    let server = TestServer::new().await;
    server.post("/api/projects/create", json!({"project_name": "team"})).await.ok();
    let kind = own_kind();
    let at = |verb: &str| format!("/api/project/team/backends/{verb}");
    let config = json!({"type": kind, "cpus": 2});
    let missing = server.post(&at("update"), config.clone()).await;
    missing.expect_bad_request("Resource not found", "resource_not_exists");
    assert_eq!(server.post(&at("create"), config.clone()).await.ok()["cpus"], 2);
    let again = server.post(&at("create"), config).await;
    again.expect_bad_request("Resource exists", "resource_exists");
    let yaml = json!({"config_yaml": format!("type: {kind}\ncpus: 3\n")});
    assert_eq!(server.post(&at("update_yaml"), yaml.clone()).await.ok(), Value::Null);
    let info = server.post(&at(&format!("{kind}/config_info")), Value::Null).await.ok();
    assert_eq!((&info["type"], &info["cpus"]), (&json!(kind), &json!(3)));
    let shown = server.post(&at(&format!("{kind}/get_yaml")), Value::Null).await.ok();
    assert_eq!(shown, json!({"name": kind, "config_yaml": format!("type: {kind}\ncpus: 3\n")}));
    let again = server.post(&at("create_yaml"), yaml.clone()).await;
    again.expect_bad_request("Resource exists", "resource_exists");
    assert_eq!(server.post(&at("delete"), json!({"backends_names": [kind]})).await.ok(), Value::Null);
    let gone = server.post(&at("delete"), json!({"backends_names": [kind]})).await;
    gone.expect_bad_request("Backend not available", "backend_not_available");
    server.post(&at("create_yaml"), yaml).await.ok();
}

#[tokio::test]
async fn what_is_wrong_with_a_backend_is_said() {
    let server = TestServer::new().await;
    for (verb, body, part) in [
        ("create", json!({"type": "gcp"}), "no backend of type `gcp`"),
        ("create", json!({}), "has no `type`"),
        ("create", json!({"type": own_kind(), "cpu": 2}), "did you mean `cpus`?"),
        ("create_yaml", json!({"config_yaml": "type: [\n"}), "config.yml:1"),
        ("update_yaml", json!({"config_yaml": "a: b\n"}), "has no `type`"),
    ] {
        let got = server.post(&format!("/api/project/main/backends/{verb}"), body).await;
        let message = got.body["detail"][0]["msg"].as_str().unwrap_or_default();
        assert!(got.status == 400 && message.contains(part), "{verb}: {} {}", got.status, got.body);
    }
}

#[tokio::test]
async fn only_global_admins_let_jobs_onto_the_servers_machine() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "team"})).await.ok();
    let at = |verb: &str| format!("/api/project/team/backends/{verb}");
    server.post_as(&bob, &at("create"), json!({"type": own_kind()})).await.expect_denied();
    let yaml = json!({"config_yaml": format!("type: {}\n", own_kind())});
    server.post_as(&bob, &at("create_yaml"), yaml).await.expect_denied();
    assert_eq!(server.post("/api/backends/list_types", Value::Null).await.ok(), json!(::backends::wire_types()));
}

#[tokio::test]
async fn a_project_in_use_stays() {
    let server = TestServer::new().await;
    let fleet = json!({"configuration": {"type": "fleet", "name": "tpl", "nodes": "0..1"}, "profile": {}});
    let apply = json!({"plan": {"spec": fleet}, "force": false});
    server.post("/api/project/main/fleets/apply", apply).await.ok();
    let got = server.post("/api/projects/delete", json!({"projects_names": ["main"]})).await;
    let message = "Failed to delete project main. Project is in use: 0 active runs, 1 active fleets. Stop the runs and \
                   delete the fleets first.";
    got.expect_bad_request(message, "error");
    let listed = server.post("/api/projects/list_only_no_fleets", Value::Null).await.ok();
    assert_eq!(listed, json!([]));
}

#[tokio::test]
async fn backends_for_tests_exist_in_tests_only() {
    let server = TestServer::new().await;
    let create = json!({"type": "fake"});
    let got = server.post("/api/project/main/backends/create", create.clone()).await;
    got.expect_bad_request("no backend of type `fake`", "error");
    let home = server.stop().await;
    home.configure("projects:\n- name: main\n  backends:\n  - type: fake\n");
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("project `main` has a backend of type `fake`, which exists for tests only"), "{error}");
    let server = home.start(&["--test-backends"]).await;
    let again = server.post("/api/project/main/backends/create", create).await;
    again.expect_bad_request("Resource exists", "resource_exists");
}

#[tokio::test]
async fn a_project_that_was_deleted_meanwhile_gets_no_backend() {
    let server = TestServer::new().await;
    let deps = &server.server.deps;
    server.post("/api/projects/create", json!({"project_name": "team"})).await.ok();
    let project = store::projects::find_by_name(&deps.db, "team").await.unwrap().unwrap();
    server.post("/api/projects/delete", json!({"projects_names": ["team"]})).await.ok();
    let config = ::backends::parse_config(&json!({"type": "local"})).unwrap();
    for kept in [
        server::accounts::add_backend(deps, project.id, &config).await,
        server::accounts::set_backend(deps, project.id, &config).await,
    ] {
        assert!(matches!(kept, Err(store::Error::Stale)), "{kept:?}");
    }
    assert!(store::backends::list(&deps.db, project.id).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_create_one_backend_one_is_told_that_it_exists() {
    let server = TestServer::new().await;
    for number in 0..10 {
        let name = format!("p{number}");
        server.post("/api/projects/create", json!({ "project_name": name })).await.ok();
        let path = format!("/api/project/{name}/backends/create");
        let create = || server.post(&path, json!({"type": "local"}));
        let (left, right) = tokio::join!(create(), create());
        let mut statuses = [left.status, right.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400], "{} {}", left.body, right.body);
    }
}

/// A backend of a cloud, with more keys.
fn of_cloud(more: &Value) -> Value {
    let mut config = json!({ "type": "aws", "creds": { "type": "default" }, "regions": ["us-west-2"] });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[track_caller]
fn expect_refusal(answer: &Answer, field: &str, code: &str, part: &str) {
    let told = &answer.body["detail"][0];
    assert_eq!((answer.status, &told["code"], &told["fields"]), (400, &json!(code), &json!([[field]])), "{told}");
    assert!(told["msg"].as_str().unwrap().contains(part), "{told}");
}

#[tokio::test]
async fn only_global_admins_say_where_the_server_connects_to() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "team"})).await.ok();
    let elsewhere = of_cloud(&json!({ "endpoint_url": "http://127.0.0.1:1" }));
    for verb in ["create", "update"] {
        let path = format!("/api/project/team/backends/{verb}");
        let got = server.post_as(&bob, &path, elsewhere.clone()).await;
        expect_refusal(&got, "endpoint_url", "error", "for global admins");
    }
    let yaml = "type: aws\ncreds: {type: default}\nendpoint_url: http://127.0.0.1:1\n";
    let got = server.post_as(&bob, "/api/project/team/backends/create_yaml", json!({ "config_yaml": yaml })).await;
    expect_refusal(&got, "endpoint_url", "error", "for global admins");
}

#[tokio::test]
async fn the_servers_own_credentials_are_nobodys_where_that_is_said() {
    let home = Home::new();
    home.configure("projects:\n- name: listed\n  backends:\n  - {type: aws, creds: {type: default}}\n");
    let server = home.start(&["--default-creds-disabled"]).await;
    for config in [
        of_cloud(&json!({})),
        of_cloud(&json!({ "creds": { "type": "assume_role", "role_arn": "arn:aws:iam::123456789012:role/a" } })),
    ] {
        let got = server.post("/api/project/main/backends/create", config).await;
        expect_refusal(&got, "creds", "invalid_credentials", "DSTACK_DEFAULT_CREDS_DISABLED");
    }
    assert_eq!(kinds_of(&server, "listed").await, Vec::<String>::new());
}

/// The backends that a project may buy from.
async fn kinds_of(server: &TestServer, project: &str) -> Vec<String> {
    let db = &server.server.deps.db;
    let project = store::projects::find_by_name(db, project).await.unwrap().unwrap();
    store::backends::list(db, project.id).await.unwrap().into_iter().map(|row| row.kind).collect()
}

#[tokio::test]
async fn a_project_that_leaves_the_file_keeps_only_what_others_gave_it() {
    let main = "projects:\n- name: main\n  backends:\n  - type: fake\n";
    let both = format!("{main}- name: team\n  backends:\n  - type: fake\n");
    let home = Home::new();
    home.configure(&both);
    let server = home.start(&["--test-backends"]).await;
    server.post("/api/projects/create", json!({"project_name": "own"})).await.ok();
    server.post("/api/project/own/backends/create", json!({"type": "fake"})).await.ok();
    server.post("/api/project/team/backends/create", json!({"type": own_kind()})).await.ok();
    let fleet = json!({"configuration": {"type": "fleet", "name": "lab", "nodes": 1}, "profile": {}});
    server.post("/api/project/team/fleets/apply", json!({"plan": {"spec": fleet}, "force": false})).await.ok();
    let home = server.stop().await;
    home.configure(main);
    let server = home.start(&["--test-backends"]).await;
    assert_eq!(kinds_of(&server, "team").await, [own_kind()]);
    assert_eq!(
        (kinds_of(&server, "own").await, kinds_of(&server, "main").await.len()),
        (vec!["fake".to_owned()], 1)
    );
    let told = server.post("/api/project/team/notes", Value::Null).await.ok();
    assert!(told["notes"][0].as_str().unwrap().starts_with("backend fake of project team is draining"), "{told}");
    let home = server.stop().await;
    home.configure(&both);
    let server = home.start(&["--test-backends"]).await;
    // The file says all that a project has which it lists.
    assert_eq!(kinds_of(&server, "team").await, ["fake"]);
    let told = server.post("/api/project/team/notes", Value::Null).await.ok();
    assert!(!told["notes"].to_string().contains("backend fake"), "{told}");
}
