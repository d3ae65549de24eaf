//! `dstack why`

use api::why::WhyKind;
use clap::Args;

use super::ProjectOption;
use crate::names::{self, Noun};

/// `dstack why`
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The name of a run, a fleet or an instance
    #[arg(value_name = "NAME", add = names::of(Noun::RunsAndFleets))]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    /// The name is that of a run
    #[arg(long, conflicts_with_all = ["fleet", "instance"])]
    run: bool,
    /// The name is that of a fleet
    #[arg(long, conflicts_with = "instance")]
    fleet: bool,
    /// The name is that of an instance of a fleet
    #[arg(long)]
    instance: bool,
    /// Output in JSON format
    #[arg(long)]
    pub(crate) json: bool,
}

impl WhyArgs {
    /// What the name is of, where that was said.
    pub(crate) fn kind(&self) -> Option<WhyKind> {
        match (self.run, self.fleet, self.instance) {
            (true, ..) => Some(WhyKind::Run),
            (_, true, _) => Some(WhyKind::Fleet),
            (.., true) => Some(WhyKind::Instance),
            (false, false, false) => None,
        }
    }
}
