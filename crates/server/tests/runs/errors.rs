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
        (json!({"nodes": 4_000_000_000_u32}), "`nodes` must be at most 10000, found 4000000000"),
        (
            json!({"files": ["a.txt"]}),
            "`files` names 1 paths, and yet `file_archives` names 0 uploads: submit the run with the CLI, or upload \
             an archive of each path and send its identifier",
        ),
        (
            json!({"repos": ["https://x.y/z.git"]}),
            "`repos` is set, and yet `repo_data` names no repository: submit the run with the CLI, or send `repo_id` \
             and `repo_data`",
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

#[tokio::test]
async fn what_others_uploaded_is_not_given_to_a_run() {
    let server = TestServer::new().await;
    let bob = server.user("bob").await;
    let add = json!({"members": [{"username": "bob", "project_role": "user"}]});
    server.post("/api/projects/main/add_members", add).await.ok();
    let part = reqwest::multipart::Part::bytes(&b"secret"[..]);
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let form = reqwest::multipart::Form::new().part("file", part.file_name(hash));
    let upload = server.request(Method::POST, "/api/files/upload_archive").bearer_auth(ADMIN).multipart(form);
    let id = answer(upload).await.ok()["id"].as_str().unwrap().to_owned();
    let mut spec = task("reads", json!({"files": ["a.txt"]}));
    spec["file_archives"] = json!([{"id": id, "path": "/a.txt"}]);
    server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.ok();
    let message = format!("The archive {id} (`file_archives`) of `/a.txt` does not exist: upload it first");
    let plan = server.post_as(&bob, &main("runs/get_plan"), json!({ "run_spec": spec })).await;
    plan.expect_bad_request(&message, "error");
    let apply = json!({"plan": {"run_spec": spec}, "force": false});
    server.post_as(&bob, &main("runs/apply"), apply).await.expect_bad_request(&message, "error");
}

#[tokio::test]
async fn code_that_nobody_uploaded_is_missed_at_once() {
    let server = TestServer::new().await;
    let repo = json!({"repo_id": "mine", "repo_info": {"repo_type": "local", "repo_dir": "/x"}});
    server.post(&main("repos/init"), repo).await.ok();
    let mut spec = task("coded", json!({}));
    spec["repo_id"] = json!("mine");
    spec["repo_data"] = json!({"repo_type": "local", "repo_dir": "/x"});
    spec["repo_code_hash"] = json!("abc");
    // Clients upload after the plan.
    server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.ok();
    let apply = server.post(&main("runs/apply"), json!({"plan": {"run_spec": spec}, "force": false})).await;
    apply.expect_bad_request(
        "The code abc (`repo_code_hash`) of repo mine does not exist: upload it first",
        "error",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_submitted_into_a_project_that_is_being_deleted() {
    let server = TestServer::new().await;
    for number in 0..20 {
        let name = format!("p{number}");
        server.post("/api/projects/create", json!({ "project_name": name })).await.ok();
        let fleet = json!({"configuration": {"type": "fleet", "name": "gpus", "nodes": "0..1"}, "profile": {}});
        let (path, body) = if number % 2 == 0 {
            ("runs/apply", json!({"plan": {"run_spec": waiting_task("train")}, "force": false}))
        } else {
            ("fleets/apply", json!({"plan": {"spec": fleet}, "force": false}))
        };
        let path = format!("/api/project/{name}/{path}");
        let apply = server.post(&path, body);
        let delete = server.post("/api/projects/delete", json!({ "projects_names": [name] }));
        let (apply, delete) = tokio::join!(apply, delete);
        let outcome = (apply.status, delete.status);
        assert!(matches!(outcome, (200, 400) | (404, 200)), "{outcome:?}: {} {}", apply.body, delete.body);
    }
}
