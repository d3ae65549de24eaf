//! The same server on Postgres, where `DSTACK_TEST_POSTGRES_URL` names one.

use std::time::Duration;

use serde_json::{Value, json};
use store::{Db, Executor as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{ADMIN, Home};

/// A schema of the test's own; it stays in the test's database.
async fn fresh_url() -> Option<String> {
    let url = std::env::var("DSTACK_TEST_POSTGRES_URL").ok()?;
    let db = Db::open_postgres(&url).await.unwrap();
    let schema = format!("p{}", server::ids::Ids::Random.id::<uuid::Uuid>().simple());
    (&db).rows_of(format!("CREATE SCHEMA {schema}"), vec![]).await.unwrap();
    db.close().await;
    let joint = if url.contains('?') { '&' } else { '?' };
    Some(format!("{url}{joint}options=-csearch_path%3D{schema}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_postgres_keeps_its_things_and_is_alone() {
    let Some(url) = fresh_url().await else { return };
    let server = Home::new().start(&["--database-url", &url]).await;
    let bob = server.user("bob").await;
    server.post_as(&bob, "/api/projects/create", json!({"project_name": "team1"})).await.ok();
    let secret = json!({"name": "s", "value": "v"});
    server.post("/api/project/main/secrets/create_or_update", secret).await.ok();
    let events = server.post("/api/events/list", json!({})).await.ok();
    assert_eq!(events.as_array().unwrap().len(), 5);
    let other = Home::new().try_start(&["--database-url", &url]).await.unwrap_err();
    assert!(format!("{other:#}").starts_with("another dstack server uses the database"), "{other:#}");

    let home = server.stop().await;
    assert!(!home.server_dir().join("data/sqlite.db").exists());
    let server = home.start(&["--database-url", &url]).await;
    let value = server.post("/api/project/main/secrets/get", json!({"name": "s"})).await.ok();
    assert_eq!(value["value"], "v");
    server.post_as(&bob, "/api/projects/team1/get", Value::Null).await.ok();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_its_lock_serves_no_more() {
    let Some(url) = fresh_url().await else { return };
    let server = Home::new().start(&["--database-url", &url]).await;
    let ended = tokio::time::timeout(Duration::from_millis(100), server.server.ended()).await;
    assert!(ended.is_err(), "it serves as long as it has the lock");
    // A client that does not finish its request does not keep it.
    let mut client = TcpStream::connect(server.server.address).await.unwrap();
    let head = format!(
        "POST /api/users/get_user HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {ADMIN}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    let mut db = &server.server.deps.db;
    // As a restart of the database would, or an administrator.
    let killed = db
        .change_lightly(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
             AND classid = 1685288803 AND CAST(objid AS BIGINT) = \
             (CAST(hashtext(current_schema()) AS BIGINT) & 4294967295)",
            vec![],
        )
        .await
        .unwrap();
    assert_eq!(killed.len(), 1);
    tokio::time::timeout(Duration::from_secs(30), server.server.ended()).await.expect("it ends by itself");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_come_at_the_same_moment_are_answered_as_if_one_came_first() {
    let Some(url) = fresh_url().await else { return };
    let server = Home::new().start(&["--database-url", &url]).await;
    let (ann, bob) = (server.user("ann").await, server.user("bob").await);
    for number in 0..10 {
        let secret = json!({"name": format!("s{number}"), "value": "v"});
        let keep = || server.post("/api/project/main/secrets/create_or_update", secret.clone());
        let (left, right) = tokio::join!(keep(), keep());
        assert_eq!((left.status, right.status), (200, 200), "{} {}", left.body, right.body);

        // Two admins who leave at once do not leave a project without one.
        let name = format!("team{number}");
        server.post_as(&ann, "/api/projects/create", json!({ "project_name": name })).await.ok();
        let add = json!({"members": [{"username": "bob", "project_role": "admin"}]});
        server.post_as(&ann, &format!("/api/projects/{name}/add_members"), add).await.ok();
        let path = format!("/api/projects/{name}/remove_members");
        let (left, right) = tokio::join!(
            server.post_as(&ann, &path, json!({"usernames": ["ann"]})),
            server.post_as(&bob, &path, json!({"usernames": ["bob"]}))
        );
        let mut statuses = [left.status, right.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400], "{} {}", left.body, right.body);

        // A run or the end of its project, never both.
        let run =
            json!({"configuration": {"type": "task", "commands": ["x"], "retry": true}, "run_name": "train"});
        let runs = format!("/api/project/{name}/runs/apply");
        let (apply, delete) = tokio::join!(
            server.post(&runs, json!({"plan": {"run_spec": run}, "force": false})),
            server.post("/api/projects/delete", json!({ "projects_names": [name] }))
        );
        let outcome = (apply.status, delete.status);
        assert!(matches!(outcome, (200, 400) | (404, 200)), "{outcome:?}: {} {}", apply.body, delete.body);
    }
    server.stop().await;
}
