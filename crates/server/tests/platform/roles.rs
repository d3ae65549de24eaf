//! Who may do what: a table of endpoints and roles.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Home, TestServer, answer};

/// The answers that each role gets: in the order global admin, project admin, manager, user, outsider.
/// `+` lets the request through to whatever it asks for, `-` is 403.
const TABLE: &[(&str, &str)] = &[
    ("/api/users/get_my_user", "+++++"),
    ("/api/users/list", "+++++"),
    ("/api/users/create", "+----"),
    ("/api/users/update", "+----"),
    ("/api/users/delete", "+----"),
    ("/api/users/get_user", "+----"),
    ("/api/users/refresh_token", "+----"),
    ("/api/users/refresh_ssh_key", "+----"),
    ("/api/users/public_keys/list", "+++++"),
    ("/api/events/list", "+++++"),
    ("/api/projects/list", "+++++"),
    ("/api/projects/list_only_no_fleets", "+++++"),
    ("/api/projects/create", "+++++"),
    ("/api/projects/team/get", "++++-"),
    ("/api/projects/team/update", "++---"),
    ("/api/projects/team/set_members", "+++--"),
    ("/api/projects/team/add_members", "+++--"),
    ("/api/projects/team/remove_members", "+++--"),
    ("/api/project/team/backends/create", "++---"),
    ("/api/project/team/backends/update", "++---"),
    ("/api/project/team/backends/delete", "++---"),
    ("/api/project/team/backends/create_yaml", "++---"),
    ("/api/project/team/backends/update_yaml", "++---"),
    ("/api/project/team/backends/x/config_info", "++---"),
    ("/api/project/team/backends/x/get_yaml", "++---"),
    ("/api/project/team/secrets/list", "++---"),
    ("/api/project/team/secrets/get", "++---"),
    ("/api/project/team/secrets/create_or_update", "++---"),
    ("/api/project/team/secrets/delete", "++---"),
    ("/api/project/team/repos/list", "++++-"),
    ("/api/project/team/repos/get", "++++-"),
    ("/api/project/team/repos/init", "++++-"),
    ("/api/project/team/repos/delete", "++++-"),
    ("/api/project/team/repos/upload_code?repo_id=x", "++++-"),
    ("/api/files/get_archive_by_hash", "+++++"),
    ("/api/files/upload_archive", "+++++"),
    ("/api/volumes/list", "+++++"),
    ("/api/project/team/volumes/list", "++++-"),
    ("/api/project/team/volumes/get", "++++-"),
    ("/api/project/team/gateways/list", "++++-"),
    ("/api/project/team/gateways/apply", "++---"),
    ("/api/project/team/gateways/delete", "++---"),
    ("/api/project/team/exports/list", "++++-"),
    ("/api/project/team/exports/create", "++---"),
    ("/api/project/team/templates/list", "++++-"),
    ("/api/runs/list", "+++++"),
    ("/api/project/team/runs/get", "++++-"),
    ("/api/project/team/runs/get_plan", "++++-"),
    ("/api/project/team/runs/apply", "++++-"),
    ("/api/project/team/runs/stop", "++++-"),
    ("/api/project/team/runs/delete", "++++-"),
    ("GET /api/project/team/runs/x/stream", "++++-"),
    ("GET /api/project/team/metrics/job/x", "++++-"),
    ("/api/project/team/logs/poll", "++++-"),
    ("/api/project/team/gpus/list", "++++-"),
    ("/api/fleets/list", "+++++"),
    ("/api/project/team/fleets/list", "++++-"),
    ("/api/project/team/fleets/get", "++++-"),
    ("/api/project/team/fleets/get_plan", "++++-"),
    ("/api/project/team/fleets/apply", "++++-"),
    ("/api/project/team/fleets/delete", "++++-"),
    ("/api/project/team/fleets/delete_instances", "++++-"),
    ("/api/instances/list", "+++++"),
    ("/api/project/team/instances/get", "++++-"),
    ("/api/project/team/instances/get_instance_health_checks", "++++-"),
    ("/api/projects/delete", "+++++"),
    ("/api/sshproxy/get_upstream", "-----"),
    ("/api/server/get_info", "+++++"),
    ("/api/auth/list_providers", "+++++"),
    ("/api/backends/list_types", "+++++"),
];

async fn people(server: &TestServer) -> Vec<String> {
    let mut tokens = vec![crate::harness::ADMIN.to_owned()];
    for name in ["ann", "meg", "bob", "out"] {
        tokens.push(server.user(name).await);
    }
    server.post_as(&tokens[1], "/api/projects/create", json!({"project_name": "team"})).await.ok();
    let members = json!({"members": [{"username": "ann", "project_role": "admin"},
        {"username": "meg", "project_role": "manager"}, {"username": "bob", "project_role": "user"}]});
    server.post("/api/projects/team/set_members", members).await.ok();
    tokens
}

/// A body that fits every endpoint of the table and changes nothing that others rely on.
fn body(path: &str) -> Value {
    let task = json!({"configuration": {"type": "task", "commands": ["true"]}, "run_name": "roles"});
    let fleet = json!({"configuration": {"type": "fleet", "name": "roles", "nodes": "0..1"}, "profile": {}});
    let id = "66b9faa0-4435-4705-be33-0947815afafc";
    let members = json!([{"username": "ann", "project_role": "admin"}, {"username": "meg", "project_role": "manager"},
                         {"username": "bob", "project_role": "user"}]);
    if path.ends_with("/list") {
        return if path.ends_with("/gpus/list") { json!({ "run_spec": task }) } else { json!({}) };
    }
    json!({
        "username": if path.contains("refresh") || path.contains("get_user") { "nobody" } else { "new" },
        "global_role": "user", "users": [], "members": members, "usernames": [], "project_name": "new",
        "backends_names": [], "config_yaml": "type: x", "type": "x", "name": "x", "value": "x", "names": [],
        "projects_names": [], "runs_names": [], "abort": false, "run_name": "x", "job_submission_id": id, "id": id,
        "run_spec": task, "spec": fleet, "plan": {"run_spec": task, "spec": fleet}, "force": false,
        "instance_nums": [], "fleet_name": "x", "instance_num": 0,
        "secrets_names": [], "repos_ids": [], "repo_id": "x", "repo_info": {"repo_type": "virtual"},
        "include_creds": false, "hash": "x",
    })
}

/// Asks as the table says: with POST, unless it names another method.
async fn ask(server: &TestServer, path: &str, token: Option<&str>) -> Answer {
    let request = match path.strip_prefix("GET ") {
        Some(path) => server.request(Method::GET, path),
        None => server.request(Method::POST, path).json(&body(path)),
    };
    answer(token.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth)).await
}

#[tokio::test]
async fn every_role_may_do_what_the_table_says() {
    let server = TestServer::new().await;
    let tokens = people(&server).await;
    let mut failures = Vec::new();
    for (path, expected) in TABLE {
        let mut got = String::new();
        for token in &tokens {
            let answer = ask(&server, path, Some(token)).await;
            assert!(matches!(answer.status, 200 | 400 | 403 | 422), "{path}: {} {}", answer.status, answer.body);
            got.push(if answer.status == 403 { '-' } else { '+' });
        }
        if got != *expected {
            failures.push(format!("{path}: {got}, not {expected}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn without_a_token_only_the_public_endpoints_answer() {
    const PUBLIC: [&str; 4] = [
        "/api/sshproxy/get_upstream",
        "/api/server/get_info",
        "/api/auth/list_providers",
        "/api/backends/list_types",
    ];
    let server = TestServer::new().await;
    people(&server).await;
    for (path, _) in TABLE {
        let status = ask(&server, path, None).await.status;
        assert_eq!(status == 401, !PUBLIC.contains(path), "{path}: {status}");
    }
}

#[tokio::test]
async fn default_permissions_take_and_give() {
    let home = Home::new();
    home.configure(
        "projects:\n- name: main\ndefault_permissions:\n  allow_non_admins_create_projects: false\n  \
         allow_non_admins_manage_ssh_fleets: false\n  allow_managers_manage_secrets: true\n",
    );
    let server = home.start(&[]).await;
    let (meg, bob) = (server.user("meg").await, server.user("bob").await);
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "x"})).await.expect_denied();
    let add = json!({"members": [{"username": "meg", "project_role": "manager"},
                                 {"username": "bob", "project_role": "user"}]});
    let main = server.post("/api/projects/main/add_members", add).await.ok();
    let permissions: Vec<&Value> =
        main["members"].as_array().unwrap().iter().map(|member| &member["permissions"]).collect();
    let rights =
        |fleets: bool, secrets: bool| json!({"can_manage_ssh_fleets": fleets, "can_manage_secrets": secrets});
    assert_eq!(permissions, [&rights(true, true), &rights(false, false), &rights(false, true)]);
    assert_eq!(main["members"][1]["user"]["permissions"]["can_create_projects"], false);
    server.post_as(&meg, "/api/project/main/secrets/list", Value::Null).await.ok();
    server.post_as(&bob, "/api/project/main/secrets/list", Value::Null).await.expect_denied();
}
