//! What a run needs of a machine.

use api::configurations::{CpuSpec, GpuSpec, Memory, Range};
use clap::Args;
use serde::de::DeserializeOwned;

/// Resources that replace those of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Resources")]
pub(crate) struct ResourceArgs {
    /// Request CPU for the run. The format is ARCH:COUNT (all parts are optional)
    #[arg(long, value_name = "SPEC", value_parser = shorthand::<CpuSpec>)]
    pub(crate) cpu: Option<CpuSpec>,
    /// Request GPU for the run. The format is NAME:COUNT:MEMORY (all parts are optional)
    #[arg(long, value_name = "SPEC", value_parser = shorthand::<GpuSpec>)]
    pub(crate) gpu: Option<GpuSpec>,
    /// Request the size range of RAM for the run. Example --memory 128GB..256GB
    #[arg(long, value_name = "RANGE", value_parser = shorthand::<Range<Memory>>)]
    pub(crate) memory: Option<Range<Memory>>,
    /// Request the size range of disk for the run. Example --disk 100GB..
    #[arg(long, value_name = "RANGE", value_parser = shorthand::<Range<Memory>>)]
    pub(crate) disk: Option<Range<Memory>>,
}

/// Reads a value in the form that it has in YAML.
pub(super) fn shorthand<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}
