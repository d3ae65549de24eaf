//! The schema's steps, on databases that are in use.
//!
//! The rows are written as a release of that time did, in its own words: what this release writes may have more
//! columns.

use api::ids::{ProjectId, RunId, UserId};
use serde_json::json;
use store::runs::RunFilter;
use store::{Db, Executor, LAST_STEP, Value, events, fleets, jobs, projects, runs, secrets, users, values};

use crate::harness::{at, in_an_empty_file, on_empty_postgres};
use crate::rows::numbered;

const USER: u128 = 1;
const PROJECT: u128 = 2;
const RUN: u128 = 3;

async fn write(mut db: &Db, sql: &'static str, values: Vec<Value>) {
    assert_eq!(db.execute(sql, values).await.unwrap(), 1, "{sql}");
}

/// What a server of that step had written.
async fn write_rows_of(db: &Db, step: i64) {
    write_accounts(db).await;
    if 2 <= step {
        write_runs_and_fleets(db).await;
    }
    if 3 <= step {
        write_events(db).await;
    }
}

async fn write_accounts(db: &Db) {
    let (user, project): (UserId, ProjectId) = (numbered(USER), numbered(PROJECT));
    let now = at(0);
    write(
        db,
        "INSERT INTO users (id, name, name_lower, role, email, active, deleted, created_at, token_hash, sealed_token, \
         ssh_public_key, sealed_ssh_private_key) VALUES ($1, 'Ann', 'ann', 'admin', NULL, 1, 0, $2, 'h', 's', 'p', 'k')",
        values![user, now],
    )
    .await;
    write(
        db,
        "INSERT INTO projects (id, name, name_lower, owner_id, is_public, templates_repo, created_at, deleted, \
         ssh_public_key, sealed_ssh_private_key) VALUES ($1, 'main', 'main', $2, 0, NULL, $3, 0, 'p', 'k')",
        values![project, user, now],
    )
    .await;
    write(
        db,
        "INSERT INTO secrets (id, project_id, name, sealed_value, created_at) VALUES ($1, $2, 'token', 'sealed', $3)",
        values![user, project, now],
    )
    .await;
}

async fn write_runs_and_fleets(db: &Db) {
    let (user, project): (UserId, ProjectId) = (numbered(USER), numbered(PROJECT));
    let (run, now): (RunId, _) = (numbered(RUN), at(0));
    let configuration = json!({"type": "fleet", "name": "gpu", "nodes": "0..2"});
    write(
        db,
        "INSERT INTO fleets (id, version, due_at, leased_until, leased_by, project_id, user_id, name, created_at, \
         status, wanted, spec, state) VALUES ($1, 4, 0, 0, '', $1, $2, 'gpu', $3, 'active', 1, $4, '{}')",
        values![project, user, now, json!({"configuration": configuration, "profile": {}}).to_string()],
    )
    .await;
    let configuration = json!({"type": "task", "commands": ["true"]});
    write(
        db,
        "INSERT INTO runs (id, version, due_at, leased_until, leased_by, project_id, user_id, name, submitted_at, \
         priority, status, deleted, repo_id, stop_request, fleet_id, spec, state) \
         VALUES ($1, 7, 0, 0, '', $2, $3, 'train', $4, 0, 'running', 0, NULL, 'stop', NULL, $5, '{}')",
        values![run, project, user, now, json!({"run_name": "train", "configuration": configuration}).to_string()],
    )
    .await;
    let spec = json!({"job_num": 0, "job_name": "train-0-0", "commands": ["true"], "env": {}, "image_name": "",
                      "requirements": {"resources": {}}});
    write(
        db,
        "INSERT INTO jobs (id, version, due_at, leased_until, leased_by, run_id, project_id, replica_num, job_num, \
         submission_num, submitted_at, status, instance_id, end_order, released_at, spec, state) \
         VALUES ($1, 5, 0, 0, '', $1, $2, 0, 0, 0, $3, 'running', NULL, NULL, NULL, $4, '{}')",
        values![run, project, now, spec.to_string()],
    )
    .await;
}

async fn write_events(db: &Db) {
    let (user, project): (UserId, ProjectId) = (numbered(USER), numbered(PROJECT));
    let (run, now): (RunId, _) = (numbered(RUN), at(0));
    write(
        db,
        "INSERT INTO events (id, recorded_at, message, actor_user_id) VALUES ($1, $2, 'Run submitted', $3)",
        values![run, now, user],
    )
    .await;
    write(
        db,
        "INSERT INTO event_targets (event_id, place, kind, project_id, target_id, name, run_id, fleet_id) \
         VALUES ($1, 0, 'run', $2, $1, 'train', $1, NULL)",
        values![run, project],
    )
    .await;
}

async fn check_rows_of(db: &Db, step: i64) {
    let (user, project): (UserId, ProjectId) = (numbered(USER), numbered(PROJECT));
    assert_eq!(users::find_by_name(db, "ann").await.unwrap().unwrap().id, user);
    assert_eq!(projects::find_by_name(db, "main").await.unwrap().unwrap().owner_id, user);
    assert_eq!(secrets::find(db, project, "token").await.unwrap().unwrap().sealed_value, "sealed");
    let filter = RunFilter { projects: vec![project], limit: 10, ..RunFilter::default() };
    let listed = runs::list(db, &filter).await.unwrap();
    if step < 2 {
        assert_eq!(listed, []);
        return;
    }
    let [run] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((run.version, run.value.name.as_str()), (7, "train"));
    assert_eq!(run.value.stop, Some(lifecycle::run::StopRequest::Stop));
    assert_eq!(jobs::list_latest(db, run.value.id).await.unwrap().len(), 1);
    assert_eq!(fleets::get_by_name(db, project, "gpu").await.unwrap().unwrap().version, 4);
    let filter = events::EventFilter { limit: 10, ..events::EventFilter::default() };
    let told = events::list(db, &filter).await.unwrap();
    assert_eq!(told.len(), usize::from(3 <= step));
    assert!(told.iter().all(|event| event.targets.len() == 1));
}

async fn check_step(db: Db, step: i64) {
    store::migrate_until(&db, step).await.unwrap();
    write_rows_of(&db, step).await;
    store::migrate(&db).await.unwrap();
    check_rows_of(&db, step).await;
    // A second start finds nothing to do, and an older release does not touch what it does not know.
    store::migrate(&db).await.unwrap();
    check_rows_of(&db, step).await;
    if step < LAST_STEP {
        let older = store::migrate_until(&db, step).await.unwrap_err().to_string();
        assert!(older.contains("previously applied"), "{older}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_every_release_is_brought_up_with_what_is_in_it() {
    for step in 1..=LAST_STEP {
        in_an_empty_file(|db| check_step(db, step)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_of_every_release_is_brought_up_with_what_is_in_it() {
    for step in 1..=LAST_STEP {
        on_empty_postgres(|db| check_step(db, step)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_up_leads_to_the_same_schema() {
    let mut schemas = vec![];
    for step in 0..LAST_STEP {
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        in_an_empty_file(async |db: Db| {
            store::migrate_until(&db, step).await.unwrap();
            store::migrate(&db).await.unwrap();
            let sql = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name";
            let rows = (&db).rows(sql, vec![]).await.unwrap();
            told.send(rows.iter().map(|row| row.text(0).unwrap()).collect::<Vec<_>>()).unwrap();
        })
        .await;
        schemas.push(tells.recv().await.unwrap());
    }
    assert!(schemas[0].len() > 20);
    assert!(schemas.iter().all(|schema| *schema == schemas[0]));
}
