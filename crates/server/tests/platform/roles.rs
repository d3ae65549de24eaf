//! Who may do what: a table of endpoints and roles.

use serde_json::{Value, json};

use crate::harness::{Home, TestServer};

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
    let members = json!([{"username": "ann", "project_role": "admin"}, {"username": "meg", "project_role": "manager"},
                         {"username": "bob", "project_role": "user"}]);
    if path == "/api/projects/list" {
        return json!({});
    }
    json!({
        "username": if path.contains("refresh") || path.contains("get_user") { "nobody" } else { "new" },
        "global_role": "user", "users": [], "members": members, "usernames": [], "project_name": "new",
        "backends_names": [], "config_yaml": "type: x", "type": "x", "name": "x", "value": "x", "names": [],
        "secrets_names": [], "repos_ids": [], "repo_id": "x", "repo_info": {"repo_type": "virtual"},
        "include_creds": false, "hash": "x",
    })
}

#[tokio::test]
async fn every_role_may_do_what_the_table_says() {
    let server = TestServer::new().await;
    let tokens = people(&server).await;
    let mut failures = Vec::new();
    for (path, expected) in TABLE {
        let mut got = String::new();
        for token in &tokens {
            let answer = server.post_as(token, path, body(path)).await;
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
        let request = server.request(reqwest::Method::POST, path).json(&body(path));
        let status = crate::harness::answer(request).await.status;
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
