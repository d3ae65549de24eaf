//! Sources of machines, one folder each. A backend does not know what a run is.
//!
//! The verbs are few: say what is on offer, launch, list, terminate, and say how a machine's agent is reached.
//! Every effect carries a key of ours (the launch and the index in it) and is safe to repeat.

#[cfg(feature = "aws")]
mod aws;
mod capabilities;
mod error;
pub mod fake;
mod keys;
pub mod local;
mod registry;

pub use capabilities::Capabilities;
pub use error::{Error, ErrorKind, Result, Scope};
pub use registry::{BackendConfig, OpenContext, kinds, open, parse_config, wire_type_of, wire_types};

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use api::agent::Cloud;
use api::ids::{FleetId, LaunchId};
use api::instances::{InstanceAvailability, InstanceType};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A source of machines, configured for one project.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync {
    /// What it can do; plain fields.
    fn capabilities(&self) -> Capabilities;

    /// What it would sell now, cheapest first. The caller compares with what is wanted.
    async fn offers(&self, wanted: &OffersWanted) -> Result<Survey<BackendOffer>>;

    /// Whether it can be used as it is configured; the error says what is missing. Changes nothing.
    async fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Finds out what exactly a launch will ask for. The caller records it and gives it with the order from then on, so
    /// that the same launch always asks for the same.
    async fn prepare(&self, _launch: &LaunchOrder) -> Result<serde_json::Value> {
        Ok(serde_json::Value::Null)
    }

    /// Asks for machines. The same launch again does nothing more. On an error nothing of it may stay,
    /// except where the error's kind says that nobody knows.
    async fn launch(&self, launch: &LaunchOrder) -> Result<()>;

    /// Gives one machine back. Does nothing if it is gone already.
    async fn terminate(&self, machine: &MachineKey) -> Result<()>;

    /// Every machine that carries this server's mark, whoever remembers it.
    async fn list(&self) -> Result<Survey<Machine>>;

    /// How the agent of a running machine is reached; may start it where that is the backend's business.
    async fn agent_access(&self, machine: &Machine) -> Result<AgentAccess>;

    /// Removes what carries this server's mark and serves nobody any more, but for machines. What still stands and
    /// must go is told, in words.
    async fn tidy(&self, _living: &Living) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// What somebody still wants of a backend.
#[derive(Debug, Clone, Default)]
pub struct Living {
    /// Launches that may still make machines, and those of which machines live.
    pub launches: HashSet<LaunchId>,
    /// Machines that live or may come to life.
    pub machines: HashSet<MachineKey>,
    /// Launches any of whose machines may still come to life.
    pub open_launches: HashSet<LaunchId>,
    /// Fleets that live.
    pub fleets: HashSet<FleetId>,
    /// The backend is leaving, so nothing of it will be wanted again.
    pub is_leaving: bool,
}

impl Living {
    /// Whether a machine lives or may come to life.
    pub fn has(&self, key: &MachineKey) -> bool {
        self.open_launches.contains(&key.launch_id) || self.machines.contains(key)
    }
}

/// What was found in all regions of a backend that answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey<T> {
    /// What was found.
    pub found: Vec<T>,
    /// The regions that did not answer: nobody knows what is there.
    pub silent: Vec<SilentRegion>,
}

/// A region that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilentRegion {
    /// Its name.
    pub region: String,
    /// Why.
    pub error: Error,
}

impl<T> Survey<T> {
    /// The answer of a backend without regions, or of all of them.
    pub fn whole(found: Vec<T>) -> Survey<T> {
        Survey { found, silent: vec![] }
    }

    /// Whether what was not found in a region is not there.
    pub fn knows(&self, region: &str) -> bool {
        self.silent.iter().all(|silent| silent.region != region)
    }
}

/// What a caller looks for; backends may use it to say less, never to say more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct OffersWanted {
    /// With fewer machines than this a launch would be worthless; at least 1. Quotas are compared with it.
    pub least: u32,
    /// How many machines may be launched in time; at least `least`. What is divided among them is divided so.
    pub most: u32,
    /// The machines must have a fast network between them.
    pub cluster: bool,
    /// Only machines that may be taken back at any time, or only others; none: both.
    pub spot: Option<bool>,
    /// The reservation to buy from.
    pub reservation: Option<String>,
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
    /// US dollars per machine and hour, in the cheapest of the zones.
    pub price_usd_per_hour: f64,
    /// The same in each zone, where zones differ.
    #[serde(default)]
    pub zone_prices: BTreeMap<String, f64>,
    /// Whether it can be had.
    pub availability: InstanceAvailability,
    /// Why it cannot be had, in words.
    pub unavailable_because: Option<String>,
    /// When it can be had, if that is known and not now.
    #[serde(default)]
    pub available_from: Option<Timestamp>,
    /// The disk may be chosen, up to this size.
    #[serde(default)]
    pub most_disk_mib: Option<u64>,
    /// What only the backend understands; it comes back in the launch.
    pub backend_data: serde_json::Value,
}

/// The order to launch machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchOrder {
    /// The client token and the tag.
    pub launch_id: LaunchId,
    /// The fleet.
    pub fleet_id: FleetId,
    /// The fleet's name, for tags.
    pub fleet_name: String,
    /// The project's name, for tags.
    pub project_name: String,
    /// The name of the one machine, or the fleet's if there are several; for tags.
    pub name: String,
    /// The name of the user whose fleet or run it is for, for tags.
    pub user_name: String,
    /// The tags that whoever it is for wants on it.
    pub tags: BTreeMap<String, String>,
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
    /// The public keys that may log in.
    pub authorized_keys: Vec<String>,
    /// What the backend found out before; null until it is prepared.
    pub prepared: serde_json::Value,
    /// What was found out for earlier launches of the fleet that made machines, the newest first.
    pub fleet_prepared: Vec<serde_json::Value>,
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
    /// It ended because its backend has no room for it, which may be elsewhere.
    #[serde(default)]
    pub lacked_room: bool,
    /// Who logs in over SSH, where that is how it is reached.
    #[serde(default)]
    pub login: Option<Login>,
    /// The switches above it, the highest first, where its backend tells them.
    #[serde(default)]
    pub network_path: Vec<String>,
}

/// Who logs in to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The port of the SSH server.
    pub port: u16,
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
    /// Over SSH, with the key of the machine's project.
    Ssh {
        /// Its name or address.
        address: String,
        /// Who logs in.
        login: Login,
        /// The host on the way to it.
        jump: Option<Jump>,
        /// The files that its first start leaves when it is over, if that is to be waited for.
        first_start: Option<FirstStart>,
        /// The cloud that its agent may ask about the machine.
        cloud: Option<Cloud>,
    },
    /// Not at all: the machine exists only in a simulation.
    Simulated,
}

/// The files that a machine's first start leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstStart {
    /// All is prepared.
    pub done: String,
    /// It is not, and why, for people.
    pub failed: String,
}

/// A host through which a machine is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct Jump {
    /// Its name or address.
    pub hostname: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Who logs in.
    pub user: String,
    /// With what, in OpenSSH's form.
    pub private_key: String,
}

// The private key must not be printed.
impl fmt::Debug for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jump").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}
