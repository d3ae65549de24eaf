//! Which instances a run gets: all of its nodes, or none.
//!
//! The pass looks at every waiting run of a project in order of urgency, gives away what is free, lets
//! fleets grow that can buy what is needed, and says of each run that got nothing what is in its way. It only
//! proposes: a unique index on blocks decides.

mod compute_capability;
mod gang;
pub mod requirements;
mod suits;
mod topology;

pub use gang::{
    Candidate, Gang, Growth, Market, Node, Outcome, Pool, PoolFleet, PoolInstance, Slot, is_cluster, place,
    profile_of,
};
pub use suits::{blocks_for, is_listed};
pub use topology::{has_unlike_nodes, neighbours_together, of_one_type};
