//! `dstack gateway`

use api::configurations::EntityReference;
use clap::{Args, Subcommand};

use super::{DeleteByNameArgs, FormatOptions, GetByNameArgs, ListOptions, ProjectOption};
use crate::names::{self, Noun};

/// `dstack gateway`
#[derive(Debug, Args)]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(flatten)]
    pub(crate) list: ListOptions,
    #[command(flatten)]
    pub(crate) format: FormatOptions,
    #[command(subcommand)]
    pub(crate) command: Option<GatewayCommand>,
}

/// The commands of `dstack gateway`.
#[derive(Debug, Subcommand)]
pub(crate) enum GatewayCommand {
    /// List gateways
    List {
        #[command(flatten)]
        format: FormatOptions,
    },
    /// Delete a gateway
    #[command(mut_arg("name", |arg| arg.add(names::of(Noun::Gateways))))]
    Delete(DeleteByNameArgs),
    /// Update a gateway
    Update {
        /// The name of the gateway
        #[arg(value_parser = EntityReference::parse, add = names::of(Noun::Gateways))]
        name: EntityReference,
        /// Set it the default gateway for the project
        #[arg(long)]
        set_default: bool,
        /// (deprecated) Set the domain for the gateway
        #[arg(long)]
        domain: Option<String>,
    },
    /// Get a gateway
    #[command(mut_arg("name", |arg| arg.add(names::of(Noun::Gateways))))]
    Get(GetByNameArgs),
}
