//! Runs a test on SQLite, in memory and in a file, and on Postgres where `DSTACK_TEST_POSTGRES_URL` names one.
//!
//! Every test has a database of its own: on Postgres a schema with a random name.

use jiff::Timestamp;
use sqlx::postgres::PgPoolOptions;
use store::Db;
use uuid::Uuid;

/// Declares `mod name { in_memory, in_a_file, on_postgres }` for each test: an `async fn name(db: Db)`.
macro_rules! on_every_engine {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test]
            async fn in_memory() {
                $crate::harness::in_memory(super::$name).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_a_file() {
                $crate::harness::in_a_file(super::$name).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                $crate::harness::on_postgres(super::$name).await;
            }
        }
    )*};
}

pub(crate) use on_every_engine;

pub(crate) async fn in_memory<F: Future>(test: impl FnOnce(Db) -> F) {
    let db = Db::open_memory().await.unwrap();
    store::migrate(&db).await.unwrap();
    test(db).await;
}

pub(crate) async fn in_a_file<F: Future>(test: impl FnOnce(Db) -> F) {
    let test = async |db: Db| {
        store::migrate(&db).await.unwrap();
        test(db).await;
    };
    in_an_empty_file(test).await;
}

/// Like [`in_a_file`], without a schema.
pub(crate) async fn in_an_empty_file<F: Future>(test: impl FnOnce(Db) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open_sqlite(&folder.path().join("test.db")).await.unwrap();
    test(db.clone()).await;
    db.close().await;
}

pub(crate) async fn on_postgres<F: Future>(test: impl FnOnce(Db) -> F) {
    let test = async |db: Db| {
        store::migrate(&db).await.unwrap();
        test(db).await;
    };
    on_empty_postgres(test).await;
}

/// Like [`on_postgres`], without a schema.
pub(crate) async fn on_empty_postgres<F: Future>(test: impl FnOnce(Db) -> F) {
    let Ok(url) = std::env::var("DSTACK_TEST_POSTGRES_URL") else { return };
    let schema = format!("t{}", random_id().simple());
    let admin = PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    let create = format!("CREATE SCHEMA {schema}");
    sqlx::query(sqlx::AssertSqlSafe(create)).execute(&admin).await.unwrap();
    let joint = if url.contains('?') { '&' } else { '?' };
    let db = Db::open_postgres(&format!("{url}{joint}options=-csearch_path%3D{schema}")).await.unwrap();
    test(db.clone()).await;
    db.close().await;
    let drop = format!("DROP SCHEMA {schema} CASCADE");
    sqlx::query(sqlx::AssertSqlSafe(drop)).execute(&admin).await.unwrap();
}

#[expect(clippy::disallowed_methods, reason = "tests need names that nobody else has")]
pub(crate) fn random_id() -> Uuid {
    Uuid::new_v4()
}

pub(crate) fn id<T: From<Uuid>>() -> T {
    T::from(random_id())
}

/// A moment that many seconds after the tests' beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}
