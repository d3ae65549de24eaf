//! The server: requests write what is wanted, reconcilers make it so.

pub mod accounts;
pub mod agents;
pub mod backend_answers;
pub mod backend_pool;
pub mod backend_troubles;
pub mod bought_machines;
pub mod clock;
pub mod config;
pub mod deps;
pub mod gangs;
pub mod http;
pub mod ids;
pub mod logs;
pub mod market;
mod names;
pub mod offers;
pub mod own_hosts;
pub mod pool;
mod private_files;
pub mod reconcile;
pub mod sealing;
pub mod settings;
pub mod spec_secrets;
pub mod ssh_proxy;
pub mod startup;
pub mod wake;
mod yaml_text;

pub use startup::{Server, ServerArgs, main, run};
