//! Errors about runs and fleets, compared with recorded official traffic.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::{ADMIN, TestServer, answer};
use crate::support::{main, task, waiting_task};

#[derive(Deserialize)]
struct Recorded {
    name: String,
    path: String,
    body: Value,
    status: u16,
    answer: Value,
}

#[tokio::test]
async fn errors_are_the_official_ones() {
    let server = TestServer::new().await;
    let recorded: Vec<Recorded> = serde_json::from_str(include_str!("../golden/run_errors.json")).unwrap();
    assert!(recorded.len() > 30);
    for case in recorded {
        let request = server.request(Method::POST, &case.path).bearer_auth(ADMIN);
        let request = match &case.body {
            Value::Null => request,
            Value::String(text) => request.body(text.clone()),
            body => request.json(body),
        };
        let got = answer(request).await;
        assert_eq!(got.status, case.status, "{}: {}", case.name, got.body);
        // Configurations are refused in our words; the rest is the official text.
        let in_our_words = case.answer["detail"][0]["loc"]
            .as_array()
            .is_some_and(|place| place.iter().any(|part| part == "configuration"));
        if in_our_words {
            let detail = got.body["detail"].as_array().unwrap();
            assert!(detail.iter().all(|item| item["msg"].is_string() && item["loc"].is_array()), "{}", got.body);
        } else {
            assert_eq!(got.body, case.answer, "{}", case.name);
        }
    }
}

#[tokio::test]
async fn runs_that_cannot_be_are_refused_at_plan_and_apply() {
    let server = TestServer::new().await;
    let cases = [
        (json!({"schedule": {"cron": "0 0 * * *"}}), "`schedule` is not supported by this server yet"),
        (
            json!({"utilization_policy": {"min_gpu_utilization": 10, "time_window": "10m"}}),
            "`utilization_policy` is not supported by this server yet",
        ),
        (json!({"docker": true}), "`docker: true` is not supported by this server yet"),
        (
            json!({"registry_auth": {"username": "a", "password": "${{ secrets.nope }}"}, "image": "x"}),
            "Secrets interpolation error: Failed to interpolate due to missing vars: ['secrets.nope']",
        ),
        (
            json!({"env": ["A"]}),
            "The value of the environment variable `A` is not known: send it with the request",
        ),
        (
            json!({"commands": ["ping ${{ groups[0].nodes[1].IP_ADDRESS }}"]}),
            "`groups[0].nodes[1]` does not exist: the group has 1 nodes",
        ),
    ];
    for (keys, message) in cases {
        let spec = task("bad", keys);
        let plan = server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await;
        plan.expect_bad_request(message, "error");
        let apply = json!({"plan": {"run_spec": spec}, "force": false});
        server.post(&main("runs/apply"), apply).await.expect_bad_request(message, "error");
    }
    let spec = json!({"configuration": {"type": "dev-environment", "ide": "vscode"}});
    let message = "dev environments need SSH access to jobs, which this server does not have yet";
    server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.expect_bad_request(message, "error");
    let spec = json!({"configuration": {"type": "service", "port": 80, "commands": ["x"]}});
    let message = "`type: service` is not supported by this server yet";
    server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.expect_bad_request(message, "error");
}

#[tokio::test]
async fn an_active_run_is_neither_overridden_nor_deleted() {
    let server = TestServer::new().await;
    server.apply(waiting_task("train")).await;
    server.wait_for_run("train", &["pending"]).await;
    let apply = json!({"plan": {"run_spec": task("train", json!({}))}, "force": true});
    let message = "Cannot override active run. Stop the run first.";
    server.post(&main("runs/apply"), apply).await.expect_bad_request(message, "error");
    let delete = json!({"runs_names": ["train"]});
    let message = "Cannot delete active runs: ['train']";
    server.post(&main("runs/delete"), delete).await.expect_bad_request(message, "error");
}
