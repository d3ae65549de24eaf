//! Errors in the official form, compared with recorded official traffic.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::{ADMIN, Home, TestServer, answer};

#[derive(Deserialize)]
struct Recorded {
    name: String,
    method: String,
    path: String,
    headers: serde_json::Map<String, Value>,
    body: Value,
    status: u16,
    answer: Value,
}

#[tokio::test]
async fn errors_are_the_official_ones() {
    let server = TestServer::new().await;
    // The recorded server had the repository of runs that have none.
    let repo = json!({"repo_id": "none", "repo_info": {"repo_type": "virtual"}});
    server.post("/api/project/main/repos/init", repo).await.ok();
    let recorded: Vec<Recorded> = serde_json::from_str(include_str!("../golden/errors.json")).unwrap();
    for case in recorded {
        let method: Method = case.method.parse().unwrap();
        let mut request = server.request(method, &case.path);
        for (name, value) in &case.headers {
            request = request.header(name, value.as_str().unwrap());
        }
        let request = match &case.body {
            Value::Null => request,
            Value::String(text) => request.body(text.clone()),
            body => request.body(body.to_string()),
        };
        let got = answer(request).await;
        assert_eq!((got.status, got.body), (case.status, case.answer), "{}", case.name);
    }
}

#[tokio::test]
async fn an_answer_without_a_token_says_which_scheme_is_wanted() {
    let server = TestServer::new().await;
    let response = server.request(Method::POST, "/api/users/get_my_user").send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    assert_eq!(response.headers()["content-type"], "application/json");
}

#[tokio::test]
async fn bodies_that_do_not_fit_are_answered_with_the_place() {
    let server = TestServer::new().await;
    let cases = [
        (json!({}), json!({"type": "missing", "loc": ["body", "username"], "msg": "Field required", "input": {}})),
        (
            json!({"username": 1, "global_role": "user"}),
            json!({"type": "string_type", "loc": ["body", "username"], "msg": "Input should be a valid string",
                   "input": 1}),
        ),
    ];
    for (body, problem) in cases {
        let got = server.post("/api/users/create", body).await;
        assert_eq!((got.status, got.body), (422, json!({ "detail": [problem] })));
    }
    let got = server.post("/api/users/create", Value::Null).await;
    let problem = json!({"type": "missing", "loc": ["body"], "msg": "Field required", "input": null});
    assert_eq!((got.status, got.body), (422, json!({ "detail": [problem] })));
    let limit = server.post("/api/users/list", json!({"limit": 2001})).await;
    assert_eq!((limit.status, &limit.body["detail"][0]["type"]), (422, &json!("less_than_equal")));
    let pattern = server.post("/api/users/list", json!({"name_pattern": "a b"})).await;
    assert_eq!((pattern.status, &pattern.body["detail"][0]["type"]), (422, &json!("string_pattern_mismatch")));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let server = TestServer::new().await;
    let large = format!("{{\"username\": \"{}\"}}", "x".repeat(17 * 1024 * 1024));
    let got = answer(server.request(Method::POST, "/api/users/get_user").bearer_auth(ADMIN).body(large)).await;
    assert_eq!(got.status, 413, "{}", got.body);
}

#[tokio::test]
async fn unknown_paths_and_methods_get_the_official_answers() {
    let server = TestServer::new().await;
    for (method, path, status) in [
        (Method::GET, "/some/page", 404),
        (Method::GET, "/api/project/main/runs/nothing", 404),
        (Method::POST, "/nothing", 405),
        (Method::PUT, "/api/users/list", 405),
        (Method::DELETE, "/healthcheck", 405),
        (Method::POST, "/api/project/main/presets/get", 405),
        (Method::GET, "/metrics", 404),
    ] {
        let got = answer(server.request(method.clone(), path).bearer_auth(ADMIN)).await;
        let detail = if status == 404 { "Not Found" } else { "Method Not Allowed" };
        assert_eq!((got.status, got.body), (status, json!({ "detail": detail })), "{method} {path}");
    }
}

#[tokio::test]
async fn the_root_and_the_documentation_are_pages_without_redirects() {
    let server = TestServer::new().await;
    for path in ["/", "/api/docs", "/redoc"] {
        let response = server.request(Method::GET, path).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.url().path()), (200, path));
        assert!(response.text().await.unwrap().contains("dstack API"));
    }
    let head = server.request(Method::HEAD, "/healthcheck").send().await.unwrap();
    assert_eq!(head.status(), 200);
}

#[tokio::test]
async fn numbers_for_prometheus_are_given_where_they_are_wanted() {
    let server = Home::new().start(&["--prometheus-metrics"]).await;
    let response = server.request(Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    assert!(response.text().await.unwrap().contains("dstack_server_info{version=\"0.22.5\"} 1\n"));
}

#[tokio::test]
async fn prometheus_has_a_token_of_its_own_where_one_is_set() {
    let server = Home::new().start(&["--prometheus-metrics", "--prometheus-token", "for-numbers"]).await;
    let ask = |token: &str| answer(server.request(Method::GET, "/metrics").bearer_auth(token));
    let got = answer(server.request(Method::GET, "/metrics")).await;
    assert_eq!((got.status, got.body), (401, json!({"detail": "Not authenticated"})));
    let got = ask(ADMIN).await;
    assert_eq!((got.status, got.body), (403, json!({"detail": {"msg": "Invalid token", "code": null}})));
    assert_eq!(ask("for-numbers").await.status, 200);
}

#[tokio::test]
async fn lists_of_names_have_a_limit() {
    let server = TestServer::new().await;
    let names: Vec<String> = (0..1001).map(|number| format!("n{number}")).collect();
    let members: Vec<Value> = names.iter().map(|name| json!({"username": name, "project_role": "user"})).collect();
    let numbers: Vec<usize> = (0..1001).collect();
    let many = vec!["66b9faa0-4435-4705-be33-0947815afafc"; 1001];
    for (path, body, field) in [
        ("/api/project/main/runs/stop", json!({"runs_names": names, "abort": false}), "runs_names"),
        ("/api/project/main/runs/delete", json!({ "runs_names": names }), "runs_names"),
        ("/api/project/main/fleets/delete", json!({ "names": names }), "names"),
        (
            "/api/project/main/fleets/delete_instances",
            json!({"name": "f", "instance_nums": numbers}),
            "instance_nums",
        ),
        ("/api/project/main/secrets/delete", json!({ "secrets_names": names }), "secrets_names"),
        ("/api/project/main/repos/delete", json!({ "repos_ids": names }), "repos_ids"),
        ("/api/project/main/backends/delete", json!({ "backends_names": names }), "backends_names"),
        ("/api/projects/main/set_members", json!({ "members": members }), "members"),
        ("/api/projects/main/add_members", json!({ "members": members }), "members"),
        ("/api/projects/main/remove_members", json!({ "usernames": names }), "usernames"),
        ("/api/projects/delete", json!({ "projects_names": names }), "projects_names"),
        ("/api/users/delete", json!({ "users": names }), "users"),
        ("/api/users/public_keys/delete", json!({ "ids": many }), "ids"),
    ] {
        let got = server.post(path, body).await;
        let problem = json!({
            "type": "too_long", "loc": ["body", field], "input": null,
            "msg": "List should have at most 1000 items after validation, not 1001",
            "ctx": {"field_type": "List", "max_length": 1000, "actual_length": 1001},
        });
        assert_eq!((got.status, got.body), (422, json!({ "detail": [problem] })), "{path}");
    }
    let most = json!({"runs_names": names[1..], "abort": false});
    server.post("/api/project/main/runs/stop", most).await.ok();
}
