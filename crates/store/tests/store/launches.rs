//! Launches: what is open, and who may change what.

use api::ids::{FleetId, ProjectId};
use lifecycle::launch::{Launch, LaunchStatus};
use store::leases::{self, Table};
use store::{Db, Error, launches};

use crate::harness::{at, id, on_every_engine};
use crate::rows::launch;

on_every_engine! {
    a_launch_is_kept_as_it_was_made
    open_launches_come_by_age
    what_came_to_nothing_since_a_time_comes_by_age
    what_came_to_nothing_for_a_project_is_that_of_all_its_fleets
    an_overtaken_save_is_refused
    a_cancelled_launch_is_due_once
}

async fn a_launch_is_kept_as_it_was_made(db: Db) {
    let kept = launch(id(), 0);
    launches::insert(&db, &kept, at(0)).await.unwrap();
    let row = launches::get(&db, kept.id).await.unwrap().unwrap();
    assert_eq!((row.version, row.value), (1, kept));
    assert_eq!(launches::get(&db, id()).await.unwrap(), None);
}

async fn open_launches_come_by_age(db: Db) {
    let fleet: FleetId = id();
    let with = |status: LaunchStatus, created: i64| Launch { status, ..launch(fleet, created) };
    let (new, old) = (with(LaunchStatus::Wanted, 9), with(LaunchStatus::Requested, 1));
    let (done, failed) = (with(LaunchStatus::Done, 0), with(LaunchStatus::Failed, 0));
    for one in [&new, &old, &done, &failed, &launch(id(), 0)] {
        launches::insert(&db, one, at(0)).await.unwrap();
    }
    let open: Vec<Launch> =
        launches::list_open(&db, fleet).await.unwrap().into_iter().map(|row| row.value).collect();
    assert_eq!(open, [old, new]);
}

async fn what_came_to_nothing_since_a_time_comes_by_age(db: Db) {
    let fleet: FleetId = id();
    let failed = |created: i64| Launch { status: LaunchStatus::Failed, ..launch(fleet, created) };
    let (old, first, second) = (failed(0), failed(5), failed(7));
    let elsewhere = Launch { status: LaunchStatus::Failed, ..launch(id(), 6) };
    for one in [&second, &old, &first, &elsewhere, &launch(fleet, 6)] {
        launches::insert(&db, one, at(0)).await.unwrap();
    }
    let since = async |secs: i64, limit: u32| -> Vec<Launch> {
        let rows = launches::list_failed(&db, fleet, at(secs), limit).await.unwrap();
        rows.into_iter().map(|row| row.value).collect()
    };
    assert_eq!(since(5, 10).await, [first.clone(), second.clone()]);
    assert_eq!(since(0, 2).await, [first, second.clone()], "the newest");
    assert_eq!(since(6, 10).await, [second]);
}

async fn what_came_to_nothing_for_a_project_is_that_of_all_its_fleets(db: Db) {
    let project = launch(id(), 0).project_id;
    let of = |project_id: ProjectId, status: LaunchStatus, created: i64| {
        let launch = launch(id(), created);
        Launch { project_id, status, ..launch }
    };
    let failed = |created: i64| of(project, LaunchStatus::Failed, created);
    let (old, first, second) = (failed(0), failed(5), failed(7));
    let others = of(id(), LaunchStatus::Failed, 6);
    for one in [&second, &old, &first, &others, &of(project, LaunchStatus::Done, 6)] {
        launches::insert(&db, one, at(0)).await.unwrap();
    }
    let since = async |secs: i64, limit: u32| -> Vec<Launch> {
        let rows = launches::list_failed_by_project(&db, project, at(secs), limit).await.unwrap();
        rows.into_iter().map(|row| row.value).collect()
    };
    assert_eq!(since(5, 10).await, [first, second.clone()]);
    assert_eq!(since(0, 1).await, [second], "the newest");
}

async fn an_overtaken_save_is_refused(db: Db) {
    let one = launch(id(), 0);
    launches::insert(&db, &one, at(0)).await.unwrap();
    let before = launches::get(&db, one.id).await.unwrap().unwrap();
    launches::cancel(&db, one.id, at(1)).await.unwrap();
    assert!(matches!(launches::save(&db, &before).await, Err(Error::Stale)));
    let mut row = launches::get(&db, one.id).await.unwrap().unwrap();
    row.value.status = LaunchStatus::Requested;
    row.value.state.attempts = 1;
    row.value.cancelled = false;
    launches::save(&db, &row).await.unwrap();
    let saved = launches::get(&db, one.id).await.unwrap().unwrap();
    assert_eq!((saved.version, saved.value.status, saved.value.state.attempts), (3, LaunchStatus::Requested, 1));
    assert!(saved.value.cancelled, "a reconciler's save leaves alone what others want");
}

async fn a_cancelled_launch_is_due_once(db: Db) {
    let one = launch(id(), 0);
    launches::insert(&db, &one, at(0)).await.unwrap();
    let claim = async |now: i64| leases::claim(&db, Table::Launches, "me", at(now), 10).await.unwrap();
    let give_back = async || leases::release(&db, Table::Launches, one.id.0, "me", leases::NEVER).await.unwrap();
    assert_eq!(claim(0).await, [one.id.0]);
    give_back().await;
    launches::cancel(&db, one.id, at(1)).await.unwrap();
    assert_eq!(claim(1).await, [one.id.0]);
    give_back().await;
    launches::cancel(&db, one.id, at(2)).await.unwrap();
    assert!(claim(2).await.is_empty(), "it was cancelled before");
}
