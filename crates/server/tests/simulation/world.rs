//! One server, its database, a pretended cloud and simulated agents, all from one seed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::ids::{BackendId, FleetId, InstanceId, ProjectId, RunId, UserId};
use backends::fake::FakeCloud;
use jiff::Timestamp;
use lifecycle::run::StopRequest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use server::backend_pool::BackendPool;
use server::clock::Clock;
use server::deps::Deps;
use server::ids::Ids;
use server::logs::LogStore;
use server::reconcile::placement::{self, GangCache};
use server::reconcile::sweep::{self, Unclaimed};
use server::sealing::Sealer;
use server::settings::Settings;
use server::wake::Wake;
use store::Db;
use store::backends::BackendRow;
use store::leases::{LEASE_SECS, Table, touch};
use store::projects::ProjectRow;

use crate::agents::{News, SimAgents};
use crate::checks::Known;
use crate::cloud::Late;
use crate::drive::{Control, Ending, Fuse, Work, drive};
use crate::hosts::Hosts;
use crate::trace::Trace;

/// What an invariant says when it is broken.
pub(crate) type Verdict = Result<(), String>;

/// Everything of one simulation.
pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) outside: Outside,
    pub(crate) began_at: Timestamp,
    pub(crate) project: ProjectId,
    pub(crate) user: UserId,
    pub(crate) fleets: Vec<FleetId>,
    pub(crate) runs: Vec<RunId>,
    pub(crate) server: Server,
    pub(crate) known: Known,
    starts: u64,
    /// Until when the cloud's and the hosts' time has passed.
    passed_until: Timestamp,
}

/// What outlives a server.
pub(crate) struct Outside {
    pub(crate) seed: u64,
    pub(crate) clock: Clock,
    pub(crate) cloud: FakeCloud,
    pub(crate) hosts: Arc<Mutex<Hosts>>,
    pub(crate) control: Arc<Control>,
    pub(crate) trace: Trace,
    late: Late,
    ids: Ids,
    sealer: Arc<Sealer>,
    folder: tempfile::TempDir,
}

/// What a server has in memory, and loses in a crash.
pub(crate) struct Server {
    pub(crate) deps: Deps,
    pub(crate) agents: Arc<SimAgents>,
    pub(crate) gangs: GangCache,
    pub(crate) unclaimed: Unclaimed,
    pub(crate) owner: String,
}

/// One thing that a server does by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Chore {
    Pass(Table),
    /// A pass by a replica that takes over what somebody else has claimed and is slow with.
    TakeOver(Table),
    Place,
    Sweep,
    /// A user's request that comes meanwhile.
    Stop(RunId, StopRequest),
    Delete(FleetId),
}

/// Rows that one pass takes.
const ROWS: u32 = 16;

impl Server {
    fn work(&self, chore: Chore) -> Work<'_> {
        match chore {
            Chore::Pass(table) => Box::pin(async move {
                server::reconcile::pass(&self.deps, table, &self.owner, ROWS).await.unwrap();
            }),
            Chore::TakeOver(table) => Box::pin(async move {
                self.deps.clock.advance(Duration::from_secs(LEASE_SECS.unsigned_abs() + 1));
                server::reconcile::pass(&self.deps, table, "a replica", ROWS).await.unwrap();
            }),
            Chore::Stop(run, stop) => Box::pin(async move {
                store::runs::set_stop(&self.deps.db, run, stop, self.deps.clock.now()).await.unwrap();
            }),
            Chore::Delete(fleet) => Box::pin(async move {
                store::fleets::set_unwanted(&self.deps.db, fleet, self.deps.clock.now()).await.unwrap();
            }),
            Chore::Place => Box::pin(async move { placement::pass(&self.deps, &self.gangs).await.unwrap() }),
            Chore::Sweep => Box::pin(async move { sweep::pass(&self.deps, &self.unclaimed).await.unwrap() }),
        }
    }
}

impl Outside {
    fn new(seed: u64, began_at: Timestamp) -> Outside {
        let (clock, trace) = (Clock::manual(began_at), Trace::new());
        let control = Arc::new(Control::default());
        let ids = Ids::seeded(seed);
        let (cloud, late) = crate::cloud::open(seed, &control, &clock, &trace);
        Outside {
            seed,
            cloud,
            late,
            hosts: Arc::new(Mutex::new(Hosts::new(seed))),
            sealer: Arc::new(Sealer::ephemeral(&ids)),
            folder: tempfile::tempdir().unwrap(),
            clock,
            control,
            trace,
            ids,
        }
    }

    /// A server on this database, with nothing in memory.
    fn start(&self, db: Db, starts: u64) -> Server {
        let folder = self.folder.path();
        let context = backends::OpenContext {
            server_id: api::ids::ServerId(uuid::Uuid::nil()),
            state_dir: folder.join("backends"),
            agent_binary: PathBuf::from("dstack-agent"),
            fake: Some(self.cloud.clone()),
        };
        let agents = Arc::new(SimAgents::new(self, self.seed ^ (starts << 32)));
        let deps = Deps {
            gangs: Arc::default(),
            server_id: api::ids::ServerId(uuid::Uuid::nil()),
            db,
            clock: self.clock.clone(),
            ids: self.ids.clone(),
            wake: Wake::default(),
            backends: Arc::new(BackendPool::new(context, self.sealer.clone(), self.clock.clone())),
            sealer: self.sealer.clone(),
            agents: agents.clone(),
            logs: Arc::new(LogStore::open(folder.join("logs")).unwrap()),
            settings: Arc::new(Settings { test_backends: true, ..Settings::default() }),
            data_dir: folder.to_owned(),
        };
        let (gangs, unclaimed) = (GangCache::default(), Unclaimed::default());
        Server { deps, agents, gangs, unclaimed, owner: format!("server {starts}") }
    }
}

impl World {
    pub(crate) async fn new(seed: u64, db: Db) -> World {
        let began_at = Timestamp::from_second(1_800_000_000).unwrap();
        let outside = Outside::new(seed, began_at);
        let server = outside.start(db, 0);
        let project = add_project(&server.deps).await;
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            outside,
            began_at,
            project: project.id,
            user: project.owner_id,
            fleets: vec![],
            runs: vec![],
            server,
            known: Known::default(),
            starts: 0,
            passed_until: began_at,
        };
        world.add_first_fleets().await;
        world
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.outside.clock.now()
    }

    pub(crate) fn say(&self, line: impl std::fmt::Display) {
        let secs = self.now().duration_since(self.began_at).as_secs_f64();
        self.outside.trace.line(format!("{secs:9.3} {line}"));
    }

    /// Lets the server do something, which may crash it.
    pub(crate) async fn serve(&mut self, fuse: Fuse, chores: &[Chore]) -> Ending {
        let works = chores.iter().map(|chore| self.server.work(*chore)).collect();
        let ending = drive(&self.outside.control, &mut self.rng, works, fuse).await;
        self.catch_up().await;
        if ending == Ending::Crashed {
            self.restart().await;
        }
        ending
    }

    /// The server has crashed: what it had in memory is gone, the database, the cloud and the hosts are not.
    pub(crate) async fn restart(&mut self) {
        self.starts += 1;
        self.outside.trace.mark("crash");
        let away = Duration::from_millis(self.rng.random_range(100..40_000));
        self.pass_time(away).await;
        self.say(format_args!("the server restarts after {} ms", away.as_millis()));
        self.server = self.outside.start(self.server.deps.db.clone(), self.starts);
        server::reconcile::touch_all(&self.server.deps).await.unwrap();
    }

    /// Time passes for everybody.
    pub(crate) async fn pass_time(&mut self, by: Duration) {
        self.outside.clock.advance(by);
        self.catch_up().await;
    }

    /// The clock has moved: what was due meanwhile happens in the cloud and on the hosts.
    pub(crate) async fn catch_up(&mut self) {
        let (before, now) = (self.passed_until, self.now());
        self.passed_until = now;
        let secs = |until: Timestamp| until.duration_since(self.began_at).as_secs();
        (0..secs(now) - secs(before)).for_each(|_| self.outside.cloud.tick());
        self.let_late_launches_arrive().await;
        let mut hosts = self.outside.hosts.lock().unwrap();
        for machine in hosts.taken_back(now) {
            self.outside.cloud.vanish(&machine, "taken back as it was said");
        }
        for machine in self.outside.cloud.ledger().machines.iter().filter(|machine| machine.ended.is_some()) {
            hosts.vanish(&machine.key);
        }
        hosts.pass_time(now);
    }

    async fn let_late_launches_arrive(&mut self) {
        let now = self.now();
        let arrived: Vec<_> = {
            let mut late = self.outside.late.lock().unwrap();
            late.extract_if(.., |(arrives_at, _)| *arrives_at <= now).collect()
        };
        let had_chaos = self.outside.control.has_chaos();
        self.outside.control.set_chaos(false);
        for (_, launch) in arrived {
            let order = self.outside.cloud.ledger().launches[&launch].order.clone();
            let backend = self.outside.cloud.backend(api::ids::ServerId(uuid::Uuid::nil()));
            let made = backend.launch(&order).await.is_ok();
            self.known.late.insert(launch);
            self.say(format_args!("a launch of {} machines arrives late: {made}", order.count));
        }
        self.outside.control.set_chaos(had_chaos);
    }

    /// What agents told makes rows due, as their connections would.
    pub(crate) async fn take_news(&self, news: News) {
        let (db, now) = (&self.server.deps.db, self.now());
        for instance in news.instances {
            touch(db, Table::Instances, instance.0, now).await.unwrap();
            store::jobs::touch_by_instance(db, instance, now).await.unwrap();
        }
        for job in news.jobs {
            touch(db, Table::Jobs, job.0, now).await.unwrap();
        }
    }

    /// Machines that instances are kept on now.
    pub(crate) fn connections(&self) -> Vec<(InstanceId, backends::MachineKey, bool)> {
        self.server.agents.kept()
    }

    /// The tasks that the server has seen, so that it must not give them again.
    pub(crate) async fn seen_tasks(&self) -> BTreeMap<api::ids::JobId, bool> {
        let jobs = store::jobs::list_by_runs(&self.server.deps.db, &self.runs).await.unwrap();
        jobs.iter().map(|job| (job.value.id, job.value.state.phase.is_some())).collect()
    }
}

async fn add_project(deps: &Deps) -> ProjectRow {
    let project = ProjectRow {
        id: deps.ids.id(),
        name: "main".to_owned(),
        owner_id: deps.ids.id(),
        is_public: false,
        templates_repo: None,
        created_at: deps.clock.now(),
        deleted: false,
        ssh_public_key: String::new(),
        sealed_ssh_private_key: String::new(),
    };
    store::projects::insert(&deps.db, &project).await.unwrap();
    let config = serde_json::json!({"type": "fake"});
    let backend = BackendRow {
        id: deps.ids.id::<BackendId>(),
        project_id: project.id,
        kind: "fake".to_owned(),
        sealed_config: deps.sealer.seal(&config.to_string()),
        config,
        draining: false,
        created_at: deps.clock.now(),
    };
    store::backends::insert(&deps.db, &backend).await.unwrap();
    project
}
