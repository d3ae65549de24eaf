//! `dstack preset`

use clap::{Args, Subcommand};

use super::ProjectOption;

/// `dstack preset`
#[derive(Debug, Args)]
pub(crate) struct PresetArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(subcommand)]
    pub(crate) command: Option<PresetCommand>,
}

/// The commands of `dstack preset`.
#[derive(Debug, Subcommand)]
pub(crate) enum PresetCommand {
    /// List presets
    List,
    /// Whatever else the official command does
    #[command(external_subcommand)]
    Other(Vec<String>),
}
