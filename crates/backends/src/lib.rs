//! Sources of machines, one folder each. A backend does not know what a run is.
//!
//! The verbs are few: say what is on offer, launch, list, terminate, and say how a machine's agent is reached.
//! Every effect carries a key of ours (the launch and the index in it) and is safe to repeat.

mod capabilities;
mod error;
pub mod fake;
mod keys;
pub mod local;
mod registry;

pub use capabilities::Capabilities;
pub use error::{Error, ErrorKind, Result, Scope};
pub use registry::{BackendConfig, OpenContext, kinds, open, parse_config, wire_type_of, wire_types};

use std::fmt;
use std::path::PathBuf;

use api::ids::LaunchId;
use api::instances::{InstanceAvailability, InstanceType};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// A source of machines, configured for one project.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync {
    /// What it can do; plain fields.
    fn capabilities(&self) -> Capabilities;

    /// What it would sell now, cheapest first. The caller compares with what is wanted.
    async fn offers(&self, wanted: &OffersWanted) -> Result<Vec<BackendOffer>>;

    /// Asks for machines. The same launch again does nothing more. On an error nothing of it may stay,
    /// except where the error's kind says that nobody knows.
    async fn launch(&self, launch: &LaunchOrder) -> Result<()>;

    /// Gives one machine back. Does nothing if it is gone already.
    async fn terminate(&self, machine: &MachineKey) -> Result<()>;

    /// Every machine that carries this server's mark, whoever remembers it.
    async fn list(&self) -> Result<Vec<Machine>>;

    /// How the agent of a running machine is reached; may start it where that is the backend's business.
    async fn agent_access(&self, machine: &Machine) -> Result<AgentAccess>;
}

/// What a caller looks for; backends may use it to say less, never to say more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OffersWanted {
    /// How many machines will be launched together; at least 1.
    pub nodes: u32,
    /// The machines must have a fast network between them.
    pub cluster: bool,
}

/// Something that a backend would sell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendOffer {
    /// The kind of machine.
    pub instance_type: InstanceType,
    /// Where.
    pub region: String,
    /// The zones where it is sold, if the backend has zones.
    pub zones: Option<Vec<String>>,
    /// US dollars per machine and hour.
    pub price_usd_per_hour: f64,
    /// Whether it can be had.
    pub availability: InstanceAvailability,
    /// Why it cannot be had, in words.
    pub unavailable_because: Option<String>,
    /// What only the backend understands; it comes back in the launch.
    pub backend_data: serde_json::Value,
}

/// The order to launch machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchOrder {
    /// The client token and the tag.
    pub launch_id: LaunchId,
    /// The fleet's name, for tags.
    pub fleet_name: String,
    /// The project's name, for tags.
    pub project_name: String,
    /// What is bought.
    pub offer: BackendOffer,
    /// The zone, where it is fixed.
    pub zone: Option<String>,
    /// How many machines.
    pub count: u32,
    /// With fewer than this the launch fails whole.
    pub least: u32,
    /// The machines must have a fast network between them.
    pub cluster: bool,
}

/// Which machine of which launch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MachineKey {
    /// The launch.
    pub launch_id: LaunchId,
    /// The index in it, from 0.
    pub index: u32,
}

/// A machine as its backend lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Which of ours it is.
    pub key: MachineKey,
    /// The backend's own identifier.
    pub provider_id: String,
    /// Where it is in its life.
    pub state: MachineState,
    /// Where it answers.
    pub hostname: Option<String>,
    /// The address that peers use.
    pub internal_ip: Option<String>,
    /// The network that its containers join, if they do not share the host's.
    pub container_network: Option<ContainerNetwork>,
    /// Where it is.
    pub region: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Why it ended, if its backend says.
    pub ended_because: Option<String>,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// It was asked for.
    Starting,
    /// It runs.
    Running,
    /// It is being given back.
    Stopping,
    /// It is gone, and still listed.
    Gone,
}

/// A network that containers join with an address of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNetwork {
    /// The network's name.
    pub name: String,
    /// Its subnet in CIDR notation.
    pub subnet: String,
    /// The address of this machine's container.
    pub address: String,
}

/// How a machine's agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAccess {
    /// By a socket on this machine; the agent runs.
    UnixSocket(PathBuf),
    /// Not at all: the machine exists only in a simulation.
    Simulated,
}
