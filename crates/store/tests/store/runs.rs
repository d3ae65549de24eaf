//! Runs: lists and pages, and who may change what.

use api::ids::{ProjectId, RunId};
use api::runs::RunStatus;
use lifecycle::run::StopRequest;
use store::leases::{self, Table};
use store::runs::{self, RunCounts, RunFilter};
use store::{Db, Error};

use crate::harness::{at, id, on_every_engine};
use crate::rows::{numbered, run};

on_every_engine! {
    a_run_is_kept_as_it_was_submitted
    a_name_is_one_runs_until_it_is_deleted
    pages_go_on_where_the_last_one_ended
    filters_leave_out_what_was_not_asked_for
    waiting_runs_come_in_the_order_of_urgency
    an_abort_wins_over_a_stop_and_a_finished_run_takes_neither
    an_overtaken_save_is_refused
    what_makes_a_run_due_is_seen_by_its_reconciler
    runs_are_counted_by_the_names_of_their_owners
}

async fn a_run_is_kept_as_it_was_submitted(db: Db) {
    let mut kept = run(id(), "train", 0);
    kept.fleet_id = Some(id());
    kept.priority = 7;
    kept.state.deployment_num = 3;
    runs::insert(&db, &kept, at(0)).await.unwrap();
    let row = runs::get(&db, kept.id).await.unwrap().unwrap();
    assert_eq!((row.version, &row.value), (1, &kept));
    assert_eq!(runs::get_by_name(&db, kept.project_id, "train").await.unwrap(), Some(row));
    assert_eq!(runs::get_by_name(&db, id(), "train").await.unwrap(), None);
    assert_eq!(runs::get(&db, id()).await.unwrap(), None);
}

async fn a_name_is_one_runs_until_it_is_deleted(db: Db) {
    let project: ProjectId = id();
    let (first, second) = (run(project, "train", 0), run(project, "train", 1));
    runs::insert(&db, &first, at(0)).await.unwrap();
    runs::insert(&db, &run(id(), "train", 0), at(0)).await.unwrap();
    assert!(matches!(runs::insert(&db, &second, at(0)).await, Err(Error::Taken(_))));
    runs::set_deleted(&db, first.id).await.unwrap();
    assert_eq!(runs::get_by_name(&db, project, "train").await.unwrap(), None);
    assert!(runs::name_is_used(&db, project, "train").await.unwrap(), "a deleted run had it");
    assert!(!runs::name_is_used(&db, project, "other").await.unwrap());
    runs::insert(&db, &second, at(0)).await.unwrap();
    assert_eq!(runs::get_by_name(&db, project, "train").await.unwrap().unwrap().value.id, second.id);
    assert!(runs::get(&db, first.id).await.unwrap().unwrap().value.deleted);
}

async fn pages_go_on_where_the_last_one_ended(db: Db) {
    let project: ProjectId = id();
    // Two of them in the same moment: within it identifiers run against the order of time.
    for (number, submitted) in [(4, 0), (3, 1), (2, 1), (1, 2)] {
        let mut one = run(project, &format!("run-{number}"), submitted);
        one.id = numbered(number);
        runs::insert(&db, &one, at(0)).await.unwrap();
    }
    for (ascending, expected) in [(false, [1, 2, 3, 4]), (true, [4, 3, 2, 1])] {
        let expected: Vec<RunId> = expected.into_iter().map(numbered).collect();
        let mut filter = RunFilter { projects: vec![project], ascending, limit: 3, ..RunFilter::default() };
        let mut seen: Vec<RunId> = vec![];
        for pages in 1.. {
            let page = runs::list(&db, &filter).await.unwrap();
            let versions = runs::list_versions(&db, &filter).await.unwrap();
            let same: Vec<(RunId, i64)> = page.iter().map(|row| (row.value.id, row.version)).collect();
            assert_eq!(versions, same);
            let Some(last) = page.last() else {
                assert_eq!(pages, 3, "two pages, and one with nothing on it");
                break;
            };
            filter.after = Some((last.value.submitted_at, last.value.id));
            seen.extend(page.iter().map(|row| row.value.id));
        }
        assert_eq!(seen, expected, "ascending: {ascending}");
    }
}

async fn filters_leave_out_what_was_not_asked_for(db: Db) {
    let (project, other) = (id(), id());
    let mut mine = run(project, "mine", 0);
    mine.spec.repo_id = Some("repo".to_owned());
    let mut done = run(project, "done", 1);
    done.status = RunStatus::Done;
    let hidden = run(project, "hidden", 2);
    for one in [&mine, &done, &hidden, &run(other, "elsewhere", 3)] {
        runs::insert(&db, one, at(0)).await.unwrap();
    }
    runs::set_deleted(&db, hidden.id).await.unwrap();
    let all = RunFilter { projects: vec![project], limit: 100, ..RunFilter::default() };
    let cases = [
        (all.clone(), vec!["hidden", "done", "mine"]),
        (RunFilter { projects: vec![project, other], ..all.clone() }, vec!["elsewhere", "hidden", "done", "mine"]),
        (RunFilter { projects: vec![], ..all.clone() }, vec![]),
        (RunFilter { only_active: true, ..all.clone() }, vec!["mine"]),
        (RunFilter { user: Some(done.user_id), ..all.clone() }, vec!["done"]),
        (RunFilter { repo_id: Some("repo".to_owned()), ..all.clone() }, vec!["mine"]),
        (RunFilter { limit: 1, ..all.clone() }, vec!["hidden"]),
        (RunFilter { limit: 0, ..all }, vec![]),
    ];
    for (filter, expected) in cases {
        let rows = runs::list(&db, &filter).await.unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row.value.name.as_str()).collect();
        assert_eq!(names, expected, "{filter:?}");
    }
    let mut names: Vec<String> = runs::list_by_ids(&db, &[mine.id, hidden.id, id()])
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.value.name)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["hidden", "mine"]);
    assert_eq!(runs::list_by_ids(&db, &[]).await.unwrap(), []);
}

async fn waiting_runs_come_in_the_order_of_urgency(db: Db) {
    let (project, idle) = (id(), id());
    let mut rows = vec![];
    for (name, priority, submitted) in [("late", 0, 5), ("early", 0, 1), ("urgent", 9, 6), ("stopped", 9, 0)] {
        let mut one = run(project, name, submitted);
        one.priority = priority;
        runs::insert(&db, &one, at(0)).await.unwrap();
        rows.push(one);
    }
    let mut finished = run(idle, "finished", 0);
    finished.status = RunStatus::Failed;
    runs::insert(&db, &finished, at(0)).await.unwrap();
    assert!(runs::set_stop(&db, rows[3].id, StopRequest::Stop, at(7)).await.unwrap());
    let waiting = runs::list_waiting_versions(&db, project, 10).await.unwrap();
    assert_eq!(waiting, [(rows[2].id, 1), (rows[1].id, 1), (rows[0].id, 1)]);
    assert_eq!(runs::list_waiting_versions(&db, project, 1).await.unwrap(), [(rows[2].id, 1)]);
    assert_eq!(runs::list_waiting_projects(&db).await.unwrap(), [project]);
}

async fn an_abort_wins_over_a_stop_and_a_finished_run_takes_neither(db: Db) {
    let mut one = run(id(), "train", 0);
    runs::insert(&db, &one, at(0)).await.unwrap();
    for (asked, changed, expected) in [
        (StopRequest::Stop, true, StopRequest::Stop),
        (StopRequest::Stop, false, StopRequest::Stop),
        (StopRequest::Abort, true, StopRequest::Abort),
        (StopRequest::Stop, false, StopRequest::Abort),
        (StopRequest::Abort, false, StopRequest::Abort),
    ] {
        assert_eq!(runs::set_stop(&db, one.id, asked, at(1)).await.unwrap(), changed, "{asked:?}");
        assert_eq!(runs::get(&db, one.id).await.unwrap().unwrap().value.stop, Some(expected));
    }
    one.id = id();
    one.name = "finished".to_owned();
    one.status = RunStatus::Done;
    runs::insert(&db, &one, at(0)).await.unwrap();
    assert!(!runs::set_stop(&db, one.id, StopRequest::Abort, at(1)).await.unwrap());
}

async fn an_overtaken_save_is_refused(db: Db) {
    let one = run(id(), "train", 0);
    runs::insert(&db, &one, at(0)).await.unwrap();
    let mut loaded = runs::get(&db, one.id).await.unwrap().unwrap();
    let overtaken = loaded.clone();
    loaded.value.status = RunStatus::Provisioning;
    loaded.value.fleet_id = Some(id());
    runs::save(&db, &loaded).await.unwrap();
    assert!(matches!(runs::save(&db, &overtaken).await, Err(Error::Stale)));
    assert!(matches!(runs::set_spec(&db, &overtaken, at(1)).await, Err(Error::Stale)));
    let saved = runs::get(&db, one.id).await.unwrap().unwrap();
    assert_eq!((saved.version, &saved.value), (2, &loaded.value));
    let mut wanted = saved.clone();
    wanted.value.priority = 50;
    wanted.value.spec.run_name = Some("renamed".to_owned());
    runs::set_spec(&db, &wanted, at(1)).await.unwrap();
    let changed = runs::get(&db, one.id).await.unwrap().unwrap();
    assert_eq!((changed.version, changed.value), (3, wanted.value));
    // A reconciler's save leaves alone what users want.
    runs::set_stop(&db, one.id, StopRequest::Stop, at(1)).await.unwrap();
    let mut loaded = runs::get(&db, one.id).await.unwrap().unwrap();
    loaded.value.stop = None;
    loaded.value.priority = 0;
    runs::save(&db, &loaded).await.unwrap();
    let kept = runs::get(&db, one.id).await.unwrap().unwrap().value;
    assert_eq!((kept.stop, kept.priority), (Some(StopRequest::Stop), 50));
}

async fn what_makes_a_run_due_is_seen_by_its_reconciler(db: Db) {
    let one = run(id(), "train", 0);
    runs::insert(&db, &one, at(0)).await.unwrap();
    let claim = async |now: i64| leases::claim(&db, Table::Runs, "me", at(now), 10).await.unwrap();
    let give_back = async || leases::release(&db, Table::Runs, one.id.0, "me", leases::NEVER).await.unwrap();
    assert_eq!(claim(0).await, [one.id.0], "a new run is due");
    give_back().await;
    assert!(claim(1).await.is_empty());
    runs::set_stop(&db, one.id, StopRequest::Stop, at(2)).await.unwrap();
    assert_eq!(claim(2).await, [one.id.0], "a run that is to end is due");
    give_back().await;
    let row = runs::get(&db, one.id).await.unwrap().unwrap();
    runs::set_spec(&db, &row, at(3)).await.unwrap();
    assert_eq!(claim(3).await, [one.id.0], "a run that was changed is due");
}

async fn runs_are_counted_by_the_names_of_their_owners(db: Db) {
    let owner = crate::accounts::user("ann", 0);
    let other = crate::accounts::user("bob", 0);
    let project = crate::accounts::project("main", owner.id, 0);
    for user in [&owner, &other] {
        store::users::insert(&db, user).await.unwrap();
    }
    store::projects::insert(&db, &project).await.unwrap();
    assert_eq!(runs::count_by_owner(&db).await.unwrap(), []);
    let statuses =
        [RunStatus::Running, RunStatus::Done, RunStatus::Done, RunStatus::Failed, RunStatus::Terminated];
    for (number, status) in statuses.into_iter().enumerate() {
        let mut one = run(project.id, &format!("run-{number}"), 0);
        (one.user_id, one.status) = (owner.id, status);
        runs::insert(&db, &one, at(0)).await.unwrap();
        if status == RunStatus::Failed {
            runs::set_deleted(&db, one.id).await.unwrap();
        }
    }
    let mut one = run(project.id, "of-bob", 0);
    one.user_id = other.id;
    runs::insert(&db, &one, at(0)).await.unwrap();
    let counts = |user: &str, all, terminated, failed, done| RunCounts {
        project: "main".to_owned(),
        user: user.to_owned(),
        all,
        terminated,
        failed,
        done,
    };
    let expected = [counts("ann", 5, 1, 1, 2), counts("bob", 1, 0, 0, 0)];
    assert_eq!(runs::count_by_owner(&db).await.unwrap(), expected);
}
