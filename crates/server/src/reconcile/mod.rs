//! The loop, written once: due rows, bounded concurrency, reconcile, back off on error.
//!
//! Every reconciler runs the same five steps: load, observe, decide, record, act. Wake-ups carry no data and may be
//! lost; a slow full pass is the safety net.

mod blocks;
mod buyer;
pub mod fleet;
mod gang;
pub mod instance;
pub mod job;
pub mod launch;
pub mod placement;
mod record;
pub mod run;
pub mod sweep;
mod task_code;
mod task_spec;
pub mod tidy;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use store::leases::{self, NEVER, Table};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::deps::Deps;

/// Rows of one table that are reconciled at the same time.
const CONCURRENCY: usize = 16;

/// Jobs that are reconciled at the same time: most of that time they wait for agents, and machines that do not answer
/// must not keep an order from those that do.
const JOB_CONCURRENCY: usize = 256;

/// Instances that are reconciled at the same time: most of that time they wait for their backend, and those that end
/// together are ended by few calls.
const INSTANCE_CONCURRENCY: usize = 64;

/// How often the claims on rows that take long are renewed.
const RENEWAL: Duration = Duration::from_secs(leases::LEASE_SECS as u64 / 3);

/// The longest sleep of a loop that nobody wakes.
const SAFETY: Duration = Duration::from_secs(30);

/// A shorter rest is not worth it.
const SHORTEST_REST: Duration = Duration::from_millis(15);

/// The longest rest after a look in vain.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// The longest delay after errors in a row, in seconds.
const MAX_BACKOFF_SECS: i64 = 60;

/// The tables that have a reconciler.
pub const TABLES: [Table; 5] = [Table::Fleets, Table::Launches, Table::Instances, Table::Runs, Table::Jobs];

/// When a row must be looked at again; none: never, unless somebody touches it.
pub type Next = Option<Timestamp>;

/// Errors in a row, by what failed.
type Failures = Arc<Mutex<HashMap<Uuid, u32>>>;

/// Rests after a look in vain at a row that is made of many others, so that it takes a quarter of a core at most: each of a
/// thousand nodes that moves makes the run due whose rows are all of them. What moved meanwhile is seen by the next look.
async fn rest(began: Instant) {
    let rest = began.elapsed() * 3;
    if SHORTEST_REST < rest {
        tokio::time::sleep(rest.min(LONGEST_REST)).await;
    }
}

/// Starts all reconcilers. They end when `shutdown` is cancelled.
pub fn start(deps: &Deps, shutdown: &CancellationToken) -> Vec<JoinHandle<()>> {
    let mut tasks: Vec<JoinHandle<()>> =
        TABLES.into_iter().map(|table| tokio::spawn(run_loop(deps.clone(), table, shutdown.clone()))).collect();
    tasks.push(tokio::spawn(placement::run_loop(deps.clone(), shutdown.clone())));
    tasks.push(tokio::spawn(sweep::run_loop(deps.clone(), shutdown.clone())));
    tasks.push(tokio::spawn(crate::logs::retention::run_loop(deps.clone(), shutdown.clone())));
    tasks
}

/// Makes every unfinished row due: what a server does when it starts.
pub async fn touch_all(deps: &Deps) -> store::Result<()> {
    for table in TABLES {
        leases::touch_all(&deps.db, table, deps.clock.now()).await?;
    }
    Ok(())
}

/// The rows of a table that are being reconciled.
#[derive(Debug, Default)]
struct Busy(Mutex<HashSet<Uuid>>);

impl Busy {
    fn rows(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.lock().expect("nobody panics while counting")
    }
}

/// A row that is being reconciled, until this is dropped.
#[derive(Debug)]
struct InWork {
    busy: Arc<Busy>,
    id: Uuid,
}

impl InWork {
    /// Begins with a row, unless somebody is at it.
    fn begin(busy: &Arc<Busy>, id: Uuid) -> Option<InWork> {
        let is_new = busy.rows().insert(id);
        is_new.then(|| InWork { busy: busy.clone(), id })
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        self.busy.rows().remove(&self.id);
    }
}

async fn run_loop(deps: Deps, table: Table, shutdown: CancellationToken) {
    let owner: Arc<str> = deps.ids.id::<Uuid>().to_string().into();
    let failures = Failures::default();
    let concurrency = match table {
        Table::Jobs => JOB_CONCURRENCY,
        Table::Instances => INSTANCE_CONCURRENCY,
        // Some of them rest.
        Table::Fleets | Table::Runs => 4 * CONCURRENCY,
        Table::Launches => CONCURRENCY,
    };
    let busy = Arc::new(Busy::default());
    // Tasks of their own, because a claim waits for the database's only writer and one of these may hold it.
    let mut working = JoinSet::new();
    let mut renewal = tokio::time::interval(RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What takes longer than one period has been at work since the last one.
    let mut slow: HashSet<Uuid> = HashSet::new();
    loop {
        let room = concurrency - working.len();
        let claimed = if room > 0 { claim(&deps, table, &owner, room).await } else { vec![] };
        let may_be_more = claimed.len() == room && room > 0;
        for id in claimed {
            let Some(in_work) = InWork::begin(&busy, id) else {
                // Its claim ran out while somebody is still at it. Whoever touched it meanwhile is not forgotten.
                claim_again_later(&deps, table, id).await;
                continue;
            };
            let (deps, owner, failures) = (deps.clone(), owner.clone(), failures.clone());
            working.spawn(async move {
                let due_at = work(&deps, table, id, &failures).await;
                // First of all: once it is given back it may be claimed again, by somebody who must not find it here.
                drop(in_work);
                give_back(&deps, table, id, &owner, due_at).await;
            });
        }
        while working.try_join_next().is_some() {}
        if may_be_more && working.len() < concurrency {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = working.join_next() => {}
            () = deps.wake.bell(table).notified(), if working.len() < concurrency => {}
            () = sleep_until_due(&deps, table), if working.len() < concurrency => {}
            _ = renewal.tick() => {
                let now_busy = busy.rows().clone();
                slow.retain(|id| now_busy.contains(id));
                renew(&deps, table, &owner, &slow).await;
                slow = now_busy;
            }
        }
    }
}

async fn claim_again_later(deps: &Deps, table: Table, id: Uuid) {
    if let Err(error) = leases::touch(&deps.db, table, id, deps.clock.now()).await {
        tracing::warn!("cannot make {table:?} {id} due, it is looked at later: {error}");
    }
}

/// Keeps the claims on rows that somebody is still at. A claim that runs out does no harm, and double work.
async fn renew(deps: &Deps, table: Table, owner: &str, rows: &HashSet<Uuid>) {
    for id in rows {
        if let Err(error) = leases::renew(&deps.db, table, *id, owner, deps.clock.now()).await {
            tracing::warn!("cannot renew the claim on {table:?} {id}: {error}");
        }
    }
}

async fn claim(deps: &Deps, table: Table, owner: &str, room: usize) -> Vec<Uuid> {
    let limit = u32::try_from(room).unwrap_or(1);
    match leases::claim(&deps.db, table, owner, deps.clock.now(), limit).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::error!("cannot claim due rows of {table:?}: {error}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            vec![]
        }
    }
}

async fn sleep_until_due(deps: &Deps, table: Table) {
    let due = leases::next_due(&deps.db, table, deps.clock.now()).await.ok().flatten();
    let wait = due.map_or(SAFETY, |due| {
        let wait = due.duration_since(deps.clock.now());
        Duration::try_from(wait).unwrap_or(Duration::ZERO).clamp(Duration::from_millis(1), SAFETY)
    });
    tokio::time::sleep(wait).await;
}

/// Claims what is due in a table and reconciles it, one row after the other. For simulations.
pub async fn pass(deps: &Deps, table: Table, owner: &str, limit: u32) -> store::Result<usize> {
    let claimed = leases::claim(&deps.db, table, owner, deps.clock.now(), limit).await?;
    let failures = Failures::default();
    for id in &claimed {
        let due_at = work(deps, table, *id, &failures).await;
        give_back(deps, table, *id, owner, due_at).await;
    }
    Ok(claimed.len())
}

/// Reconciles one claimed row. Answers when it is due again, in microseconds since the epoch or [`NEVER`].
async fn work(deps: &Deps, table: Table, id: Uuid, failures: &Failures) -> i64 {
    let result = match table {
        Table::Fleets => fleet::reconcile(deps, id.into()).await,
        Table::Launches => launch::reconcile(deps, id.into()).await,
        Table::Instances => instance::reconcile(deps, id.into()).await,
        Table::Runs => run::reconcile(deps, id.into()).await,
        Table::Jobs => job::reconcile(deps, id.into()).await,
    };
    match result {
        Ok(next) => {
            failures.lock().expect("nobody panics while counting").remove(&id);
            next.map_or(NEVER, Timestamp::as_microsecond)
        }
        // Somebody wrote first; the next pass sees both changes.
        Err(store::Error::Stale) => deps.clock.now().as_microsecond(),
        Err(error) => {
            let mut failures = failures.lock().expect("nobody panics while counting");
            let count = failures.entry(id).or_default();
            *count += 1;
            let secs = (1_i64 << (*count).min(6)).min(MAX_BACKOFF_SECS);
            tracing::error!("reconciling {table:?} {id} failed, next try in {secs} s: {error}");
            (deps.clock.now() + SignedDuration::from_secs(secs)).as_microsecond()
        }
    }
}

async fn give_back(deps: &Deps, table: Table, id: Uuid, owner: &str, due_at: i64) {
    if let Err(error) = leases::release(&deps.db, table, id, owner, due_at).await {
        tracing::error!("cannot give {table:?} {id} back, it falls due when its lease ends: {error}");
    }
}
