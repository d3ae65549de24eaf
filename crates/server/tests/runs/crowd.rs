//! Many clients at once.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::TestServer;
use crate::support::{main, waiting_task};

const CLIENTS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_are_all_answered() {
    let server = Arc::new(TestServer::new().await);
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let server = server.clone();
        clients.spawn(async move {
            let name = format!("crowd-{client}");
            let plan = server.post(&main("runs/get_plan"), json!({"run_spec": waiting_task(&name)})).await.ok();
            let run = server.apply(plan["run_spec"].clone()).await;
            let got = server.post(&main("runs/get"), json!({ "id": run["id"] })).await.ok();
            assert_eq!(got["run_spec"]["run_name"], name);
            let listed = server.post("/api/runs/list", json!({"limit": 100})).await.ok();
            assert!(!listed.as_array().unwrap().is_empty());
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    println!("{CLIENTS} clients, 4 requests each: {:?}", started.elapsed());
    let first = server.post("/api/runs/list", json!({"limit": 100})).await.ok();
    let last = &first[99];
    let next = json!({"limit": 100, "prev_submitted_at": last["submitted_at"], "prev_run_id": last["id"]});
    let second = server.post("/api/runs/list", next).await.ok();
    let mut ids: Vec<&Value> = first.as_array().unwrap().iter().chain(second.as_array().unwrap()).collect();
    ids.sort_by_key(|run| run["id"].as_str().unwrap().to_owned());
    ids.dedup_by_key(|run| run["id"].clone());
    assert_eq!(ids.len(), CLIENTS);
}
