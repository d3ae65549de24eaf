//! Why something is as it is, over HTTP, with a pretended cloud that refuses.

use std::time::Duration;

use backends::fake::{FakeCloud, Refusal};
use backends::{Error, ErrorKind};
use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::support::{main, server_with_cloud, task};

fn cloud(server: &TestServer) -> FakeCloud {
    server.server.deps.backends.fake().unwrap().clone()
}

/// Asks until the answer is as wanted.
async fn wait_for(server: &TestServer, body: Value, is_there: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..3_000 {
        last = server.post(&main("why"), body.clone()).await.ok();
        if is_there(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came: {last}");
}

fn has_message(answer: &Value, part: &str) -> bool {
    answer["story"].as_array().unwrap().iter().any(|line| line["message"].as_str().unwrap().contains(part))
}

#[tokio::test]
async fn what_was_tried_where_and_what_the_cloud_said_is_told() {
    let server = server_with_cloud().await;
    cloud(&server).set_capacity("small", Some("fake-1a"), Some(1));
    server.apply_fleet(json!({"name": "lab", "nodes": 2, "placement": "cluster"})).await;
    let is_bought = |answer: &Value| answer["attempts"][1]["outcome"] == "bought";
    let answer = wait_for(&server, json!({"name": "lab"}), is_bought).await;
    let of = |number: usize, key: &str| answer["attempts"][number][key].clone();
    assert_eq!((of(0, "zone"), of(0, "outcome")), (json!("fake-1a"), json!("failed")));
    assert_eq!(of(0, "code"), "InsufficientInstanceCapacity");
    assert_eq!((of(0, "count"), of(0, "least")), (json!(2), json!(2)), "whole or not at all");
    assert_eq!((of(1, "zone"), of(1, "error")), (json!("fake-1b"), Value::Null));
    assert_eq!((&answer["kind"], &answer["status"]), (&json!("fleet"), &json!("active")));
    assert!(has_message(&answer, "Launching 2 × small on fake in fake-1a"), "{answer}");
    assert!(has_message(&answer, "Buying 2 × small on fake in fake-1b"), "{answer}");
    // The machine's own story is the same.
    let of_instance = server.post(&main("why"), json!({"name": "lab-1"})).await.ok();
    assert_eq!((&of_instance["kind"], &of_instance["attempts"]), (&json!("instance"), &answer["attempts"]));
    assert!(has_message(&of_instance, "Next: the other zones, then other offers"), "{of_instance}");
    assert_eq!(of_instance["next"][0]["what"], "lab-1: the machine starts, and its agent is to answer");
    // A backend that is let go is told of for as long as machines of it live.
    assert_eq!(answer["notes"], json!([]));
    let db = &server.server.deps.db;
    for row in store::backends::all(db).await.unwrap() {
        store::backends::set_draining(db, row.id).await.unwrap();
    }
    let draining = server.post(&main("why"), json!({"name": "lab"})).await.ok();
    assert_eq!(draining["notes"], json!(["backend fake of project main is draining: 2 machines left"]));
}

#[tokio::test]
async fn what_somebody_has_to_do_and_when_it_is_tried_again_is_told() {
    let server = server_with_cloud().await;
    let error = Error::new(ErrorKind::PermissionDenied, "not for you").with_code("UnauthorizedOperation");
    let refusal = Refusal { instance_type: None, region: None, zone: None, error };
    cloud(&server).set_refusals(vec![refusal]);
    server.apply_fleet(json!({"name": "lab", "nodes": 1})).await;
    let is_over = |answer: &Value| !answer["reason"].is_null();
    let answer = wait_for(&server, json!({"name": "lab", "kind": "fleet"}), is_over).await;
    assert_eq!(answer["reason"], "Tried 1 offer in vain: small in fake-1: UnauthorizedOperation (not for you)");
    let next = answer["next"].to_string();
    assert!(next.contains("give its credentials what they lack: UnauthorizedOperation (not for you)"), "{next}");
    let answer = wait_for(&server, json!({"name": "lab"}), |answer| {
        answer["next"].as_array().unwrap().iter().any(|step| step["at"].is_string())
    })
    .await;
    assert!(answer["next"].to_string().contains("it buys again: it has 0 of at least 1 machines"), "{answer}");
    // A run that finds no machine says the same.
    server.apply(task("gone", json!({"image": "scratch"}))).await;
    server.wait_for_run("gone", &["failed"]).await;
    let answer = server.post(&main("why"), json!({"name": "gone"})).await.ok();
    assert_eq!(answer["kind"], "run");
    assert!(answer["reason"].as_str().unwrap().contains("node 0 ended with"), "{answer}");
}

#[tokio::test]
async fn a_name_of_several_things_is_asked_about() {
    let server = server_with_cloud().await;
    server.apply_fleet(json!({"name": "same"})).await;
    server.apply(task("same", json!({"image": "scratch"}))).await;
    let message = "`same` is the name of a run and of a fleet. Say which one with --run or --fleet";
    server.post(&main("why"), json!({"name": "same"})).await.expect_bad_request(message, "error");
    let of = async |kind: &str| server.post(&main("why"), json!({"name": "same", "kind": kind})).await;
    assert_eq!(of("run").await.ok()["kind"], "run");
    assert_eq!(of("fleet").await.ok()["kind"], "fleet");
    of("instance").await.expect_bad_request("There is no instance `same` in this project", "error");
    let other = server.post(&main("why"), json!({"name": "nosuch"})).await;
    other.expect_bad_request("There is no run, fleet or instance `nosuch` in this project", "error");
}
