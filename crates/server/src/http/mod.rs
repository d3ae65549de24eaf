//! The HTTP API: thin handlers that read, write intent, and show. What they have in common is in `auth`, `error`
//! and `extract`; every route is in `router`.

pub mod absent;
pub mod account_views;
pub mod auth;
pub mod backends;
mod diagnostics;
pub mod docs;
pub mod error;
pub mod events;
pub mod extract;
pub mod files;
pub mod fleet_apply;
mod fleet_hosts;
pub mod fleet_views;
pub mod fleets;
pub mod gpus;
pub mod info;
pub mod instances;
pub mod logs;
pub mod members;
pub mod openapi;
pub mod paging;
pub mod projects;
pub mod repos;
pub mod router;
pub mod run_views;
pub mod runs;
pub mod scope;
pub mod secrets;
pub mod upload;
pub mod users;
pub mod version;
pub mod why;

pub use router::router;
pub use version::SERVER_VERSION;
