//! How a service follows its load, and how much of it a gateway lets through.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

use super::checked::{Check, checked, constant};
use super::durations::Seconds;
use super::shorthand::{self, Shorthand, impl_shorthand};

constant! {
    /// What replicas are counted by: requests per second.
    pub struct ScalingMetric = "rps";
}

checked! {
    /// How the number of replicas follows the load.
    pub struct ScalingSpec {
        /// What is measured.
        pub metric: ScalingMetric,
        /// The wanted value per replica.
        #[serde(deserialize_with = "shorthand::positive")]
        pub target: f64,
        /// The time over which it is measured: 30, 60 or 300 seconds; null is the shortest.
        #[serde(default)]
        pub window: Option<Seconds>,
        /// The least time from one change to the next one up, in seconds.
        #[serde(default = "default_scale_up_delay")]
        pub scale_up_delay: Seconds,
        /// The least time from one change to the next one down, in seconds.
        #[serde(default = "default_scale_down_delay")]
        pub scale_down_delay: Seconds,
    }
}

fn default_scale_up_delay() -> Seconds {
    Seconds(300)
}

fn default_scale_down_delay() -> Seconds {
    Seconds(600)
}

impl Check for ScalingSpec {
    fn check(&mut self) -> Result<(), String> {
        match self.window {
            None | Some(Seconds(30 | 60 | 300)) => Ok(()),
            Some(Seconds(other)) => Err(format!("`window` must be `30s`, `1m` or `5m`, found {other} seconds")),
        }
    }
}

/// The longest prefix that fits into a line of the web server's configuration.
const MAX_PREFIX_LENGTH: usize = 4094;
const MAX_HEADER_LENGTH: usize = 500;
/// The lowest rate: one request per minute.
const MIN_RPS: f64 = 1.0 / 60.0;
/// The highest rate that the official server takes.
const MAX_RPS: f64 = 153_722_867_280_912_930.0;

checked! {
    /// How many requests with a prefix a gateway lets through.
    pub struct RateLimit {
        /// The path prefix.
        #[serde(default = "default_prefix")]
        pub prefix: String,
        /// Who shares a limit.
        #[serde(default)]
        pub key: PartitioningKey,
        /// Requests per second.
        #[serde(deserialize_with = "shorthand::positive")]
        pub rps: f64,
        /// How many requests above that are let through at once.
        #[serde(default, deserialize_with = "shorthand::integer::<_, _, 0, { i64::MAX }>")]
        pub burst: u64,
    }
}

fn default_prefix() -> String {
    "/".to_owned()
}

impl Check for RateLimit {
    fn check(&mut self) -> Result<(), String> {
        let is_forbidden = |c: char| c.is_whitespace() || "\\{}".contains(c);
        let is_prefix = self.prefix.starts_with('/')
            && self.prefix.len() <= MAX_PREFIX_LENGTH
            && !self.prefix.contains(is_forbidden);
        if !is_prefix {
            return Err(format!(
                "`prefix` must start with `/` and have no spaces, `\\`, `{{` and `}}`, found `{}`",
                self.prefix
            ));
        }
        if !(MIN_RPS..=MAX_RPS).contains(&self.rps) {
            return Err(format!("`rps` must be at least 1/60, found `{}`", self.rps));
        }
        Ok(())
    }
}

pub(crate) fn check_rate_limits(limits: &[RateLimit]) -> Result<(), String> {
    for (index, limit) in limits.iter().enumerate() {
        if limits[..index].iter().any(|other| other.prefix == limit.prefix) {
            return Err(format!("`rate_limits[{index}].prefix`: `{}` is limited a second time", limit.prefix));
        }
    }
    Ok(())
}

/// Who shares a rate limit. Written as `{type: ip_address}` or `{type: header, header}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PartitioningKey {
    /// Requests from one address.
    #[default]
    IpAddress,
    /// Requests with the same value of a header.
    Header {
        /// The name of the header.
        header: String,
    },
}

impl Shorthand for PartitioningKey {
    const EXPECTING: &'static str = "`{type: ip_address}` or `{type: header, header: …}`";

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let KeyFields { kind, header } = shorthand::fields(map)?;
        match (kind.unwrap_or_default(), header) {
            (KeyType::IpAddress, None) => Ok(PartitioningKey::IpAddress),
            (KeyType::IpAddress, Some(_)) => Err(A::Error::custom("`header` is for `type: header`")),
            (KeyType::Header, None) => Err(A::Error::missing_field("header")),
            (KeyType::Header, Some(header)) => {
                let is_name = !header.is_empty()
                    && header.len() <= MAX_HEADER_LENGTH
                    && header.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
                if !is_name {
                    return Err(A::Error::custom(format!(
                        "`header` must be the name of a header, found `{header}`"
                    )));
                }
                Ok(PartitioningKey::Header { header })
            }
        }
    }
}

impl_shorthand!(PartitioningKey);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KeyFields {
    #[serde(rename = "type", default)]
    kind: Option<KeyType>,
    #[serde(default)]
    header: Option<String>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum KeyType {
    #[default]
    IpAddress,
    Header,
}

impl JsonSchema for PartitioningKey {
    fn schema_name() -> Cow<'static, str> {
        "PartitioningKey".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mapping = KeyFields::json_schema(generator);
        json_schema!({"description": Self::EXPECTING, "anyOf": [mapping]})
    }
}
