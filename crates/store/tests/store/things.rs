//! Backends, secrets, repositories, blobs, and facts about the installation.

use api::ids::{BackendId, ProjectId, RepoRowId, ServerId, UserId};
use serde_json::json;
use store::backends::BackendRow;
use store::blobs::ArchiveRow;
use store::repos::RepoRow;
use store::secrets::SecretRow;
use store::{Db, Error, Executor, backends, blobs, repos, secrets, server_lock, server_state, values};
use uuid::Uuid;

use crate::harness::{at, id, on_every_engine, random_id};

on_every_engine! {
    a_project_has_one_backend_of_a_kind
    a_draining_backend_makes_room_for_another
    a_backend_is_changed_and_forgotten
    a_backend_of_the_file_is_known_until_it_is_changed_or_let_go
    a_backend_is_in_use_while_machines_of_it_may_live
    secrets_belong_to_their_project
    repositories_are_told_of_again_and_again
    each_user_has_their_own_creds
    bytes_are_kept_once
    the_identity_stays_and_the_epoch_grows
    a_transaction_is_whole_or_nothing
    a_second_server_is_noticed
}

fn backend(project_id: ProjectId, kind: &str, created: i64) -> BackendRow {
    BackendRow {
        id: id(),
        project_id,
        kind: kind.to_owned(),
        config: json!({"type": kind, "regions": null}),
        sealed_config: "sealed".to_owned(),
        draining: false,
        created_at: at(created),
    }
}

async fn a_project_has_one_backend_of_a_kind(db: Db) {
    let project: ProjectId = id();
    let (one, other) = (backend(project, "one", 0), backend(project, "another", 1));
    backends::insert(&db, &one).await.unwrap();
    backends::insert(&db, &other).await.unwrap();
    backends::insert(&db, &backend(id(), "one", 2)).await.unwrap();
    assert!(matches!(backends::insert(&db, &backend(project, "one", 3)).await, Err(Error::Taken(_))));
    assert_eq!(backends::get(&db, one.id).await.unwrap(), Some(one.clone()));
    assert_eq!(backends::find(&db, project, "one").await.unwrap(), Some(one.clone()));
    assert_eq!(backends::find(&db, project, "two").await.unwrap(), None);
    assert_eq!(backends::list(&db, project).await.unwrap(), vec![other, one]);
    assert_eq!(backends::all(&db).await.unwrap().len(), 3);
}

async fn a_draining_backend_makes_room_for_another(db: Db) {
    let project: ProjectId = id();
    let (old, new) = (backend(project, "one", 0), backend(project, "one", 1));
    backends::insert(&db, &old).await.unwrap();
    backends::set_draining(&db, old.id).await.unwrap();
    assert_eq!(backends::find(&db, project, "one").await.unwrap(), None);
    assert_eq!(backends::find_draining(&db, project, "one").await.unwrap().unwrap().id, old.id);
    backends::insert(&db, &new).await.unwrap();
    assert_eq!(backends::list(&db, project).await.unwrap(), vec![new]);
    assert_eq!(backends::all(&db).await.unwrap().len(), 2);
    assert!(backends::get(&db, old.id).await.unwrap().unwrap().draining);
    // Both at once would be two of a kind.
    assert!(matches!(backends::set_config(&db, old.id, &json!({}), "s").await, Err(Error::Taken(_))));
}

async fn a_backend_is_changed_and_forgotten(db: Db) {
    let row = backend(id(), "one", 0);
    backends::insert(&db, &row).await.unwrap();
    backends::set_draining(&db, row.id).await.unwrap();
    backends::set_config(&db, row.id, &json!({"a": 1.5}), "sealed again").await.unwrap();
    let changed = backends::get(&db, row.id).await.unwrap().unwrap();
    assert_eq!((changed.config, changed.draining), (json!({"a": 1.5}), false));
    assert_eq!(changed.sealed_config, "sealed again");
    assert!(!backends::is_in_use(&db, row.id).await.unwrap());
    backends::delete_drained(&db, row.id).await.unwrap();
    assert!(backends::get(&db, row.id).await.unwrap().is_some(), "it is wanted again");
    backends::set_draining(&db, row.id).await.unwrap();
    backends::delete_drained(&db, row.id).await.unwrap();
    assert_eq!(backends::get(&db, row.id).await.unwrap(), None);
}

async fn a_backend_of_the_file_is_known_until_it_is_changed_or_let_go(db: Db) {
    let project: ProjectId = id();
    let (listed, other) = (backend(project, "one", 0), backend(project, "another", 1));
    for row in [&listed, &other, &backend(id(), "one", 2)] {
        backends::insert(&db, row).await.unwrap();
    }
    let known = async || backends::list_from_file(&db).await.unwrap();
    assert_eq!(known().await, vec![]);
    backends::set_from_file(&db, project, "one").await.unwrap();
    assert_eq!(known().await, vec![listed.clone()]);
    backends::set_config(&db, listed.id, &listed.config, &listed.sealed_config).await.unwrap();
    assert_eq!(known().await, vec![], "somebody else has changed it");
    backends::set_from_file(&db, project, "one").await.unwrap();
    backends::set_draining(&db, listed.id).await.unwrap();
    assert_eq!(known().await, vec![]);
}

async fn add_launch(mut db: &Db, backend: BackendId, status: &str) -> Uuid {
    let launch = random_id();
    db.execute(
        "INSERT INTO launches (id, version, due_at, leased_until, leased_by, project_id, fleet_id, backend_id, \
         created_at, status, cancelled, state) VALUES ($1, 1, 0, 0, '', 'p', 'f', $2, 0, $3, 0, '{}')",
        values![launch, backend, status],
    )
    .await
    .unwrap();
    launch
}

async fn add_instance(mut db: &Db, launch: Uuid, status: &str) {
    db.execute(
        "INSERT INTO instances (id, version, due_at, leased_until, leased_by, project_id, fleet_id, instance_num, \
         created_at, status, launch_id, launch_index, state) \
         VALUES ($1, 1, 0, 0, '', 'p', $1, 0, 0, $2, $3, 0, '{}')",
        values![random_id(), status, launch],
    )
    .await
    .unwrap();
}

async fn a_backend_is_in_use_while_machines_of_it_may_live(db: Db) {
    for (launch, instance, expected) in [
        ("wanted", None, true),
        ("requested", None, true),
        ("done", None, false),
        ("failed", None, false),
        ("done", Some("idle"), true),
        ("done", Some("terminating"), true),
        ("done", Some("terminated"), false),
    ] {
        let row = backend(id(), "one", 0);
        let backend = row.id;
        backends::insert(&db, &row).await.unwrap();
        backends::set_draining(&db, backend).await.unwrap();
        let launched = add_launch(&db, backend, launch).await;
        if let Some(status) = instance {
            add_instance(&db, launched, status).await;
        }
        assert_eq!(backends::is_in_use(&db, backend).await.unwrap(), expected, "{launch} {instance:?}");
        // Its credentials are needed for as long.
        backends::delete_drained(&db, backend).await.unwrap();
        assert_eq!(backends::get(&db, backend).await.unwrap().is_some(), expected, "{launch} {instance:?}");
    }
}

async fn secrets_belong_to_their_project(db: Db) {
    let (mine, other): (ProjectId, ProjectId) = (id(), id());
    let secret = |project_id, name: &str, created| SecretRow {
        id: id(),
        project_id,
        name: name.to_owned(),
        sealed_value: "sealed".to_owned(),
        created_at: at(created),
    };
    let (a, b) = (secret(mine, "a", 0), secret(mine, "B", 1));
    for row in [&a, &b, &secret(other, "a", 0)] {
        secrets::insert(&db, row).await.unwrap();
    }
    assert!(matches!(secrets::insert(&db, &secret(mine, "a", 0)).await, Err(Error::Taken(_))));
    assert_eq!(secrets::list(&db, mine).await.unwrap(), vec![b.clone(), a.clone()]);
    assert_eq!(secrets::find(&db, mine, "b").await.unwrap(), None);
    let names = ["a".to_owned(), "B".to_owned(), "none".to_owned()];
    assert_eq!(secrets::find_many(&db, mine, &names).await.unwrap(), vec![b.clone(), a.clone()]);
    assert_eq!(secrets::find_many(&db, mine, &[]).await.unwrap(), vec![]);
    secrets::set_value(&db, a.id, "sealed again").await.unwrap();
    assert_eq!(secrets::find(&db, mine, "a").await.unwrap().unwrap().sealed_value, "sealed again");
    secrets::delete(&db, a.id).await.unwrap();
    assert_eq!(secrets::find(&db, mine, "a").await.unwrap(), None);
    assert!(secrets::find(&db, other, "a").await.unwrap().is_some());
}

fn repo(project_id: ProjectId, name: &str, created: i64) -> RepoRow {
    RepoRow {
        id: id(),
        project_id,
        name: name.to_owned(),
        info: json!({"repo_type": "virtual"}),
        created_at: at(created),
    }
}

async fn repositories_are_told_of_again_and_again(db: Db) {
    let project: ProjectId = id();
    let first = repo(project, "none", 0);
    assert_eq!(repos::upsert(&db, &first).await.unwrap(), first.id);
    let mut second = repo(project, "none", 1);
    second.info = json!({"repo_type": "remote", "repo_name": "x"});
    assert_eq!(repos::upsert(&db, &second).await.unwrap(), first.id);
    repos::upsert(&db, &repo(project, "more", 2)).await.unwrap();
    let kept = repos::find(&db, project, "none").await.unwrap().unwrap();
    assert_eq!((kept.id, kept.info, kept.created_at), (first.id, second.info, at(0)));
    assert_eq!(repos::list(&db, project).await.unwrap().len(), 2);
    repos::delete(&db, first.id).await.unwrap();
    assert_eq!(repos::find(&db, project, "none").await.unwrap(), None);
}

async fn each_user_has_their_own_creds(db: Db) {
    let (repo, bob, ann): (RepoRowId, UserId, UserId) = (id(), id(), id());
    let creds = async |user| repos::sealed_creds(&db, repo, user).await.unwrap();
    repos::set_creds(&db, repo, bob, "one").await.unwrap();
    repos::set_creds(&db, repo, bob, "two").await.unwrap();
    repos::set_creds(&db, repo, ann, "three").await.unwrap();
    assert_eq!((creds(bob).await.as_deref(), creds(ann).await.as_deref()), (Some("two"), Some("three")));
    repos::delete_creds(&db, repo, bob).await.unwrap();
    assert_eq!((creds(bob).await, creds(ann).await.as_deref()), (None, Some("three")));
    repos::delete_all_creds(&db, repo).await.unwrap();
    assert_eq!(creds(ann).await, None);
}

async fn bytes_are_kept_once(db: Db) {
    let (repo, user): (RepoRowId, UserId) = (id(), id());
    let bytes = vec![0, 159, 146, 150];
    blobs::insert_code(&db, repo, "h", bytes.clone(), at(0)).await.unwrap();
    blobs::insert_code(&db, repo, "h", vec![], at(1)).await.unwrap();
    assert_eq!(blobs::code(&db, repo, "h").await.unwrap(), Some(bytes.clone()));
    assert_eq!(blobs::code(&db, id(), "h").await.unwrap(), None);
    blobs::delete_code(&db, repo).await.unwrap();
    assert_eq!(blobs::code(&db, repo, "h").await.unwrap(), None);

    let first = ArchiveRow { id: id(), user_id: user, hash: "h".to_owned() };
    let again = ArchiveRow { id: id(), ..first.clone() };
    let others = ArchiveRow { id: id(), user_id: id(), hash: "h".to_owned() };
    assert_eq!(blobs::insert_archive(&db, &first, bytes.clone(), at(0)).await.unwrap(), first.id);
    assert_eq!(blobs::insert_archive(&db, &again, vec![], at(1)).await.unwrap(), first.id);
    assert_eq!(blobs::insert_archive(&db, &others, vec![1], at(1)).await.unwrap(), others.id);
    assert_eq!(blobs::find_archive(&db, user, "h").await.unwrap(), Some(first.clone()));
    assert_eq!(blobs::get_archive(&db, first.id).await.unwrap(), Some(first.clone()));
    assert_eq!(blobs::archive_bytes(&db, first.id).await.unwrap(), Some(bytes));
    assert_eq!(blobs::archive_bytes(&db, again.id).await.unwrap(), None);
}

async fn the_identity_stays_and_the_epoch_grows(db: Db) {
    let first: ServerId = id();
    assert_eq!(server_state::server_id(&db, first).await.unwrap(), first);
    assert_eq!(server_state::server_id(&db, id()).await.unwrap(), first);
    for epoch in 1..=3 {
        assert_eq!(server_state::next_epoch(&db).await.unwrap(), epoch);
    }
    assert_eq!(server_state::get(&db, "x").await.unwrap(), None);
    server_state::set(&db, "x", "1").await.unwrap();
    server_state::set(&db, "x", "2").await.unwrap();
    assert_eq!(server_state::get(&db, "x").await.unwrap().as_deref(), Some("2"));
}

async fn a_transaction_is_whole_or_nothing(db: Db) {
    let project: ProjectId = id();
    let mut tx = db.begin().await.unwrap();
    backends::insert(&mut tx, &backend(project, "one", 0)).await.unwrap();
    assert_eq!(backends::list(&mut tx, project).await.unwrap().len(), 1);
    drop(tx);
    assert_eq!(backends::list(&db, project).await.unwrap().len(), 0);
    let mut tx = db.begin().await.unwrap();
    backends::insert(&mut tx, &backend(project, "one", 0)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(backends::list(&db, project).await.unwrap().len(), 1);
}

async fn a_second_server_is_noticed(db: Db) {
    let first = server_lock::take(&db).await.unwrap();
    assert!(first.is_some());
    // SQLite files are locked elsewhere.
    assert_eq!(server_lock::take(&db).await.unwrap().is_none(), db.is_shared());
    drop(first);
    // The database notices the end of a connection a moment later.
    for _ in 0..3_000 {
        if server_lock::take(&db).await.unwrap().is_some() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the lock of a server that ended is held");
}
