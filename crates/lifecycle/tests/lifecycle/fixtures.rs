//! Rows as they are in an ordinary life; a case changes what it is about.

use api::agent::{ExitReason, TaskExit, TaskPhase, TaskState};
use api::configurations::RetryEvent;
use api::fleets::{FleetSpec, FleetStatus};
use api::ids::{FleetId, InstanceId, JobId, LaunchId, ProjectId, RunId, UserId};
use api::instances::{InstanceStatus, InstanceType, Offer, Resources};
use api::jobs::{JobSpec, JobStatus, JobTerminationReason, Retry};
use api::runs::{RunSpec, RunStatus};
use jiff::{SignedDuration, Timestamp};
use lifecycle::fleet::{Fleet, FleetState};
use lifecycle::instance::{Instance, InstanceState};
use lifecycle::job::{EndOrder, Job, JobState};
use lifecycle::launch::{Launch, LaunchState, LaunchStatus};
use lifecycle::run::{Run, RunState};
use serde_json::json;
use uuid::Uuid;

/// A time, in seconds after the beginning of all tests.
pub(crate) fn at(secs: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap() + SignedDuration::from_secs(secs)
}

/// An identifier that says its number.
pub(crate) fn id<T: From<Uuid>>(number: u128) -> T {
    T::from(uuid::Builder::from_random_bytes(number.to_be_bytes()).into_uuid())
}

pub(crate) fn run_spec(keys: serde_json::Value) -> RunSpec {
    let mut configuration = json!({"type": "task", "commands": ["true"]});
    let (Some(all), serde_json::Value::Object(keys)) = (configuration.as_object_mut(), keys) else {
        panic!("the keys are a mapping")
    };
    all.extend(keys);
    serde_json::from_value(json!({"run_name": "test", "configuration": configuration})).unwrap()
}

/// A run of a task with these keys.
pub(crate) fn run_with(keys: serde_json::Value) -> Run {
    Run {
        id: id(1),
        project_id: id::<ProjectId>(2),
        user_id: id::<UserId>(3),
        name: "test".to_owned(),
        submitted_at: at(0),
        priority: 0,
        status: RunStatus::Submitted,
        deleted: false,
        stop: None,
        fleet_id: None,
        spec: run_spec(keys),
        state: RunState::default(),
    }
}

pub(crate) fn run_in(status: RunStatus) -> Run {
    Run { status, ..run_with(json!({})) }
}

pub(crate) fn job_spec(job_num: u32, nodes: u32) -> JobSpec {
    serde_json::from_value(json!({
        "job_num": job_num,
        "job_name": format!("test-{job_num}-0"),
        "jobs_per_replica": nodes,
        "commands": ["true"],
        "env": {},
        "image_name": "",
        "requirements": {"resources": {"cpu": "1..", "memory": "1GB..", "disk": null, "gpu": null}},
        "stop_duration": 300,
    }))
    .unwrap()
}

/// The job of a node, just submitted.
pub(crate) fn job(job_num: u32, nodes: u32) -> Job {
    Job {
        id: id::<JobId>(100 + u128::from(job_num)),
        run_id: id::<RunId>(1),
        project_id: id(2),
        replica_num: 0,
        job_num,
        submission_num: 0,
        submitted_at: at(0),
        status: JobStatus::Submitted,
        instance_id: None,
        end: None,
        released_at: None,
        spec: job_spec(job_num, nodes),
        state: JobState::default(),
    }
}

/// A job that has a place, in a status.
pub(crate) fn placed(job_num: u32, nodes: u32, status: JobStatus) -> Job {
    let mut job = job(job_num, nodes);
    job.status = status;
    job.instance_id = Some(id::<InstanceId>(200 + u128::from(job_num)));
    job.state.placed_at = Some(at(1));
    job.state.last_processed_at = Some(at(1));
    job.released_at = (nodes == 1).then(|| at(1));
    job
}

/// A job whose task is in a phase.
pub(crate) fn in_phase(job_num: u32, nodes: u32, phase: TaskPhase) -> Job {
    let status = if phase.has_started() { JobStatus::Running } else { JobStatus::Pulling };
    let mut job = placed(job_num, nodes, status);
    job.state.phase = Some(phase);
    job.state.cluster = (job_num == 0).then(api::agent::ClusterInfo::default);
    job.state.given = true;
    if phase.has_started() {
        job.released_at = Some(at(2));
        job.state.started_at = Some(at(3));
    }
    job
}

/// A job that ended by itself.
pub(crate) fn ended(job_num: u32, nodes: u32, reason: JobTerminationReason, exited_at: i64) -> Job {
    let mut job = in_phase(job_num, nodes, TaskPhase::Sealed);
    job.status = reason.final_status();
    job.state.termination_reason = Some(reason);
    job.state.exited_at = Some(at(exited_at));
    job.state.ended_at = Some(at(exited_at));
    job.state.last_processed_at = Some(at(exited_at));
    job
}

/// A job that was ended by the run.
pub(crate) fn ended_by_run(job_num: u32, nodes: u32, reason: JobTerminationReason, exited_at: i64) -> Job {
    Job {
        end: Some(EndOrder { reason, message: None, grace_secs: 300 }),
        ..ended(job_num, nodes, reason, exited_at)
    }
}

pub(crate) fn retry(on_events: &[RetryEvent], duration: u64) -> Retry {
    Retry { on_events: on_events.to_vec(), duration }
}

pub(crate) fn task(phase: TaskPhase) -> TaskState {
    TaskState {
        id: id(100),
        generation: 1,
        phase,
        pull: None,
        started_at: phase.has_started().then(|| at(3)),
        exit: None,
        log_end: 0,
        resolved: api::agent::Resolved::default(),
        warnings: vec![],
        unvisited_millis: None,
    }
}

pub(crate) fn exited(phase: TaskPhase, reason: ExitReason, exit_status: i32) -> TaskState {
    TaskState { exit: Some(exit(reason, exit_status)), ..task(phase) }
}

pub(crate) fn exit(reason: ExitReason, exit_status: i32) -> TaskExit {
    TaskExit {
        reason,
        exit_status: Some(exit_status),
        signal: None,
        oom_killed: false,
        message: None,
        finished_at: at(5),
    }
}

pub(crate) fn instance_type(cpus: u32) -> InstanceType {
    let resources = Resources {
        cpus,
        memory_mib: u64::from(cpus) * 4096,
        cpu_arch: Some("x86".to_owned()),
        ..Resources::default()
    };
    InstanceType { name: format!("cpu-{cpus}"), resources }
}

/// An instance that was joined, unless it is pending or provisioning.
pub(crate) fn instance(number: u32, status: InstanceStatus) -> Instance {
    let joined = !matches!(status, InstanceStatus::Pending | InstanceStatus::Provisioning);
    let bought = status != InstanceStatus::Pending;
    let busy = status == InstanceStatus::Busy;
    Instance {
        id: id::<InstanceId>(200 + u128::from(number)),
        project_id: id(2),
        fleet_id: id::<FleetId>(4),
        instance_num: number,
        created_at: at(0),
        status,
        end: None,
        launch_id: bought.then(|| id::<LaunchId>(300)),
        launch_index: bought.then_some(number),
        state: InstanceState {
            name: format!("fleet-{number}"),
            backend: bought.then(|| "fake".to_owned()),
            region: bought.then(|| "fake-1".to_owned()),
            price: bought.then_some(1.0),
            instance_type: bought.then(|| instance_type(4)),
            provider_id: joined.then(|| format!("fake-{number}")),
            hostname: joined.then(|| "10.0.0.1".to_owned()),
            internal_ip: joined.then(|| "10.0.0.1".to_owned()),
            total_blocks: 1,
            joined_at: joined.then(|| at(1)),
            idle_since: (joined && !busy).then(|| at(1)),
            ..InstanceState::default()
        },
    }
}

pub(crate) fn offer(price: f64) -> Offer {
    serde_json::from_value(json!({
        "backend": "cudo", "instance": instance_type(4), "region": "fake-1", "price": price,
        "availability": "available", "instance_runtime": "shim",
    }))
    .unwrap()
}

pub(crate) fn launch(status: LaunchStatus) -> Launch {
    Launch {
        id: id(300),
        project_id: id(2),
        fleet_id: id(4),
        backend_id: id(5),
        created_at: at(0),
        status,
        cancelled: false,
        state: LaunchState {
            offer: offer(1.0),
            backend: "fake".to_owned(),
            zone: None,
            count: 2,
            least: 2,
            made: None,
            cluster: false,
            requested_at: (status != LaunchStatus::Wanted).then(|| at(0)),
            attempts: u32::from(status != LaunchStatus::Wanted),
            error: None,
            absent_since: None,
            prepared: None,
            instances: vec![id(200), id(201)],
            maybe_heard: u32::from(status != LaunchStatus::Wanted),
            accepted: status != LaunchStatus::Wanted,
            limited: 0,
            limited_since: None,
            ended_at: None,
        },
    }
}

/// A fleet with these keys.
pub(crate) fn fleet(keys: serde_json::Value) -> Fleet {
    let mut configuration = json!({"type": "fleet", "name": "fleet"});
    let (Some(all), serde_json::Value::Object(keys)) = (configuration.as_object_mut(), keys) else {
        panic!("the keys are a mapping")
    };
    all.extend(keys);
    let spec = json!({"configuration": configuration, "profile": {"name": "default"}});
    Fleet {
        id: id(4),
        project_id: id(2),
        user_id: id(3),
        name: "fleet".to_owned(),
        created_at: at(0),
        status: FleetStatus::Active,
        wanted: true,
        spec: serde_json::from_value::<FleetSpec>(spec).unwrap(),
        state: FleetState::default(),
    }
}
