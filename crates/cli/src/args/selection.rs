//! Where and how a run may run: the keys of profiles as options.

use api::backends::BackendType;
use api::configurations::{EntityReference, OffDuration, ProfileParams, Seconds, SpotPolicy};
use clap::Args;

use super::resources::shorthand;
use crate::names::{self, Noun};

/// Options that replace keys of the configuration and of the profile.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Profile")]
pub(crate) struct SelectionArgs {
    /// The name of the profile. Defaults to $DSTACK_PROFILE
    #[arg(long, value_name = "NAME", conflicts_with = "no_profile")]
    pub(crate) profile: Option<String>,
    /// Don't load any profile. Enabled by default if $DSTACK_NO_PROFILE is set and --profile is not specified
    #[arg(long)]
    pub(crate) no_profile: bool,
    /// The maximum price per hour, in dollars
    #[arg(long, value_name = "PRICE")]
    pub(crate) max_price: Option<f64>,
    /// The maximum duration of the run
    #[arg(long, value_name = "DURATION", value_parser = off_duration)]
    pub(crate) max_duration: Option<OffDuration>,
    /// The backends that will be tried for provisioning
    #[arg(short, long = "backend", value_name = "NAME", value_parser = shorthand::<BackendType>)]
    pub(crate) backends: Vec<BackendType>,
    /// The regions that will be tried for provisioning
    #[arg(short, long = "region", value_name = "NAME")]
    pub(crate) regions: Vec<String>,
    /// The cloud-specific instance types that will be tried for provisioning
    #[arg(long = "instance-type", value_name = "NAME")]
    pub(crate) instance_types: Vec<String>,
    /// Consider only the specified fleet(s)
    #[arg(long = "fleet", value_name = "NAME", value_parser = EntityReference::parse, add = names::of(Noun::Fleets), help_heading = "Fleets")]
    pub(crate) fleets: Vec<EntityReference>,
    /// Reuse an existing instance from fleet (do not provision a new one)
    #[arg(short = 'R', long, conflicts_with_all = ["dont_destroy", "idle_duration"], help_heading = "Fleets")]
    pub(crate) reuse: bool,
    /// Do not destroy instance after the run is finished (if the run provisions a new instance)
    #[arg(long, conflicts_with = "idle_duration", help_heading = "Fleets")]
    pub(crate) dont_destroy: bool,
    /// Time to wait before destroying the idle instance (if the run provisions a new instance)
    #[arg(long, value_name = "DURATION", value_parser = idle_duration, help_heading = "Fleets")]
    pub(crate) idle_duration: Option<Seconds>,
    /// Consider only spot instances
    #[arg(long, conflicts_with_all = ["on_demand", "spot_auto", "spot_policy"], help_heading = "Spot Policy")]
    pub(crate) spot: bool,
    /// Consider only on-demand instances
    #[arg(long, conflicts_with_all = ["spot_auto", "spot_policy"], help_heading = "Spot Policy")]
    pub(crate) on_demand: bool,
    /// Consider both spot and on-demand instances
    #[arg(long, conflicts_with = "spot_policy", help_heading = "Spot Policy")]
    pub(crate) spot_auto: bool,
    /// One of spot, on-demand, auto
    #[arg(long, value_name = "POLICY", value_parser = shorthand::<SpotPolicy>, help_heading = "Spot Policy")]
    pub(crate) spot_policy: Option<SpotPolicy>,
    /// Retry for an hour after every event
    #[arg(long, conflicts_with_all = ["no_retry", "retry_duration"], help_heading = "Retry Policy")]
    pub(crate) retry: bool,
    /// Never retry
    #[arg(long, conflicts_with = "retry_duration", help_heading = "Retry Policy")]
    pub(crate) no_retry: bool,
    /// Retry for this long
    #[arg(long, value_name = "DURATION", value_parser = Seconds::parse, help_heading = "Retry Policy")]
    pub(crate) retry_duration: Option<Seconds>,
}

fn off_duration(text: &str) -> Result<OffDuration, String> {
    let params: ProfileParams = read_key("max_duration", text)?;
    params.max_duration.ok_or_else(|| "expected a duration or `off`".to_owned())
}

fn idle_duration(text: &str) -> Result<Seconds, String> {
    let params: ProfileParams = read_key("idle_duration", text)?;
    params.idle_duration.ok_or_else(|| "expected a duration or `off`".to_owned())
}

fn read_key(key: &str, text: &str) -> Result<ProfileParams, String> {
    serde_json::from_value(serde_json::json!({ key: text })).map_err(|error| error.to_string())
}
