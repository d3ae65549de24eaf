//! The whole command line against servers that answer from a script.
//!
//! `golden/*.json` is what the official CLI 0.22.5 printed, together with the answers that it was given: recorded at
//! the official server, or (`shapes-*`) made up to show rare states.

#![cfg(test)]

mod attached;
mod errors;
mod golden;
mod interrupts;
mod local;
mod repos;
mod server;
mod ssh;
mod ssh_fleets;
mod terminal;
