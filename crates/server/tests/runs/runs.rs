//! Runs: names, changes in place, stops, deletion, lists.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::support::{events, main, task, waiting_task};

#[tokio::test]
async fn a_run_without_a_name_gets_one() {
    let server = TestServer::new().await;
    let spec = json!({"configuration": {"type": "task", "commands": ["true"]}});
    let run = server.apply(spec).await;
    let name = run["run_spec"]["run_name"].as_str().unwrap();
    let parts: Vec<&str> = name.split('-').collect();
    assert!(parts.len() == 3 && parts[2] == "1", "{name}");
    assert_eq!(run["jobs"][0]["job_spec"]["job_name"], format!("{name}-0-0"));
}

#[tokio::test]
async fn only_the_priority_changes_in_place_and_only_as_planned() {
    let server = TestServer::new().await;
    server.apply(waiting_task("train")).await;
    server.wait_for_run("train", &["pending"]).await;
    let mut spec = waiting_task("train");
    spec["configuration"]["priority"] = json!(70);
    let plan = server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.ok();
    assert_eq!(plan["action"], "update");
    // Without what the plan saw, or with something else, nothing is changed.
    let apply = |current: Value| json!({"plan": {"run_spec": plan["run_spec"], "current_resource": current}, "force": false});
    let message = "Failed to apply plan. Resource has been changed. Try again or use force apply.";
    server.post(&main("runs/apply"), apply(Value::Null)).await.expect_bad_request(message, "error");
    let mut other = plan["current_resource"].clone();
    other["run_spec"]["configuration"]["priority"] = json!(3);
    server.post(&main("runs/apply"), apply(other)).await.expect_bad_request(message, "error");
    let mut seen = plan["current_resource"].clone();
    // The official client drops what it does not know.
    seen["jobs"][0].as_object_mut().unwrap().remove("job_connection_info");
    seen["run_spec"]["configuration"].as_object_mut().unwrap().remove("groups");
    let run = server.post(&main("runs/apply"), apply(seen)).await.ok();
    assert_eq!((&run["run_spec"]["configuration"]["priority"], &run["deployment_num"]), (&json!(70), &json!(1)));
    assert_eq!(run["latest_job_submission"]["deployment_num"], 1);
    let told = events(&server, json!({"target_runs": [run["id"]]})).await;
    let message = "Run updated. Deployment: 1. Changed fields: priority".to_owned();
    assert!(told.contains(&(message, Some("admin".to_owned()))), "{told:?}");
    let unchanged = server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.ok();
    assert_eq!((&unchanged["action"], &unchanged["current_resource"]["id"]), (&json!("update"), &run["id"]));
}

#[tokio::test]
async fn a_stop_is_shown_at_once_and_told_by_who_asked() {
    let server = TestServer::new().await;
    let run = server.apply(waiting_task("train")).await;
    server.wait_for_run("train", &["pending"]).await;
    let stop = json!({"runs_names": ["train", "nosuch"], "abort": false});
    assert_eq!(server.post(&main("runs/stop"), stop.clone()).await.ok(), Value::Null);
    let shown = server.post(&main("runs/get"), json!({"run_name": "train"})).await.ok();
    assert!(["terminating", "terminated"].contains(&shown["status"].as_str().unwrap()), "{shown}");
    let ended = server.wait_for_run("train", &["terminated"]).await;
    assert_eq!(ended["termination_reason"], "stopped_by_user");
    assert_eq!(server.post(&main("runs/stop"), stop).await.ok(), Value::Null);
    let told = events(&server, json!({"target_runs": [run["id"]]})).await;
    let stops: Vec<_> = told.iter().filter(|(message, _)| message.contains("STOPPED_BY_USER")).collect();
    let message = "Run status changed PENDING -> TERMINATING. Termination reason: STOPPED_BY_USER";
    assert_eq!(stops, [&(message.to_owned(), Some("admin".to_owned()))]);
    assert!(told.contains(&("Run status changed TERMINATING -> TERMINATED".to_owned(), None)), "{told:?}");
}

#[tokio::test]
async fn logs_go_with_their_deleted_run_a_day_later() {
    let server = TestServer::new().await;
    let mut jobs = vec![];
    for name in ["kept", "deleted", "fresh"] {
        server.apply(task(name, json!({}))).await;
        let run = server.wait_for_run(name, &["failed"]).await;
        let job: api::ids::JobId = run["latest_job_submission"]["id"].as_str().unwrap().parse().unwrap();
        server.server.deps.logs.append(job, 0, 1, b"abc").unwrap();
        let index = server.server.deps.data_dir.join("logs").join(job.to_string()).join("index");
        let days = if name == "fresh" { 0 } else { 2 };
        let written = std::fs::metadata(&index).unwrap().modified().unwrap() - Duration::from_hours(24 * days);
        std::fs::File::options().write(true).open(&index).unwrap().set_modified(written).unwrap();
        jobs.push(job);
    }
    server.post(&main("runs/delete"), json!({"runs_names": ["deleted", "fresh"]})).await.ok();
    let kept = |deps: &server::deps::Deps| -> Vec<bool> {
        jobs.iter().map(|job| deps.data_dir.join("logs").join(job.to_string()).exists()).collect()
    };
    let mut deps = server.server.deps.clone();
    server::logs::retention::forget_old_logs(&deps).await.unwrap();
    assert_eq!(kept(&deps), [true, false, true]);
    // Whoever wants no more than a day of them gets that.
    let settings =
        server::settings::Settings { log_retention_secs: Some(24 * 3600), ..deps.settings.as_ref().clone() };
    deps.settings = std::sync::Arc::new(settings);
    server::logs::retention::forget_old_logs(&deps).await.unwrap();
    assert_eq!(kept(&deps), [false, false, true]);
}

#[tokio::test]
async fn a_finished_run_makes_room_for_the_next_of_its_name() {
    let server = TestServer::new().await;
    let first = server.apply(task("train", json!({}))).await;
    server.wait_for_run("train", &["failed"]).await;
    let second = server.apply(task("train", json!({}))).await;
    assert_ne!(first["id"], second["id"]);
    server.wait_for_run("train", &["failed"]).await;
    let by_name = server.post(&main("runs/get"), json!({"run_name": "train"})).await.ok();
    assert_eq!((&by_name["id"], &by_name["deleted"]), (&second["id"], &json!(false)));
    let by_id = server.post(&main("runs/get"), json!({"id": first["id"]})).await.ok();
    assert_eq!(by_id["deleted"], true);
    server.post(&main("runs/delete"), json!({"runs_names": ["train", "nosuch"]})).await.ok();
    let gone = server.post(&main("runs/get"), json!({"run_name": "train"})).await;
    gone.expect_bad_request("Run not found", "resource_not_exists");
    let all = server.post("/api/runs/list", json!({})).await.ok();
    let deleted: Vec<&Value> = all.as_array().unwrap().iter().map(|run| &run["deleted"]).collect();
    assert_eq!(deleted, [&json!(true), &json!(true)]);
    assert_eq!(server.post("/api/runs/list", json!({"only_active": true})).await.ok(), json!([]));
}

fn names(list: &Value) -> Vec<String> {
    let name = |run: &Value| run["run_spec"]["run_name"].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(name).collect()
}

#[tokio::test]
async fn lists_come_in_pages_and_show_changes_at_once() {
    let server = TestServer::new().await;
    for number in 0..5 {
        server.apply(waiting_task(&format!("run-{number}"))).await;
    }
    for ascending in [false, true] {
        let mut expected: Vec<String> = (0..5).map(|number| format!("run-{number}")).collect();
        if !ascending {
            expected.reverse();
        }
        let mut all = vec![];
        let mut page = json!({"limit": 2, "ascending": ascending});
        loop {
            let runs = server.post("/api/runs/list", page.clone()).await.ok();
            let Some(last) = runs.as_array().unwrap().last() else { break };
            page["prev_submitted_at"] = last["submitted_at"].clone();
            page["prev_run_id"] = last["id"].clone();
            all.extend(names(&runs));
        }
        assert_eq!(all, expected);
    }
    // What was printed before is printed again only while it holds.
    server.wait_for_run("run-3", &["pending"]).await;
    let status = |list: &Value| list[1]["status"].as_str().unwrap().to_owned();
    let listed = server.post("/api/runs/list", json!({})).await.ok();
    assert_eq!(status(&listed), "pending");
    server.post(&main("runs/stop"), json!({"runs_names": ["run-3"], "abort": true})).await.ok();
    server.wait_for_run("run-3", &["terminated"]).await;
    let listed = server.post("/api/runs/list", json!({})).await.ok();
    assert_eq!(status(&listed), "terminated");
    assert_eq!(listed[1], server.post(&main("runs/get"), json!({"run_name": "run-3"})).await.ok());
}

#[tokio::test]
async fn lists_show_as_much_as_is_asked_for() {
    let server = TestServer::new().await;
    server.apply(waiting_task("train")).await;
    server.wait_for_run("train", &["pending"]).await;
    let bare = server.post("/api/runs/list", json!({"include_jobs": false})).await.ok();
    assert_eq!((&bare[0]["jobs"], &bare[0]["latest_job_submission"]), (&json!([]), &Value::Null));
    let none = server.post("/api/runs/list", json!({"job_submissions_limit": 0})).await.ok();
    assert_eq!(none[0]["jobs"][0]["job_submissions"], json!([]));
    assert_eq!(none[0]["jobs"][0]["job_spec"]["job_name"], "train-0-0");
    let one = server.post("/api/runs/list", json!({"job_submissions_limit": 1})).await.ok();
    assert_eq!(one[0]["jobs"][0]["job_submissions"].as_array().unwrap().len(), 1);
    assert_eq!(server.post("/api/runs/list", json!({"job_submissions_limit": 11})).await.status, 422);
}

#[tokio::test]
async fn whoever_is_no_member_sees_nothing() {
    let server = TestServer::new().await;
    server.apply(waiting_task("train")).await;
    let bob = server.user("bob").await;
    assert_eq!(server.post_as(&bob, "/api/runs/list", json!({})).await.ok(), json!([]));
    assert_eq!(server.post_as(&bob, "/api/runs/list", json!({"project_name": "main"})).await.ok(), json!([]));
    server.post_as(&bob, &main("runs/get"), json!({"run_name": "train"})).await.expect_denied();
    server
        .post_as(&bob, &main("runs/stop"), json!({"runs_names": ["train"], "abort": true}))
        .await
        .expect_denied();
    assert_eq!(server.post("/api/runs/list", json!({"username": "bob"})).await.ok(), json!([]));
}

#[tokio::test]
async fn passwords_are_sealed_and_shown_as_they_were_sent() {
    let server = TestServer::new().await;
    let auth = json!({"username": "me", "password": "hush-hush"});
    let mut spec = waiting_task("train");
    spec["configuration"]["registry_auth"] = auth.clone();
    spec["configuration"]["image"] = json!("x");
    let run = server.apply(spec.clone()).await;
    assert_eq!(run["run_spec"]["configuration"]["registry_auth"], auth);
    let got = server.post(&main("runs/get"), json!({"run_name": "train"})).await.ok();
    assert_eq!(got["run_spec"]["configuration"]["registry_auth"], auth);
    assert_eq!(got["jobs"][0]["job_spec"]["registry_auth"], auth);
    let row = store::runs::get_by_name(
        &server.server.deps.db,
        store::projects::find_by_name(&server.server.deps.db, "main").await.unwrap().unwrap().id,
        "train",
    );
    let row = row.await.unwrap().unwrap();
    assert!(!serde_json::to_string(&row.value.spec).unwrap().contains("hush-hush"));
    let plan = server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.ok();
    assert_eq!(plan["action"], "update");
}

#[tokio::test]
async fn a_plan_warns_of_what_is_passed_literally() {
    let server = TestServer::new().await;
    let spec = task("train", json!({"env": {"PATH_TO": "/opt:$HOME", "FINE": "a$$b"}}));
    let plan = server.post(&main("runs/get_plan"), json!({ "run_spec": spec })).await.ok();
    let warnings = plan["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].as_str().unwrap().contains("`$HOME`"), "{warnings:?}");
}

#[tokio::test]
async fn the_diagnostics_of_a_job_are_read_as_a_log() {
    let server = TestServer::new().await;
    let run = server.apply(task("train", json!({}))).await;
    let job = &run["jobs"][0]["job_submissions"][0]["id"];
    let ended = server.wait_for_run("train", &["failed"]).await;
    let last = &ended["jobs"][0]["job_submissions"][0];
    let poll = async |keys: Value| {
        let mut body = json!({"run_name": "train", "job_submission_id": job, "diagnose": true});
        body.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let page = server.post(&main("logs/poll"), body).await.ok();
        let line = |event: &Value| {
            let bytes = STANDARD.decode(event["message"].as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let lines: Vec<String> = page["logs"].as_array().unwrap().iter().map(line).collect();
        (lines, page["next_token"].clone())
    };
    let (all, end) = poll(json!({})).await;
    assert_eq!(end, Value::Null);
    let text = all.concat();
    for part in ["Job created", "FAILED_TO_START_DUE_TO_NO_CAPACITY", "failed_to_start_due_to_no_capacity"] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    let message = last["termination_reason_message"].as_str().unwrap();
    assert!(text.contains(&format!("| {}", message.lines().next().unwrap())), "{text}");
    assert!(all.iter().all(|line| line.starts_with("20") && line.ends_with('\n')), "{text}");
    let mut sorted = all.clone();
    sorted.sort_by_key(|line| line.split(' ').next().unwrap().to_owned());
    assert_eq!(all, sorted);
    // A line at a time, and the other way round.
    for descending in [false, true] {
        let (mut pages, mut token) = (vec![], Value::Null);
        loop {
            let (page, next) = poll(json!({"limit": 1, "next_token": token, "descending": descending})).await;
            pages.extend(page);
            token = next;
            if token.is_null() {
                break;
            }
        }
        if descending {
            pages.reverse();
        }
        assert_eq!(pages, all);
    }
    assert_eq!(poll(json!({"start_time": "2100-01-01T00:00:00Z"})).await.0, Vec::<String>::new());
}
