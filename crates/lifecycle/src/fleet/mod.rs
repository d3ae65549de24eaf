//! A fleet: a set of instances and the template for more. It buys in rounds (`round.rs`).
//!
//! ```text
//! active ──▶ terminating ──▶ terminated
//!            not wanted       all its instances are gone
//! ```

mod decide;
mod pauses;
mod round;

pub use decide::{Buyer, Effect, FleetDecision, LATELY, LaunchPlan, OffersSeen, Purchase, Surroundings, decide};

use api::fleets::{FleetSpec, FleetStatus};
use api::ids::{FleetId, ProjectId, UserId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A fleet's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// Its identifier.
    pub id: FleetId,
    /// Its project.
    pub project_id: ProjectId,
    /// Who made it.
    pub user_id: UserId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Where it is in its life.
    pub status: FleetStatus,
    /// Somebody wants it. Written by requests only.
    pub wanted: bool,
    /// What is wanted.
    pub spec: FleetSpec,
    /// What is only carried.
    pub state: FleetState,
}

/// The part of a fleet that no query asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetState {
    /// Why it is as it is, for people.
    pub status_message: Option<String>,
    /// How many purchases in a row came to nothing.
    pub failures: u32,
    /// Nothing is bought before this.
    pub not_before: Option<Timestamp>,
    /// The backend, region, zone and type that its first machine fixed, for a cluster.
    pub home: Option<Home>,
    /// Its maker, and whoever changed it since, may use this server's own machine.
    pub user_is_admin: bool,
}

/// Where a cluster's machines are, and of which type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The kind of backend.
    pub backend: String,
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: Option<String>,
    /// The type: a fabric such as EFA does not reach from one to another.
    #[serde(default)]
    pub instance_type: Option<String>,
}
