//! What happens to machines, told to whoever plays them: nobody, a simulated agent, or a container.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Plays the machines of a simulation.
///
/// Events of one machine come in their order. They are told outside of the simulation's lock, so a player may call
/// the simulator from within.
pub trait Machines: Send + Sync + fmt::Debug {
    /// Takes note of an event.
    fn happened(&self, event: &MachineEvent);
}

/// Something that happened to a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineEvent {
    /// It was launched, and is to boot.
    Launched(Box<Machine>),
    /// Its state is `running` now.
    Running {
        /// The instance.
        instance_id: String,
    },
    /// It will be taken away at that time.
    SpotNotice {
        /// The instance.
        instance_id: String,
        /// When it will be ended.
        ends_at: Timestamp,
    },
    /// It is being shut down.
    Ending {
        /// The instance.
        instance_id: String,
    },
    /// It is no more.
    Ended {
        /// The instance.
        instance_id: String,
    },
    /// An address was given to it or taken from it.
    Addressed {
        /// The instance.
        instance_id: String,
        /// The address that the world sees now.
        public_ip: Option<String>,
    },
}

/// A machine as it was launched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The instance.
    pub instance_id: String,
    /// Where it is.
    pub region: String,
    /// The zone in which it is.
    pub zone: String,
    /// Its type.
    pub instance_type: String,
    /// What it boots from.
    pub image_id: String,
    /// The image's name.
    pub image_name: String,
    /// What the image is made for, as `x86_64`.
    pub architecture: String,
    /// The launch that it came of.
    pub reservation_id: String,
    /// Its place in the launch.
    pub launch_index: usize,
    /// The number of the account.
    pub account: String,
    /// What it was given to run, already decoded.
    pub user_data: Vec<u8>,
    /// The key that it shall take, in the form of OpenSSH.
    pub public_key: Option<String>,
    /// The name of that key.
    pub key_name: Option<String>,
    /// The network that it is in.
    pub network: MachineNetwork,
    /// The names of the security groups of its first interface.
    pub security_groups: Vec<String>,
    /// The placement group.
    pub placement_group: Option<String>,
    /// Its GPUs, kind by kind, as DescribeInstanceTypes tells them.
    pub gpus: Vec<MachineGpus>,
    /// Its first address.
    pub private_ip: String,
    /// The address that the world sees, if there is one from the start.
    pub public_ip: Option<String>,
    /// All of its interfaces, in the order of the request.
    pub interfaces: Vec<MachineInterface>,
    /// How far an answer of the metadata service may go.
    pub metadata_hop_limit: i64,
    /// Whether the metadata service answers at all.
    pub metadata_enabled: bool,
    /// Whether the metadata service answers only those who show a token.
    pub metadata_tokens_required: bool,
    /// Whether the metadata service tells the tags.
    pub metadata_tags: bool,
    /// The profile that it was given.
    pub iam_instance_profile: Option<String>,
    /// The role of that profile.
    pub iam_role: Option<String>,
    /// Whether it may be taken away.
    pub is_spot: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The size of its root disk.
    pub root_volume_gib: i64,
    /// When it was launched.
    pub launched_at: Timestamp,
    /// How many devices of InfiniBand's other make it shows beside those of EFA.
    pub mlx5_devices: u32,
    /// What shall be wrong with it, if it runs at all.
    pub trouble: Option<HostTrouble>,
}

/// The network that a machine is in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineNetwork {
    /// The VPC.
    pub vpc_id: String,
    /// All addresses of the VPC.
    pub vpc_cidr: String,
    /// The subnet of the first interface.
    pub subnet_id: String,
    /// The subnet's addresses.
    pub subnet_cidr: String,
    /// The identifier of the zone.
    pub zone_id: String,
}

/// GPUs of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineGpus {
    /// Who made them.
    pub manufacturer: String,
    /// Their name, as `H100`.
    pub name: String,
    /// How many there are.
    pub count: u32,
    /// The memory of each.
    pub memory_mib: u64,
}

/// What may be wrong with a machine that EC2 calls running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostTrouble {
    /// Nobody ever answers at the port of SSH.
    WithoutSsh,
    /// It takes that much longer to boot.
    SlowBoot {
        /// How much longer.
        ms: u64,
    },
}

/// An interface of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineInterface {
    /// The interface.
    pub id: String,
    /// The card that it sits on.
    pub card: i64,
    /// Its place on the card.
    pub device: i64,
    /// `interface`, `efa` or `efa-only`.
    pub interface_type: String,
    /// Its address; an interface for EFA only has none.
    pub private_ip: Option<String>,
    /// Its hardware address.
    pub mac: String,
}

/// What a machine, or whoever plays it, tells of itself.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The instance.
    pub instance_id: String,
    /// Whether its checks pass, if that is known now.
    #[serde(default)]
    pub healthy: Option<bool>,
    /// Text for its console.
    #[serde(default)]
    pub console: Option<String>,
    /// Whether it switched itself off.
    #[serde(default)]
    pub powered_off: bool,
}
