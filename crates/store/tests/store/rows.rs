//! Rows as they are in an ordinary life; a test changes what it is about.

use api::fleets::FleetStatus;
use api::ids::{FleetId, ProjectId, RunId};
use api::instances::InstanceStatus;
use api::jobs::JobStatus;
use api::runs::RunStatus;
use lifecycle::fleet::{Fleet, FleetState};
use lifecycle::instance::{Instance, InstanceState};
use lifecycle::job::{Job, JobState};
use lifecycle::launch::{Launch, LaunchStatus};
use lifecycle::run::{Run, RunState};
use serde_json::json;
use uuid::Uuid;

use crate::harness::{at, id};

/// An identifier whose place in the order of identifiers is known.
pub(crate) fn numbered<T: From<Uuid>>(number: u128) -> T {
    T::from(Uuid::from_u128(number))
}

/// A run that was just submitted, at that second.
pub(crate) fn run(project_id: ProjectId, name: &str, submitted: i64) -> Run {
    let configuration = json!({"type": "task", "commands": ["true"]});
    Run {
        id: id(),
        project_id,
        user_id: id(),
        name: name.to_owned(),
        submitted_at: at(submitted),
        priority: 0,
        status: RunStatus::Submitted,
        deleted: false,
        stop: None,
        fleet_id: None,
        spec: serde_json::from_value(json!({"run_name": name, "configuration": configuration})).unwrap(),
        state: RunState::default(),
    }
}

/// A submission of a run's job.
pub(crate) fn job(run_id: RunId, job_num: u32, submission_num: u32) -> Job {
    Job {
        id: id(),
        run_id,
        project_id: id(),
        replica_num: 0,
        job_num,
        submission_num,
        submitted_at: at(i64::from(submission_num)),
        status: JobStatus::Submitted,
        instance_id: None,
        end: None,
        released_at: None,
        spec: serde_json::from_value(json!({
            "job_num": job_num, "job_name": format!("test-{job_num}-0"), "commands": ["true"], "env": {},
            "image_name": "", "requirements": {"resources": {}},
        }))
        .unwrap(),
        state: JobState::default(),
    }
}

/// An active fleet.
pub(crate) fn fleet(project_id: ProjectId, name: &str, created: i64) -> Fleet {
    let configuration = json!({"type": "fleet", "name": name, "nodes": "0..2"});
    Fleet {
        id: id(),
        project_id,
        user_id: id(),
        name: name.to_owned(),
        created_at: at(created),
        status: FleetStatus::Active,
        wanted: true,
        spec: serde_json::from_value(json!({"configuration": configuration, "profile": {}})).unwrap(),
        state: FleetState::default(),
    }
}

/// A slot of a fleet that has no machine yet.
pub(crate) fn instance(project_id: ProjectId, fleet_id: FleetId, instance_num: u32, created: i64) -> Instance {
    Instance {
        id: id(),
        project_id,
        fleet_id,
        instance_num,
        created_at: at(created),
        status: InstanceStatus::Pending,
        end: None,
        launch_id: None,
        launch_index: None,
        state: InstanceState { name: format!("fleet-{instance_num}"), ..InstanceState::default() },
    }
}

/// A purchase that was not asked for yet.
pub(crate) fn launch(fleet_id: FleetId, created: i64) -> Launch {
    let offer = json!({
        "backend": "cudo", "instance": {"name": "cpu-4", "resources": {"cpus": 4, "memory_mib": 1024, "gpus": [], "spot": false}},
        "region": "r", "price": 1.0, "availability": "available",
    });
    let state = json!({
        "offer": offer, "backend": "one", "zone": null, "count": 1, "least": 1, "cluster": false,
        "requested_at": null, "attempts": 0, "error": null, "absent_since": null,
    });
    Launch {
        id: id(),
        project_id: id(),
        fleet_id,
        backend_id: id(),
        created_at: at(created),
        status: LaunchStatus::Wanted,
        cancelled: false,
        state: serde_json::from_value(state).unwrap(),
    }
}
