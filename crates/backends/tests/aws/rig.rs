//! A simulated EC2, and the backend that uses it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use api::ids::{BackendId, FleetId, LaunchId, ServerId};
use backends::{
    Backend, BackendOffer, LaunchOrder, Living, Machine, MachineKey, MachineState, OffersWanted, OpenContext,
    open, parse_config,
};
use ec2sim::{ACCESS_KEY, Options, SECRET_KEY, Server, Settings, Simulator, serve};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// The region of all tests.
pub(crate) const REGION: &str = "us-west-2";

pub(crate) struct Rig {
    pub(crate) sim: Simulator,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) fleet: FleetId,
    config: Value,
    // Answers for as long as it lives.
    _server: Server,
    dir: TempDir,
}

impl Rig {
    /// The account of the documented example: private subnets of a VPC with a name.
    pub(crate) async fn private() -> Rig {
        Rig::with(json!({ "public_ips": false, "vpc_name": "my-vpc" }), Settings::immediate()).await
    }

    /// The default VPC, with public addresses.
    pub(crate) async fn public() -> Rig {
        Rig::with(json!({}), Settings::immediate()).await
    }

    pub(crate) async fn with(more: Value, settings: Settings) -> Rig {
        let sim = Simulator::new(Options { settings, ..Options::default() });
        let server = serve(sim.clone(), (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let mut config = json!({
            "type": "aws",
            "creds": { "type": "access_key", "access_key": ACCESS_KEY, "secret_key": SECRET_KEY },
            "regions": [REGION],
            "endpoint_url": server.url(),
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let dir = tempfile::tempdir().unwrap();
        let backend = opened(&config, &dir);
        Rig { sim, backend, fleet: FleetId(Uuid::from_u128(7)), config, _server: server, dir }
    }

    /// The same backend as another server process would open it, which remembers nothing.
    pub(crate) fn restarted(&self) -> Arc<dyn Backend> {
        opened(&self.config, &self.dir)
    }

    /// The same account with another configuration.
    pub(crate) fn reconfigured(&self, more: &Value) -> Arc<dyn Backend> {
        let mut config = self.config.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        opened(&config, &self.dir)
    }

    /// Where the simulation answers.
    pub(crate) fn url(&self) -> &str {
        self.config["endpoint_url"].as_str().unwrap()
    }

    /// Gives the simulation an order.
    pub(crate) fn control(&self, name: &str, body: Value) {
        self.sim.control(name, &body).unwrap_or_else(|error| panic!("{name} {body}: {error:?}"));
    }

    /// How often an action was called.
    pub(crate) fn count(&self, action: &str) -> u64 {
        self.sim.counts().iter().filter(|(name, _)| name.ends_with(action)).map(|(_, count)| count).sum()
    }

    /// The offers of a type.
    pub(crate) async fn offer(&self, name: &str, wanted: &OffersWanted) -> BackendOffer {
        let offers = self.backend.offers(wanted).await.unwrap().found;
        let found = offers.into_iter().find(|offer| offer.instance_type.name == name);
        found.unwrap_or_else(|| panic!("{name} is not offered"))
    }

    /// An order for a cluster of the documented example's machines.
    pub(crate) async fn order(&self, number: u128, count: u32) -> LaunchOrder {
        self.order_of(number, "p5.48xlarge", count, true).await
    }

    pub(crate) async fn order_of(&self, number: u128, name: &str, count: u32, cluster: bool) -> LaunchOrder {
        let wanted = OffersWanted { least: count, most: count, cluster, spot: Some(false), reservation: None };
        let offer = self.offer(name, &wanted).await;
        self.order_for(number, offer, count, cluster)
    }

    pub(crate) fn order_for(&self, number: u128, offer: BackendOffer, count: u32, cluster: bool) -> LaunchOrder {
        let zone = offer.zones.as_ref().and_then(|zones| zones.first()).cloned();
        LaunchOrder {
            launch_id: LaunchId(Uuid::from_u128(number)),
            fleet_id: self.fleet,
            fleet_name: "my-efa-fleet".to_owned(),
            project_name: "main".to_owned(),
            name: "my-efa-fleet".to_owned(),
            user_name: "ann".to_owned(),
            tags: BTreeMap::new(),
            zone,
            offer,
            count,
            least: count,
            cluster,
            authorized_keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample main@dstack".to_owned()],
            prepared: Value::Null,
            fleet_prepared: vec![],
        }
    }

    /// Prepares an order and launches it, as a caller does who records what was prepared.
    pub(crate) async fn launch(&self, mut order: LaunchOrder) -> backends::Result<LaunchOrder> {
        order.prepared = self.backend.prepare(&order).await?;
        self.backend.launch(&order).await?;
        Ok(order)
    }

    /// Waits until as many machines are in a state.
    pub(crate) async fn machines(&self, state: MachineState, count: usize) -> Vec<Machine> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let listed = self.backend.list().await.unwrap().found;
            let machines: Vec<Machine> = listed.into_iter().filter(|machine| machine.state == state).collect();
            if machines.len() == count {
                return machines;
            }
            assert!(Instant::now() < deadline, "{} machines are {state:?}, not {count}", machines.len());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends machines and removes what is nobody's, until nothing stands but the security group.
    pub(crate) async fn end_everything(&self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let listed = self.backend.list().await.unwrap().found;
            let lives =
                |machine: &&Machine| matches!(machine.state, MachineState::Starting | MachineState::Running);
            let there = listed.iter().filter(lives);
            for ended in join_all(there.map(|machine| self.backend.terminate(&machine.key))).await {
                ended.unwrap();
            }
            let living = Living { is_leaving: true, ..Living::default() };
            let left = self.backend.tidy(&living).await.unwrap();
            if left.is_empty() && self.orphans().is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still there: {left:?} {:?}", self.orphans());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything that was made and stands.
    pub(crate) fn orphans(&self) -> Vec<String> {
        self.sim.alive().iter().map(|entry| format!("{entry:?}")).collect()
    }
}

fn opened(config: &Value, dir: &TempDir) -> Arc<dyn Backend> {
    let context = OpenContext {
        server_id: ServerId(Uuid::from_u128(1)),
        state_dir: dir.path().to_owned(),
        agent_binary: std::path::PathBuf::new(),
        fake: None,
    };
    open(&parse_config(config).unwrap(), &context, BackendId(Uuid::from_u128(2))).unwrap()
}

/// The first zone of the tests' region in which a type is sold.
pub(crate) fn zone_of(name: &str) -> Option<String> {
    let offerings: Value = serde_json::from_str(include_str!("../../../ec2sim/data/offerings.json")).unwrap();
    let letters = offerings[REGION]["types"][name].as_str()?;
    Some(format!("{REGION}{}", letters.chars().next()?))
}

pub(crate) fn key(number: u128, index: u32) -> MachineKey {
    MachineKey { launch_id: LaunchId(Uuid::from_u128(number)), index }
}
