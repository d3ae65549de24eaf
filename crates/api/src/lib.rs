//! Every type that crosses a process boundary: configurations, specs, statuses, requests and answers in the
//! official wire form, errors, and the protocol between server and agent.
//!
//! Nothing here does IO, except the typed client behind the feature `client`.

pub mod agent;
pub mod backends;
#[cfg(feature = "client")]
pub mod client;
pub mod configurations;
pub mod error;
pub mod events;
pub mod exports;
pub mod files;
pub mod fleets;
pub mod gateways;
pub mod gpus;
pub mod ids;
pub mod instances;
pub mod jobs;
pub mod logs;
pub mod projects;
pub mod repos;
pub mod runs;
pub mod secrets;
pub mod users;
pub mod volumes;
pub mod why;
pub mod yaml;
