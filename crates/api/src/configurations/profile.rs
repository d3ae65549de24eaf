//! Profiles: where and how long to run, and what it may cost. Every run configuration has the same
//! keys, which win over those of the profile.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::checked::{Check, checked, constant};
use super::durations::Seconds;
use super::references::InstanceSelector;
use super::shorthand;

/// Declares a configuration struct with the keys of [`ProfileParams`] added to its own.
///
/// Serde's `flatten` would do it in one line, and lose the line numbers of every error.
macro_rules! with_profile_keys {
    ($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        $crate::configurations::checked::checked! {
            $(#[$meta])*
            pub struct $name {
                $($fields)*
                /// The backends to consider; null is all.
                #[serde(default)]
                pub backends: Option<Vec<crate::backends::BackendType>>,
                /// The regions to consider, compared without case; null is all.
                #[serde(default)]
                pub regions: Option<Vec<String>>,
                /// The availability zones to consider, compared without case; null is all.
                #[serde(default)]
                pub availability_zones: Option<Vec<String>>,
                /// The instance types to consider, compared without case; null is all.
                #[serde(default)]
                pub instance_types: Option<Vec<String>>,
                /// The reservation, capacity block or reservation group to use.
                #[serde(default)]
                pub reservation: Option<String>,
                /// Whether to use spot instances; null is `on-demand`.
                #[serde(default)]
                pub spot_policy: Option<$crate::configurations::SpotPolicy>,
                /// When to try again; null is never.
                #[serde(default)]
                pub retry: Option<$crate::configurations::ProfileRetry>,
                /// How long a job may run; null and off are forever.
                #[serde(default, deserialize_with = "crate::configurations::durations::off_or_seconds")]
                pub max_duration: Option<$crate::configurations::OffDuration>,
                /// How long a job may take to stop; null is 5 minutes.
                #[serde(default, deserialize_with = "crate::configurations::durations::off_or_seconds")]
                pub stop_duration: Option<$crate::configurations::OffDuration>,
                /// The price limit in USD per hour and instance.
                #[serde(default, deserialize_with = "crate::configurations::shorthand::optional_positive")]
                pub max_price: Option<f64>,
                /// Whether new instances may be created; null is `reuse-or-create`.
                #[serde(default)]
                pub creation_policy: Option<$crate::configurations::CreationPolicy>,
                /// How long an instance stays without a job; negative is forever, null is the
                /// default of the place.
                #[serde(default, deserialize_with = "crate::configurations::durations::never_or_seconds")]
                pub idle_duration: Option<$crate::configurations::Seconds>,
                /// When to stop a run that leaves its GPUs unused.
                #[serde(default)]
                pub utilization_policy: Option<$crate::configurations::UtilizationPolicy>,
                /// The order in which the nodes of a task start; null is `any`.
                #[serde(default)]
                pub startup_order: Option<$crate::configurations::StartupOrder>,
                /// When a task counts as done; null is `all-done`.
                #[serde(default)]
                pub stop_criteria: Option<$crate::configurations::StopCriteria>,
                /// When to start the run, again and again.
                #[serde(default)]
                pub schedule: Option<$crate::configurations::Schedule>,
                /// The fleets to consider; null is all.
                #[serde(default)]
                pub fleets: Option<Vec<$crate::configurations::EntityReference>>,
                /// The existing instances to consider; null is all.
                #[serde(
                    default,
                    deserialize_with = "crate::configurations::profile::optional_instances"
                )]
                pub instances: Option<Vec<$crate::configurations::InstanceSelector>>,
                /// Tags of the resources that are created at the cloud.
                #[serde(default, deserialize_with = "crate::configurations::profile::optional_tags")]
                pub tags: Option<std::collections::BTreeMap<String, String>>,
                /// Options of single backends.
                #[serde(
                    default,
                    deserialize_with = "crate::configurations::profile::optional_backend_options"
                )]
                pub backend_options: Option<Vec<$crate::configurations::BackendOptions>>,
            }
        }

        impl $name {
            /// A copy of the keys that every profile has.
            pub fn profile_params(&self) -> $crate::configurations::ProfileParams {
                $crate::configurations::profile::profile_keys!(copy(self))
            }

            /// Replaces the keys that every profile has.
            pub fn set_profile_params(&mut self, params: $crate::configurations::ProfileParams) {
                $crate::configurations::profile::profile_keys!(assign(self, params));
            }
        }
    };
}
pub(crate) use with_profile_keys;

/// Writes code for each of the profile's keys, so that they are listed once.
macro_rules! profile_keys {
    ($mode:ident $arguments:tt) => {
        $crate::configurations::profile::profile_keys! {
            @$mode $arguments
            backends regions availability_zones instance_types reservation spot_policy retry
            max_duration stop_duration max_price creation_policy idle_duration utilization_policy
            startup_order stop_criteria schedule fleets instances tags backend_options
        }
    };
    (@copy($from:expr) $($key:ident)+) => {
        $crate::configurations::ProfileParams { $($key: Clone::clone(&$from.$key),)+ }
    };
    (@assign($to:expr, $from:expr) $($key:ident)+) => {
        $($to.$key = $from.$key;)+
    };
    (@merge($first:expr, $second:expr) $($key:ident)+) => {
        ProfileParams { $($key: $first.$key.or_else(|| Clone::clone(&$second.$key)),)+ }
    };
}
pub(crate) use profile_keys;

with_profile_keys! {
    /// The keys that profiles and run configurations share.
    #[derive(Default)]
    pub struct ProfileParams {}
}

with_profile_keys! {
    /// A named set of defaults.
    #[derive(Default)]
    pub struct Profile {
        /// The name; empty on the wire when no profile is used.
        #[serde(default)]
        pub name: String,
        /// Whether it is used when the user names none.
        #[serde(default)]
        pub default: bool,
    }
}

checked! {
    /// The file `profiles.yml`.
    #[derive(Default)]
    pub struct ProfilesFile {
        /// The profiles.
        #[serde(default)]
        pub profiles: Vec<Profile>,
    }
}

impl Check for ProfileParams {}

impl Check for Profile {}

impl Check for ProfilesFile {
    fn check(&mut self) -> Result<(), String> {
        for (index, profile) in self.profiles.iter().enumerate() {
            let before = &self.profiles[..index];
            if profile.name.is_empty() {
                return Err(format!("`profiles[{index}].name` must be set"));
            }
            if before.iter().any(|other| other.name == profile.name) {
                return Err(format!("`profiles[{index}].name`: `{}` is taken by another profile", profile.name));
            }
            if profile.default && before.iter().any(|other| other.default) {
                return Err(format!("`profiles[{index}].default`: only one profile can be the default"));
            }
        }
        Ok(())
    }
}

impl ProfilesFile {
    /// The profile of this name.
    pub fn get(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.name == name)
    }

    /// The profile that is used when the user names none.
    pub fn default_profile(&self) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.default)
    }
}

/// What holds for a run: each key of `configuration`, or that of `profile` where it is null.
pub fn merged_params(configuration: ProfileParams, profile: Option<&Profile>) -> ProfileParams {
    let Some(profile) = profile else {
        return configuration;
    };
    profile_keys!(merge(configuration, profile))
}

/// Which instances of a cloud to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpotPolicy {
    /// Those that the cloud may take back.
    Spot,
    /// Those that stay.
    OnDemand,
    /// Both; the cheaper first.
    Auto,
}

/// Whether a run may create instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CreationPolicy {
    /// No: it waits for none and fails.
    Reuse,
    /// Yes, where no idle instance suits.
    ReuseOrCreate,
}

/// The order in which the nodes of a task start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartupOrder {
    /// Together.
    Any,
    /// Node 0 runs before the others start.
    MasterFirst,
    /// The others run before node 0 starts.
    WorkersFirst,
}

/// When a task counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StopCriteria {
    /// When all nodes are.
    AllDone,
    /// When node 0 is.
    MasterDone,
}

checked! {
    /// Stops a run whose GPUs are all used less than this for a whole window.
    #[derive(Eq)]
    pub struct UtilizationPolicy {
        /// The least use in percent, 0 to 100.
        #[serde(deserialize_with = "shorthand::integer::<_, _, 0, 100>")]
        pub min_gpu_utilization: u8,
        /// The window in seconds, at least 5 minutes.
        pub time_window: Seconds,
    }
}

impl Check for UtilizationPolicy {
    fn check(&mut self) -> Result<(), String> {
        let Seconds(window) = self.time_window;
        if window < MIN_TIME_WINDOW {
            return Err(format!("`time_window` must be at least `5m`, found {window} seconds"));
        }
        Ok(())
    }
}

const MIN_TIME_WINDOW: i64 = 300;

constant! {
    /// The backend whose options these are.
    pub struct VastAiType = "vastai";
}

/// The order in which a backend's offers are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VastAiOfferOrder {
    /// Best rated first.
    Score,
    /// Cheapest first.
    Price,
}

checked! {
    /// Options of one backend; `vastai` is the only one that has any.
    pub struct BackendOptions {
        /// The backend.
        #[serde(rename = "type", default)]
        pub backend: VastAiType,
        /// The order in which offers are tried.
        #[serde(default)]
        pub offer_order: Option<VastAiOfferOrder>,
        /// The least reliability, 0 to 1.
        #[serde(default)]
        pub min_reliability: Option<f64>,
        /// The least score.
        #[serde(default, deserialize_with = "shorthand::optional_integer::<_, _, 0, { i64::MAX }>")]
        pub min_score: Option<u64>,
    }
}

impl Check for BackendOptions {
    fn check(&mut self) -> Result<(), String> {
        match self.min_reliability {
            Some(reliability) if !(0.0..=1.0).contains(&reliability) => {
                Err(format!("`min_reliability` must be from 0 to 1, found `{reliability}`"))
            }
            _ => Ok(()),
        }
    }
}

/// Reads `backend_options`, at most one per backend.
pub(crate) fn optional_backend_options<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<BackendOptions>>, D::Error> {
    let options = Option::<Vec<BackendOptions>>::deserialize(deserializer)?;
    if options.as_ref().is_some_and(|options| 1 < options.len()) {
        return Err(D::Error::custom("`backend_options` has more than one entry for `vastai`"));
    }
    Ok(options)
}

/// Reads `instances`, which names at least one if it is there.
pub(crate) fn optional_instances<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<InstanceSelector>>, D::Error> {
    let instances = Option::<Vec<InstanceSelector>>::deserialize(deserializer)?;
    if instances.as_ref().is_some_and(Vec::is_empty) {
        return Err(D::Error::custom("`instances` must not be an empty list"));
    }
    Ok(instances)
}

/// Reads `tags`: `^[_\-a-zA-Z0-9]{1,60}$` to `^[a-zA-Z0-9 .:/=_\-+@]{0,256}$`.
pub(crate) fn optional_tags<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let tags = Option::<BTreeMap<String, String>>::deserialize(deserializer)?;
    for (key, value) in tags.iter().flatten() {
        check_tag(key, value).map_err(D::Error::custom)?;
    }
    Ok(tags)
}

fn check_tag(key: &str, value: &str) -> Result<(), String> {
    let is_key =
        (1..=60).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if !is_key {
        return Err(format!("the tag key `{key}` must be 1 to 60 letters, digits, `_` and `-`"));
    }
    let is_value =
        value.len() <= 256 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b" .:/=_-+@".contains(&b));
    if !is_value {
        return Err(format!(
            "the value of the tag `{key}` must be at most 256 letters, digits, spaces and `.:/=_-+@`"
        ));
    }
    Ok(())
}
