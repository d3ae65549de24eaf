//! Fleets, runs and logs over HTTP, compared with recorded official traffic where there is any.
#![cfg(test)]

mod crowd;
mod errors;
mod fleets;
mod flows;
#[path = "../platform/harness.rs"]
#[expect(dead_code, reason = "each suite uses what it needs of the harness")]
mod harness;
mod runs;
mod stream;
mod support;
mod why;
