//! What users do, written as the handlers of requests write it.

use api::fleets::{FleetSpec, FleetStatus};
use api::ids::{FleetId, RunId};
use api::runs::{RunSpec, RunStatus};
use lifecycle::fleet::{Fleet, FleetState};
use lifecycle::job::{Job, JobState};
use lifecycle::run::{Run, RunState, StopRequest, job_specs};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use store::{fleets, jobs, runs};

use crate::world::World;

impl World {
    /// A cluster to begin with, and a fleet for single jobs.
    pub(crate) async fn add_first_fleets(&mut self) {
        let least = self.rng.random_range(0..3);
        let nodes = format!("{least}..5");
        let blocks = if self.rng.random_bool(0.3) { json!("auto") } else { json!(1) };
        let cluster = json!({"nodes": nodes, "placement": "cluster", "blocks": blocks, "idle_duration": "60s"});
        self.add_fleet(cluster).await;
        let blocks = if self.rng.random_bool(0.5) { json!("auto") } else { json!(1) };
        let any_kind = json!({"disk": null, "gpu": "0.."});
        let singles = json!({"nodes": "0..3", "blocks": blocks, "idle_duration": "30s", "resources": any_kind});
        self.add_fleet(singles).await;
    }

    pub(crate) async fn add_fleet(&mut self, keys: Value) {
        let user_is_admin = self.rng.random_bool(0.9);
        let deps = &self.server.deps;
        let name = format!("fleet{}", self.fleets.len());
        let mut configuration = json!({"type": "fleet", "name": name, "resources": {"disk": null, "gpu": 0}});
        configuration.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let spec = json!({"configuration": configuration, "profile": {"name": "default"}});
        let fleet = Fleet {
            id: deps.ids.id(),
            project_id: self.project,
            user_id: self.user,
            name,
            created_at: self.now(),
            status: FleetStatus::Active,
            wanted: true,
            spec: serde_json::from_value::<FleetSpec>(spec).unwrap(),
            state: FleetState { user_is_admin, ..FleetState::default() },
        };
        fleets::insert(&deps.db, &fleet, self.now()).await.unwrap();
        self.say(format_args!("user: adds {} {keys}", fleet.name));
        self.fleets.push(fleet.id);
    }

    /// One thing that a user might do.
    pub(crate) async fn use_it(&mut self) {
        match self.rng.random_range(0..100) {
            0..56 => self.submit_run().await,
            56..70 => self.stop_some_run(StopRequest::Stop).await,
            70..82 => self.stop_some_run(StopRequest::Abort).await,
            82..94 => self.resize_some_fleet().await,
            _ => {
                self.delete_some_fleet().await;
                self.add_fleet(json!({"nodes": "1..4", "placement": "cluster", "idle_duration": "20s"})).await;
            }
        }
    }

    fn some_task(&mut self) -> (u32, Value) {
        let rng = &mut self.rng;
        let nodes = *[1, 1, 2, 2, 3, 4].choose(rng).unwrap();
        let mut task = json!({
            "type": "task", "commands": ["true"], "image": "ubuntu", "nodes": nodes,
            "resources": {"cpu": "2..", "memory": "1GB..", "disk": null},
        });
        let keys = task.as_object_mut().unwrap();
        let retries = [
            Value::Null,
            json!({"on_events": ["error"], "duration": "10m"}),
            json!({"on_events": ["interruption"], "duration": "10m"}),
            json!({"on_events": ["no-capacity"], "duration": "5m"}),
            json!({"on_events": ["no-capacity", "interruption", "error"], "duration": "10m"}),
            json!({"on_events": ["no-capacity", "interruption", "error"], "duration": "10m"}),
            json!(true),
        ];
        keys.insert("retry".to_owned(), retries.choose(rng).unwrap().clone());
        if nodes > 1 {
            let orders = [Value::Null, json!("any"), json!("master-first"), json!("workers-first")];
            keys.insert("startup_order".to_owned(), orders.choose(rng).unwrap().clone());
            let criteria = [Value::Null, json!("all-done"), json!("master-done")];
            keys.insert("stop_criteria".to_owned(), criteria.choose(rng).unwrap().clone());
        }
        if nodes == 1 && rng.random_bool(0.1) {
            let large = json!({"cpu": "2..", "memory": "1GB..", "disk": null, "gpu": "H100:8"});
            keys.insert("resources".to_owned(), large);
        } else if rng.random_bool(0.1) {
            keys.insert("max_price".to_owned(), json!(0.15));
        }
        if rng.random_bool(0.15) {
            keys.insert("creation_policy".to_owned(), json!("reuse"));
        }
        if rng.random_bool(0.1) {
            keys.insert("fleets".to_owned(), json!(["fleet1"]));
        }
        keys.insert("stop_duration".to_owned(), json!(rng.random_range(1..30)));
        keys.insert("priority".to_owned(), json!(rng.random_range(0..3)));
        (nodes, task)
    }

    pub(crate) async fn submit_run(&mut self) {
        let (nodes, configuration) = self.some_task();
        self.submit(nodes, configuration).await;
    }

    /// A run of that many nodes, which suits every machine.
    pub(crate) async fn submit_gang(&mut self, nodes: u32) {
        let resources = json!({"cpu": "2..", "memory": "1GB..", "disk": null});
        let task = json!({"type": "task", "commands": ["true"], "image": "ubuntu", "nodes": nodes, "resources": resources});
        self.submit(nodes, task).await;
    }

    /// Submits a task of so many nodes.
    pub(crate) async fn submit(&mut self, nodes: u32, configuration: Value) {
        let name = format!("run{}", self.runs.len());
        let spec: RunSpec =
            serde_json::from_value(json!({"run_name": name, "configuration": configuration})).unwrap();
        let specs = job_specs(&spec, "ubuntu").unwrap();
        let user_is_admin = self.rng.random_bool(0.7);
        let deps = &self.server.deps;
        let run = Run {
            id: deps.ids.id(),
            project_id: self.project,
            user_id: self.user,
            name,
            submitted_at: self.now(),
            priority: i64::from(spec.configuration.common().priority.unwrap_or_default()),
            status: RunStatus::Submitted,
            deleted: false,
            stop: None,
            fleet_id: None,
            spec,
            state: RunState { user_is_admin, ..RunState::default() },
        };
        let mut tx = deps.db.begin().await.unwrap();
        runs::insert(&mut tx, &run, self.now()).await.unwrap();
        for spec in specs {
            let job = Job {
                id: deps.ids.id(),
                run_id: run.id,
                project_id: run.project_id,
                replica_num: spec.replica_num,
                job_num: spec.job_num,
                submission_num: 0,
                submitted_at: self.now(),
                status: api::jobs::JobStatus::Submitted,
                instance_id: None,
                end: None,
                released_at: None,
                spec,
                state: JobState::default(),
            };
            jobs::insert(&mut tx, &job, self.now()).await.unwrap();
        }
        tx.commit().await.unwrap();
        self.say(format_args!("user: submits {} of {nodes} nodes, {}", run.name, shown(&configuration)));
        self.outside.trace.mark(if nodes > 1 { "gang submitted" } else { "single run submitted" });
        self.runs.push(run.id);
    }

    async fn stop_some_run(&mut self, stop: StopRequest) {
        let Some(run) = self.runs.choose(&mut self.rng).copied() else { return };
        self.stop_run(run, stop).await;
    }

    pub(crate) async fn stop_run(&mut self, run: RunId, stop: StopRequest) {
        let changed = runs::set_stop(&self.server.deps.db, run, stop, self.now()).await.unwrap();
        if changed {
            let number = self.runs.iter().position(|known| *known == run).unwrap_or_default();
            self.say(format_args!("user: {stop:?}s run{number}"));
            self.outside.trace.mark(if stop == StopRequest::Stop { "user stops" } else { "user aborts" });
        }
    }

    async fn resize_some_fleet(&mut self) {
        let Some(fleet) = self.fleets.choose(&mut self.rng).copied() else { return };
        let least = self.rng.random_range(0..3);
        let most = least + self.rng.random_range(1..4);
        let db = &self.server.deps.db;
        let Some(mut row) = fleets::get(db, fleet).await.unwrap().filter(|row| row.value.wanted) else { return };
        let nodes = serde_json::from_value(json!(format!("{least}..{most}"))).unwrap();
        row.value.spec.configuration.nodes = Some(nodes);
        fleets::set_spec(db, &row, self.now()).await.unwrap();
        self.say(format_args!("user: resizes {} to {least}..{most}", row.value.name));
        self.outside.trace.mark("user resizes a fleet");
    }

    async fn delete_some_fleet(&mut self) {
        let Some(fleet) = self.fleets.choose(&mut self.rng).copied() else { return };
        self.delete_fleet(fleet).await;
    }

    pub(crate) async fn delete_fleet(&mut self, fleet: FleetId) {
        let db = &self.server.deps.db;
        let Some(row) = fleets::get(db, fleet).await.unwrap().filter(|row| row.value.wanted) else { return };
        fleets::set_unwanted(db, fleet, self.now()).await.unwrap();
        self.say(format_args!("user: deletes {}", row.value.name));
        self.outside.trace.mark("user deletes a fleet");
    }
}

fn shown(configuration: &Value) -> String {
    let keys = ["retry", "startup_order", "stop_criteria", "creation_policy", "fleets", "resources", "max_price"];
    let shown = keys.iter().filter(|key| !configuration[**key].is_null());
    shown.map(|key| format!("{key} {}", configuration[*key])).collect::<Vec<_>>().join(", ")
}
