//! What happens next to each resource, as pure functions of what is known.
//!
//! Nothing here does IO, reads a clock, rolls dice or logs; the time is an argument. Each folder holds one resource:
//! `mod.rs` has the type and its diagram, `decide.rs` the decision. `outlook` tells people what will be decided.

pub mod events;
pub mod fleet;
pub mod instance;
pub mod job;
pub mod launch;
pub mod outlook;
pub mod placement;
pub mod planted;
pub mod run;
