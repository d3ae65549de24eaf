//! Fleets: machines that a cloud makes, or machines that are reached over SSH.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::checked::{Check, checked, constant};
use super::durations::Seconds;
use super::env::Env;
use super::names::check_resource_name;
use super::profile::{BackendOptions, Profile, ProfileParams, SpotPolicy, merged_params};
use super::ranges::without_spaces;
use super::resources::ResourcesSpec;
use super::retry::ProfileRetry;
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};
use super::ssh::SshParams;
use crate::backends::BackendType;

constant! {
    /// The `type` of a [`FleetConfiguration`].
    pub struct FleetType = "fleet";
}

checked! {
    /// A set of instances, or the template for them.
    pub struct FleetConfiguration {
        /// Says that this is a fleet.
        #[serde(rename = "type", default)]
        pub kind: FleetType,
        /// The name; null is one that the server makes up.
        #[serde(default)]
        pub name: Option<String>,
        /// Whether instances are close to each other; null is `any`.
        #[serde(default)]
        pub placement: Option<InstanceGroupPlacement>,
        /// Into how many parts each instance is split.
        #[serde(default)]
        pub blocks: Blocks,
        /// How many instances a cloud makes.
        #[serde(default)]
        pub nodes: Option<FleetNodes>,
        /// The reservation, capacity block or reservation group to use.
        #[serde(default)]
        pub reservation: Option<String>,
        /// What each instance has; null asks nothing.
        #[serde(default)]
        pub resources: Option<ResourcesSpec>,
        /// The backends to consider; null is all.
        #[serde(default)]
        pub backends: Option<Vec<BackendType>>,
        /// The regions to consider, compared without case; null is all.
        #[serde(default)]
        pub regions: Option<Vec<String>>,
        /// The availability zones to consider, compared without case; null is all.
        #[serde(default)]
        pub availability_zones: Option<Vec<String>>,
        /// The instance types to consider, compared without case; null is all.
        #[serde(default)]
        pub instance_types: Option<Vec<String>>,
        /// Whether to use spot instances; null is `on-demand`.
        #[serde(default)]
        pub spot_policy: Option<SpotPolicy>,
        /// When to try again; null is never.
        #[serde(default)]
        pub retry: Option<ProfileRetry>,
        /// The price limit in USD per hour and instance.
        #[serde(default, deserialize_with = "shorthand::optional_positive")]
        pub max_price: Option<f64>,
        /// How long an instance stays without a job; negative is forever, null is 3 days.
        #[serde(default, deserialize_with = "super::durations::never_or_seconds")]
        pub idle_duration: Option<Seconds>,
        /// Tags of the resources that are created at the cloud.
        #[serde(default, deserialize_with = "super::profile::optional_tags")]
        pub tags: Option<BTreeMap<String, String>>,
        /// Options of single backends.
        #[serde(default, deserialize_with = "super::profile::optional_backend_options")]
        pub backend_options: Option<Vec<BackendOptions>>,
        /// The machines to reach over SSH.
        #[serde(default)]
        pub ssh_config: Option<SshParams>,
        /// Environment variables of the agent on machines that are reached over SSH.
        #[serde(default)]
        pub env: Env,
    }
}

impl Check for FleetConfiguration {}

impl FleetConfiguration {
    /// Checks what the official server checks only when a fleet is submitted; the errors are the
    /// official ones.
    pub fn check_submission(&self) -> Result<(), String> {
        if let Some(name) = &self.name {
            check_resource_name(name)?;
        }
        match (&self.nodes, &self.ssh_config) {
            (None, None) => Err("No ssh_config or nodes specified".to_owned()),
            (Some(_), Some(_)) => Err("ssh_config and nodes are mutually exclusive".to_owned()),
            (Some(_), None) if !self.env.0.is_empty() => {
                Err("Backend fleet configuration does not support the following fields: ['env']".to_owned())
            }
            (Some(_), None) => Ok(()),
            (None, Some(_)) => self.check_ssh_keys(),
        }
    }

    fn check_ssh_keys(&self) -> Result<(), String> {
        let backend_keys = [
            ("reservation", self.reservation.is_some()),
            ("resources", self.resources.is_some()),
            ("backends", self.backends.is_some()),
            ("regions", self.regions.is_some()),
            ("availability_zones", self.availability_zones.is_some()),
            ("instance_types", self.instance_types.is_some()),
            ("spot_policy", self.spot_policy.is_some()),
            ("retry", self.retry.is_some()),
            ("max_price", self.max_price.is_some()),
            ("idle_duration", self.idle_duration.is_some()),
            ("tags", self.tags.is_some()),
            ("backend_options", self.backend_options.is_some()),
        ];
        let used: Vec<String> =
            backend_keys.iter().filter(|(_, set)| *set).map(|(key, _)| format!("'{key}'")).collect();
        if used.is_empty() {
            return Ok(());
        }
        Err(format!("SSH fleet configuration does not support the following fields: [{}]", used.join(", ")))
    }

    /// The keys that a fleet shares with profiles; the others are null.
    pub fn profile_params(&self) -> ProfileParams {
        ProfileParams {
            backends: self.backends.clone(),
            regions: self.regions.clone(),
            availability_zones: self.availability_zones.clone(),
            instance_types: self.instance_types.clone(),
            reservation: self.reservation.clone(),
            spot_policy: self.spot_policy,
            retry: self.retry.clone(),
            max_price: self.max_price,
            idle_duration: self.idle_duration,
            tags: self.tags.clone(),
            backend_options: self.backend_options.clone(),
            ..ProfileParams::default()
        }
    }

    /// What holds for the fleet: its own keys, or those of `profile` where they are null.
    pub fn merged_profile(&self, profile: Option<&Profile>) -> ProfileParams {
        merged_params(self.profile_params(), profile)
    }
}

/// How close the instances of a fleet are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InstanceGroupPlacement {
    /// Anywhere.
    Any,
    /// On one fast network.
    Cluster,
}

/// Into how many parts an instance is split. Written as a count or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blocks {
    /// As many as it has GPUs, or CPUs without GPUs.
    Auto,
    /// So many, at least one.
    Count(u32),
}

impl Default for Blocks {
    fn default() -> Self {
        Blocks::Count(1)
    }
}

impl Serialize for Blocks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Blocks::Auto => serializer.serialize_str("auto"),
            Blocks::Count(count) => serializer.serialize_u32(*count),
        }
    }
}

impl Shorthand for Blocks {
    const EXPECTING: &'static str = "a number of at least 1, or `auto`";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        match u32::try_from(value) {
            Ok(count) if count != 0 => Ok(Blocks::Count(count)),
            _ => Err(format!("expected {}, found `{value}`", Self::EXPECTING).into()),
        }
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        match text.trim().parse() {
            _ if text == "auto" => Ok(Blocks::Auto),
            Ok(count) => Self::from_integer(count),
            Err(_) => Err(format!("expected {}, found `{text}`", Self::EXPECTING).into()),
        }
    }
}

impl_shorthand!(Blocks);

impl JsonSchema for Blocks {
    fn schema_name() -> Cow<'static, str> {
        "Blocks".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}],
        })
    }
}

/// How many instances a fleet has. Written as a count, a range or a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetNodes {
    /// The least number, which is kept up.
    pub min: u32,
    /// How many are created at first; from `min` to `max`.
    pub target: u32,
    /// The largest number; null is no limit.
    pub max: Option<u32>,
}

impl FleetNodes {
    const FORMS: &'static str = "a count such as `2`, a range such as `0..4`, or a mapping";

    /// Builds it of its parts, `target` being `min` unless given, or says which rule is broken.
    pub fn new(min: i64, target: Option<i64>, max: Option<i64>) -> Result<Self, String> {
        let target = target.unwrap_or(min);
        let number = |key: &str, value: i64| {
            u32::try_from(value)
                .map_err(|_| format!("`{key}` of the nodes cannot be `{value}`: it must be 0 or more"))
        };
        let nodes = FleetNodes {
            min: number("min", min)?,
            target: number("target", target)?,
            max: max.map(|max| number("max", max)).transpose()?,
        };
        if nodes.target < nodes.min {
            return Err(format!("`target` ({target}) must not be less than `min` ({min})"));
        }
        match nodes.max {
            Some(max) if max < nodes.min => Err(format!("`max` ({max}) must not be less than `min` ({min})")),
            Some(max) if max < nodes.target => {
                Err(format!("`max` ({max}) must not be less than `target` ({target})"))
            }
            _ => Ok(nodes),
        }
    }
}

// Clients of before `target` know only its default, so it is left out when it is that.
impl Serialize for FleetNodes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let has_target = self.target != self.min;
        let mut nodes = serializer.serialize_struct("FleetNodes", 2 + usize::from(has_target))?;
        nodes.serialize_field("min", &self.min)?;
        if has_target {
            nodes.serialize_field("target", &self.target)?;
        } else {
            nodes.skip_field("target")?;
        }
        nodes.serialize_field("max", &self.max)?;
        nodes.end()
    }
}

impl Shorthand for FleetNodes {
    const EXPECTING: &'static str = Self::FORMS;

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Ok(FleetNodes::new(value, None, Some(value))?)
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let compact = without_spaces(text);
        let number = |part: &str| -> Result<i64, Refusal> {
            part.parse().map_err(|_| format!("expected {}, found `{text}`", Self::FORMS).into())
        };
        let Some((min, max)) = compact.split_once("..") else {
            return Self::from_integer(number(&compact)?);
        };
        if min.is_empty() && max.is_empty() {
            return Err("the range `..` needs a number on at least one side".into());
        }
        let min = if min.is_empty() { 0 } else { number(min)? };
        let max = if max.is_empty() { None } else { Some(number(max)?) };
        Ok(FleetNodes::new(min, None, max)?)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let NodesFields { min, target, max } = shorthand::fields(map)?;
        FleetNodes::new(min.unwrap_or(0), target, max).map_err(A::Error::custom)
    }
}

impl_shorthand!(FleetNodes);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NodesFields {
    #[serde(default)]
    min: Option<i64>,
    #[serde(default)]
    target: Option<i64>,
    #[serde(default)]
    max: Option<i64>,
}

impl JsonSchema for FleetNodes {
    fn schema_name() -> Cow<'static, str> {
        "FleetNodes".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mapping = NodesFields::json_schema(generator);
        json_schema!({
            "description": Self::FORMS,
            "anyOf": [mapping, {"type": "integer", "minimum": 0}, {"type": "string"}],
        })
    }
}
