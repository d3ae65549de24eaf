//! Which instances a run gets: all of its nodes, or none.
//!
//! The pass looks at every waiting run of a project in order of urgency, gives away what is free, and says of each
//! run that got nothing what is in its way. It only proposes: a unique index on blocks decides.

mod gang;
pub mod requirements;

pub use gang::{
    Candidate, Gang, Node, Outcome, Pool, PoolFleet, PoolInstance, Slot, blocks_for, is_cluster, place, profile_of,
};
