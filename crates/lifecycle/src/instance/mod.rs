//! An instance: a machine, or its slot in a fleet.
//!
//! ```text
//! pending ⇄ provisioning ──▶ idle ⇄ busy ──▶ terminating ──▶ terminated
//!    │  has a launch,    its agent answers      not wanted, idle too long,       ▲
//!    │  or it failed                            vanished or unreachable          │
//!    └── not wanted, or nobody sells it ─────────────────────────────────────────┘
//! ```
//!
//! `terminated` means that the backend says the machine is gone, never that we asked for it. A machine of the user's
//! own has no backend: it is joined over SSH, waited for however long it is silent, and at the end left as it was.

mod decide;
mod devices;
mod health;
mod host;
mod observe;
mod purchase;

pub use decide::{
    AgentSeen, Effect, InstanceDecision, Leaving, Machine, MachineSeen, Surroundings, blocks_of, decide,
    idle_duration_for_job, split,
};
pub use devices::rdma_nodes;
pub use health::{Check, EfaCount, Health};
pub use host::{BACKEND as HOST_BACKEND, Host, Proxy, REGION as HOST_REGION};
pub use observe::{EfaShortage, Notice, another_machine};

use std::collections::BTreeMap;

use api::ids::{FleetId, InstanceId, LaunchId, ProjectId};
use api::instances::{GpuDriver, InstanceStatus, InstanceTerminationReason, InstanceType};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::launch::{Launch, LaunchStatus};

/// An instance's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Its identifier.
    pub id: InstanceId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its fleet.
    pub fleet_id: FleetId,
    /// Its number in the fleet.
    pub instance_num: u32,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Where it is in its life.
    pub status: InstanceStatus,
    /// Somebody wants it ended. Written by requests and the fleet's reconciler.
    pub end: Option<EndOrder>,
    /// The purchase that it came from.
    pub launch_id: Option<LaunchId>,
    /// Its index in that purchase.
    pub launch_index: Option<u32>,
    /// What is only carried.
    pub state: InstanceState,
}

/// How long an instance may be idle unless the fleet says otherwise, in seconds: three days.
const IDLE_DURATION_SECS: i64 = 72 * 3600;

impl Instance {
    /// How long it may be idle, in seconds; negative: for ever.
    pub fn idle_duration_secs(&self) -> i64 {
        self.state.idle_duration_secs.unwrap_or(IDLE_DURATION_SECS)
    }

    /// Until when it may be idle; none: it is not, or may be so for ever.
    pub fn idle_until(&self) -> Option<Timestamp> {
        let since = self.state.idle_since?;
        let secs = Some(self.idle_duration_secs()).filter(|secs| *secs >= 0)?;
        Some(since.saturating_add(SignedDuration::from_secs(secs)).unwrap_or(Timestamp::MAX))
    }

    /// Whether it does not expect a machine of that purchase any more, so that its fleet is to make another.
    pub fn has_given_up(&self, launch: &Launch) -> bool {
        launch.status == LaunchStatus::Failed || self.state.unsold == Some(launch.id)
    }

    /// Whether a machine was bought for it, or is being bought, and has not come to nothing.
    pub fn has_purchase(&self) -> bool {
        self.launch_id.is_some() && self.launch_id != self.state.unsold
    }

    /// The type of machine that a backend sold; none: it is the user's own, or nothing is bought yet.
    pub fn bought_type(&self) -> Option<&str> {
        let kind = self.state.instance_type.as_ref().filter(|_| self.launch_id.is_some())?;
        Some(&kind.name)
    }

    /// Whether nobody ends it: what ends is of no use to jobs any more, and does not count for its fleet.
    pub fn is_kept(&self) -> bool {
        self.end.is_none()
            && self.state.notice.is_none()
            && !matches!(self.status, InstanceStatus::Terminating | InstanceStatus::Terminated)
    }
}

/// A purchase that was made, and of which an instance got no machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InVain {
    /// The purchase.
    pub launch: LaunchId,
    /// Why, if its backend says so.
    pub why: Option<String>,
}

/// Why an instance is to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndOrder {
    /// The instance ends with this reason.
    pub reason: InstanceTerminationReason,
    /// For people.
    pub message: Option<String>,
}

/// The part of an instance that no query asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceState {
    /// `{fleet}-{instance_num}`.
    pub name: String,
    /// When something last happened to it.
    pub last_processed_at: Option<Timestamp>,
    /// The machine of the user's own that it is. Nobody sold it, and it is joined and left.
    pub host: Option<Host>,
    /// The purchase that the next fields are about.
    pub facts_of: Option<LaunchId>,
    /// The purchase that came to nothing for it, so that another is to be made.
    pub unsold: Option<LaunchId>,
    /// The purchases that were made and of which it got no machine, oldest first.
    pub in_vain: Vec<InVain>,
    /// The kind of backend that sold it.
    pub backend: Option<String>,
    /// Only global admins may use it: its jobs run beside the server's secrets.
    pub admins_only: bool,
    /// Jobs without an image run as plain processes on it.
    pub runs_processes: bool,
    /// Where it is.
    pub region: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// US dollars per hour.
    pub price: Option<f64>,
    /// The kind of machine.
    pub instance_type: Option<InstanceType>,
    /// The backend's own identifier.
    pub provider_id: Option<String>,
    /// Where it answers.
    pub hostname: Option<String>,
    /// The address that peers use.
    pub internal_ip: Option<String>,
    /// The network that its containers join, if they do not share the host's.
    pub container_network: Option<ContainerNetwork>,
    /// When its cloud ends it in any case, because what it was bought from ends.
    pub ends_at: Option<Timestamp>,
    /// The reservation that it is from, as it was asked for.
    pub reservation: Option<String>,
    /// Who logs in over SSH, where that is how it is reached.
    pub login: Option<Login>,
    /// The switches above it, the highest first, where its backend tells them.
    pub network_path: Vec<String>,
    /// The keys that it and the hosts on the way to it have shown, by address. Others are refused from then on.
    pub known_keys: BTreeMap<String, String>,
    /// Blocks that it is split into.
    pub total_blocks: u32,
    /// The UUIDs of its GPUs, in the order of the blocks.
    pub gpu_uuids: Vec<String>,
    /// Its accelerators' driver.
    pub gpu_driver: Option<GpuDriver>,
    /// The EFA devices that it was bought with; unset: nobody knows.
    pub efa_expected: Option<u32>,
    /// What was found when it was last looked at.
    pub health: Health,
    /// When that was found first.
    pub health_at: Option<Timestamp>,
    /// It has fewer EFA devices than it was bought with.
    pub efa_shortage: Option<EfaShortage>,
    /// Its cloud takes it back.
    pub notice: Option<Notice>,
    /// Since when its cloud says that it is likely to take it back soon.
    pub rebalance_at: Option<Timestamp>,
    /// Whether it runs containers.
    pub has_docker: bool,
    /// Seconds that it may be idle; negative: for ever; unset: the default.
    pub idle_duration_secs: Option<i64>,
    /// It was made because a job waited for it, and not to be kept in store.
    pub made_for_job: bool,
    /// When it was joined.
    pub joined_at: Option<Timestamp>,
    /// Since when it has no job.
    pub idle_since: Option<Timestamp>,
    /// Since when its agent does not answer.
    pub unreachable_since: Option<Timestamp>,
    /// Since when its backend does not list it.
    pub absent_since: Option<Timestamp>,
    /// Since when it is ending.
    pub ending_since: Option<Timestamp>,
    /// When its backend was last told to end it.
    pub terminate_sent_at: Option<Timestamp>,
    /// Why it ended.
    pub termination_reason: Option<InstanceTerminationReason>,
    /// Why it ended, for people.
    pub termination_message: Option<String>,
    /// When it was gone.
    pub finished_at: Option<Timestamp>,
}

impl InstanceState {
    /// Whether it has EFA devices, or should have.
    pub fn has_efa(&self) -> bool {
        let found = self.health.efa.is_some_and(|efa| 0 < efa.found);
        found || self.efa_expected.is_some_and(|count| 0 < count)
    }
}

/// Who logs in to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The port of the SSH server.
    pub port: u16,
}

/// A network that containers join with an address of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNetwork {
    /// The network's name.
    pub name: String,
    /// Its subnet in CIDR notation.
    pub subnet: String,
    /// The address of this instance's container.
    pub address: String,
}
