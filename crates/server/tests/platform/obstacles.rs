//! A database that cannot be written for a while: what users are told, and that work goes on afterwards.

use serde_json::{Value, json};
use store::{Db, Executor as _};

use crate::harness::{Answer, Home, TestServer};

/// Another program that writes to the server's database and does not come to an end.
async fn other_program(home: &Home) -> (Db, store::Tx) {
    let other = Db::open_sqlite(&home.server_dir().join("data/sqlite.db")).await.unwrap();
    let held = other.begin().await.unwrap();
    (other, held)
}

async fn set_secret(server: &TestServer, value: &str) -> Answer {
    let secret = json!({"name": "s", "value": value});
    server.post("/api/project/main/secrets/create_or_update", secret).await
}

#[track_caller]
fn check_told(answer: &Answer, part: &str) {
    assert_eq!(answer.status, 503, "{}", answer.body);
    let [item] = answer.body["detail"].as_array().unwrap().as_slice() else { panic!("{}", answer.body) };
    let message = item["msg"].as_str().unwrap();
    assert!(message.starts_with("The server cannot work now: ") && message.contains(part), "{message}");
}

async fn check_works_again(server: &TestServer) {
    set_secret(server, "v").await.ok();
    let secrets = server.post("/api/project/main/secrets/list", Value::Null).await.ok();
    assert_eq!(secrets.as_array().unwrap().len(), 1, "{secrets}");
    let events = server.post("/api/events/list", json!({})).await.ok();
    let created = events.as_array().unwrap().iter().filter(|event| event["message"] == "Secret created").count();
    assert_eq!(created, 1, "{events}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_locked_database_says_that_another_program_holds_it() {
    let home = TestServer::new().await.stop().await;
    let (other, held) = other_program(&home).await;
    let error = format!("{:#}", home.try_start(&[]).await.unwrap_err());
    assert!(error.contains("another program holds the server's database"), "{error}");
    drop(held);
    other.close().await;
    check_works_again(&home.start(&[]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_another_program_locks_is_waited_for_and_told_of() {
    let server = TestServer::new().await;
    let (other, held) = other_program(&server.home).await;
    check_told(&set_secret(&server, "v").await, "another program holds the server's database; end that program");
    // What is only read goes on.
    server.post("/api/users/get_my_user", Value::Null).await.ok();
    drop(held);
    other.close().await;
    check_works_again(&server).await;
}

#[tokio::test]
async fn a_database_that_may_not_be_written_is_told_of() {
    let server = TestServer::new().await;
    let mut db = &server.server.deps.db;
    db.execute_lightly("PRAGMA query_only = 1", vec![]).await.unwrap();
    check_told(&set_secret(&server, "v").await, "may not write to its database");
    db.execute_lightly("PRAGMA query_only = 0", vec![]).await.unwrap();
    check_works_again(&server).await;
}

#[tokio::test]
async fn a_full_disk_is_told_of() {
    let server = TestServer::new().await;
    let mut db = &server.server.deps.db;
    // The least number that it can be set to is the number of pages that are there.
    db.change_lightly("PRAGMA max_page_count = 1", vec![]).await.unwrap();
    let mut answers = vec![];
    for number in 0..20 {
        let secret = json!({"name": format!("filler{number}"), "value": "x".repeat(5000)});
        answers.push(server.post("/api/project/main/secrets/create_or_update", secret).await);
        if answers.last().is_some_and(|answer| answer.status != 200) {
            break;
        }
    }
    check_told(answers.last().unwrap(), "the disk of the server's database is full; make room on it");
    db.change_lightly("PRAGMA max_page_count = 1000000", vec![]).await.unwrap();
    set_secret(&server, "v").await.ok();
}
