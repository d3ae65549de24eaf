//! What the tests of runs share.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Home, TestServer};

/// A path of the project `main`.
pub(crate) fn main(path: &str) -> String {
    format!("/api/project/main/{path}")
}

/// A server whose project has a pretended cloud. Its machines never answer.
pub(crate) async fn server_with_cloud() -> TestServer {
    let home = Home::new();
    home.configure("projects:\n- name: main\n  backends:\n  - type: fake\n");
    home.start(&["--test-backends"]).await
}

/// A task's spec with more keys of its configuration.
#[expect(clippy::needless_pass_by_value, reason = "callers write the keys in place")]
pub(crate) fn task(name: &str, keys: Value) -> Value {
    let mut configuration = json!({"type": "task", "commands": ["true"], "resources": {"disk": null}});
    configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    json!({"run_name": name, "configuration": configuration})
}

/// A task that goes on waiting where nothing suits.
pub(crate) fn waiting_task(name: &str) -> Value {
    task(name, json!({"retry": true, "resources": {"gpu": "H100:64"}}))
}

impl TestServer {
    /// Submits a run and gives it.
    pub(crate) async fn apply(&self, run_spec: Value) -> Value {
        self.post(&main("runs/apply"), json!({"plan": {"run_spec": run_spec}, "force": false})).await.ok()
    }

    /// Makes a fleet and gives it.
    pub(crate) async fn apply_fleet(&self, keys: Value) -> Value {
        let mut configuration = json!({"type": "fleet", "nodes": "0..2"});
        configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let spec = json!({"configuration": configuration, "profile": {}});
        self.post(&main("fleets/apply"), json!({"plan": {"spec": spec}, "force": false})).await.ok()
    }

    /// Asks for a run until it has one of these statuses.
    pub(crate) async fn wait_for_run(&self, name: &str, statuses: &[&str]) -> Value {
        let mut last = Value::Null;
        for _ in 0..3_000 {
            last = self.post(&main("runs/get"), json!({ "run_name": name })).await.ok();
            if statuses.contains(&last["status"].as_str().unwrap()) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("`{name}` does not become {statuses:?}: {last}");
    }
}

/// The messages of events, the newest first, with who caused them.
pub(crate) async fn events(server: &TestServer, filter: Value) -> Vec<(String, Option<String>)> {
    let events = server.post("/api/events/list", filter).await.ok();
    let text = |event: &Value, key: &str| event[key].as_str().map(str::to_owned);
    events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (text(event, "message").unwrap(), text(event, "actor_user")))
        .collect()
}
