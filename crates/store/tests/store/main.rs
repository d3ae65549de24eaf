//! The store's tests, each on every engine.
#![cfg(test)]

mod accounts;
mod events;
mod fleets;
mod harness;
mod instances;
mod jobs;
mod launches;
mod leases;
mod migrations;
mod rows;
mod runs;
mod things;
