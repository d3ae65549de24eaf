//! Every type that crosses a process boundary: configurations, specs, statuses, requests and answers in the
//! official wire form, errors, and the protocol between server and agent.
//!
//! Nothing here does IO, except the typed client behind the feature `client`.

pub mod agent;
pub mod backends;
pub mod configurations;
pub mod ids;
pub mod yaml;
