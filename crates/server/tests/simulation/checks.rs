//! What must hold after every step, whatever has gone wrong.

use std::collections::{BTreeMap, BTreeSet};

use api::ids::{FleetId, InstanceId, JobId, LaunchId, RunId};
use api::instances::{InstanceStatus, InstanceTerminationReason};
use api::jobs::{JobStatus, JobTerminationReason};
use api::runs::{RunStatus, RunTerminationReason};
use backends::fake::Ledger;
use jiff::{SignedDuration, Timestamp};
use lifecycle::fleet::Fleet;
use lifecycle::instance::Instance;
use lifecycle::job::Job;
use lifecycle::launch::{Launch, LaunchStatus};
use lifecycle::placement::requirements::{check, share};
use lifecycle::run::Run;
use server::reconcile::TABLES;
use store::leases::{NEVER, Table};
use store::{Db, Executor, fleets, instances, jobs, launches, runs};
use uuid::Uuid;

use crate::hosts::Record;
use crate::world::{Verdict, World};

/// What the last check saw.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// How many rows had been changed.
    changes: Option<i64>,
    versions: BTreeMap<Uuid, i64>,
    /// Launches that arrived when nobody waited for them any more: only the sweep ends their machines.
    pub(crate) late: BTreeSet<LaunchId>,
    pub(crate) rows: Rows,
}

/// All rows that a simulation is about.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rows {
    pub(crate) runs: Vec<Run>,
    /// Every submission, by run, submission and number.
    pub(crate) jobs: Vec<Job>,
    pub(crate) instances: Vec<Instance>,
    pub(crate) fleets: Vec<Fleet>,
    pub(crate) launches: BTreeMap<LaunchId, Launch>,
    pub(crate) assignments: Vec<(InstanceId, u32, JobId)>,
}

/// Fails with a sentence unless something holds.
macro_rules! must {
    ($holds:expr, $($sentence:tt)+) => {
        if !$holds {
            return Err(format!($($sentence)+));
        }
    };
}
pub(crate) use must;

impl Rows {
    /// The last submissions of a run's jobs.
    pub(crate) fn latest<'a>(&'a self, run: &'a Run) -> Vec<&'a Job> {
        let jobs = self.jobs.iter().filter(|job| job.run_id == run.id);
        let last = jobs.clone().map(|job| job.submission_num).max();
        jobs.filter(|job| Some(job.submission_num) == last).collect()
    }

    fn run_of(&self, job: &Job) -> &str {
        self.runs.iter().find(|run| run.id == job.run_id).map_or("?", |run| &run.name)
    }

    fn name_of(&self, job: &Job) -> String {
        format!("{} node {} try {}", self.run_of(job), job.job_num, job.submission_num)
    }
}

impl World {
    /// Checks everything.
    pub(crate) async fn check(&mut self) -> Verdict {
        self.look().await?;
        let rows = &self.known.rows;
        let ledger = self.outside.cloud.ledger();
        check_blocks(rows)?;
        check_gangs(rows)?;
        check_machines(rows, &ledger, &self.known.late)?;
        check_launches(rows, &ledger)?;
        check_rounds(rows, &ledger, &self.known.late)?;
        let hosts = self.outside.hosts.lock().unwrap();
        check_tasks(rows, &hosts.book)?;
        check_machines_suit(rows, &hosts.book)?;
        for run in rows.runs.iter().filter(|run| run.status.is_finished()) {
            check_end(run, &rows.latest(run))?;
        }
        let judged = |run: &&Run| run.status.is_finished() || run.status == RunStatus::Pending;
        for run in rows.runs.iter().filter(judged) {
            check_cause(run, &rows.latest(run), &hosts.book)?;
        }
        Ok(())
    }

    /// Reads all rows anew, if any has changed, tells the trace what is new, and checks that what is final stays.
    async fn look(&mut self) -> Verdict {
        let db = self.server.deps.db.clone();
        let changes = changes(&db).await;
        if changes.is_some() && changes == self.known.changes {
            return Ok(());
        }
        self.known.changes = changes;
        let rows = self.load(&db).await;
        let old = std::mem::replace(&mut self.known.rows, rows);
        self.tell_changes(&old);
        let new = &self.known.rows;
        stay(&old.runs, &new.runs, |run| run.id, |run| run.status.is_finished())?;
        stay(&old.jobs, &new.jobs, |job| job.id, |job| job.status.is_finished())?;
        stay(&old.instances, &new.instances, |it| it.id, |it| it.status == InstanceStatus::Terminated)?;
        let (old, new): (Vec<_>, Vec<_>) =
            (old.launches.into_values().collect(), new.launches.values().cloned().collect());
        stay(&old, &new, |launch| launch.id, |launch| launch.status.is_final() && launch.cancelled)
    }

    /// All rows; those whose version has not moved are not read again.
    async fn load(&mut self, db: &Db) -> Rows {
        let mut rows = self.known.rows.clone();
        for (table, id) in moved(db, &mut self.known.versions).await {
            match table {
                Table::Runs => {
                    let row = runs::get(db, RunId(id)).await.unwrap().unwrap().value;
                    put(&mut rows.runs, row, |run| (run.submitted_at, run.name.clone()));
                }
                Table::Jobs => {
                    let row = jobs::get(db, JobId(id)).await.unwrap().unwrap().value;
                    put(&mut rows.jobs, row, |job| (job.run_id, job.submission_num, job.job_num));
                }
                Table::Instances => {
                    let row = instances::get(db, InstanceId(id)).await.unwrap().unwrap().value;
                    put(&mut rows.instances, row, |instance| (instance.created_at, instance.id));
                }
                Table::Fleets => {
                    let row = fleets::get(db, FleetId(id)).await.unwrap().unwrap().value;
                    put(&mut rows.fleets, row, |fleet| (fleet.created_at, fleet.id));
                }
                Table::Launches => {
                    let row = launches::get(db, LaunchId(id)).await.unwrap().unwrap().value;
                    rows.launches.insert(row.id, row);
                }
            }
        }
        rows.assignments = instances::list_project_assignments(db, self.project).await.unwrap();
        rows
    }

    fn tell_changes(&self, old: &Rows) {
        let new = &self.known.rows;
        for launch in new.launches.values() {
            let before = old.launches.get(&launch.id).map(|known| known.status);
            if before != Some(launch.status) {
                let error = launch.state.error.as_ref().map_or("", |error| &error.kind);
                let (count, place) = (launch.state.count, launch.state.place());
                let name = &launch.state.offer.instance.name;
                self.say(format_args!("  {count} × {name} in {place}: {} {error}", launch.status.as_str()));
                self.count_launch(launch, new);
            }
        }
        for run in &new.runs {
            let before = old.runs.iter().find(|known| known.id == run.id).map(|known| known.status);
            if before != Some(run.status) {
                let why = run.state.termination_reason.map_or("", RunTerminationReason::as_str);
                self.say(format_args!("  {}: {} {why}", run.name, run.status.as_str()));
                self.count_run(run, new);
            }
        }
        for job in &new.jobs {
            let before = old.jobs.iter().find(|known| known.id == job.id).map(|known| known.status);
            if before != Some(job.status) {
                let why = job.state.termination_reason.map_or("", JobTerminationReason::as_str);
                self.say(format_args!("  {}: {} {why}", new.name_of(job), job.status.as_str()));
                if job.submission_num > 0 && before.is_none() {
                    self.outside.trace.mark("job tried again");
                }
            }
        }
        for instance in &new.instances {
            let before = old.instances.iter().find(|known| known.id == instance.id).map(|known| known.status);
            if before != Some(instance.status) {
                let why = instance.state.termination_reason.map_or("", |reason| reason.as_str());
                self.say(format_args!("  {}: {} {why}", instance.state.name, instance.status.as_str()));
            }
        }
    }

    fn count_launch(&self, launch: &Launch, rows: &Rows) {
        if launch.status != LaunchStatus::Done {
            return;
        }
        let is_same = |other: &&Launch| {
            let mut of_both = launch.state.instances.iter().filter(|it| other.state.instances.contains(it));
            other.status == LaunchStatus::Failed && of_both.next().is_some()
        };
        for failed in rows.launches.values().filter(is_same) {
            let same_type = failed.state.offer.instance.name == launch.state.offer.instance.name;
            self.outside.trace.mark(if same_type { "bought in another zone" } else { "bought another offer" });
        }
    }

    fn count_run(&self, run: &Run, rows: &Rows) {
        let nodes = rows.latest(run).len();
        let mark = match (run.status, nodes) {
            (RunStatus::Running, 2..) => "gang runs",
            (RunStatus::Running, _) => "single run runs",
            (RunStatus::Done, 2..) => "gang done",
            (RunStatus::Done, _) => "single run done",
            (RunStatus::Failed, _) => "run failed",
            (RunStatus::Terminated, _) => "run terminated",
            (RunStatus::Pending, _) => "run waits for a retry",
            (RunStatus::Submitted | RunStatus::Provisioning | RunStatus::Terminating, _) => return,
        };
        self.outside.trace.mark(mark);
    }
}

/// The rows that are new or have moved.
async fn moved(mut db: &Db, versions: &mut BTreeMap<Uuid, i64>) -> Vec<(Table, Uuid)> {
    let sql = "SELECT CAST(0 AS BIGINT), id, version FROM fleets \
               UNION ALL SELECT CAST(1 AS BIGINT), id, version FROM launches \
               UNION ALL SELECT CAST(2 AS BIGINT), id, version FROM instances \
               UNION ALL SELECT CAST(3 AS BIGINT), id, version FROM runs \
               UNION ALL SELECT CAST(4 AS BIGINT), id, version FROM jobs ORDER BY 1, 2";
    let mut moved = vec![];
    for row in db.rows(sql, vec![]).await.unwrap() {
        let (id, version) = (row.id::<Uuid>(1).unwrap(), row.int(2).unwrap());
        if versions.insert(id, version) != Some(version) {
            moved.push((TABLES[row.int(0).unwrap() as usize], id));
        }
    }
    moved
}

/// When the next row of each table falls due that nobody has claimed, in the order of [`TABLES`].
pub(crate) async fn next_due(mut db: &Db, now: Timestamp) -> Vec<Option<Timestamp>> {
    let sql = "SELECT CAST(0 AS BIGINT), MIN(due_at) FROM fleets WHERE leased_until < $1 \
               UNION ALL SELECT CAST(1 AS BIGINT), MIN(due_at) FROM launches WHERE leased_until < $1 \
               UNION ALL SELECT CAST(2 AS BIGINT), MIN(due_at) FROM instances WHERE leased_until < $1 \
               UNION ALL SELECT CAST(3 AS BIGINT), MIN(due_at) FROM runs WHERE leased_until < $1 \
               UNION ALL SELECT CAST(4 AS BIGINT), MIN(due_at) FROM jobs WHERE leased_until < $1 ORDER BY 1";
    let rows = db.rows(sql, store::values![now]).await.unwrap();
    let due = rows.iter().map(|row| row.int_or_null(1).unwrap().filter(|due| *due != NEVER));
    due.map(|due| due.map(|micros| Timestamp::from_microsecond(micros).unwrap())).collect()
}

/// Puts a row in the place of its last version, or else where it belongs in the order of `key`.
fn put<T, K: Ord>(rows: &mut Vec<T>, row: T, key: impl Fn(&T) -> K) {
    match rows.binary_search_by_key(&key(&row), &key) {
        Ok(place) => rows[place] = row,
        Err(place) => rows.insert(place, row),
    }
}

/// How many rows have ever been changed; none: the engine does not say.
async fn changes(mut db: &Db) -> Option<i64> {
    if db.is_shared() {
        return None;
    }
    let rows = db.rows("SELECT total_changes()", vec![]).await.unwrap();
    rows[0].int(0).ok()
}

/// What is final never changes again.
fn stay<T: PartialEq + std::fmt::Debug, I: PartialEq>(
    old: &[T],
    new: &[T],
    id: impl Fn(&T) -> I,
    is_final: impl Fn(&T) -> bool,
) -> Verdict {
    for before in old.iter().filter(|row| is_final(row)) {
        let after = new.iter().find(|row| id(row) == id(before));
        must!(after == Some(before), "what was final has changed:\n{}", difference(before, after));
    }
    Ok(())
}

/// The lines in which two rows differ.
fn difference<T: std::fmt::Debug>(before: &T, after: Option<&T>) -> String {
    let Some(after) = after else { return format!("{before:#?} is gone") };
    let (before, after) = (format!("{before:#?}"), format!("{after:#?}"));
    let pairs = before.lines().zip(after.lines()).filter(|(before, after)| before != after);
    pairs.map(|(before, after)| format!("{before} is now {after}\n")).collect::<Vec<_>>().concat()
}

/// Every block is held by one unfinished job that knows of it, and every placed job holds its blocks.
fn check_blocks(rows: &Rows) -> Verdict {
    let jobs: BTreeMap<JobId, &Job> = rows.jobs.iter().map(|job| (job.id, job)).collect();
    let held: BTreeSet<(InstanceId, u32)> = rows.assignments.iter().map(|(it, block, _)| (*it, *block)).collect();
    must!(held.len() == rows.assignments.len(), "a block is held twice");
    for (instance, block, job) in &rows.assignments {
        let job = jobs[job];
        let name = rows.name_of(job);
        must!(!job.status.is_finished(), "{name} is {} and holds block {block}", job.status.as_str());
        must!(job.instance_id == Some(*instance), "{name} holds a block of an instance that it is not on");
        must!(job.state.blocks.contains(block), "{name} does not know that it holds block {block}");
    }
    for instance in &rows.instances {
        use InstanceTerminationReason::{IdleTimeout, MaxInstancesLimit};
        let spare = instance.end.as_ref().is_some_and(|end| matches!(end.reason, IdleTimeout | MaxInstancesLimit));
        let held = rows.assignments.iter().any(|(holder, _, _)| *holder == instance.id);
        must!(!spare || !held, "{} is ended as spare, and a job has a place on it", instance.state.name);
    }
    for job in rows.jobs.iter().filter(|job| !job.status.is_finished()) {
        let Some(instance) = job.instance_id else { continue };
        let mine = |block: &u32| rows.assignments.contains(&(instance, *block, job.id));
        must!(job.state.blocks.iter().all(mine), "{} does not hold its blocks", rows.name_of(job));
        let machine = rows.instances.iter().find(|known| known.id == instance);
        let total =
            machine.filter(|machine| machine.state.instance_type.is_some()).map(|it| it.state.total_blocks);
        let held = job.state.blocks.len() as u32;
        let enough =
            if job.spec.jobs_per_replica > 1 { total.is_none_or(|total| held == total) } else { held > 0 };
        must!(enough, "{} holds {held} of {total:?} blocks", rows.name_of(job));
    }
    Ok(())
}

/// No node of a gang waits for a place while another has one.
fn check_gangs(rows: &Rows) -> Verdict {
    for run in &rows.runs {
        let gang = rows.latest(run);
        let placed = gang.iter().filter(|job| job.instance_id.is_some()).count();
        let waiting = gang.iter().filter(|job| job.instance_id.is_none() && !job.status.is_finished()).count();
        must!(placed == 0 || waiting == 0, "{}: {placed} nodes have a place, {waiting} have none", run.name);
        let fleets: BTreeSet<_> = gang
            .iter()
            .filter_map(|job| rows.instances.iter().find(|it| Some(it.id) == job.instance_id))
            .map(|instance| instance.fleet_id)
            .collect();
        must!(fleets.len() <= 1, "{}: the gang is spread over {} fleets", run.name, fleets.len());
    }
    Ok(())
}

/// An instance is terminated only when its machine is gone.
fn check_machines(rows: &Rows, ledger: &Ledger, late: &BTreeSet<LaunchId>) -> Verdict {
    for instance in rows.instances.iter().filter(|instance| instance.status == InstanceStatus::Terminated) {
        let lives = ledger.living().filter(|machine| !late.contains(&machine.key.launch_id)).any(|machine| {
            Some(machine.key.launch_id) == instance.launch_id && Some(machine.key.index) == instance.launch_index
        });
        must!(!lives, "{} is terminated, and its machine lives", instance.state.name);
    }
    Ok(())
}

/// The cloud was asked for nothing that is not recorded, and made nothing twice.
fn check_launches(rows: &Rows, ledger: &Ledger) -> Verdict {
    for (id, seen) in &ledger.launches {
        let Some(launch) = rows.launches.get(id) else { return Err(format!("nobody recorded launch {id}")) };
        let unrecorded = launch.status == LaunchStatus::Wanted;
        must!(!unrecorded, "the cloud was asked for launch {id} before that was recorded");
        let made: Vec<_> = ledger.of_launch(*id).map(|machine| machine.key.index).collect();
        let distinct: BTreeSet<_> = made.iter().collect();
        must!(distinct.len() == made.len(), "launch {id} was made twice");
        must!(made.len() <= seen.order.count as usize, "launch {id} made more machines than were wanted");
        let half = !made.is_empty() && made.len() < seen.order.least as usize;
        must!(!half, "launch {id} made {} machines, and less than {} are of no use", made.len(), seen.order.least);
    }
    Ok(())
}

/// What came to nothing left nothing behind, unless it arrived when nobody waited for it any more. An instance that is
/// not bought says so.
fn check_rounds(rows: &Rows, ledger: &Ledger, late: &BTreeSet<LaunchId>) -> Verdict {
    for launch in rows.launches.values().filter(|launch| launch.status == LaunchStatus::Failed) {
        let is_late = late.contains(&launch.id);
        let living = ledger.living().filter(|machine| machine.key.launch_id == launch.id).count();
        must!(is_late || living == 0, "launch {} failed, and {living} machines of it live", launch.id);
    }
    for instance in rows.instances.iter().filter(|instance| instance.status == InstanceStatus::Pending) {
        let state = &instance.state;
        let has_facts = state.instance_type.is_some() || state.provider_id.is_some() || state.zone.is_some();
        must!(!has_facts, "{} is not bought, and says where it is", state.name);
    }
    Ok(())
}

/// No task is given to two machines or runs twice, and no node starts before its gang is ready.
fn check_tasks(rows: &Rows, book: &BTreeMap<JobId, Record>) -> Verdict {
    for job in &rows.jobs {
        let Some(record) = book.get(&job.id) else { continue };
        let name = rows.name_of(job);
        must!(record.machines.len() <= 1, "{name} was given {} times", record.machines.len());
        must!(record.starts.len() <= 1, "{name} ran {} times", record.starts.len());
        let Some(started_at) = record.starts.first() else { continue };
        let peers = rows.jobs.iter().filter(|peer| {
            (peer.run_id, peer.submission_num, peer.replica_num)
                == (job.run_id, job.submission_num, job.replica_num)
        });
        for peer in peers {
            let ready = book.get(&peer.id).and_then(|record| record.ready_at).is_some_and(|at| at <= *started_at);
            must!(ready, "{name} started before node {} was ready", peer.job_num);
        }
    }
    Ok(())
}

/// A machine that was given a task has what its job needs, for a price that the run pays, and its user may use it.
fn check_machines_suit(rows: &Rows, book: &BTreeMap<JobId, Record>) -> Verdict {
    for job in rows.jobs.iter().filter(|job| book.contains_key(&job.id)) {
        let name = rows.name_of(job);
        let Some(machine) = rows.instances.iter().find(|it| Some(it.id) == job.instance_id) else { continue };
        let run = rows.runs.iter().find(|run| run.id == job.run_id);
        let may_use = !machine.state.admins_only || run.is_some_and(|run| run.state.user_is_admin);
        must!(may_use, "{name} was given to {}, which only admins may use", machine.state.name);
        let Some(kind) = &machine.state.instance_type else { continue };
        let part = share(&kind.resources, job.state.blocks.len() as u32, machine.state.total_blocks);
        let needed = &job.spec.requirements;
        if let Err(mismatch) = check(&needed.resources, &part) {
            return Err(format!("{name} was given to {}: {mismatch}", machine.state.name));
        }
        let price = machine.state.price.unwrap_or_default();
        let affordable = needed.max_price.is_none_or(|max_price| price <= max_price);
        must!(affordable, "{name} was given to {} for ${price} an hour", machine.state.name);
    }
    Ok(())
}

/// The end of a run agrees with the ends of its jobs.
fn check_end(run: &Run, jobs: &[&Job]) -> Verdict {
    let name = &run.name;
    let all_finished = jobs.iter().all(|job| job.status.is_finished());
    must!(all_finished, "{name} is {}, and a job of it goes on", run.status.as_str());
    let Some(reason) = run.state.termination_reason else { return Err(format!("{name} ended for no reason")) };
    must!(run.status == reason.final_status(), "{name} is {} for {}", run.status.as_str(), reason.as_str());
    let params = lifecycle::placement::profile_of(&run.spec);
    let by_master = params.stop_criteria == Some(api::configurations::StopCriteria::MasterDone);
    let is_done = |job: &&&Job| job.status == JobStatus::Done;
    match reason {
        RunTerminationReason::AllJobsDone => {
            let done = jobs.iter().filter(is_done).count();
            let enough = done == jobs.len() || (by_master && jobs[0].status == JobStatus::Done);
            must!(enough, "{name} is done, and {} of its {} jobs are", done, jobs.len());
        }
        RunTerminationReason::JobFailed => {
            must!(
                jobs.iter().any(|job| job.status != JobStatus::Done),
                "{name} failed, and all its jobs are done"
            );
            must!(run.state.cause.is_some(), "{name} failed without a cause");
        }
        RunTerminationReason::StoppedByUser | RunTerminationReason::AbortedByUser => {
            must!(run.stop.is_some(), "nobody stopped {name}");
        }
        RunTerminationReason::RetryLimitExceeded => {}
        RunTerminationReason::ServerError | RunTerminationReason::GatewayError => {
            return Err(format!("{name} ended for {}", reason.as_str()));
        }
    }
    Ok(())
}

/// The cause of a failure is the node that failed first, as the machines know it.
fn check_cause(run: &Run, jobs: &[&Job], book: &BTreeMap<JobId, Record>) -> Verdict {
    let Some(cause) = &run.state.cause else { return Ok(()) };
    let Some(of_cause) = jobs.iter().find(|job| job.id == cause.job_id) else { return Ok(()) };
    for job in jobs {
        let failed_at = book.get(&job.id).and_then(|record| record.failed_at);
        // What the server never saw it cannot tell.
        let Some(failed_at) = failed_at.filter(|at| job.state.exited_at == Some(*at)) else { continue };
        // A machine is missed later than its peers feel it.
        let is_loss = matches!(
            cause.reason,
            JobTerminationReason::InterruptedByNoCapacity | JobTerminationReason::InstanceUnreachable
        );
        let lead = SignedDuration::from_secs(if is_loss { 20 } else { 0 });
        must!(
            cause.at <= failed_at + lead,
            "{}: node {} is taken for the cause, and node {} failed {} before it",
            run.name,
            of_cause.job_num,
            job.job_num,
            cause.at.duration_since(failed_at)
        );
    }
    let consequence = of_cause.end.as_ref().is_some_and(|end| end.reason == cause.reason)
        && cause.reason != JobTerminationReason::FailedToStartDueToNoCapacity;
    must!(!consequence, "{}: the end of node {} was ordered, and is taken for the cause", run.name, cause.job_num);
    Ok(())
}
