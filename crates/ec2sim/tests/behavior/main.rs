//! What the simulator does that makes it an opponent: refusals, delays, shortages, faults, and its book.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod account;
mod faults;
mod launches;
mod machines;
mod permissions;
mod resources;
