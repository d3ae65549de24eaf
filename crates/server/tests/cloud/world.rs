//! A simulated account, and servers on one database that come and go.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::fleets::{FleetSpec, FleetStatus};
use api::ids::{BackendId, FleetId, ProjectId, RunId, UserId};
use api::instances::InstanceStatus;
use api::jobs::JobStatus;
use api::runs::{RunSpec, RunStatus};
use ec2sim::{ACCESS_KEY, Options, SECRET_KEY, Settings as Sky, Simulator, serve};
use lifecycle::fleet::{Fleet, FleetState};
use lifecycle::instance::Instance;
use lifecycle::job::{Job, JobState};
use lifecycle::run::{Run, RunState, StopRequest, job_specs};
use serde_json::{Value, json};
use server::backend_pool::BackendPool;
use server::clock::Clock;
use server::deps::Deps;
use server::ids::Ids;
use server::logs::LogStore;
use server::reconcile;
use server::sealing::Sealer;
use server::settings::Settings;
use server::wake::Wake;
use store::backends::BackendRow;
use store::events::EventFilter;
use store::leases::{Table, touch};
use store::projects::ProjectRow;
use store::{Db, events, fleets, instances, jobs, runs};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::park::{News, Park, ParkAgents};

/// How long anything may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(3);

/// The region of all tests.
pub(crate) const REGION: &str = "us-west-2";

/// A simulated account of AWS, and all that outlives a server.
pub(crate) struct World {
    pub(crate) sim: Simulator,
    pub(crate) park: Arc<Park>,
    pub(crate) project: ProjectId,
    pub(crate) user: UserId,
    pub(crate) deps: Deps,
    pub(crate) fleet: FleetId,
    server: Option<Running>,
    clock: Clock,
    ids: Ids,
    sealer: Arc<Sealer>,
    folder: tempfile::TempDir,
    account: Box<dyn Account>,
}

/// The simulated account as it is seen from here.
pub(crate) trait Account: Send + Sync {
    /// Where it answers, for as long as this lives.
    fn url(&self) -> String;

    /// What it shows.
    fn look(&self, what: &str) -> Value;
}

/// An account in this process.
struct Here {
    sim: Simulator,
    server: ec2sim::Server,
}

impl Account for Here {
    fn url(&self) -> String {
        self.server.url()
    }

    fn look(&self, what: &str) -> Value {
        self.sim.look(what).unwrap()
    }
}

/// The loops of a server.
struct Running {
    shutdown: CancellationToken,
    loops: Vec<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.loops.iter().for_each(JoinHandle::abort);
    }
}

/// A sky in which machines boot quickly and are seen a little late.
pub(crate) fn quick() -> Sky {
    Sky { boot_ms: 100, shutdown_ms: 50, instance_unseen_ms: 150, stale_ms: 50, ..Sky::default() }
}

/// The keys of the documented example.
pub(crate) fn documented() -> Value {
    json!({ "public_ips": false, "vpc_name": "my-vpc" })
}

impl World {
    /// An account with the documented configuration, and a server.
    pub(crate) async fn start(sky: Sky) -> World {
        World::configured(sky, documented()).await
    }

    /// The same with other keys of the backend than the documented ones.
    pub(crate) async fn configured(sky: Sky, keys: Value) -> World {
        let park = Arc::new(Park::default());
        let sim = Simulator::with_machines(Options { settings: sky, ..Options::default() }, park.clone());
        let cloud = serve(sim.clone(), (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let account = Here { sim: sim.clone(), server: cloud };
        World::in_account(Box::new(account), sim, park, keys).await
    }

    /// A server in any account, with these keys of the backend.
    pub(crate) async fn in_account(
        account: Box<dyn Account>,
        sim: Simulator,
        park: Arc<Park>,
        keys: Value,
    ) -> World {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open_sqlite(&folder.path().join("sqlite.db")).await.unwrap();
        store::migrate(&db).await.unwrap();
        let ids = Ids::Random;
        let sealer = Arc::new(Sealer::ephemeral(&ids));
        let clock = Clock::System;
        let deps = build(&db, &ids, &sealer, &folder, &park, &clock);
        let mut config = json!({
            "type": "aws",
            "creds": { "type": "access_key", "access_key": ACCESS_KEY, "secret_key": SECRET_KEY },
            "regions": [REGION], "endpoint_url": account.url(),
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let project = add_project(&deps, &config).await;
        let (user, fleet) = (project.owner_id, ids.id());
        let mut world = World {
            sim,
            park,
            project: project.id,
            user,
            deps,
            fleet,
            server: None,
            clock,
            ids,
            sealer,
            folder,
            account,
        };
        world.restart().await;
        world
    }

    /// The server dies where it stands; another one takes over.
    pub(crate) async fn restart(&mut self) {
        self.crash().await;
        self.deps = build(&self.deps.db, &self.ids, &self.sealer, &self.folder, &self.park, &self.clock);
        let (news, heard) = mpsc::unbounded_channel();
        self.park.listen(news);
        let shutdown = CancellationToken::new();
        reconcile::touch_all(&self.deps).await.unwrap();
        let mut loops = reconcile::start(&self.deps, &shutdown);
        loops.push(tokio::spawn(hear(self.deps.clone(), heard)));
        loops.push(tokio::spawn(tidy_often(self.deps.clone())));
        loops.push(tokio::spawn(tick(self.clock.clone())));
        self.server = Some(Running { shutdown, loops });
    }

    /// The server dies where it stands: nothing that it was about to do is done.
    pub(crate) async fn crash(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let loops = std::mem::take(&mut server.loops);
        loops.iter().for_each(JoinHandle::abort);
        for one in loops {
            let _ = one.await;
        }
    }

    /// The server dies, and another one starts on a database that was put back: what was bought since is forgotten.
    pub(crate) async fn put_database_back(&mut self) {
        self.crash().await;
        let (projects, backends) = {
            let db = &self.deps.db;
            (store::projects::all(db).await.unwrap(), store::backends::all(db).await.unwrap())
        };
        let db = Db::open_sqlite(&self.folder.path().join("old.db")).await.unwrap();
        store::migrate(&db).await.unwrap();
        for project in &projects {
            store::projects::insert(&db, project).await.unwrap();
        }
        for backend in &backends {
            store::backends::insert(&db, backend).await.unwrap();
        }
        self.deps.db = db;
        self.restart().await;
    }

    /// From now on the servers have a clock that goes as fast as this machine's, and can be put forward.
    pub(crate) async fn take_the_clock(&mut self) {
        self.clock = Clock::manual(self.clock.now());
        self.restart().await;
    }

    /// For the servers it is that much later.
    pub(crate) fn put_clock_forward(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// The same server, some time later.
    pub(crate) fn later(&self, by: Duration) -> Deps {
        let now = self.deps.clock.now().checked_add(by).unwrap();
        Deps { clock: Clock::manual(now), ..self.deps.clone() }
    }

    /// Gives the simulation an order.
    pub(crate) fn control(&self, name: &str, body: Value) {
        self.sim.control(name, &body).unwrap_or_else(|error| panic!("{name} {body}: {error:?}"));
    }

    /// Adds a fleet of the documented machines, with more keys.
    pub(crate) async fn add_fleet(&mut self, nodes: Value, more: Value) {
        let mut configuration = json!({
            "type": "fleet", "name": "my-efa-fleet", "nodes": nodes, "placement": "cluster",
            "resources": { "gpu": "H100:8" },
        });
        configuration.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = json!({ "configuration": configuration, "profile": { "name": "default" } });
        let now = self.deps.clock.now();
        self.fleet = self.ids.id();
        let fleet = Fleet {
            id: self.fleet,
            project_id: self.project,
            user_id: self.user,
            name: "my-efa-fleet".to_owned(),
            created_at: now,
            status: FleetStatus::Active,
            wanted: true,
            spec: serde_json::from_value::<FleetSpec>(spec).unwrap(),
            state: FleetState::default(),
        };
        fleets::insert(&self.deps.db, &fleet, now).await.unwrap();
        self.deps.wake.ring(Table::Fleets);
    }

    /// Nobody wants the fleet any more.
    pub(crate) async fn delete_fleet(&self) {
        fleets::set_unwanted(&self.deps.db, self.fleet, self.deps.clock.now()).await.unwrap();
        self.deps.wake.ring(Table::Fleets);
    }

    /// Submits a task over so many nodes, which runs until it is stopped.
    pub(crate) async fn submit(&self, nodes: u32, more: Value) -> RunId {
        let mut configuration = json!({
            "type": "task", "commands": ["sleep infinity"], "image": "ubuntu", "nodes": nodes,
            "resources": { "gpu": "H100:8", "disk": null },
        });
        configuration.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = json!({ "run_name": "efa-task", "configuration": configuration });
        let spec: RunSpec = serde_json::from_value(spec).unwrap();
        let specs = job_specs(&spec, "ubuntu").unwrap();
        let (deps, now) = (&self.deps, self.deps.clock.now());
        let run = Run {
            id: deps.ids.id(),
            project_id: self.project,
            user_id: self.user,
            name: "efa-task".to_owned(),
            submitted_at: now,
            priority: 0,
            status: RunStatus::Submitted,
            deleted: false,
            stop: None,
            fleet_id: None,
            spec,
            state: RunState { user_is_admin: true, ..RunState::default() },
        };
        let mut tx = deps.db.begin().await.unwrap();
        runs::insert(&mut tx, &run, now).await.unwrap();
        for spec in specs {
            let job = Job {
                id: deps.ids.id(),
                run_id: run.id,
                project_id: run.project_id,
                replica_num: spec.replica_num,
                job_num: spec.job_num,
                submission_num: 0,
                submitted_at: now,
                status: JobStatus::Submitted,
                instance_id: None,
                end: None,
                released_at: None,
                spec,
                state: JobState::default(),
            };
            jobs::insert(&mut tx, &job, now).await.unwrap();
        }
        tx.commit().await.unwrap();
        deps.wake.ring_placement();
        deps.wake.ring(Table::Runs);
        run.id
    }

    /// The user stops a run.
    pub(crate) async fn stop_run(&self, run: RunId) {
        runs::set_stop(&self.deps.db, run, StopRequest::Stop, self.deps.clock.now()).await.unwrap();
        self.deps.wake.ring(Table::Runs);
    }

    /// The fleet's instances that are not over.
    pub(crate) async fn instances(&self) -> Vec<Instance> {
        let rows = instances::list_by_fleet(&self.deps.db, self.fleet).await.unwrap();
        rows.into_iter().map(|row| row.value).collect()
    }

    pub(crate) async fn wait_for_instances(&self, status: InstanceStatus, count: usize) -> Vec<Instance> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let there = self.instances().await;
            let right = there.iter().filter(|instance| instance.status == status).count();
            if right == count && there.len() == count {
                return there;
            }
            if deadline < Instant::now() {
                let seen: Vec<_> = there.iter().map(|one| (one.state.name.clone(), one.status)).collect();
                panic!("{count} instances are not {status:?} but {seen:?}\n{}", self.story().await.join("\n"));
            }
            sleep(Duration::from_millis(25)).await;
        }
    }

    /// Waits until so many of the fleet's instances have work.
    pub(crate) async fn wait_for_busy(&self, count: usize) -> Vec<Instance> {
        self.wait_until(&format!("{count} instances are busy"), async || {
            self.instances().await.iter().filter(|one| one.status == InstanceStatus::Busy).count() == count
        })
        .await;
        self.instances().await
    }

    pub(crate) async fn wait_for_end(&self) {
        self.wait_until("the fleet is terminated", async || {
            let fleet = fleets::get(&self.deps.db, self.fleet).await.unwrap().unwrap().value;
            fleet.status == FleetStatus::Terminated
        })
        .await;
        self.wait_until("nothing is left in the cloud", async || self.orphans().is_empty()).await;
    }

    pub(crate) async fn wait_for_run(&self, run: RunId, status: RunStatus) {
        self.wait_until(&format!("the run is {status:?}"), async || {
            runs::get(&self.deps.db, run).await.unwrap().unwrap().value.status == status
        })
        .await;
    }

    /// Waits until all jobs of a run are so far.
    pub(crate) async fn wait_for_jobs(&self, run: RunId, status: JobStatus) {
        self.wait_until(&format!("all jobs are {status:?}"), async || {
            let latest = jobs::list_latest(&self.deps.db, run).await.unwrap();
            latest.iter().all(|job| job.value.status == status)
        })
        .await;
    }

    pub(crate) async fn wait_until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds().await {
            if deadline < Instant::now() {
                let story = self.story().await.join("\n");
                panic!("not yet: {what}\n{:?}\n{story}", self.orphans());
            }
            sleep(Duration::from_millis(25)).await;
        }
    }

    /// What stands in the cloud and costs something or is in the way of others.
    pub(crate) fn orphans(&self) -> Vec<String> {
        let alive = self.account.look("orphans");
        let told = alive.as_array().unwrap().iter().map(|entry| format!("{} {}", entry["kind"], entry["id"]));
        // A thousand machines have tens of thousands of interfaces, and nobody reads them all.
        told.filter(|told| !told.starts_with("\"security-group")).take(20).collect()
    }

    /// How many machines were ever made.
    pub(crate) fn made(&self) -> usize {
        self.account.look("ledger").as_array().unwrap().iter().filter(|entry| entry["kind"] == "instance").count()
    }

    /// How often an action was called.
    pub(crate) fn count(&self, action: &str) -> u64 {
        let counts = self.account.look("counts");
        let of_action = counts.as_object().unwrap().iter().filter(|(name, _)| name.ends_with(action));
        of_action.map(|(_, count)| count.as_u64().unwrap()).sum()
    }

    /// The messages of all events, the oldest first.
    pub(crate) async fn story(&self) -> Vec<String> {
        let filter = EventFilter { limit: 1000, ascending: true, ..EventFilter::default() };
        let all = events::list(&self.deps.db, &filter).await.unwrap();
        all.into_iter().map(|event| event.message).collect()
    }
}

fn build(
    db: &Db,
    ids: &Ids,
    sealer: &Arc<Sealer>,
    folder: &tempfile::TempDir,
    park: &Arc<Park>,
    clock: &Clock,
) -> Deps {
    let server_id = api::ids::ServerId(uuid::Uuid::from_u128(1));
    let folder = folder.path();
    let context = backends::OpenContext {
        server_id,
        state_dir: folder.join("backends"),
        agent_binary: PathBuf::from("dstack-agent"),
        fake: None,
    };
    let logs = Arc::new(LogStore::open(folder.join("logs")).unwrap());
    let clock = clock.clone();
    Deps {
        gangs: Arc::default(),
        server_id,
        db: db.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
        wake: Wake::default(),
        backends: Arc::new(BackendPool::new(context, sealer.clone(), clock.clone())),
        sealer: sealer.clone(),
        agents: Arc::new(ParkAgents { park: park.clone(), logs: logs.clone(), clock }),
        logs,
        settings: Arc::new(Settings::default()),
        data_dir: folder.to_owned(),
    }
}

/// Makes rows due as connections to agents would.
async fn hear(deps: Deps, mut news: mpsc::UnboundedReceiver<News>) {
    while let Some(one) = news.recv().await {
        let now = deps.clock.now();
        match one {
            News::Instance(instance) => {
                touch(&deps.db, Table::Instances, instance.0, now).await.unwrap();
                jobs::touch_by_instance(&deps.db, instance, now).await.unwrap();
                deps.wake.ring(Table::Instances);
                deps.wake.ring(Table::Jobs);
            }
            News::Job(job) => {
                touch(&deps.db, Table::Jobs, job.0, now).await.unwrap();
                deps.wake.ring(Table::Jobs);
            }
        }
    }
}

/// Moves a clock as time goes by, if it is one that is moved.
async fn tick(clock: Clock) {
    let mut last = Instant::now();
    while let Clock::Manual(_) = clock {
        sleep(Duration::from_millis(5)).await;
        let now = Instant::now();
        clock.advance(now - last);
        last = now;
    }
}

/// What the sweep does three times a minute.
async fn tidy_often(deps: Deps) {
    loop {
        sleep(Duration::from_millis(300)).await;
        let _ = reconcile::tidy::pass(&deps).await;
    }
}

async fn add_project(deps: &Deps, config: &Value) -> ProjectRow {
    let project = ProjectRow {
        id: deps.ids.id(),
        name: "main".to_owned(),
        owner_id: deps.ids.id(),
        is_public: false,
        templates_repo: None,
        created_at: deps.clock.now(),
        deleted: false,
        ssh_public_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample main@dstack\n".to_owned(),
        sealed_ssh_private_key: deps.sealer.seal(&private_key()),
    };
    store::projects::insert(&deps.db, &project).await.unwrap();
    let backend = BackendRow {
        id: deps.ids.id::<BackendId>(),
        project_id: project.id,
        kind: "aws".to_owned(),
        sealed_config: deps.sealer.seal(&config.to_string()),
        config: json!({ "type": "aws" }),
        draining: false,
        created_at: deps.clock.now(),
    };
    store::backends::insert(&deps.db, &backend).await.unwrap();
    project
}

fn private_key() -> String {
    server::accounts::KeyPair::generate(&Ids::Random, "main@dstack").private
}
