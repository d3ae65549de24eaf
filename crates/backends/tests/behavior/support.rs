//! What the tests of this crate share: backends to try, and a stand-in for the agent's program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{BackendId, FleetId, LaunchId, ServerId};
use backends::fake::{FakeCloud, FakeSetup};
use backends::{
    AgentAccess, Backend, BackendConfig, BackendOffer, Capabilities, ErrorKind, LaunchOrder, Machine, MachineKey,
    MachineState, OffersWanted, OpenContext, open, parse_config,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;
use uuid::Uuid;

/// How often a list is asked until what is waited for must be there.
const PATIENCE: u32 = 50;

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// A stand-in for the agent: tells of 8 CPUs and 4 GPUs, and listens. It notes each start in its home.
const STUB: &str = include_str!("stub_agent.py");

/// A backend to try, and what the test may do behind its back.
pub(crate) struct Rig {
    pub(crate) name: &'static str,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) context: OpenContext,
    config: BackendConfig,
    launches: u128,
    // Deleted when the rig is dropped.
    _dir: TempDir,
}

impl Rig {
    /// A cloud that is prompt and tells the truth.
    pub(crate) fn fake() -> Rig {
        Rig::of_cloud("fake", FakeCloud::default())
    }

    /// A cloud that is slow, lists late and takes machines back.
    pub(crate) fn slow_fake() -> Rig {
        let mut setup = FakeSetup {
            boot_ticks: 3,
            stopping_ticks: 2,
            gone_ticks: 2,
            list_lag_ticks: 2,
            ..FakeSetup::default()
        };
        setup.capabilities.consistent_list = false;
        setup.capabilities.spot = true;
        setup.capabilities.zonal = true;
        Rig::of_cloud("slow fake", FakeCloud::new(setup))
    }

    fn of_cloud(name: &'static str, cloud: FakeCloud) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let mut context = context(dir.path(), PathBuf::new());
        context.fake = Some(cloud);
        Rig::new(name, &json!({ "type": "fake" }), context, dir)
    }

    /// This machine, as the stand-in for the agent tells of it.
    pub(crate) fn local() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let binary = write_stub(dir.path());
        let context = context(&dir.path().join("state"), binary);
        Rig::new("local", &json!({ "type": "local" }), context, dir)
    }

    /// This machine with the real agent, if the environment names its program.
    pub(crate) fn local_with_agent() -> Option<Rig> {
        let binary = std::env::var_os("DSTACK_TEST_AGENT")?;
        let dir = tempfile::tempdir().unwrap();
        let context = context(&dir.path().join("state"), PathBuf::from(binary));
        Some(Rig::new("local with agent", &json!({ "type": "local" }), context, dir))
    }

    fn new(name: &'static str, config: &Value, context: OpenContext, dir: TempDir) -> Rig {
        let config = parse_config(config).unwrap();
        let backend = open(&config, &context, BackendId(Uuid::from_u128(2))).unwrap();
        Rig { name, backend, context, config, launches: 0, _dir: dir }
    }

    /// The server ends and another one starts.
    pub(crate) fn reopen(&mut self) {
        self.backend = open(&self.config, &self.context, BackendId(Uuid::from_u128(2))).unwrap();
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    /// The usable offers for that many nodes.
    pub(crate) async fn offers(&self, nodes: u32, cluster: bool) -> Vec<BackendOffer> {
        let wanted = OffersWanted { least: nodes, most: nodes, cluster, ..OffersWanted::default() };
        let mut offers = self.backend.offers(&wanted).await.unwrap().found;
        offers.retain(|offer| offer.availability.is_usable());
        offers
    }

    /// An order for that many machines of the cheapest offer, all of them or none.
    pub(crate) async fn order(&mut self, count: u32) -> LaunchOrder {
        let offer = self.offers(count, false).await.into_iter().next();
        LaunchOrder {
            launch_id: self.new_launch_id(),
            fleet_id: FleetId(Uuid::from_u128(3)),
            fleet_name: "a-fleet".to_owned(),
            project_name: "main".to_owned(),
            name: "a-fleet".to_owned(),
            user_name: "ann".to_owned(),
            tags: BTreeMap::new(),
            offer: offer.expect("something is on offer"),
            zone: None,
            count,
            least: count,
            cluster: false,
            authorized_keys: vec![],
            prepared: serde_json::Value::Null,
            fleet_prepared: vec![],
        }
    }

    /// An identifier that no launch of this rig has.
    pub(crate) fn new_launch_id(&mut self) -> LaunchId {
        self.launches += 1;
        LaunchId(Uuid::from_u128(self.launches))
    }

    /// Launches that many machines and waits until they run.
    pub(crate) async fn launch(&mut self, count: u32) -> Vec<Machine> {
        let order = self.order(count).await;
        self.backend.launch(&order).await.unwrap();
        self.running(order.launch_id, count).await
    }

    /// Waits until that many machines of a launch run.
    pub(crate) async fn running(&self, launch_id: LaunchId, count: u32) -> Vec<Machine> {
        let is_ours =
            |machine: &&Machine| machine.key.launch_id == launch_id && machine.state == MachineState::Running;
        let count = count as usize;
        let listed = self.list_until(|machines| machines.iter().filter(is_ours).count() == count).await;
        listed.iter().filter(is_ours).cloned().collect()
    }

    /// Lists until the list is as it should be.
    pub(crate) async fn list_until(&self, is_right: impl Fn(&[Machine]) -> bool) -> Vec<Machine> {
        for _ in 0..PATIENCE {
            let listed = self.backend.list().await.unwrap().found;
            if is_right(&listed) {
                return listed;
            }
            assert!(!self.capabilities().consistent_list || self.context.fake.is_some(), "{listed:?}");
        }
        panic!("{} never listed what it should", self.name);
    }

    /// The way to a machine's agent.
    pub(crate) async fn access(&self, machine: &Machine) -> AgentAccess {
        access(&*self.backend, machine).await
    }

    /// Gives back everything and checks that nothing is left, in the list and in truth.
    pub(crate) async fn end(&self) {
        for machine in self.backend.list().await.unwrap().found {
            self.backend.terminate(&machine.key).await.unwrap();
        }
        self.list_until(<[Machine]>::is_empty).await;
        if let Some(cloud) = &self.context.fake {
            assert_eq!(cloud.ledger().living().count(), 0, "{}", self.name);
            return;
        }
        assert_eq!(processes_with(&self.context.state_dir), Vec::<i32>::new(), "{}", self.name);
        assert_eq!(fs::read_dir(self.context.state_dir.join("local/trash")).unwrap().count(), 0);
    }

    /// How many machines can live at once in the end, made so.
    pub(crate) async fn limit_to(&mut self, machines: u32) -> LaunchOrder {
        let mut order = self.order(machines).await;
        if let Some(cloud) = &self.context.fake {
            let zones = order.offer.zones.clone().unwrap();
            order.zone = Some(zones[0].clone());
            let name = &order.offer.instance_type.name;
            cloud.set_capacity(name, Some(&zones[0]), Some(machines));
        }
        order
    }

    /// What only one living machine may have, in words.
    pub(crate) fn exclusive(&self, machine: &Machine) -> Vec<String> {
        let mut exclusive = vec![machine.provider_id.clone()];
        exclusive.extend(machine.internal_ip.clone());
        exclusive.extend(machine.container_network.as_ref().map(|network| network.address.clone()));
        if self.context.fake.is_none() {
            exclusive.extend(gpus_of(&self.folder(&machine.key)));
        }
        exclusive
    }

    /// The folder of a local machine.
    pub(crate) fn folder(&self, key: &MachineKey) -> PathBuf {
        let machines = self.context.state_dir.join("local/machines");
        machines.join(key.launch_id.to_string()).join(key.index.to_string())
    }
}

impl Drop for Rig {
    /// A test that fails leaves no agents behind.
    fn drop(&mut self) {
        for pid in processes_with(&self.context.state_dir) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The way to a machine's agent, which on a busy machine is asked for more than once.
pub(crate) async fn access(backend: &dyn Backend, machine: &Machine) -> AgentAccess {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match backend.agent_access(machine).await {
            Ok(access) => return access,
            Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The GPUs of a local machine, as its record tells.
pub(crate) fn gpus_of(folder: &Path) -> Vec<String> {
    let record = fs::read(folder.join("machine.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let uuids = record["share"]["gpu_uuids"].as_array().unwrap();
    uuids.iter().map(|uuid| uuid.as_str().unwrap().to_owned()).collect()
}

/// Processes with an argument that is this path or lies below it.
pub(crate) fn processes_with(path: &Path) -> Vec<i32> {
    let is_below = |arg: &[u8]| Path::new(&*String::from_utf8_lossy(arg)).starts_with(path);
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        args.split(|byte| *byte == 0).any(is_below)
    })
    .collect()
}

/// Kills the agent of a local machine and waits until it is dead.
pub(crate) async fn kill_agent(rig: &Rig, machine: &Machine) -> i32 {
    // One that was started a moment too late is about to see that it is not needed.
    let folder = rig.folder(&machine.key);
    eventually("a single agent", async || processes_with(&folder).len() == 1).await;
    let agents = processes_with(&folder);
    kill(Pid::from_raw(agents[0]), Signal::SIGKILL).unwrap();
    eventually("the end of the agent", async || !is_alive(agents[0])).await;
    agents[0]
}

/// Whether a process lives, zombies not counted.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with('Z'))
}

/// The kind of error, or none.
pub(crate) fn kind_of<T>(result: backends::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}

/// A context with a server of its own.
pub(crate) fn context(state_dir: &Path, agent_binary: PathBuf) -> OpenContext {
    OpenContext {
        server_id: ServerId(Uuid::from_u128(0x1234_5678_0000_4000_8000_0000_0000_0001)),
        state_dir: state_dir.to_owned(),
        agent_binary,
        fake: None,
    }
}

/// Writes the stand-in for the agent. While the file is open for writing, a process that another test has just started
/// may hold it open as well, and then nobody can run it. So another program writes it.
pub(crate) fn write_stub(dir: &Path) -> PathBuf {
    let (source, path) = (dir.join("stub-agent.source"), dir.join("stub-agent"));
    fs::write(&source, STUB).unwrap();
    let status = Command::new("install").args(["-m", "755"]).args([&source, &path]).status().unwrap();
    assert!(status.success());
    path
}
