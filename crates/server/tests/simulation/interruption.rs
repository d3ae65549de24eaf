//! A cloud says that it takes a machine of a gang back, and nothing else goes wrong.

use api::ids::InstanceId;
use api::instances::{InstanceStatus, InstanceTerminationReason};
use api::jobs::{JobStatus, JobTerminationReason};
use backends::MachineKey;
use jiff::SignedDuration;
use lifecycle::instance::Instance;
use lifecycle::job::Job;
use serde_json::json;
use store::Db;

use crate::world::World;

/// How long before it takes the machine back the cloud says so.
const NOTICE: SignedDuration = SignedDuration::from_secs(120);

/// In how many worlds it is tried. Some clouds sell too few machines for a gang, or none to this user.
const WORLDS: u64 = 12;

/// The jobs of a submission, by rank.
fn jobs(world: &World, submission_num: u32) -> Vec<Job> {
    let all = world.known.rows.jobs.iter().filter(|job| job.submission_num == submission_num);
    let mut jobs: Vec<Job> = all.cloned().collect();
    jobs.sort_by_key(|job| job.job_num);
    jobs
}

fn all_are(world: &World, submission_num: u32, holds: impl Fn(&Job) -> bool) -> bool {
    let jobs = jobs(world, submission_num);
    jobs.len() == 2 && jobs.iter().all(holds)
}

fn runs(job: &Job) -> bool {
    job.status == JobStatus::Running
}

fn instance(world: &World, id: Option<InstanceId>) -> Instance {
    let id = id.expect("it has a place");
    world.known.rows.instances.iter().find(|instance| instance.id == id).unwrap().clone()
}

fn is_living(world: &World, machine: &MachineKey) -> bool {
    world.outside.cloud.ledger().living().any(|living| living.key == *machine)
}

/// Interrupts the second node of a gang; answers whether the gang came to run at all.
async fn interrupted(seed: u64) -> bool {
    let db = Db::open_memory().await.unwrap();
    store::migrate(&db).await.unwrap();
    let mut world = World::new(seed, db).await;
    world.outside.hosts.lock().unwrap().all_run_for_ever = true;
    let retry = json!({"on_events": ["interruption"], "duration": "1h"});
    let gang = json!({
        "type": "task", "commands": ["true"], "image": "ubuntu", "nodes": 2, "retry": retry, "stop_duration": 20,
        "resources": {"cpu": "2..", "memory": "1GB..", "disk": null},
    });
    world.submit(2, gang).await;
    let is_over = |world: &World| world.known.rows.runs.iter().all(|run| run.status.is_finished());
    world.let_pass(900, |world| all_are(world, 0, runs) || is_over(world)).await.unwrap();
    if !all_are(&world, 0, runs) {
        return false;
    }
    let taken = instance(&world, jobs(&world, 0)[1].instance_id);
    let machine = MachineKey { launch_id: taken.launch_id.unwrap(), index: taken.launch_index.unwrap() };
    let noticed_at = world.now();
    world.outside.hosts.lock().unwrap().take_back(&machine, noticed_at + NOTICE);

    // What is heard at the same moment leads to the order to stop at the same moment.
    world.settle_down().await;
    world.check().await.unwrap();
    assert_eq!(world.now(), noticed_at);
    let told = jobs(&world, 0);
    // The node whose machine goes may take what its configuration says and two minutes leave.
    assert_eq!(told.iter().map(|job| job.state.stop_sent).collect::<Vec<_>>(), [Some(20), Some(20)]);
    assert!(!instance(&world, Some(taken.id)).is_kept());

    world.let_pass(110, |world| all_are(world, 0, |job| job.status.is_finished())).await.unwrap();
    let ended = jobs(&world, 0);
    let reasons: Vec<_> = ended.iter().map(|job| job.state.termination_reason.unwrap()).collect();
    assert_eq!(reasons, [JobTerminationReason::TerminatedByServer, JobTerminationReason::InterruptedByNoCapacity]);
    for job in &ended {
        assert_eq!(job.state.exit_status, Some(143), "it was stopped, and not lost");
        let log = world.outside.hosts.lock().unwrap().book[&job.id].log.clone();
        assert!(String::from_utf8_lossy(&log).contains("stopped"));
    }
    assert!(world.now() < noticed_at + NOTICE);

    world
        .let_pass(60, |world| instance(world, Some(taken.id)).status == InstanceStatus::Terminated)
        .await
        .unwrap();
    let gone = instance(&world, Some(taken.id));
    assert_eq!(gone.state.termination_reason, Some(InstanceTerminationReason::Unreachable));
    assert!(gone.state.termination_message.unwrap().starts_with("AWS takes "));
    world.let_pass(900, |world| all_are(world, 1, runs)).await.unwrap();
    let again = jobs(&world, 1);
    if again.len() == 2 && again.iter().all(runs) {
        assert!(again.iter().all(|job| job.instance_id != Some(taken.id)));
        assert!(!is_living(&world, &machine));
    } else {
        // The cloud has no more machines; the run waits for one.
        let run = &world.known.rows.runs[0];
        assert!(!run.status.is_finished(), "{run:?}");
    }
    again.iter().filter(|job| runs(job)).count() == 2
}

#[test]
fn a_gang_one_of_whose_machines_is_taken_back_is_stopped_whole_and_tried_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tried_again = (0..WORLDS).filter(|seed| runtime.block_on(interrupted(*seed))).count();
    assert!(tried_again > 2, "only {tried_again} gangs ran again");
}
