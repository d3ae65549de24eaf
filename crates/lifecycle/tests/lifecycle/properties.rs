//! What holds for every row and every sight of the world.

use std::collections::BTreeSet;

use api::agent::{ClusterInfo, ExitReason, TaskPhase, TaskState};
use api::configurations::RetryEvent;
use api::instances::InstanceStatus;
use api::jobs::{JobStatus, JobTerminationReason};
use api::runs::RunStatus;
use lifecycle::instance::Instance;
use lifecycle::job::{Effect, EndOrder, Inactivity, Job, Seen, Surroundings};
use lifecycle::placement::{Gang, Growth, Outcome, Pool, PoolInstance, place};
use lifecycle::run::{Run, StopRequest};
use proptest::prelude::*;
use serde_json::json;

use crate::fixtures::{at, exit, id, in_phase, instance, job, retry, run_with, task};
use crate::placement::{fleet, free, gang};

/// Nothing is written beside the tests; a seed that fails is printed.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

fn phases() -> impl Strategy<Value = TaskPhase> {
    use TaskPhase::{Accepted, Exited, Preparing, Pulling, Ready, Running, Sealed, Stopping};
    prop::sample::select(vec![Accepted, Preparing, Pulling, Ready, Running, Stopping, Exited, Sealed])
}

fn tasks() -> impl Strategy<Value = TaskState> {
    let exits = prop::sample::select(vec![ExitReason::Done, ExitReason::Failed, ExitReason::Stopped]);
    (phases(), prop::option::of(exits), 0..3_u64).prop_map(|(phase, reason, log_end)| {
        let over = matches!(phase, TaskPhase::Exited | TaskPhase::Sealed);
        let exit = over.then(|| exit(reason.unwrap_or(ExitReason::Done), 1));
        TaskState { exit, log_end, ..task(phase) }
    })
}

fn sights() -> impl Strategy<Value = Seen> {
    prop_oneof![Just(Seen::Unknown), Just(Seen::Absent), tasks().prop_map(|task| Seen::Known(Box::new(task))),]
}

fn orders() -> impl Strategy<Value = Option<EndOrder>> {
    use JobTerminationReason::{AbortedByUser, DoneByRunner, TerminatedByServer, TerminatedByUser};
    let reasons = prop::sample::select(vec![AbortedByUser, DoneByRunner, TerminatedByServer, TerminatedByUser]);
    let order =
        (reasons, 0..3_u64).prop_map(|(reason, grace_secs)| EndOrder { reason, message: None, grace_secs });
    prop::option::of(order)
}

fn instance_statuses() -> impl Strategy<Value = InstanceStatus> {
    use InstanceStatus::{Busy, Idle, Pending, Provisioning, Terminated, Terminating};
    prop::sample::select(vec![Pending, Provisioning, Idle, Busy, Terminating, Terminated])
}

#[derive(Debug, Clone)]
struct Sight {
    seen: Seen,
    end: Option<EndOrder>,
    machine: InstanceStatus,
    silent_since: Option<i64>,
    empty_since: Option<i64>,
}

fn jobs_sights() -> impl Strategy<Value = Vec<Sight>> {
    let sight =
        (sights(), orders(), instance_statuses(), prop::option::of(0..100_i64), prop::option::of(0..1000_i64))
            .prop_map(|(seen, end, machine, silent_since, empty_since)| Sight {
                seen,
                end,
                machine,
                silent_since,
                empty_since,
            });
    prop::collection::vec(sight, 1..30)
}

fn look(now: i64, job: &Job, sight: &Sight) -> lifecycle::job::JobDecision {
    let machine: Instance = instance(0, sight.machine);
    let around = Surroundings {
        instance: Some(&machine),
        cluster: Some(ClusterInfo::default().into()),
        logs_received: 1,
        logs_lost: 0,
        log_error: None,
        unreachable_since: sight.silent_since.map(at),
        unreachable_after_secs: 300,
        inactivity: sight.empty_since.map(|since| Inactivity { since: at(since), limit_secs: 600 }),
    };
    lifecycle::job::decide(at(now), job, &sight.seen, &around)
}

proptest! {
    #![proptest_config(config())]

    /// Whatever is seen, in whatever order: a final status stays, the first reason stays, the status never goes
    /// back, slots are freed exactly once, and nothing is ordered before it is recorded that it may be there.
    #[test]
    fn a_job_only_moves_forward(sights in jobs_sights()) {
        let mut job = in_phase(0, 2, TaskPhase::Accepted);
        job.status = JobStatus::Provisioning;
        job.state.phase = None;
        job.state.cluster = None;
        job.state.given = false;
        let mut freed = 0;
        for (round, sight) in (0..).zip(&sights) {
            job.end = job.end.or_else(|| sight.end.clone());
            let decision = look(round * 30, &job, sight);
            freed += u32::from(decision.releases_slot);
            let after = decision.job;
            prop_assert!(after.status >= job.status || after.status.is_finished());
            if job.status.is_finished() {
                prop_assert_eq!(&after, &job);
            }
            if let Some(reason) = job.state.termination_reason {
                let escalated = Some(JobTerminationReason::AbortedByUser);
                let later = after.state.termination_reason;
                let corrected = reason == JobTerminationReason::TerminatedByServer;
                prop_assert!(later == Some(reason) || later == escalated || corrected);
            }
            if decision.effect == Some(Effect::Put) {
                prop_assert!(after.state.cluster.is_some() && after.state.given && job.state.phase.is_none());
            }
            prop_assert!(after.state.phase >= job.state.phase);
            job = after;
        }
        prop_assert_eq!(freed, u32::from(job.status.is_finished()));
    }
}

/// A gang and its agents, who behave well but may be slow.
struct World {
    now: i64,
    run: Run,
    jobs: Vec<Job>,
    tasks: Vec<Option<TaskState>>,
}

/// One thing that happens to one node.
#[derive(Debug, Clone, Copy)]
enum Step {
    Nothing,
    Advance,
    Fail,
    LoseMachine,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        2 => Just(Step::Nothing),
        8 => Just(Step::Advance),
        1 => Just(Step::Fail),
        1 => Just(Step::LoseMachine),
    ];
    prop::collection::vec((0..3_usize, step), 0..60)
}

impl World {
    fn new(nodes: u32, keys: serde_json::Value, on_events: &[RetryEvent]) -> World {
        let jobs = (0..nodes).map(|number| {
            let mut job = job(number, nodes);
            job.spec.retry = (!on_events.is_empty()).then(|| retry(on_events, 600));
            job
        });
        World { now: 0, run: run_with(keys), jobs: jobs.collect(), tasks: vec![None; nodes as usize] }
    }

    /// Everybody looks once.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.now += 5;
        for number in 0..self.jobs.len() {
            self.look_at_job(number);
        }
        let decision = lifecycle::run::decide(at(self.now), &self.run, &self.jobs);
        let was_final = self.run.status.is_finished();
        prop_assert!(!was_final || decision.run == self.run);
        for released in &decision.release_jobs {
            let all_ready = self.jobs.iter().all(|job| job.state.phase >= Some(TaskPhase::Ready));
            prop_assert!(all_ready, "{released} is released while a peer is not ready");
        }
        self.run = decision.run;
        for job in &mut self.jobs {
            let order = decision.end_jobs.iter().find(|(ended, _)| *ended == job.id);
            job.end = order.map(|(_, order)| order.clone()).or(job.end.take());
            job.released_at = job.released_at.or(decision.release_jobs.contains(&job.id).then(|| at(self.now)));
        }
        if decision.resubmit {
            self.resubmit();
        }
        if self.run.status == RunStatus::Submitted {
            self.place();
        }
        Ok(())
    }

    fn look_at_job(&mut self, number: usize) {
        let machine = instance(number as u32, InstanceStatus::Busy);
        let around = Surroundings {
            instance: Some(&machine),
            cluster: Some(ClusterInfo::default().into()),
            logs_received: 0,
            logs_lost: 0,
            log_error: None,
            unreachable_since: None,
            unreachable_after_secs: 300,
            inactivity: None,
        };
        let seen = match &self.tasks[number] {
            Some(task) => Seen::Known(Box::new(task.clone())),
            None => Seen::Absent,
        };
        let decision = lifecycle::job::decide(at(self.now), &self.jobs[number], &seen, &around);
        self.jobs[number] = decision.job;
        let task = &mut self.tasks[number];
        match (decision.effect, task.as_mut()) {
            (Some(Effect::Put), None) => *task = Some(crate::fixtures::task(TaskPhase::Accepted)),
            (Some(Effect::Go), Some(task)) if task.phase == TaskPhase::Ready => {
                task.phase = TaskPhase::Running;
                task.started_at = Some(at(self.now));
            }
            (Some(Effect::Stop { .. }), Some(task)) if task.phase < TaskPhase::Exited => self.stop(number),
            (Some(Effect::Forget), _) => *task = None,
            _ => {}
        }
    }

    fn stop(&mut self, number: usize) {
        let Some(task) = &mut self.tasks[number] else { return };
        task.phase = TaskPhase::Exited;
        task.exit = Some(api::agent::TaskExit { finished_at: at(self.now), ..exit(ExitReason::Stopped, 143) });
    }

    fn place(&mut self) {
        for job in self.jobs.iter_mut().filter(|job| job.status == JobStatus::Submitted && job.end.is_none()) {
            job.status = JobStatus::Provisioning;
            job.instance_id = Some(id(200 + u128::from(job.job_num)));
            job.state.placed_at = Some(at(self.now));
        }
    }

    fn resubmit(&mut self) {
        for (number, job) in self.jobs.iter_mut().enumerate() {
            let fresh = crate::fixtures::job(job.job_num, job.spec.jobs_per_replica);
            *job = Job { spec: job.spec.clone(), submission_num: job.submission_num + 1, ..fresh };
            self.tasks[number] = None;
        }
    }

    fn happen(&mut self, number: usize, step: Step) {
        let number = number % self.jobs.len();
        let now = self.now;
        let Some(task) = &mut self.tasks[number] else { return };
        let ends = |reason, status| Some(api::agent::TaskExit { finished_at: at(now), ..exit(reason, status) });
        match (step, task.phase) {
            (Step::Nothing, _) | (_, TaskPhase::Sealed) => {}
            (Step::Fail, TaskPhase::Running) => {
                task.phase = TaskPhase::Exited;
                task.exit = ends(ExitReason::Failed, 1);
            }
            (Step::LoseMachine, _) => self.tasks[number] = None,
            (_, TaskPhase::Accepted) => task.phase = TaskPhase::Pulling,
            (_, TaskPhase::Preparing | TaskPhase::Pulling) => task.phase = TaskPhase::Ready,
            (_, TaskPhase::Ready) => {}
            (_, TaskPhase::Running | TaskPhase::Stopping) => {
                task.phase = TaskPhase::Exited;
                task.exit = ends(ExitReason::Done, 0);
            }
            (_, TaskPhase::Exited) => task.phase = TaskPhase::Sealed,
        }
    }

    /// Everything goes on by itself until the run is over.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..400 {
            if self.run.status.is_finished() {
                break;
            }
            for number in 0..self.jobs.len() {
                self.happen(number, Step::Advance);
            }
            self.settle()?;
        }
        prop_assert!(self.run.status.is_finished(), "the run never ends: {:?}", self.run.status);
        prop_assert!(self.jobs.iter().all(|job| job.status.is_finished()), "a job of a finished run goes on");
        Ok(())
    }
}

fn configurations() -> impl Strategy<Value = serde_json::Value> {
    prop::sample::select(vec![
        json!({}),
        json!({"stop_criteria": "master-done"}),
        json!({"startup_order": "master-first"}),
        json!({"startup_order": "workers-first"}),
        json!({"startup_order": "workers-first", "stop_criteria": "master-done"}),
    ])
}

fn retried_events() -> impl Strategy<Value = Vec<RetryEvent>> {
    prop::collection::vec(prop::sample::select(RetryEvent::ALL.to_vec()), 0..4)
}

proptest! {
    #![proptest_config(config())]

    /// In a world that behaves well in the end, every run ends, whatever went wrong on the way.
    #[test]
    fn every_run_ends(nodes in 1..4_u32, keys in configurations(), events in retried_events(), steps in steps()) {
        let mut world = World::new(nodes, keys, &events);
        for (number, step) in steps {
            world.happen(number, step);
            world.settle()?;
        }
        world.finish()?;
    }

    /// A stopped run ends soon, whatever it was doing, and says so.
    #[test]
    fn a_stopped_run_ends(nodes in 1..4_u32, keys in configurations(), steps in steps(), abort in any::<bool>()) {
        let mut world = World::new(nodes, keys, &RetryEvent::ALL);
        for (number, step) in steps {
            world.happen(number, step);
            world.settle()?;
        }
        let was_ending = world.run.status >= RunStatus::Terminating;
        world.run.stop = Some(if abort { StopRequest::Abort } else { StopRequest::Stop });
        for _ in 0..8 {
            for number in 0..world.jobs.len() {
                if matches!(world.tasks[number].as_ref().map(|task| task.phase), Some(TaskPhase::Exited)) {
                    world.happen(number, Step::Advance);
                }
            }
            world.settle()?;
        }
        prop_assert!(world.run.status.is_finished());
        prop_assert!(was_ending || world.run.status == RunStatus::Terminated);
    }
}

fn machines() -> impl Strategy<Value = Vec<PoolInstance>> {
    let machine = (1..5_u32, prop::collection::btree_set(0..4_u32, 0..4), 0..3_u32, 1..4_u32);
    prop::collection::vec(machine, 0..8).prop_map(|machines| {
        let built = (0..).zip(machines).map(|(number, (total_blocks, free_blocks, zone, price))| PoolInstance {
            total_blocks,
            free_blocks: free_blocks.into_iter().filter(|block| *block < total_blocks).collect(),
            zone: Some(format!("zone-{zone}")),
            price: f64::from(price),
            ..free(number)
        });
        built.collect()
    })
}

fn pools() -> impl Strategy<Value = Pool> {
    (machines(), machines(), 0..3_u32, any::<bool>()).prop_map(|(first, mut second, room, cluster)| {
        for instance in &mut second {
            instance.id = id(800 + u128::from(instance.instance_num));
        }
        let mut a = fleet("a", first);
        a.room = room;
        let mut b = fleet("b", second);
        b.cluster = cluster;
        Pool { fleets: vec![a, b] }
    })
}

proptest! {
    #![proptest_config(config())]

    /// No gang gets a part of its nodes, no block is given twice, and no fleet grows beyond its room.
    #[test]
    fn gangs_are_placed_whole_and_share_nothing(sizes in prop::collection::vec(1..4_u32, 1..8), pool in pools()) {
        let gangs: Vec<Gang> = (0..).zip(&sizes).map(|(number, nodes)| Gang {
            run_id: id(1_000 + number),
            ..gang(*nodes, json!({}))
        }).collect();
        let mut left = pool.clone();
        let outcomes = place(&gangs, &mut left, &Growth::Unknown);
        let mut given = BTreeSet::new();
        let mut bought = vec![0; pool.fleets.len()];
        for ((run, outcome), gang) in outcomes.iter().zip(&gangs) {
            prop_assert_eq!(*run, gang.run_id);
            let Outcome::Placed { fleet_id, slots } = outcome else { continue };
            let ranks: Vec<u32> = slots.iter().map(|slot| slot.job_num).collect();
            prop_assert_eq!(ranks, (0..gang.nodes.len() as u32).collect::<Vec<_>>());
            let index = pool.fleets.iter().position(|fleet| fleet.id == *fleet_id).unwrap();
            let mut zones = BTreeSet::new();
            for slot in slots {
                let Some(instance_id) = slot.instance_id else {
                    bought[index] += 1;
                    continue;
                };
                let instance = pool.fleets[index].instances.iter().find(|it| it.id == instance_id).unwrap();
                zones.insert(instance.zone.clone());
                prop_assert!(!slot.blocks.is_empty());
                let whole = slot.blocks.len() == instance.total_blocks as usize;
                prop_assert!(gang.nodes.len() == 1 || whole);
                for block in &slot.blocks {
                    prop_assert!(instance.free_blocks.contains(block));
                    prop_assert!(given.insert((instance_id, *block)), "a block was given twice");
                }
            }
            prop_assert!(zones.len() <= 1 || gang.nodes.len() == 1);
        }
        for (fleet, bought) in pool.fleets.iter().zip(bought) {
            prop_assert!(bought <= fleet.room);
        }
    }

    /// What fits is found: when a gang gets nothing, no zone of a cluster has enough free machines.
    #[test]
    fn a_gang_that_fits_is_placed(nodes in 2..4_u32, pool in pools()) {
        let mut left = pool.clone();
        let placed = matches!(place(&[gang(nodes, json!({}))], &mut left, &Growth::Unknown)[0].1, Outcome::Placed { .. });
        let fits = pool.fleets.iter().filter(|fleet| fleet.cluster).any(|fleet| {
            let whole: Vec<_> = fleet
                .instances
                .iter()
                .filter(|instance| instance.free_blocks.len() == instance.total_blocks as usize)
                .collect();
            let in_zone = |zone: &str| whole.iter().filter(|it| it.zone.as_deref() == Some(zone)).count() as u32;
            let most = ["zone-0", "zone-1", "zone-2"].into_iter().map(in_zone).max().unwrap_or(0);
            nodes <= most + fleet.room
        });
        prop_assert_eq!(placed, fits);
    }
}
