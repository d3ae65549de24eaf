//! Decision tables and properties of every resource: no database, no clock, no cloud.
#![cfg(test)]

mod cloud_machines;
mod fixtures;
mod fleets;
mod instances;
mod jobs;
mod launches;
mod outlook;
mod placement;
mod properties;
mod rounds;
mod runs;
mod topology;
