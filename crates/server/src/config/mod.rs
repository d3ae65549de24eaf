//! The files that the server reads and writes when it starts: its own `config.yml`, and the CLI's.

mod apply;
mod cli;
mod file;
mod masking;

pub use apply::apply;
pub use cli::{Question, update_cli_config};
pub use file::{BackendEntry, ProjectEntry, ServerConfig, first_config, read};
