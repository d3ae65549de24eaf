//! Jobs: submissions and their order, and who may change what.

use api::ids::{InstanceId, JobId, RunId};
use api::jobs::{JobStatus, JobTerminationReason};
use lifecycle::job::{EndOrder, Job};
use store::leases::{self, Table};
use store::{Db, Error, jobs};

use crate::harness::{at, id, on_every_engine};
use crate::rows::job;

on_every_engine! {
    a_job_is_kept_as_it_was_made
    a_submission_is_there_once
    the_latest_submission_of_each_job_counts
    submissions_come_by_run_replica_number_and_submission
    sums_of_versions_grow_with_every_change
    only_unfinished_jobs_hold_an_instance
    an_overtaken_save_is_refused
    an_end_is_ordered_until_the_job_has_ended
    a_job_that_has_a_place_is_not_refused
    jobs_are_woken_by_their_run_and_their_instance
}

fn end(grace_secs: u64) -> EndOrder {
    EndOrder { reason: JobTerminationReason::TerminatedByUser, message: Some("enough".to_owned()), grace_secs }
}

async fn insert(db: &Db, jobs: &[&Job]) {
    for job in jobs {
        store::jobs::insert(db, job, at(0)).await.unwrap();
    }
}

async fn loaded(db: &Db, id: JobId) -> Job {
    jobs::get(db, id).await.unwrap().unwrap().value
}

async fn a_job_is_kept_as_it_was_made(db: Db) {
    let mut kept = job(id(), 2, 1);
    kept.instance_id = Some(id());
    kept.end = Some(end(7));
    kept.released_at = Some(at(3));
    kept.state.blocks = vec![1, 2];
    insert(&db, &[&kept]).await;
    let row = jobs::get(&db, kept.id).await.unwrap().unwrap();
    assert_eq!((row.version, row.value), (1, kept));
    assert_eq!(jobs::get(&db, id()).await.unwrap(), None);
}

async fn a_submission_is_there_once(db: Db) {
    let run: RunId = id();
    insert(&db, &[&job(run, 0, 0), &job(run, 0, 1), &job(run, 1, 0), &job(id(), 0, 0)]).await;
    assert!(matches!(jobs::insert(&db, &job(run, 0, 1), at(0)).await, Err(Error::Taken(_))));
}

async fn the_latest_submission_of_each_job_counts(db: Db) {
    let run: RunId = id();
    let (old, new, other) = (job(run, 0, 0), job(run, 0, 1), job(run, 1, 0));
    let replica = Job { replica_num: 1, ..job(run, 0, 0) };
    insert(&db, &[&replica, &other, &new, &old, &job(id(), 0, 5)]).await;
    let latest: Vec<Job> = jobs::list_latest(&db, run).await.unwrap().into_iter().map(|row| row.value).collect();
    assert_eq!(latest, [new, other, replica]);
}

async fn submissions_come_by_run_replica_number_and_submission(db: Db) {
    let mut runs: Vec<RunId> = vec![id(), id()];
    let mut expected = vec![];
    runs.sort_unstable();
    for run in &runs {
        expected.extend([
            job(*run, 0, 0),
            job(*run, 0, 1),
            job(*run, 1, 0),
            Job { replica_num: 1, ..job(*run, 0, 0) },
        ]);
    }
    insert(&db, &expected.iter().rev().collect::<Vec<_>>()).await;
    insert(&db, &[&job(id(), 0, 0)]).await;
    let rows: Vec<Job> = jobs::list_by_runs(&db, &runs).await.unwrap().into_iter().map(|row| row.value).collect();
    assert_eq!(rows, expected);
    assert_eq!(jobs::list_by_runs(&db, &[]).await.unwrap(), []);
}

async fn sums_of_versions_grow_with_every_change(db: Db) {
    let run: RunId = id();
    let (first, second) = (job(run, 0, 0), job(run, 1, 0));
    insert(&db, &[&first, &second]).await;
    assert_eq!(jobs::list_version_sums(&db, &[run, id()]).await.unwrap(), [(run, 2)]);
    jobs::set_released(&db, first.id, at(1)).await.unwrap();
    jobs::set_end(&db, second.id, &end(1), at(1)).await.unwrap();
    assert_eq!(jobs::list_version_sums(&db, &[run]).await.unwrap(), [(run, 4)]);
    assert_eq!(jobs::list_version_sums(&db, &[]).await.unwrap(), []);
}

async fn only_unfinished_jobs_hold_an_instance(db: Db) {
    let instance: InstanceId = id();
    let on = |status: JobStatus| Job { status, instance_id: Some(instance), ..job(id(), 0, 0) };
    let (running, ending, done) = (on(JobStatus::Running), on(JobStatus::Terminating), on(JobStatus::Done));
    insert(&db, &[&running, &ending, &done, &job(id(), 0, 0)]).await;
    let mut expected = vec![running.id, ending.id];
    expected.sort_unstable();
    let rows = jobs::list_active_by_instance(&db, instance).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.value.id).collect::<Vec<_>>(), expected);
}

async fn an_overtaken_save_is_refused(db: Db) {
    let one = job(id(), 0, 0);
    insert(&db, &[&one]).await;
    let before = jobs::get(&db, one.id).await.unwrap().unwrap();
    let mut placed = before.clone();
    placed.value.instance_id = Some(id());
    placed.value.released_at = Some(at(1));
    placed.value.status = JobStatus::Provisioning;
    jobs::save_placed(&db, &placed, at(1)).await.unwrap();
    assert_eq!(loaded(&db, one.id).await, placed.value);
    assert!(matches!(jobs::save(&db, &before).await, Err(Error::Stale)));
    assert!(matches!(jobs::save_placed(&db, &before, at(2)).await, Err(Error::Stale)));
    // Its own reconciler changes neither the place nor what others want of it.
    jobs::set_end(&db, one.id, &end(5), at(2)).await.unwrap();
    let mut row = jobs::get(&db, one.id).await.unwrap().unwrap();
    row.value.status = JobStatus::Running;
    row.value.instance_id = None;
    row.value.released_at = None;
    row.value.end = None;
    jobs::save(&db, &row).await.unwrap();
    let saved = loaded(&db, one.id).await;
    assert_eq!(saved.status, JobStatus::Running);
    assert_eq!((saved.instance_id, saved.released_at), (placed.value.instance_id, Some(at(1))));
    assert_eq!(saved.end, Some(end(5)));
}

async fn an_end_is_ordered_until_the_job_has_ended(db: Db) {
    let running = Job { status: JobStatus::Running, ..job(id(), 0, 0) };
    let done = Job { status: JobStatus::Done, ..job(id(), 0, 0) };
    insert(&db, &[&running, &done]).await;
    for grace in [300, 5] {
        jobs::set_end(&db, running.id, &end(grace), at(1)).await.unwrap();
        assert_eq!(loaded(&db, running.id).await.end, Some(end(grace)), "an order may be changed");
    }
    jobs::set_end(&db, done.id, &end(1), at(1)).await.unwrap();
    assert_eq!(loaded(&db, done.id).await.end, None);
    jobs::set_released(&db, running.id, at(2)).await.unwrap();
    jobs::set_released(&db, running.id, at(3)).await.unwrap();
    assert_eq!(loaded(&db, running.id).await.released_at, Some(at(2)), "the first moment stays");
}

async fn a_job_that_has_a_place_is_not_refused(db: Db) {
    let waiting = job(id(), 0, 0);
    let placed = Job { instance_id: Some(id()), ..job(id(), 0, 0) };
    let started = Job { status: JobStatus::Provisioning, ..job(id(), 0, 0) };
    let ending = Job { end: Some(end(1)), ..job(id(), 0, 0) };
    insert(&db, &[&waiting, &placed, &started, &ending]).await;
    for (one, expected) in [(&waiting, Some(end(9))), (&placed, None), (&started, None), (&ending, Some(end(1)))] {
        jobs::refuse(&db, one.id, &end(9), at(1)).await.unwrap();
        assert_eq!(loaded(&db, one.id).await.end, expected);
    }
}

async fn jobs_are_woken_by_their_run_and_their_instance(db: Db) {
    let (run, instance) = (id(), id());
    let mine = Job { instance_id: Some(instance), ..job(run, 0, 0) };
    let done = Job { status: JobStatus::Done, instance_id: Some(instance), ..job(run, 1, 0) };
    let other = job(id(), 0, 0);
    insert(&db, &[&mine, &done, &other]).await;
    let claim = async |now: i64| leases::claim(&db, Table::Jobs, "me", at(now), 10).await.unwrap();
    let give_back = async |ids: &[uuid::Uuid]| {
        for id in ids {
            leases::release(&db, Table::Jobs, *id, "me", leases::NEVER).await.unwrap();
        }
    };
    let new = claim(0).await;
    assert_eq!(new.len(), 3);
    give_back(&new).await;
    jobs::touch_by_run(&db, run, at(1)).await.unwrap();
    assert_eq!(claim(1).await, [mine.id.0]);
    give_back(&[mine.id.0]).await;
    jobs::touch_by_instance(&db, instance, at(2)).await.unwrap();
    assert_eq!(claim(2).await, [mine.id.0]);
    give_back(&[mine.id.0]).await;
    jobs::set_released(&db, mine.id, at(3)).await.unwrap();
    assert_eq!(claim(3).await, [mine.id.0]);
}
