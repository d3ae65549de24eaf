//! The backend `aws` against the simulated EC2, which refuses what AWS refuses and keeps a book of all that was made.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests, and the simulation has the time of this machine"
)]

mod addresses;
mod configuration;
mod faults;
mod launches;
mod offers;
mod policy;
mod regions;
mod reservations;
mod rig;
