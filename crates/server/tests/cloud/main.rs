//! A real server's reconcilers and its backend for AWS, against the simulated EC2: whatever goes wrong, no machine is
//! left behind, none is made twice, and the user is told the reason.
//!
//! The machines' agents are simulated, because these tests are about the cloud. Time is that of this machine.

#![expect(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    reason = "helpers of tests are tests, and the simulated cloud has the time of this machine"
)]

mod buying;
mod crashes;
mod crowd;
mod faults;
mod gang;
mod measures;
mod park;
mod tags;
mod told;
mod world;
