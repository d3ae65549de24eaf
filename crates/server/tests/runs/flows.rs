//! Recorded requests of the official client, and what the original answered.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::TestServer;
use crate::support::server_with_cloud;

#[derive(Deserialize)]
struct Call {
    flow: String,
    path: String,
    body: Value,
    status: u16,
    answer: Value,
}

fn flows() -> BTreeMap<String, Vec<Call>> {
    let calls: Vec<Call> = serde_json::from_str(include_str!("../golden/flows.json")).unwrap();
    let mut flows: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    for call in calls {
        flows.entry(call.flow.clone()).or_default().push(call);
    }
    flows
}

/// The same but for what must differ: identifiers, times, keys, and what is on offer. Every key stays.
fn comparable(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut map: serde_json::Map<String, Value> =
                map.iter().map(|(key, value)| (key.clone(), comparable(value))).collect();
            // Our addition, which the official client ignores.
            map.remove("warnings");
            for key in ["total_offers", "max_price", "max_offer_price"] {
                if let Some(value) = map.get_mut(key) {
                    *value = Value::Null;
                }
            }
            Value::Object(map)
        }
        Value::Array(items) => {
            let is_offer = |item: &Value| item.get("instance_runtime").is_some();
            match items.first().filter(|item| is_offer(item)) {
                // One offer stands for all: it must have all keys.
                Some(offer) => json!([shape(offer)]),
                None => Value::Array(items.iter().map(comparable).collect()),
            }
        }
        Value::String(text) if text.starts_with("ssh-") => json!("<key>"),
        Value::String(text) => match (text.parse::<Uuid>(), text.parse::<Timestamp>()) {
            (Ok(id), _) => json!(format!("<uuid {}>", id.get_version_num())),
            (_, Ok(_)) => json!("<time>"),
            _ => value.clone(),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// The keys of an offer, and what kind of value each has.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) if !map.is_empty() => map
            .iter()
            .filter(|(key, _)| *key != "backend_data")
            .map(|(key, value)| (key.clone(), shape(value)))
            .collect(),
        Value::Array(items) => items.first().map_or_else(|| json!([]), |item| json!([shape(item)])),
        Value::String(_) => json!("text"),
        Value::Number(_) => json!("number"),
        Value::Object(_) | Value::Null | Value::Bool(_) => value.clone(),
    }
}

/// Keeps the archives that recorded submissions name, as if they had been uploaded here.
async fn keep_archives(server: &TestServer, body: &Value) {
    let deps = &server.server.deps;
    let admin = store::users::find_by_name(&deps.db, "admin").await.unwrap().unwrap();
    for place in ["/run_spec/file_archives", "/plan/run_spec/file_archives"] {
        for archive in body.pointer(place).and_then(Value::as_array).into_iter().flatten() {
            let id = archive["id"].as_str().unwrap();
            let row = store::blobs::ArchiveRow { id: id.parse().unwrap(), user_id: admin.id, hash: id.to_owned() };
            store::blobs::insert_archive(&deps.db, &row, vec![], deps.clock.now()).await.unwrap();
        }
    }
}

async fn replay(server: &TestServer, calls: &[Call]) {
    for call in calls {
        keep_archives(server, &call.body).await;
        let got = server.post(&call.path, call.body.clone()).await;
        let place = format!("{}: {}", call.flow, call.path);
        assert_eq!(got.status, call.status, "{place}: {}", got.body);
        let (got, expected) = (comparable(&got.body), comparable(&call.answer));
        if let Some(difference) = difference(&got, &expected, "") {
            panic!("{place}: {difference}");
        }
    }
}

/// The first place where two values differ; whole answers are too long to compare by eye.
fn difference(got: &Value, expected: &Value, place: &str) -> Option<String> {
    match (got, expected) {
        (Value::Object(got), Value::Object(expected)) => {
            let keys: std::collections::BTreeSet<&String> = got.keys().chain(expected.keys()).collect();
            keys.into_iter().find_map(|key| {
                let place = format!("{place}.{key}");
                match (got.get(key), expected.get(key)) {
                    (Some(got), Some(expected)) => difference(got, expected, &place),
                    (got, expected) => Some(format!("{place}: got {got:?}, expected {expected:?}")),
                }
            })
        }
        (Value::Array(got), Value::Array(expected)) if got.len() == expected.len() => {
            let pairs = got.iter().zip(expected).enumerate();
            pairs
                .into_iter()
                .find_map(|(index, (got, expected))| difference(got, expected, &format!("{place}[{index}]")))
        }
        _ => (got != expected).then(|| format!("{place}: got {got}, expected {expected}")),
    }
}

#[tokio::test]
async fn a_task_without_fleets_is_planned_and_submitted() {
    let server = TestServer::new().await;
    replay(&server, &flows()["task without fleets"]).await;
    // Nothing suits, so it fails by itself, as the original's does.
    let run = server.wait_for_run("train", &["failed"]).await;
    assert_eq!((&run["termination_reason"], &run["error"]), (&json!("job_failed"), &Value::Null));
    let submission = &run["latest_job_submission"];
    assert_eq!((&submission["status"], &submission["status_message"]), (&json!("failed"), &json!("no fleets")));
    assert_eq!(submission["termination_reason"], "failed_to_start_due_to_no_capacity");
}

#[tokio::test]
async fn a_template_fleet_is_made_once() {
    let server = TestServer::new().await;
    replay(&server, &flows()["template fleet"]).await;
}

#[tokio::test]
async fn offers_are_listed_without_fleets() {
    let server = server_with_cloud().await;
    let calls = flows().remove("offers").unwrap();
    // The second call was recorded on a server that has no backend.
    replay(&server, &calls[..1]).await;
    replay(&TestServer::new().await, &calls[1..]).await;
}

#[tokio::test]
async fn submissions_are_what_the_original_makes_of_them() {
    for flow in ["task with files", "two nodes", "failing"] {
        let server = TestServer::new().await;
        let mut calls = flows().remove(flow).unwrap();
        for call in &mut calls {
            // The recorded server had a fleet, and an earlier run of that name.
            let plans = call.answer.get_mut("job_plans").and_then(Value::as_array_mut);
            for plan in plans.into_iter().flatten() {
                plan["offers"] = json!([]);
            }
            if call.answer.get("current_resource").is_some() {
                call.answer["current_resource"] = Value::Null;
            }
            if let Some(plan) = call.body.get_mut("plan") {
                plan["current_resource"] = Value::Null;
            }
        }
        replay(&server, &calls).await;
    }
}

#[tokio::test]
async fn a_fixed_fleet_gets_its_instances_at_once() {
    let server = server_with_cloud().await;
    let mut calls = flows().remove("fixed fleet").unwrap();
    for call in &mut calls {
        // The pretended cloud has another name.
        let text = call.body.to_string().replace("\"aws\"", "\"cudo\"");
        call.body = serde_json::from_str(&text).unwrap();
        let text = call.answer.to_string().replace("\"aws\"", "\"cudo\"");
        call.answer = serde_json::from_str(&text).unwrap();
    }
    replay(&server, &calls).await;
}
