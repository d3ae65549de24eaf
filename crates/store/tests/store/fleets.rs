//! Fleets: names, lists and pages, and who may change what.

use api::fleets::FleetStatus;
use api::ids::{FleetId, ProjectId};
use lifecycle::fleet::Fleet;
use store::fleets::{self, FleetFilter};
use store::leases::{self, Table};
use store::{Db, Error, Hold, projects};

use crate::harness::{at, id, on_every_engine};
use crate::rows::{fleet, numbered, run};

on_every_engine! {
    a_fleet_is_kept_as_it_was_made
    a_name_is_one_fleets_until_it_is_terminated
    pages_go_on_where_the_last_one_ended
    lists_leave_out_what_was_not_asked_for
    an_overtaken_save_is_refused
    a_fleet_that_nobody_wants_is_due
    a_project_is_in_use_while_something_of_it_lives
    a_deleted_project_cannot_be_held
}

async fn names(db: &Db, filter: &FleetFilter) -> Vec<String> {
    fleets::list(db, filter).await.unwrap().into_iter().map(|row| row.value.name).collect()
}

async fn a_fleet_is_kept_as_it_was_made(db: Db) {
    let mut kept = fleet(id(), "gpu", 0);
    kept.state.failures = 3;
    fleets::insert(&db, &kept, at(0)).await.unwrap();
    let row = fleets::get(&db, kept.id).await.unwrap().unwrap();
    assert_eq!((row.version, &row.value), (1, &kept));
    assert_eq!(fleets::get_by_name(&db, kept.project_id, "gpu").await.unwrap(), Some(row));
    assert_eq!(fleets::get_by_name(&db, id(), "gpu").await.unwrap(), None);
}

async fn a_name_is_one_fleets_until_it_is_terminated(db: Db) {
    let project: ProjectId = id();
    let first = fleet(project, "gpu", 0);
    fleets::insert(&db, &first, at(0)).await.unwrap();
    fleets::insert(&db, &fleet(id(), "gpu", 0), at(0)).await.unwrap();
    assert!(matches!(fleets::insert(&db, &fleet(project, "gpu", 1), at(0)).await, Err(Error::Taken(_))));
    let mut ended = fleets::get(&db, first.id).await.unwrap().unwrap();
    ended.value.status = FleetStatus::Terminated;
    fleets::save(&db, &ended).await.unwrap();
    assert_eq!(fleets::get_by_name(&db, project, "gpu").await.unwrap(), None);
    let second = fleet(project, "gpu", 1);
    fleets::insert(&db, &second, at(0)).await.unwrap();
    assert_eq!(fleets::get_by_name(&db, project, "gpu").await.unwrap().unwrap().value.id, second.id);
}

async fn pages_go_on_where_the_last_one_ended(db: Db) {
    let project: ProjectId = id();
    for (number, created) in [(4, 0), (3, 1), (2, 1), (1, 2)] {
        let one = Fleet { id: numbered(number), ..fleet(project, &format!("fleet-{number}"), created) };
        fleets::insert(&db, &one, at(0)).await.unwrap();
    }
    for (ascending, expected) in [(false, [1, 2, 3, 4]), (true, [4, 3, 2, 1])] {
        let mut filter = FleetFilter { projects: vec![project], ascending, limit: 3, ..FleetFilter::default() };
        let mut seen: Vec<FleetId> = vec![];
        loop {
            let page = fleets::list(&db, &filter).await.unwrap();
            let Some(last) = page.last() else { break };
            filter.after = Some((last.value.created_at, last.value.id));
            seen.extend(page.iter().map(|row| row.value.id));
        }
        assert_eq!(seen, expected.map(numbered::<FleetId>), "ascending: {ascending}");
    }
}

async fn lists_leave_out_what_was_not_asked_for(db: Db) {
    let (project, other) = (id(), id());
    let ended = Fleet { status: FleetStatus::Terminated, ..fleet(project, "ended", 0) };
    for one in [&ended, &fleet(project, "old", 1), &fleet(project, "new", 2), &fleet(other, "elsewhere", 3)] {
        fleets::insert(&db, one, at(0)).await.unwrap();
    }
    let all = FleetFilter { projects: vec![project], limit: 100, ..FleetFilter::default() };
    assert_eq!(names(&db, &all).await, ["new", "old", "ended"]);
    assert_eq!(names(&db, &FleetFilter { only_active: true, ..all.clone() }).await, ["new", "old"]);
    assert_eq!(names(&db, &FleetFilter { limit: 1, ..all.clone() }).await, ["new"]);
    assert_eq!(names(&db, &FleetFilter { projects: vec![], ..all.clone() }).await, [""; 0]);
    assert_eq!(
        names(&db, &FleetFilter { projects: vec![project, other], limit: 2, ..all }).await,
        ["elsewhere", "new"]
    );
    let of_project = fleets::list_by_project(&db, project).await.unwrap();
    assert_eq!(of_project.iter().map(|row| row.value.name.as_str()).collect::<Vec<_>>(), ["new", "old"]);
}

async fn an_overtaken_save_is_refused(db: Db) {
    let one = fleet(id(), "gpu", 0);
    fleets::insert(&db, &one, at(0)).await.unwrap();
    let before = fleets::get(&db, one.id).await.unwrap().unwrap();
    fleets::move_on(&db, &before).await.unwrap();
    let moved = fleets::get(&db, one.id).await.unwrap().unwrap();
    assert_eq!((moved.version, &moved.value), (2, &one), "nothing moved but the version");
    assert!(matches!(fleets::save(&db, &before).await, Err(Error::Stale)));
    assert!(matches!(fleets::move_on(&db, &before).await, Err(Error::Stale)));
    assert!(matches!(fleets::set_spec(&db, &before, at(1)).await, Err(Error::Stale)));
    fleets::overtake(&db, one.id).await.unwrap();
    assert!(matches!(fleets::save(&db, &moved).await, Err(Error::Stale)));
    assert_eq!(fleets::get(&db, one.id).await.unwrap().unwrap().value, one);
    // A reconciler's save leaves alone what users want.
    fleets::set_unwanted(&db, one.id, at(1)).await.unwrap();
    let mut row = fleets::get(&db, one.id).await.unwrap().unwrap();
    row.value.wanted = true;
    row.value.state.failures = 1;
    fleets::save(&db, &row).await.unwrap();
    let saved = fleets::get(&db, one.id).await.unwrap().unwrap().value;
    assert_eq!((saved.wanted, saved.state.failures), (false, 1));
}

async fn a_fleet_that_nobody_wants_is_due(db: Db) {
    let one = fleet(id(), "gpu", 0);
    fleets::insert(&db, &one, at(0)).await.unwrap();
    let claim = async |now: i64| leases::claim(&db, Table::Fleets, "me", at(now), 10).await.unwrap();
    let give_back = async || leases::release(&db, Table::Fleets, one.id.0, "me", leases::NEVER).await.unwrap();
    assert_eq!(claim(0).await, [one.id.0]);
    give_back().await;
    assert!(claim(1).await.is_empty());
    fleets::set_unwanted(&db, one.id, at(2)).await.unwrap();
    assert_eq!(claim(2).await, [one.id.0]);
    give_back().await;
    let row = fleets::get(&db, one.id).await.unwrap().unwrap();
    fleets::set_spec(&db, &row, at(3)).await.unwrap();
    assert_eq!(claim(3).await, [one.id.0]);
}

async fn a_project_is_in_use_while_something_of_it_lives(db: Db) {
    let project: ProjectId = id();
    assert_eq!(projects::count_live(&db, project).await.unwrap(), (0, 0));
    let mut done = run(project, "done", 0);
    done.status = api::runs::RunStatus::Done;
    let waiting = run(project, "waiting", 0);
    let ended = Fleet { status: FleetStatus::Terminated, ..fleet(project, "ended", 0) };
    for one in [&done, &waiting] {
        store::runs::insert(&db, one, at(0)).await.unwrap();
    }
    for one in [&ended, &fleet(project, "gpu", 0), &fleet(id(), "elsewhere", 0)] {
        fleets::insert(&db, one, at(0)).await.unwrap();
    }
    assert_eq!(projects::count_live(&db, project).await.unwrap(), (1, 1));
}

async fn a_deleted_project_cannot_be_held(db: Db) {
    let project = crate::accounts::project("main", id(), 0);
    projects::insert(&db, &project).await.unwrap();
    for hold in [Hold::Together, Hold::Alone] {
        let mut tx = db.begin().await.unwrap();
        assert!(projects::hold(&mut tx, project.id, hold).await.unwrap());
        assert!(!projects::hold(&mut tx, id(), hold).await.unwrap());
    }
    projects::delete(&db, project.id).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    assert!(!projects::hold(&mut tx, project.id, Hold::Together).await.unwrap());
}
