//! The same server on Postgres, where `DSTACK_TEST_POSTGRES_URL` names one.

use serde_json::{Value, json};
use store::{Db, Executor as _};

use crate::harness::Home;

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
