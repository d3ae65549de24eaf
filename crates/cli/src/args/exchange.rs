//! `dstack export` and `dstack import`

use clap::{Args, Subcommand};

use super::{ProjectOption, YesOption};

/// `dstack export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(subcommand)]
    pub(crate) command: Option<ExportCommand>,
}

/// The commands of `dstack export`.
#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// List exports
    List,
    /// Create an export
    Create {
        /// The name of the export
        name: String,
        /// Importer project name (can be specified multiple times)
        #[arg(long = "importer")]
        importers: Vec<String>,
        /// Fleet name to export (can be specified multiple times)
        #[arg(long = "fleet")]
        fleets: Vec<String>,
        /// Gateway name to export (can be specified multiple times)
        #[arg(long = "gateway")]
        gateways: Vec<String>,
        /// Make this export global (automatically imported into all projects)
        #[arg(long = "global")]
        is_global: bool,
    },
    /// Update an export
    Update {
        /// The name of the export
        name: String,
        #[command(flatten)]
        changes: ExportChanges,
    },
    /// Delete an export
    Delete {
        /// The name of the export
        name: String,
        #[command(flatten)]
        confirm: YesOption,
    },
}

/// What changes in an export.
#[derive(Debug, Args)]
pub(crate) struct ExportChanges {
    /// Importer project name to add (can be specified multiple times)
    #[arg(long = "add-importer")]
    pub(crate) add_importers: Vec<String>,
    /// Importer project name to remove (can be specified multiple times)
    #[arg(long = "remove-importer")]
    pub(crate) remove_importers: Vec<String>,
    /// Fleet name to add (can be specified multiple times)
    #[arg(long = "add-fleet")]
    pub(crate) add_fleets: Vec<String>,
    /// Fleet name to remove (can be specified multiple times)
    #[arg(long = "remove-fleet")]
    pub(crate) remove_fleets: Vec<String>,
    /// Gateway name to add (can be specified multiple times)
    #[arg(long = "add-gateway")]
    pub(crate) add_gateways: Vec<String>,
    /// Gateway name to remove (can be specified multiple times)
    #[arg(long = "remove-gateway")]
    pub(crate) remove_gateways: Vec<String>,
    /// Make this export global (automatically imported into all projects)
    #[arg(long, conflicts_with = "unset_global")]
    pub(crate) set_global: bool,
    /// Remove the global flag from this export
    #[arg(long)]
    pub(crate) unset_global: bool,
}

/// `dstack import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(subcommand)]
    pub(crate) command: Option<ImportCommand>,
}

/// The commands of `dstack import`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// List imports
    List,
    /// Delete an import
    Delete {
        /// The import to delete, in `export-project/export-name` format
        name: String,
        #[command(flatten)]
        confirm: YesOption,
    },
}
