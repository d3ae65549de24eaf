//! Nothing goes wrong any more, and time passes: everything must come to rest, and nothing may be left behind.

use std::time::Duration;

use api::agent::TaskPhase;
use api::fleets::FleetStatus;
use jiff::SignedDuration;
use lifecycle::run::StopRequest;

use crate::checks::{must, next_due};
use crate::world::{Verdict, World};

/// How long runs may go on by themselves, in seconds.
const BY_ITSELF_SECS: i64 = 90;

/// How long everything may take to come to rest, in seconds: an agent that does not answer is given up after 300,
/// a machine that did not start after 120, and a machine that nobody claims after 80.
const REST_SECS: i64 = 900;

/// How often the sweep looks.
const SWEEP_PERIOD: SignedDuration = SignedDuration::from_secs(20);

/// The longest time that nobody looks at anything.
const LONGEST_STEP: Duration = Duration::from_secs(20);

impl World {
    /// Comes to rest, and checks that nothing is left.
    pub(crate) async fn end(&mut self) -> Verdict {
        self.say("nothing goes wrong any more");
        self.outside.hosts.lock().unwrap().everybody_online();
        self.let_pass(BY_ITSELF_SECS, World::runs_are_over).await?;
        for run in self.runs.clone() {
            self.stop_run(run, StopRequest::Stop).await;
        }
        self.let_pass(REST_SECS, World::runs_are_over).await?;
        self.check_runs_are_over()?;
        for fleet in self.fleets.clone() {
            self.delete_fleet(fleet).await;
        }
        self.let_pass(REST_SECS, World::is_empty).await?;
        self.check_nothing_is_left()?;
        self.check_logs()
    }

    /// Time passes from one thing that happens to the next, until it is over or `secs` have passed.
    pub(crate) async fn let_pass(&mut self, secs: i64, is_over: impl Fn(&World) -> bool) -> Verdict {
        let until = self.now() + SignedDuration::from_secs(secs);
        let mut swept_at = self.now();
        while self.now() < until {
            self.settle_down().await;
            if swept_at + SWEEP_PERIOD <= self.now() {
                swept_at = self.now();
                self.sweep().await;
            }
            self.check().await?;
            if is_over(self) {
                break;
            }
            let step = self.next_step().await;
            self.pass_time(step).await;
        }
        Ok(())
    }

    /// The time until something happens.
    async fn next_step(&self) -> Duration {
        let mut next = self.outside.hosts.lock().unwrap().next_at();
        for due in next_due(&self.server.deps.db, self.now()).await {
            next = [next, due].into_iter().flatten().min();
        }
        let wait = next.map_or(LONGEST_STEP, |next| {
            Duration::try_from(next.duration_since(self.now())).unwrap_or(Duration::ZERO)
        });
        // Not every microsecond: what is heard a little later is true as well.
        wait.clamp(Duration::from_secs(1), LONGEST_STEP)
    }

    fn runs_are_over(&self) -> bool {
        self.known.rows.runs.iter().all(|run| run.status.is_finished())
    }

    fn is_empty(&self) -> bool {
        let hosts = self.outside.hosts.lock().unwrap();
        let fleets = self.known.rows.fleets.iter().all(|fleet| fleet.status == FleetStatus::Terminated);
        fleets && self.outside.cloud.ledger().living().next().is_none() && hosts.all_tasks().is_empty()
    }

    fn check_runs_are_over(&self) -> Verdict {
        for run in &self.known.rows.runs {
            must!(run.status.is_finished(), "{} is {} for ever", run.name, run.status.as_str());
        }
        let held = self.known.rows.assignments.len();
        must!(held == 0, "{held} blocks are held although no run goes on");
        let hosts = self.outside.hosts.lock().unwrap();
        for (machine, task, phase) in hosts.all_tasks() {
            let job = self.known.rows.jobs.iter().find(|job| job.id == task);
            let name = job.map_or("?", |job| &job.spec.job_name);
            let over = phase == TaskPhase::Sealed;
            must!(over, "task {name} is {phase:?} on machine {} although no run goes on", machine.index);
        }
        Ok(())
    }

    fn check_nothing_is_left(&self) -> Verdict {
        for fleet in &self.known.rows.fleets {
            must!(fleet.status == FleetStatus::Terminated, "{} is {} for ever", fleet.name, fleet.status.as_str());
        }
        let ledger = self.outside.cloud.ledger();
        let living: Vec<String> = ledger
            .living()
            .map(|machine| {
                let claimed = self.known.rows.instances.iter().find(|instance| {
                    (instance.launch_id, instance.launch_index)
                        == (Some(machine.key.launch_id), Some(machine.key.index))
                });
                let owner = claimed.map_or("nobody", |instance| &instance.state.name);
                format!("{} of {owner}", machine.provider_id)
            })
            .collect();
        must!(living.is_empty(), "machines live on: {}", living.join(", "));
        for launch in self.known.rows.launches.values() {
            must!(launch.status.is_final(), "launch {} is {} for ever", launch.id, launch.status.as_str());
        }
        Ok(())
    }

    /// Whatever a command wrote on a machine that still was there is in the log, and nothing else.
    fn check_logs(&self) -> Verdict {
        let hosts = self.outside.hosts.lock().unwrap();
        let logs = &self.server.deps.logs;
        for job in &self.known.rows.jobs {
            let Some(record) = hosts.book.get(&job.id) else { continue };
            let slice = logs.read(job.id, 0, 1 << 20).unwrap();
            let bytes: Vec<u8> = slice.chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
            let is_beginning = record.log.starts_with(&bytes);
            must!(is_beginning, "the log of {} holds something else", job.spec.job_name);
            let is_whole = record.lost || bytes.len() == record.log.len();
            must!(
                is_whole,
                "the log of {} try {} ({}) has {} of {} bytes",
                job.spec.job_name,
                job.submission_num,
                job.status.as_str(),
                bytes.len(),
                record.log.len()
            );
            if !record.log.is_empty() && is_whole {
                self.outside.trace.mark("log whole");
            }
        }
        Ok(())
    }
}
