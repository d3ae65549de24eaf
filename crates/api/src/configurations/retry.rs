//! When to try again.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::MapAccess;
use serde::{Deserialize, Serialize, Serializer};

use super::checked::{Check, checked};
use super::durations::Seconds;
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// What can be answered by a new try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryEvent {
    /// There was no machine.
    NoCapacity,
    /// The machine was taken away.
    Interruption,
    /// The job failed.
    Error,
}

impl RetryEvent {
    /// All of them.
    pub const ALL: [RetryEvent; 3] = [RetryEvent::NoCapacity, RetryEvent::Interruption, RetryEvent::Error];
}

/// How long to try again unless said otherwise, in seconds.
const DEFAULT_DURATION: i64 = 3600;

/// The `retry` key. Written as `true`, `false` or a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileRetry {
    /// After every event for an hour, or never.
    Enabled(bool),
    /// As the policy says.
    Policy(RetryPolicy),
}

checked! {
    /// When and how long to try again.
    #[derive(Eq)]
    pub struct RetryPolicy {
        /// The events to answer; null is all.
        #[serde(default)]
        pub on_events: Option<Vec<RetryEvent>>,
        /// How long; null is an hour.
        #[serde(default)]
        pub duration: Option<Seconds>,
    }
}

impl Check for RetryPolicy {
    fn check(&mut self) -> Result<(), String> {
        if self.on_events.as_ref().is_some_and(Vec::is_empty) {
            return Err("`on_events` must not be an empty list".to_owned());
        }
        Ok(())
    }
}

impl ProfileRetry {
    /// The events and the seconds with the defaults filled in, or nothing when it is off.
    pub fn resolve(&self) -> Option<(Vec<RetryEvent>, i64)> {
        match self {
            ProfileRetry::Enabled(false) => None,
            ProfileRetry::Enabled(true) => Some((RetryEvent::ALL.to_vec(), DEFAULT_DURATION)),
            ProfileRetry::Policy(policy) => {
                let events = policy.on_events.clone().unwrap_or_else(|| RetryEvent::ALL.to_vec());
                let duration = policy.duration.map_or(DEFAULT_DURATION, |Seconds(value)| value);
                Some((events, duration))
            }
        }
    }
}

impl Shorthand for ProfileRetry {
    const EXPECTING: &'static str = "`true`, `false` or a mapping with `on_events` and `duration`";

    fn from_bool(value: bool) -> Result<Self, Refusal> {
        Ok(ProfileRetry::Enabled(value))
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        shorthand::fields(map).map(ProfileRetry::Policy)
    }
}

impl_shorthand!(ProfileRetry);

impl Serialize for ProfileRetry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ProfileRetry::Enabled(enabled) => serializer.serialize_bool(*enabled),
            ProfileRetry::Policy(policy) => policy.serialize(serializer),
        }
    }
}

impl JsonSchema for ProfileRetry {
    fn schema_name() -> Cow<'static, str> {
        "ProfileRetry".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let policy = generator.subschema_for::<RetryPolicy>();
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [{"type": "boolean"}, policy],
        })
    }
}
