//! Events: what happened, for users. Written in the transaction of the change that they tell of.

use api::events::{Event, EventTarget};
use api::ids::{EventId, UserId};
use jiff::Timestamp;
use lifecycle::events::NewEvent;
use uuid::Uuid;

use crate::db::{Executor, Value, placeholders};
use crate::error::Result;
use crate::values;

/// Records an event.
pub async fn insert(mut db: impl Executor, id: EventId, now: Timestamp, event: &NewEvent) -> Result<()> {
    db.execute(
        "INSERT INTO events (id, recorded_at, message, actor_user_id) VALUES ($1, $2, $3, $4)",
        values![id, now, event.message.as_str(), event.actor],
    )
    .await?;
    for (place, target) in (0_u32..).zip(&event.targets) {
        db.execute(
            "INSERT INTO event_targets (event_id, place, kind, project_id, target_id, name, run_id, fleet_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            values![
                id,
                place,
                target.kind.as_str(),
                target.project_id,
                target.id,
                target.name.as_str(),
                target.run_id,
                target.fleet_id
            ],
        )
        .await?;
    }
    Ok(())
}

/// Which events are asked for. Every list that is set must match.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// An event must have a target in one of these projects, or be about one of `visible_users`.
    pub visible_projects: Option<Vec<Uuid>>,
    /// Users whose events are visible too.
    pub visible_users: Vec<Uuid>,
    /// An event must have one of these targets.
    pub targets: Option<Vec<Uuid>>,
    /// An event must have a target in one of these projects.
    pub within_projects: Option<Vec<Uuid>>,
    /// An event must have a target in one of these fleets.
    pub within_fleets: Option<Vec<Uuid>>,
    /// An event must have a target in one of these runs.
    pub within_runs: Option<Vec<Uuid>>,
    /// An event must have a target of one of these kinds.
    pub target_kinds: Option<Vec<String>>,
    /// An event must be caused by one of these; none stands for the server.
    pub actors: Option<Vec<Option<UserId>>>,
    /// The last page's last event.
    pub after: Option<(Timestamp, Option<EventId>)>,
    /// Oldest first.
    pub ascending: bool,
    /// At most this many.
    pub limit: u32,
}

/// The events that match, in the order asked for. Names of actors and projects are as they are now.
pub async fn list(mut db: impl Executor, filter: &EventFilter) -> Result<Vec<Event>> {
    let (sql, values) = list_query(filter);
    let rows = db.rows_of(sql, values).await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in &rows {
        let actor_user_id: Option<UserId> = row.id_or_null(3)?;
        events.push(Event {
            id: row.id(0)?,
            recorded_at: row.time(1)?,
            message: row.text(2)?,
            actor_user_id,
            actor_user: row.text_or_null(4)?,
            is_actor_user_deleted: row.int_or_null(5)?.map(|deleted| deleted != 0),
            targets: vec![],
        });
    }
    add_targets(db, &mut events).await?;
    Ok(events)
}

fn list_query(filter: &EventFilter) -> (String, Vec<Value>) {
    let mut conditions = Conditions::default();
    if let Some(projects) = &filter.visible_projects {
        let projects = conditions.list(projects.iter().map(|id| Value::from(*id)));
        let users = conditions.list(filter.visible_users.iter().map(|id| Value::from(*id)));
        conditions.has_target(&format!("(t.project_id IN ({projects}) OR t.target_id IN ({users}))"));
    }
    if let Some(projects) = &filter.within_projects {
        let list = conditions.list(projects.iter().map(|id| Value::from(*id)));
        conditions.has_target(&format!("t.project_id IN ({list})"));
    }
    // A run has few of a server's events: they are looked up, while a project's are met on the way back in time.
    for (column, ids) in
        [("target_id", &filter.targets), ("fleet_id", &filter.within_fleets), ("run_id", &filter.within_runs)]
    {
        if let Some(ids) = ids {
            let list = conditions.list(ids.iter().map(|id| Value::from(*id)));
            let targets = format!("SELECT t.event_id FROM event_targets t WHERE t.{column} IN ({list})");
            conditions.terms.push(format!("e.id IN ({targets})"));
        }
    }
    if let Some(kinds) = &filter.target_kinds {
        let list = conditions.list(kinds.iter().map(|kind| Value::from(kind.as_str())));
        conditions.has_target(&format!("t.kind IN ({list})"));
    }
    if let Some(actors) = &filter.actors {
        let list = conditions.list(actors.iter().flatten().map(|id| Value::from(*id)));
        let server = if actors.contains(&None) { " OR e.actor_user_id IS NULL" } else { "" };
        conditions.terms.push(format!("(e.actor_user_id IN ({list}){server})"));
    }
    conditions.after(filter);
    let order = if filter.ascending { "e.recorded_at ASC, e.id DESC" } else { "e.recorded_at DESC, e.id ASC" };
    let limit = conditions.value(Value::from(filter.limit));
    let sql = format!(
        "SELECT e.id, e.recorded_at, e.message, e.actor_user_id, u.name, u.deleted FROM events e \
         LEFT JOIN users u ON u.id = e.actor_user_id WHERE {} ORDER BY {order} LIMIT {limit}",
        conditions.terms.join(" AND ")
    );
    (sql, conditions.values)
}

struct Conditions {
    terms: Vec<String>,
    values: Vec<Value>,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions { terms: vec!["1 = 1".to_owned()], values: vec![] }
    }
}

impl Conditions {
    fn value(&mut self, value: Value) -> String {
        self.values.push(value);
        format!("${}", self.values.len())
    }

    fn list(&mut self, values: impl Iterator<Item = Value>) -> String {
        let places: Vec<String> = values.map(|value| self.value(value)).collect();
        // An empty list matches nothing; neither engine accepts `IN ()` in every place.
        if places.is_empty() { "NULL".to_owned() } else { places.join(", ") }
    }

    fn has_target(&mut self, condition: &str) {
        self.terms.push(format!("EXISTS (SELECT 1 FROM event_targets t WHERE t.event_id = e.id AND {condition})"));
    }

    fn after(&mut self, filter: &EventFilter) {
        let Some((time, id)) = filter.after else { return };
        let beyond = if filter.ascending { ">" } else { "<" };
        let time = self.value(Value::from(time));
        let Some(id) = id else {
            self.terms.push(format!("e.recorded_at {beyond} {time}"));
            return;
        };
        // Within one moment the order of identifiers runs against the order of time: the official paging.
        let id_beyond = if filter.ascending { "<" } else { ">" };
        let id = self.value(Value::from(id));
        self.terms.push(format!(
            "(e.recorded_at {beyond} {time} OR (e.recorded_at = {time} AND e.id {id_beyond} {id}))"
        ));
    }
}

async fn add_targets(mut db: impl Executor, events: &mut [Event]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT t.event_id, t.kind, t.project_id, p.name, p.deleted, t.target_id, t.name FROM event_targets t \
         LEFT JOIN projects p ON p.id = t.project_id WHERE t.event_id IN ({}) ORDER BY t.event_id, t.place",
        placeholders(1, events.len())
    );
    let values = events.iter().map(|event| Value::from(event.id)).collect();
    for row in db.rows_of(sql, values).await? {
        let event_id: EventId = row.id(0)?;
        let Some(event) = events.iter_mut().find(|event| event.id == event_id) else { continue };
        event.targets.push(EventTarget {
            r#type: row.text(1)?,
            project_id: row.id_or_null(2)?,
            project_name: row.text_or_null(3)?,
            is_project_deleted: row.int_or_null(4)?.map(|deleted| deleted != 0),
            id: row.id(5)?,
            name: row.text(6)?,
        });
    }
    Ok(())
}

/// Forgets events that are older than `before`, at most `limit` at a time, and says how many.
pub async fn delete_older(mut db: impl Executor, before: Timestamp, limit: u32) -> Result<u64> {
    db.execute(
        "DELETE FROM event_targets WHERE event_id IN \
         (SELECT id FROM events WHERE recorded_at < $1 ORDER BY recorded_at, id LIMIT $2)",
        values![before, limit],
    )
    .await?;
    db.execute(
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE recorded_at < $1 ORDER BY recorded_at, id LIMIT $2)",
        values![before, limit],
    )
    .await
}
