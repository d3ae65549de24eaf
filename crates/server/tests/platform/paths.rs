//! Every path of the official API answers, and is described.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ADMIN, TestServer, answer};

const PATHS: &str = include_str!("../golden/paths.txt");

/// Paths whose official answer is 404 or 403 where nothing is behind them.
const OFFICIALLY_ABSENT: [(&str, u16, &str); 4] = [
    ("/proxy/services/", 404, "\"Service main/run-1 not found\""),
    ("/proxy/models/{project_name}/chat", 404, "\"Model m not found in project main\""),
    ("/metrics", 404, "\"Not Found\""),
    ("/api/sshproxy/", 403, "{\"code\":null,\"msg\":\"Access denied\"}"),
];

#[tokio::test]
async fn every_official_path_answers() {
    let server = TestServer::new().await;
    let (mut visited, mut failures) = (BTreeSet::new(), Vec::new());
    for line in PATHS.lines() {
        let (method, path) = line.split_once(' ').unwrap();
        visited.insert(path);
        let filled = fill(path);
        let mut request = server.request(method.parse::<Method>().unwrap(), &filled).bearer_auth(ADMIN);
        if method == "POST" && !path.ends_with("upload_code") && !path.ends_with("upload_archive") {
            request = request.json(&body(path));
        }
        let got = answer(request).await;
        if !is_fine(path, method, got.status, &got.body) {
            failures.push(format!("{method} {filled}: {} {}", got.status, got.body));
        }
    }
    assert_eq!(visited.len(), 89);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn is_fine(path: &str, method: &str, status: u16, body: &Value) -> bool {
    let absent = OFFICIALLY_ABSENT.iter().find(|(prefix, ..)| path.starts_with(prefix));
    if let Some((_, expected, detail)) = absent {
        return status == *expected && (method == "HEAD" || format!("{}", body["detail"]) == *detail);
    }
    match status {
        200 => true,
        // One item with words that tell what is wrong.
        400 => matches!(body["detail"].as_array().map(Vec::as_slice), Some([item]) if item["msg"].is_string()),
        // The walk sends no file.
        422 => path.contains("/upload_"),
        _ => false,
    }
}

fn fill(path: &str) -> String {
    path.replace("{project_name}", "main")
        .replace("{run_name}", "run-1")
        .replace("{backend_name}", "aws")
        .replace("{path}", "a/b")
        .replace("/upload_code", "/upload_code?repo_id=none")
}

/// A body that every endpoint accepts, as far as its form goes.
fn body(path: &str) -> Value {
    let task = json!({"configuration": {"type": "task", "commands": ["true"]}, "run_name": "walk-1"});
    let fleet = json!({"configuration": {"type": "fleet", "name": "walk", "nodes": 1}, "profile": {}});
    let verb = path.rsplit('/').next().unwrap();
    match (path.rsplit('/').nth(1).unwrap_or_default(), verb) {
        ("runs", "get_plan") | ("gpus", "list") => json!({ "run_spec": task }),
        ("runs", "apply") => json!({ "plan": { "run_spec": task }, "force": false }),
        ("fleets", "get_plan") => json!({ "spec": fleet }),
        ("fleets", "apply") => json!({ "plan": { "spec": fleet }, "force": false }),
        ("users", "create" | "update") => json!({"username": "walker", "global_role": "user"}),
        ("users", "delete") => json!({ "users": ["walker"] }),
        ("users", "get_user") => json!({ "username": "admin" }),
        ("users", _) => json!({ "username": "walker" }),
        ("public_keys", _) => json!({"key": "no key", "ids": []}),
        ("projects", "create") => json!({ "project_name": "walk" }),
        ("projects", "delete") => json!({ "projects_names": ["walk"] }),
        ("backends", _) => json!({"backends_names": [], "config_yaml": "type: gcp\n", "type": "gcp"}),
        ("events" | "runs" | "fleets" | "instances" | "volumes" | "projects", "list") => json!({}),
        ("repos", "init") => json!({"repo_id": "none", "repo_info": {"repo_type": "virtual"}}),
        _ => json!({
            "name": "nothing", "names": [], "value": "x", "secrets_names": [], "repo_id": "none", "repos_ids": [],
            "include_creds": false, "runs_names": [], "abort": false, "run_name": "run-1", "fleet_name": "nothing",
            "instance_num": 0, "instance_nums": [], "job_submission_id": "66b9faa0-4435-4705-be33-0947815afafc",
            "members": [{"username": "admin", "project_role": "admin"}], "usernames": [], "hash": "0", "code": "c",
            "state": "s", "configuration": {"type": "volume"}, "model": "m", "messages": [], "id": "66b9faa0-4435-4705-be33-0947815afafc",
            "spec": {}, "plan": {}, "wildcard_domain": "x.y", "force": false,
        }),
    }
}

#[tokio::test]
async fn every_official_path_is_described() {
    let server = TestServer::new().await;
    let described = answer(server.request(Method::GET, "/openapi.json")).await.ok();
    for line in PATHS.lines() {
        let (method, path) = line.split_once(' ').unwrap();
        let operation = &described["paths"][path][method.to_lowercase()];
        assert!(operation["responses"]["200"].is_object(), "{line}");
    }
    let operation = |method: &str, path: &str| &described["paths"][path][method];
    let upload = operation("post", "/api/project/{project_name}/repos/upload_code");
    let repo_id = json!({"name": "repo_id", "in": "query", "required": true, "schema": {"type": "string"}});
    assert_eq!(upload["parameters"][1], repo_id);
    let metrics = operation("get", "/api/project/{project_name}/metrics/job/{run_name}");
    let of_query = |parameter: &&Value| parameter["in"] == "query";
    let keys = metrics["parameters"].as_array().unwrap().iter().filter(of_query);
    let keys: Vec<&str> = keys.map(|parameter| parameter["name"].as_str().unwrap()).collect();
    assert_eq!(keys, ["run_id", "replica_num", "job_num", "limit", "after", "before"]);
    assert_eq!(operation("post", "/api/server/get_info")["security"], json!([]));
    assert_eq!(operation("post", "/api/users/get_my_user")["security"], Value::Null);
    assert_eq!(described["security"], json!([{"HTTPBearer": []}]));
    assert_eq!(operation("post", "/api/project/{project_name}/runs/apply")["requestBody"]["required"], true);
    assert_eq!(operation("post", "/api/runs/list")["requestBody"]["required"], false);
    let schemas = described["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        assert_no_dangling_references(schema, schemas, name);
    }
    assert_no_dangling_references(&described["paths"], schemas, "paths");
}

fn assert_no_dangling_references(value: &Value, schemas: &serde_json::Map<String, Value>, place: &str) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                let name = reference.strip_prefix("#/components/schemas/");
                assert!(name.is_some_and(|name| schemas.contains_key(name)), "{place}: {reference}");
            }
            map.values().for_each(|item| assert_no_dangling_references(item, schemas, place));
        }
        Value::Array(items) => items.iter().for_each(|item| assert_no_dangling_references(item, schemas, place)),
        _ => {}
    }
}
