//! Members of projects.

use serde_json::{Value, json};

use crate::harness::TestServer;

fn roles(project: &Value) -> Vec<(String, String)> {
    let members = project["members"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    members.map(|member| (text(&member["user"]["username"]), text(&member["project_role"]))).collect()
}

fn role(name: &str, role: &str) -> (String, String) {
    (name.to_owned(), role.to_owned())
}

#[tokio::test]
async fn members_are_set_added_and_removed() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "team1"})).await.ok();
    let add = json!({"members": [{"username": "admin", "project_role": "manager"}]});
    let team = server.post_as(&bob, "/api/projects/team1/add_members", add).await.ok();
    assert_eq!(roles(&team), [role("admin", "manager"), role("bob", "admin")]);
    // A global admin may everything, whatever their role in the project.
    assert_eq!(team["members"][0]["permissions"]["can_manage_secrets"], true);
    let unknown = json!({"members": [{"username": "zzz", "project_role": "user"}]});
    let answer = server.post_as(&bob, "/api/projects/team1/add_members", unknown).await;
    answer.expect_bad_request("User not found: zzz", "error");
    let remove = json!({"usernames": ["admin"]});
    let team = server.post_as(&bob, "/api/projects/team1/remove_members", remove).await.ok();
    assert_eq!(roles(&team), [role("bob", "admin")]);
    let set = json!({"members": [{"username": "admin", "project_role": "admin"},
                                 {"username": "BOB", "project_role": "user"}]});
    let main = server.post("/api/projects/main/set_members", set).await.ok();
    assert_eq!(roles(&main), [role("admin", "admin"), role("bob", "user")]);
    let permissions = json!({"can_manage_ssh_fleets": true, "can_manage_secrets": false});
    assert_eq!(main["members"][1]["permissions"], permissions);
    server.post_as(&bob, "/api/projects/main/get", Value::Null).await.ok();
}

#[tokio::test]
async fn a_member_may_be_named_by_their_address() {
    let server = TestServer::new().await;
    server.user("bob").await;
    let email = json!({"username": "bob", "global_role": "user", "email": "b@x.y"});
    server.post("/api/users/update", email).await.ok();
    let add = json!({"members": [{"username": "b@x.y", "project_role": "user"}]});
    let main = server.post("/api/projects/main/add_members", add).await.ok();
    assert_eq!(roles(&main), [role("admin", "admin"), role("bob", "user")]);
}

#[tokio::test]
async fn the_last_admin_stays() {
    let server = TestServer::new().await;
    server.user("bob").await;
    let last = "Cannot remove the last project admin";
    let remove = json!({"usernames": ["admin"]});
    server.post("/api/projects/main/remove_members", remove).await.expect_bad_request(last, "error");
    let set = json!({"members": [{"username": "bob", "project_role": "user"}]});
    server.post("/api/projects/main/set_members", set).await.expect_bad_request(last, "error");
    let main = server.post("/api/projects/main/get", Value::Null).await.ok();
    assert_eq!(roles(&main), [role("admin", "admin")]);
}

#[tokio::test]
async fn managers_change_members_but_not_admins() {
    let server = TestServer::new().await;
    let (meg, bob) = (server.user("meg").await, server.user("bob").await);
    let add = json!({"members": [{"username": "meg", "project_role": "manager"},
                                 {"username": "bob", "project_role": "user"}]});
    server.post("/api/projects/main/add_members", add).await.ok();
    server.user("cat").await;
    let at = |verb: &str| format!("/api/projects/main/{verb}_members");
    let cat = |role: &str| json!({"members": [{"username": "cat", "project_role": role}]});
    server.post_as(&meg, &at("add"), cat("user")).await.ok();
    server.post_as(&meg, &at("add"), cat("manager")).await.ok();
    server.post_as(&meg, &at("add"), cat("admin")).await.expect_denied();
    server
        .post_as(&meg, &at("remove"), json!({"usernames": ["admin"]}))
        .await
        .expect_bad_request("Cannot remove the last project admin", "error");
    server.post(&at("add"), cat("admin")).await.ok();
    server.post_as(&meg, &at("remove"), json!({"usernames": ["cat"]})).await.expect_denied();
    server.post_as(&meg, &at("add"), cat("user")).await.expect_denied();
    server.post_as(&bob, &at("add"), cat("user")).await.expect_denied();
    server.post_as(&bob, &at("set"), cat("admin")).await.expect_denied();
    // Anyone may leave.
    server.post_as(&bob, &at("remove"), json!({"usernames": ["meg"]})).await.expect_denied();
    server.post_as(&bob, &at("remove"), json!({"usernames": ["bob"]})).await.ok();
    server.post_as(&bob, "/api/projects/main/get", Value::Null).await.expect_denied();
}

#[tokio::test]
async fn anyone_may_join_a_public_project_as_a_user() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    server.user("cat").await;
    let at = "/api/projects/main/add_members";
    let join = |name: &str, role: &str| json!({"members": [{"username": name, "project_role": role}]});
    server.post_as(&bob, at, join("bob", "user")).await.expect_denied();
    server.post("/api/projects/main/update", json!({"is_public": true})).await.ok();
    let listed = server.post_as(&bob, "/api/projects/list", Value::Null).await.ok();
    assert_eq!(listed[0]["project_name"], "main");
    let joined = json!({"include_not_joined": false});
    assert_eq!(server.post_as(&bob, "/api/projects/list", joined).await.ok(), json!([]));
    server.post_as(&bob, "/api/projects/main/get", Value::Null).await.ok();
    server.post_as(&bob, at, join("bob", "manager")).await.expect_denied();
    server.post_as(&bob, at, join("cat", "user")).await.expect_denied();
    let main = server.post_as(&bob, at, join("bob", "user")).await.ok();
    assert_eq!(roles(&main), [role("admin", "admin"), role("bob", "user")]);
    server.post_as(&bob, at, join("cat", "user")).await.expect_denied();
}
