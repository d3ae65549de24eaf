//! `dstack event`

use api::events::EventTargetType;
use clap::{Args, Subcommand};

use super::ProjectOption;
use super::resources::shorthand;
use crate::names::{self, Noun};

/// `dstack event`
#[derive(Debug, Args)]
pub(crate) struct EventArgs {
    #[command(flatten)]
    pub(crate) project: ProjectOption,
    #[command(flatten)]
    pub(crate) filters: EventFilters,
    #[command(subcommand)]
    pub(crate) command: Option<EventCommand>,
}

/// The commands of `dstack event`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum EventCommand {
    /// List events within the selected project
    List,
}

/// Which events to show.
#[derive(Debug, Args)]
pub(crate) struct EventFilters {
    /// Watch events in realtime
    #[arg(short, long, global = true)]
    pub(crate) watch: bool,
    /// Only show events newer than the specified date: a duration (e.g. 10s, 5m, 1d) or an RFC 3339 string (e.g.
    /// 2023-09-24T15:30:00Z). If not specified, show the last 100 events.
    #[arg(long, global = true)]
    pub(crate) since: Option<String>,
    /// Only show events that target the specified fleets
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Fleets), conflicts_with_all = ["target_run", "target_volume", "target_gateway", "target_secret"])]
    pub(crate) target_fleet: Vec<String>,
    /// Only show events that target the specified runs
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Runs), conflicts_with_all = ["target_volume", "target_gateway", "target_secret"])]
    pub(crate) target_run: Vec<String>,
    /// Only show events that target the specified volumes
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Volumes), conflicts_with_all = ["target_gateway", "target_secret"])]
    pub(crate) target_volume: Vec<String>,
    /// Only show events that target the specified gateways
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Gateways), conflicts_with = "target_secret")]
    pub(crate) target_gateway: Vec<String>,
    /// Only show events that target the specified secrets
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Secrets))]
    pub(crate) target_secret: Vec<String>,
    /// Only show events that target the specified fleets or instances within those fleets
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Fleets), conflicts_with_all = ["within_run", "within_gateway"])]
    pub(crate) within_fleet: Vec<String>,
    /// Only show events that target the specified runs or jobs within those runs
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Runs), conflicts_with = "within_gateway")]
    pub(crate) within_run: Vec<String>,
    /// Only show events that target the specified gateways or replicas within those gateways
    #[arg(long, value_name = "NAME", global = true, add = names::of(Noun::Gateways))]
    pub(crate) within_gateway: Vec<String>,
    /// Only show events that target entities of the specified types
    #[arg(long, value_name = "TYPE", global = true, value_parser = shorthand::<EventTargetType>)]
    pub(crate) include_target_type: Vec<EventTargetType>,
}
