//! Users, their keys, projects, secrets, events: the flows of recorded official traffic.

use serde_json::{Value, json};

use crate::harness::{ADMIN, TestServer};

#[tokio::test]
async fn users_are_made_changed_and_deleted() {
    let server = TestServer::new().await;
    let bob = server.post("/api/users/create", json!({"username": "bob", "global_role": "user"})).await.ok();
    assert_eq!((&bob["username"], &bob["active"], &bob["email"]), (&json!("bob"), &json!(true), &Value::Null));
    assert_eq!(bob["permissions"], json!({"can_create_projects": true}));
    let key = bob["ssh_public_key"].as_str().unwrap();
    assert!(key.starts_with("ssh-ed25519 ") && key.ends_with(" bob\n"), "{key:?}");
    assert!(bob.get("creds").is_none());
    let again = json!({"username": "Bob", "global_role": "user"});
    server.post("/api/users/create", again).await.expect_bad_request("Resource exists", "resource_exists");
    let bad = json!({"username": "b b", "global_role": "user"});
    let message = "Username should match regex '^[a-zA-Z0-9-_]{1,60}$'";
    server.post("/api/users/create", bad).await.expect_bad_request(message, "error");
    let email = json!({"username": "bob", "global_role": "user", "email": "b@x.y"});
    assert_eq!(server.post("/api/users/update", email).await.ok()["email"], "b@x.y");
    let missing = json!({"username": "nosuch"});
    let answer = server.post("/api/users/get_user", missing).await;
    answer.expect_bad_request("Resource not found", "resource_not_exists");
    let admin = json!({"users": ["admin"]});
    let answer = server.post("/api/users/delete", admin).await;
    answer.expect_bad_request("User 'admin' cannot be deleted", "error");
    assert_eq!(server.post("/api/users/delete", json!({"users": ["bob"]})).await.ok(), Value::Null);
    let names = names(&server.post("/api/users/list", Value::Null).await.ok(), "username");
    assert_eq!(names, ["admin"]);
    server.user("bob").await;
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_refreshed_token_replaces_the_old_one_at_once() {
    let server = TestServer::new().await;
    let old = server.user("bob").await;
    let me = server.post_as(&old, "/api/users/get_my_user", Value::Null).await.ok();
    assert!(me["ssh_private_key"].as_str().unwrap().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
    let refreshed = server.post_as(&old, "/api/users/refresh_token", json!({"username": "bob"})).await.ok();
    let new = refreshed["creds"]["token"].as_str().unwrap();
    assert_ne!(new, old);
    assert_eq!(server.post_as(&old, "/api/users/get_my_user", Value::Null).await.status, 403);
    server.post_as(new, "/api/users/get_my_user", Value::Null).await.ok();
    let key = server.post_as(new, "/api/users/refresh_ssh_key", json!({"username": "Bob"})).await.ok();
    assert_ne!(key["ssh_public_key"], me["ssh_public_key"]);
    assert_ne!(key["ssh_private_key"], me["ssh_private_key"]);
    server.post_as(new, "/api/users/refresh_token", json!({"username": "admin"})).await.expect_denied();
}

#[tokio::test]
async fn an_inactive_user_cannot_log_in() {
    let server = TestServer::new().await;
    let token = server.user("bob").await;
    let off = json!({"username": "bob", "global_role": "user", "active": false});
    server.post("/api/users/update", off).await.ok();
    assert_eq!(server.post_as(&token, "/api/users/get_my_user", Value::Null).await.status, 403);
}

#[tokio::test]
async fn lists_come_in_pages_with_a_total_where_asked() {
    let server = TestServer::new().await;
    for name in ["ann", "bob", "cat"] {
        server.user(name).await;
    }
    let all = server.post("/api/users/list", json!({})).await.ok();
    assert_eq!(names(&all, "username"), ["cat", "bob", "ann", "admin"]);
    let counted = json!({"return_total_count": true, "name_pattern": "B", "limit": 1});
    let counted = server.post("/api/users/list", counted).await.ok();
    assert_eq!(
        (&counted["total_count"], names(&counted["users"], "username")),
        (&json!(1), vec!["bob".to_owned()])
    );
    let last = &all[1];
    let next = json!({"prev_created_at": last["created_at"], "prev_id": last["id"], "limit": 1});
    assert_eq!(names(&server.post("/api/users/list", next).await.ok(), "username"), ["ann"]);
    let upwards = json!({"ascending": true, "limit": 2});
    assert_eq!(names(&server.post("/api/users/list", upwards).await.ok(), "username"), ["admin", "ann"]);
    let bob = server.post("/api/users/get_user", json!({"username": "bob"})).await.ok();
    let bob = bob["creds"]["token"].as_str().unwrap().to_owned();
    let own = server.post_as(&bob, "/api/users/list", Value::Null).await.ok();
    assert_eq!(names(&own, "username"), ["bob"]);
}

#[tokio::test]
async fn public_keys_are_added_listed_and_deleted() {
    let server = TestServer::new().await;
    let key = server.post("/api/users/get_my_user", Value::Null).await.ok()["ssh_public_key"].clone();
    let added = server.post("/api/users/public_keys/add", json!({"key": key, "name": "k1"})).await.ok();
    assert_eq!((&added["name"], &added["type"]), (&json!("k1"), &json!("ssh-ed25519")));
    assert!(added["fingerprint"].as_str().unwrap().starts_with("SHA256:"));
    let again = server.post("/api/users/public_keys/add", json!({ "key": key })).await;
    again.expect_bad_request("Resource exists", "resource_exists");
    let bad = server.post("/api/users/public_keys/add", json!({"key": "ssh-rsa nonsense"})).await;
    bad.expect_bad_request("Invalid public key", "error");
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/users/public_keys/delete", json!({"ids": [added["id"]]})).await.ok();
    assert_eq!(server.post("/api/users/public_keys/list", Value::Null).await.ok(), json!([added]));
    server.post("/api/users/public_keys/delete", json!({"ids": [added["id"]]})).await.ok();
    assert_eq!(server.post("/api/users/public_keys/list", Value::Null).await.ok(), json!([]));
}

#[tokio::test]
async fn projects_are_made_listed_changed_and_deleted() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/projects/main/get", Value::Null).await.expect_denied();
    assert_eq!(server.post_as(&bob, "/api/projects/list", json!({})).await.ok(), json!([]));
    let team = server.post_as(&bob, "/api/projects/create", json!({"project_name": "team1"})).await.ok();
    assert_eq!((&team["project_name"], &team["owner"]["username"]), (&json!("team1"), &json!("bob")));
    assert_eq!((&team["is_public"], &team["backends"]), (&json!(false), &json!([])));
    let member = &team["members"][0];
    assert_eq!((&member["user"]["username"], &member["project_role"]), (&json!("bob"), &json!("admin")));
    assert_eq!(member["permissions"], json!({"can_manage_ssh_fleets": true, "can_manage_secrets": true}));
    let again = server.post_as(&bob, "/api/projects/create", json!({"project_name": "Team1"})).await;
    again.expect_bad_request("Resource exists", "resource_exists");
    let bad = server.post("/api/projects/create", json!({"project_name": "a b"})).await;
    bad.expect_bad_request("Project name should match regex '^[a-zA-Z0-9-_]{1,50}$'", "error");

    let counted = server.post("/api/projects/list", json!({"return_total_count": true})).await.ok();
    assert_eq!(counted["total_count"], 2);
    assert_eq!(names(&counted["projects"], "project_name"), ["team1", "main"]);
    assert_eq!(counted["projects"][0]["members"], json!([]));
    let joined = server.post("/api/projects/list", json!({"include_not_joined": false})).await.ok();
    assert_eq!(names(&joined, "project_name"), ["main"]);
    let bare = server.post("/api/projects/list_only_no_fleets", Value::Null).await.ok();
    assert_eq!(names(&bare, "project_name"), ["main"]);

    let public = json!({"is_public": true, "templates_repo": "https://x.y/z"});
    let team = server.post_as(&bob, "/api/projects/TEAM1/update", public).await.ok();
    assert_eq!((&team["is_public"], &team["templates_repo"]), (&json!(true), &json!("https://x.y/z")));
    let reset = json!({"reset_templates_repo": true});
    let team = server.post_as(&bob, "/api/projects/team1/update", reset).await.ok();
    assert_eq!((&team["is_public"], &team["templates_repo"]), (&json!(true), &Value::Null));

    server.post_as(&bob, "/api/projects/delete", json!({"projects_names": ["main"]})).await.expect_denied();
    server.post_as(&bob, "/api/projects/delete", json!({"projects_names": ["nosuch"]})).await.expect_denied();
    server.post_as(&bob, "/api/projects/delete", json!({"projects_names": ["team1"]})).await.ok();
    let gone = server.post("/api/projects/team1/get", Value::Null).await;
    assert_eq!((gone.status, gone.body), (404, json!({"detail": {"msg": "Not found", "code": null}})));
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "team1"})).await.ok();
}

#[tokio::test]
async fn secrets_are_set_read_and_deleted() {
    let server = TestServer::new().await;
    let at = |verb: &str| format!("/api/project/main/secrets/{verb}");
    let set = server.post(&at("create_or_update"), json!({"name": "hf_token", "value": "abc123"})).await.ok();
    assert_eq!((&set["name"], &set["value"]), (&json!("hf_token"), &json!("abc123")));
    let again = server.post(&at("create_or_update"), json!({"name": "hf_token", "value": "abc124"})).await.ok();
    assert_eq!(again["id"], set["id"]);
    let listed = server.post(&at("list"), Value::Null).await.ok();
    assert_eq!(listed, json!([{"id": set["id"], "name": "hf_token", "value": null}]));
    assert_eq!(server.post(&at("get"), json!({"name": "hf_token"})).await.ok()["value"], "abc124");
    let long = json!({"name": "x", "value": "ü".repeat(5001)});
    assert_eq!(server.post(&at("create_or_update"), long).await.status, 400);
    let longest = json!({"name": "x".repeat(200), "value": "ü".repeat(5000)});
    server.post(&at("create_or_update"), longest).await.ok();
    let both = json!({"secrets_names": ["hf_token", "nosuch"]});
    server.post(&at("delete"), both).await.expect_bad_request("Secrets not found: nosuch", "resource_not_exists");
    assert_eq!(server.post(&at("delete"), json!({"secrets_names": ["hf_token"]})).await.ok(), Value::Null);
    let gone = server.post(&at("get"), json!({"name": "hf_token"})).await;
    gone.expect_bad_request("Resource not found", "resource_not_exists");

    let events = server.post("/api/events/list", json!({"target_secrets": [set["id"]]})).await.ok();
    let messages = names(&events, "message");
    assert_eq!(messages, ["Secret deleted", "Secret updated", "Secret created"]);
    let event = &events[0];
    assert_eq!((&event["actor_user"], &event["is_actor_user_deleted"]), (&json!("admin"), &json!(false)));
    let project = server.post("/api/projects/main/get", Value::Null).await.ok()["project_id"].clone();
    let target = json!([{"type": "secret", "project_id": project, "project_name": "main",
                         "is_project_deleted": false, "id": set["id"], "name": "hf_token"}]);
    assert_eq!(event["targets"], target);
}

#[tokio::test]
async fn events_are_seen_by_those_whom_they_concern() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "team1"})).await.ok();
    let all = server.post("/api/events/list", json!({})).await.ok();
    assert_eq!(names(&all, "message"), ["Project created", "User created", "Project created", "User created"]);
    let own = server.post_as(&bob, "/api/events/list", Value::Null).await.ok();
    assert_eq!(own, json!([all[0], all[1]]));
    let main = all[2]["targets"][0]["id"].clone();
    let within = json!({"within_projects": [main], "limit": 100, "ascending": false});
    assert_eq!(server.post("/api/events/list", within.clone()).await.ok(), json!([all[2]]));
    assert_eq!(server.post_as(&bob, "/api/events/list", within).await.ok(), json!([]));
    let next = json!({"prev_recorded_at": all[1]["recorded_at"], "prev_id": all[1]["id"], "limit": 1});
    assert_eq!(server.post("/api/events/list", next).await.ok(), json!([all[2]]));
    for (wrong, kind) in [
        (json!({"limit": 101}), "less_than_equal"),
        (json!({"limit": 0}), "greater_than_equal"),
        (json!({"target_runs": []}), "too_short"),
        (json!({"target_runs": vec![main; 17]}), "too_long"),
    ] {
        let got = server.post("/api/events/list", wrong).await;
        assert_eq!((got.status, &got.body["detail"][0]["type"]), (422, &json!(kind)));
    }
}

#[tokio::test]
async fn a_deleted_user_is_marked_in_old_events() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "team1"})).await.ok();
    server.post("/api/users/delete", json!({"users": ["bob"]})).await.ok();
    server.post_as(ADMIN, "/api/projects/delete", json!({"projects_names": ["team1"]})).await.ok();
    let events = server.post("/api/events/list", json!({"target_projects": null})).await.ok();
    let created = events.as_array().unwrap().iter().find(|event| event["actor_user"] == "bob").unwrap();
    assert_eq!(created["is_actor_user_deleted"], true);
    assert_eq!(created["targets"][0]["is_project_deleted"], true);
}

#[tokio::test]
async fn the_first_admin_stays_an_active_admin() {
    let server = TestServer::new().await;
    let message = "User 'admin' must stay an active admin";
    for change in [json!({"global_role": "user"}), json!({"global_role": "admin", "active": false})] {
        let mut update = json!({"username": "Admin"});
        update.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        server.post("/api/users/update", update).await.expect_bad_request(message, "error");
    }
    let email = json!({"username": "admin", "global_role": "admin", "email": "a@x.y"});
    assert_eq!(server.post("/api/users/update", email).await.ok()["email"], "a@x.y");
    // Others come and go.
    server.user("bob").await;
    for role in ["admin", "user"] {
        server.post("/api/users/update", json!({"username": "bob", "global_role": role})).await.ok();
    }
}
