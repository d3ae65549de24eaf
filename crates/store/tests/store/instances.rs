//! Instances and the blocks that jobs hold of them.

use api::ids::{FleetId, InstanceId, JobId, ProjectId};
use api::instances::{InstanceStatus, InstanceTerminationReason};
use lifecycle::instance::{EndOrder, Instance};
use lifecycle::launch::LaunchStatus;
use store::instances::{self, InstanceFilter};
use store::leases::{self, Table};
use store::{Db, Error, Versioned, jobs, launches};

use crate::harness::{at, id, on_every_engine};
use crate::rows::{instance, job, launch, numbered};

on_every_engine! {
    an_instance_is_kept_as_it_was_made
    a_slot_is_one_instances_until_it_is_terminated
    a_machine_is_one_instances
    what_was_last_in_each_slot_is_shown
    pages_go_on_where_the_last_one_ended
    filters_leave_out_what_was_not_asked_for
    an_overtaken_save_is_refused
    an_end_is_ordered_once
    one_block_belongs_to_one_job
    what_is_not_bought_yet_knows_its_run
}

async fn insert(db: &Db, all: &[&Instance]) {
    for one in all {
        instances::insert(db, one, at(0)).await.unwrap();
    }
}

fn ids(rows: &[Versioned<Instance>]) -> Vec<InstanceId> {
    rows.iter().map(|row| row.value.id).collect()
}

fn end(reason: InstanceTerminationReason) -> EndOrder {
    EndOrder { reason, message: None }
}

fn terminated(one: Instance) -> Instance {
    Instance { status: InstanceStatus::Terminated, ..one }
}

async fn an_instance_is_kept_as_it_was_made(db: Db) {
    let mut kept = instance(id(), id(), 3, 0);
    kept.end = Some(end(InstanceTerminationReason::IdleTimeout));
    (kept.launch_id, kept.launch_index) = (Some(id()), Some(1));
    kept.state.price = Some(1.5);
    insert(&db, &[&kept]).await;
    let row = instances::get(&db, kept.id).await.unwrap().unwrap();
    assert_eq!((row.version, row.value), (1, kept));
    assert_eq!(instances::get(&db, id()).await.unwrap(), None);
}

async fn a_slot_is_one_instances_until_it_is_terminated(db: Db) {
    let (project, fleet): (ProjectId, FleetId) = (id(), id());
    let first = instance(project, fleet, 0, 0);
    insert(&db, &[&first, &instance(project, fleet, 1, 0), &instance(project, id(), 0, 0)]).await;
    let second = instance(project, fleet, 0, 1);
    assert!(matches!(instances::insert(&db, &second, at(0)).await, Err(Error::Taken(_))));
    let mut row = instances::get(&db, first.id).await.unwrap().unwrap();
    row.value.status = InstanceStatus::Terminated;
    instances::save(&db, &row).await.unwrap();
    insert(&db, &[&second]).await;
    assert_eq!(ids(&instances::list_by_fleet(&db, fleet).await.unwrap())[0], second.id);
}

async fn a_machine_is_one_instances(db: Db) {
    let (project, fleet) = (id(), id());
    let (one, other) = (instance(project, fleet, 0, 0), instance(project, fleet, 1, 0));
    insert(&db, &[&one, &other]).await;
    let launch = id();
    let row = async |one: &Instance| instances::get(&db, one.id).await.unwrap().unwrap();
    instances::set_launch(&db, &row(&one).await, launch, 0, at(1)).await.unwrap();
    let taken = instances::set_launch(&db, &row(&other).await, launch, 0, at(1)).await;
    assert!(matches!(taken, Err(Error::Taken(_))));
    instances::set_launch(&db, &row(&other).await, launch, 1, at(1)).await.unwrap();
    assert_eq!(ids(&instances::list_by_launch(&db, launch).await.unwrap()), [one.id, other.id]);
    let mut stale = row(&one).await;
    stale.version -= 1;
    assert!(matches!(instances::set_launch(&db, &stale, id(), 0, at(2)).await, Err(Error::Stale)));
}

async fn what_was_last_in_each_slot_is_shown(db: Db) {
    let (project, fleet) = (id(), id());
    let gone = terminated(instance(project, fleet, 0, 0));
    let replaced = terminated(instance(project, fleet, 1, 0));
    let new = instance(project, fleet, 1, 5);
    let elsewhere = instance(project, id(), 0, 0);
    insert(&db, &[&gone, &replaced, &new, &elsewhere]).await;
    assert_eq!(ids(&instances::list_last_by_fleets(&db, &[fleet]).await.unwrap()), [gone.id, new.id]);
    assert_eq!(instances::list_last_by_fleets(&db, &[]).await.unwrap(), []);
    let mut kept = ids(&instances::list_by_project(&db, project).await.unwrap());
    kept.sort_unstable();
    let mut expected = vec![new.id, elsewhere.id];
    expected.sort_unstable();
    assert_eq!(kept, expected);
}

async fn pages_go_on_where_the_last_one_ended(db: Db) {
    let (project, fleet): (ProjectId, FleetId) = (id(), id());
    for (number, created) in [(4, 0), (3, 1), (2, 1), (1, 2)] {
        let one = Instance { id: numbered(number), ..instance(project, fleet, number as u32, created) };
        insert(&db, &[&one]).await;
    }
    for (ascending, expected) in [(false, [1, 2, 3, 4]), (true, [4, 3, 2, 1])] {
        let mut filter =
            InstanceFilter { projects: vec![project], ascending, limit: 3, ..InstanceFilter::default() };
        let mut seen = vec![];
        loop {
            let page = instances::list(&db, &filter).await.unwrap();
            let Some(last) = page.last() else { break };
            filter.after = Some((last.value.created_at, last.value.id));
            seen.extend(ids(&page));
        }
        assert_eq!(seen, expected.map(numbered::<InstanceId>), "ascending: {ascending}");
    }
}

async fn filters_leave_out_what_was_not_asked_for(db: Db) {
    let (project, other, fleet) = (id(), id(), id());
    let gone = terminated(instance(project, fleet, 0, 0));
    let here = instance(project, fleet, 0, 1);
    let beside = instance(project, id(), 0, 2);
    let elsewhere = instance(other, id(), 0, 3);
    insert(&db, &[&gone, &here, &beside, &elsewhere]).await;
    let all = InstanceFilter { projects: vec![project], limit: 100, ..InstanceFilter::default() };
    let cases = [
        (all.clone(), vec![beside.id, here.id, gone.id]),
        (InstanceFilter { only_active: true, ..all.clone() }, vec![beside.id, here.id]),
        (InstanceFilter { fleets: Some(vec![fleet]), ..all.clone() }, vec![here.id, gone.id]),
        (InstanceFilter { fleets: Some(vec![]), ..all.clone() }, vec![]),
        (InstanceFilter { projects: vec![], ..all.clone() }, vec![]),
        (InstanceFilter { projects: vec![other, project], limit: 2, ..all }, vec![elsewhere.id, beside.id]),
    ];
    for (filter, expected) in cases {
        assert_eq!(ids(&instances::list(&db, &filter).await.unwrap()), expected, "{filter:?}");
    }
}

async fn an_overtaken_save_is_refused(db: Db) {
    let one = instance(id(), id(), 0, 0);
    insert(&db, &[&one]).await;
    let before = instances::get(&db, one.id).await.unwrap().unwrap();
    instances::set_launch(&db, &before, id(), 4, at(1)).await.unwrap();
    assert!(matches!(instances::save(&db, &before).await, Err(Error::Stale)));
    // A reconciler's save leaves alone what others say: which machine it is, and that it must end.
    let mut row = instances::get(&db, one.id).await.unwrap().unwrap();
    let launch = row.value.launch_id.take();
    row.value.launch_index = None;
    row.value.status = InstanceStatus::Provisioning;
    instances::save(&db, &row).await.unwrap();
    let saved = instances::get(&db, one.id).await.unwrap().unwrap().value;
    assert_eq!((saved.launch_id, saved.launch_index), (launch, Some(4)));
    assert_eq!(saved.status, InstanceStatus::Provisioning);
}

async fn an_end_is_ordered_once(db: Db) {
    let (one, gone) = (instance(id(), id(), 0, 0), terminated(instance(id(), id(), 0, 0)));
    insert(&db, &[&one, &gone]).await;
    let due = leases::claim(&db, Table::Instances, "me", at(0), 10).await.unwrap();
    for due in due {
        leases::release(&db, Table::Instances, due, "me", leases::NEVER).await.unwrap();
    }
    for reason in [InstanceTerminationReason::TerminatedByUser, InstanceTerminationReason::IdleTimeout] {
        for id in [one.id, gone.id] {
            instances::set_end(&db, id, &end(reason), at(1)).await.unwrap();
        }
    }
    let ordered = async |id: InstanceId| instances::get(&db, id).await.unwrap().unwrap().value.end;
    assert_eq!(
        ordered(one.id).await,
        Some(end(InstanceTerminationReason::TerminatedByUser)),
        "the first one counts"
    );
    assert_eq!(ordered(gone.id).await, None);
    assert_eq!(leases::claim(&db, Table::Instances, "me", at(1), 10).await.unwrap(), [one.id.0]);
}

async fn one_block_belongs_to_one_job(db: Db) {
    let project: ProjectId = id();
    let (one, other) = (instance(project, id(), 0, 0), instance(id(), id(), 0, 0));
    insert(&db, &[&one, &other]).await;
    let (first, second): (JobId, JobId) = (id(), id());
    instances::assign(&db, one.id, 1, first).await.unwrap();
    instances::assign(&db, one.id, 0, first).await.unwrap();
    instances::assign(&db, other.id, 0, second).await.unwrap();
    assert!(matches!(instances::assign(&db, one.id, 1, second).await, Err(Error::Taken(_))));
    assert_eq!(instances::list_assignments(&db, one.id).await.unwrap(), [(0, first), (1, first)]);
    let of_project = instances::list_project_assignments(&db, project).await.unwrap();
    assert_eq!(of_project, [(one.id, 0, first), (one.id, 1, first)]);
    let mut busy = instances::count_busy_blocks(&db, &[one.id, other.id, id()]).await.unwrap();
    busy.sort_by_key(|(_, blocks)| *blocks);
    assert_eq!(busy, [(other.id, 1), (one.id, 2)]);
    assert_eq!(instances::count_busy_blocks(&db, &[]).await.unwrap(), []);
    assert_eq!(instances::unassign(&db, first).await.unwrap(), 2);
    assert_eq!(instances::unassign(&db, first).await.unwrap(), 0);
    instances::assign(&db, one.id, 1, second).await.unwrap();
}

async fn what_is_not_bought_yet_knows_its_run(db: Db) {
    let fleet: FleetId = id();
    let purchase = launch(fleet, 0);
    launches::insert(&db, &purchase, at(0)).await.unwrap();
    let (wanted, free) = (instance(id(), fleet, 0, 0), instance(id(), fleet, 1, 0));
    let mut bought = instance(id(), fleet, 2, 0);
    (bought.launch_id, bought.launch_index) = (Some(purchase.id), Some(0));
    insert(&db, &[&wanted, &free, &bought]).await;
    let waiting = job(id(), 0, 0);
    jobs::insert(&db, &waiting, at(0)).await.unwrap();
    for (place, block) in [(&wanted, 0), (&wanted, 1), (&bought, 0)] {
        instances::assign(&db, place.id, block, waiting.id).await.unwrap();
    }
    let needs = instances::list_unbought_needs(&db, fleet).await.unwrap();
    assert_eq!(needs, [(wanted.id, waiting.run_id, waiting.spec.clone())]);
    // What came to nothing is to be bought again, whether its instance knows it yet or not.
    let mut row = launches::get(&db, purchase.id).await.unwrap().unwrap();
    row.value.status = LaunchStatus::Failed;
    launches::save(&db, &row).await.unwrap();
    for status in [InstanceStatus::Pending, InstanceStatus::Provisioning] {
        let mut row = instances::get(&db, bought.id).await.unwrap().unwrap();
        row.value.status = status;
        instances::save(&db, &row).await.unwrap();
        let needs = instances::list_unbought_needs(&db, fleet).await.unwrap();
        assert_eq!(needs.iter().map(|need| need.0).collect::<Vec<_>>(), [wanted.id, bought.id]);
    }
    assert_eq!(instances::list_unbought_needs(&db, id()).await.unwrap(), []);
    let index = bought.launch_index;
    let machines = instances::list_machines_by_backend(&db, purchase.backend_id).await.unwrap();
    assert_eq!(machines, [(purchase.id, index)]);
    assert_eq!(instances::list_machines_by_backend(&db, id()).await.unwrap(), []);
}
