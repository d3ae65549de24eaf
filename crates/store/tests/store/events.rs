//! Events: what each filter lets through, pages, and their end.

use api::events::Event;
use api::ids::{EventId, FleetId, ProjectId, RunId, UserId};
use lifecycle::events::{NewEvent, Target};
use store::events::{self, EventFilter};
use store::{Db, projects, users};
use uuid::Uuid;

use crate::accounts::{project, user};
use crate::harness::{at, id, on_every_engine};
use crate::rows::numbered;

on_every_engine! {
    an_event_tells_of_its_targets_in_their_order
    names_are_as_they_are_now
    each_filter_lets_through_what_it_says
    pages_go_on_where_the_last_one_ended
    old_events_are_forgotten_with_their_targets
}

async fn insert(db: &Db, number: u128, seconds: i64, event: &NewEvent) {
    events::insert(db, numbered::<EventId>(number), at(seconds), event).await.unwrap();
}

async fn list(db: &Db, filter: EventFilter) -> Vec<Event> {
    events::list(db, &EventFilter { limit: 100, ..filter }).await.unwrap()
}

fn messages(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.message.as_str()).collect()
}

async fn an_event_tells_of_its_targets_in_their_order(db: Db) {
    let (project, run, fleet): (ProjectId, RunId, FleetId) = (id(), id(), id());
    let targets = vec![
        Target::run(project, run, "train"),
        Target::instance(project, fleet, id(), "gpu-0"),
        Target::fleet(project, fleet, "gpu"),
    ];
    insert(&db, 1, 0, &NewEvent::by_server("All at once.", targets)).await;
    let events = list(&db, EventFilter::default()).await;
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.id, event.recorded_at, event.message.as_str()), (numbered(1), at(0), "All at once"));
    assert_eq!((event.actor_user_id, event.actor_user.as_deref()), (None, None));
    let told: Vec<(&str, &str)> =
        event.targets.iter().map(|target| (target.r#type.as_str(), target.name.as_str())).collect();
    assert_eq!(told, [("run", "train"), ("instance", "gpu-0"), ("fleet", "gpu")]);
    assert_eq!(event.targets[0].id, run.0);
    assert_eq!((event.targets[0].project_id, event.targets[0].project_name.as_deref()), (Some(project), None));
}

async fn names_are_as_they_are_now(db: Db) {
    let owner = user("ann", 0);
    let team = project("team", owner.id, 0);
    users::insert(&db, &owner).await.unwrap();
    projects::insert(&db, &team).await.unwrap();
    insert(&db, 1, 0, &NewEvent::by_user(owner.id, "Run submitted", vec![Target::run(team.id, id(), "train")]))
        .await;
    users::delete(&db, owner.id).await.unwrap();
    projects::delete(&db, team.id).await.unwrap();
    let events = list(&db, EventFilter::default()).await;
    assert_eq!(events[0].actor_user.as_deref(), Some("ann"));
    assert_eq!(events[0].is_actor_user_deleted, Some(true));
    let target = &events[0].targets[0];
    assert_eq!((target.project_name.as_deref(), target.is_project_deleted), (Some("team"), Some(true)));
}

async fn each_filter_lets_through_what_it_says(db: Db) {
    let (mine, other): (ProjectId, ProjectId) = (id(), id());
    let (ann, run, fleet): (UserId, RunId, FleetId) = (id(), id(), id());
    let job: Uuid = id();
    insert(&db, 1, 1, &NewEvent::by_user(ann, "run", vec![Target::run(mine, run, "train")])).await;
    insert(&db, 2, 2, &NewEvent::by_server("job", vec![Target::job(mine, run, job.into(), "train-0-0")])).await;
    insert(&db, 3, 3, &NewEvent::by_server("fleet", vec![Target::fleet(mine, fleet, "gpu")])).await;
    insert(&db, 4, 4, &NewEvent::by_user(id(), "elsewhere", vec![Target::run(other, id(), "theirs")])).await;
    let about_ann = Target::other(api::events::EventTargetType::User, None, ann.0, "ann");
    insert(&db, 5, 5, &NewEvent::by_server("user", vec![about_ann])).await;
    let all = EventFilter::default;
    let cases = [
        (all(), vec!["user", "elsewhere", "fleet", "job", "run"]),
        (EventFilter { ascending: true, ..all() }, vec!["run", "job", "fleet", "elsewhere", "user"]),
        (EventFilter { visible_projects: Some(vec![mine.0]), ..all() }, vec!["fleet", "job", "run"]),
        (
            EventFilter { visible_projects: Some(vec![other.0]), visible_users: vec![ann.0], ..all() },
            vec!["user", "elsewhere"],
        ),
        (EventFilter { visible_projects: Some(vec![]), ..all() }, vec![]),
        (EventFilter { targets: Some(vec![job]), ..all() }, vec!["job"]),
        (EventFilter { targets: Some(vec![]), ..all() }, vec![]),
        (EventFilter { within_projects: Some(vec![other.0]), ..all() }, vec!["elsewhere"]),
        (EventFilter { within_runs: Some(vec![run.0]), ..all() }, vec!["job", "run"]),
        (EventFilter { within_fleets: Some(vec![fleet.0]), ..all() }, vec!["fleet"]),
        (
            EventFilter { target_kinds: Some(vec!["run".to_owned(), "user".to_owned()]), ..all() },
            vec!["user", "elsewhere", "run"],
        ),
        (EventFilter { actors: Some(vec![Some(ann)]), ..all() }, vec!["run"]),
        (EventFilter { actors: Some(vec![Some(ann), None]), ..all() }, vec!["user", "fleet", "job", "run"]),
        (EventFilter { actors: Some(vec![]), ..all() }, vec![]),
        (EventFilter { actors: Some(vec![None]), within_runs: Some(vec![run.0]), ..all() }, vec!["job"]),
    ];
    for (filter, expected) in cases {
        let shown = format!("{filter:?}");
        assert_eq!(messages(&list(&db, filter).await), expected, "{shown}");
    }
}

async fn pages_go_on_where_the_last_one_ended(db: Db) {
    for (number, seconds) in [(4, 0), (3, 1), (2, 1), (1, 2)] {
        insert(&db, number, seconds, &NewEvent::by_server(format!("e{number}"), vec![])).await;
    }
    for (ascending, expected) in [(false, ["e1", "e2", "e3", "e4"]), (true, ["e4", "e3", "e2", "e1"])] {
        let mut filter = EventFilter { ascending, limit: 3, ..EventFilter::default() };
        let mut seen = vec![];
        loop {
            let page = events::list(&db, &filter).await.unwrap();
            let Some(last) = page.last() else { break };
            filter.after = Some((last.recorded_at, Some(last.id)));
            seen.extend(page.into_iter().map(|event| event.message));
        }
        assert_eq!(seen, expected);
    }
    // Without an identifier the whole moment is over.
    let filter = EventFilter { after: Some((at(1), None)), ..EventFilter::default() };
    assert_eq!(messages(&list(&db, filter).await), ["e4"]);
}

async fn old_events_are_forgotten_with_their_targets(db: Db) {
    let project: ProjectId = id();
    for number in 1..=5 {
        let event = NewEvent::by_server(format!("e{number}"), vec![Target::run(project, id(), "train")]);
        insert(&db, number, number as i64, &event).await;
    }
    assert_eq!(events::delete_older(&db, at(4), 2).await.unwrap(), 2, "not more at a time than told");
    assert_eq!(messages(&list(&db, EventFilter::default()).await), ["e5", "e4", "e3"]);
    assert_eq!(events::delete_older(&db, at(4), 2).await.unwrap(), 1);
    assert_eq!(events::delete_older(&db, at(4), 2).await.unwrap(), 0);
    let left = list(&db, EventFilter { within_projects: Some(vec![project.0]), ..EventFilter::default() }).await;
    assert_eq!(messages(&left), ["e5", "e4"]);
    assert!(left.iter().all(|event| event.targets.len() == 1));
}
