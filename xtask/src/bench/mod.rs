//! Measurements of the release build.

use anyhow::Result;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Names of rows; all of them by default.
    names: Vec<String>,
}

pub(crate) fn run(_options: &Options) -> Result<()> {
    Ok(())
}
