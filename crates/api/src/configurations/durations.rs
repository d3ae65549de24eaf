//! Durations, in whole seconds on the wire and with a unit where people write them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::shorthand::{Refusal, Shorthand, impl_shorthand};

const FORMS: &str = "a duration such as `90s`, `5m`, `2h`, `1d` or `1w`";

/// A duration in seconds. Written as a number of seconds or as a number with `s`, `m`, `h`, `d` or
/// `w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Seconds(pub i64);

impl Seconds {
    /// Reads a duration; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refusal = || format!("expected {FORMS}, found `{text}`");
        let trimmed = text.trim();
        if let Ok(seconds) = trimmed.parse() {
            return Ok(Seconds(seconds));
        }
        let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 604_800)];
        let (number, factor) = units
            .iter()
            .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, *factor)))
            .ok_or_else(refusal)?;
        let number = number.trim_end();
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refusal());
        }
        let seconds = number.parse::<i64>().ok().and_then(|number| number.checked_mul(factor));
        seconds.map(Seconds).ok_or_else(refusal)
    }

    /// The duration for the standard library; a negative one is zero.
    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0.max(0) as u64)
    }

    fn not_negative(self) -> Result<Self, String> {
        if self.0 < 0 {
            return Err(format!("a duration cannot be negative, found `{}`", self.0));
        }
        Ok(self)
    }
}

impl Shorthand for Seconds {
    const EXPECTING: &'static str = FORMS;

    // The official reader counts `true` as 1 second.
    fn from_bool(value: bool) -> Result<Self, Refusal> {
        Ok(Seconds(value.into()))
    }

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Ok(Seconds(value))
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        Ok(Seconds(value as i64))
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(Seconds::parse(text)?)
    }
}

impl_shorthand!(Seconds);

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": FORMS,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
        })
    }
}

/// A limit that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OffDuration {
    /// There is no limit.
    Off,
    /// The limit in seconds, not negative.
    Seconds(i64),
}

impl OffDuration {
    /// The limit in seconds, if there is one.
    pub fn seconds(self) -> Option<i64> {
        match self {
            OffDuration::Off => None,
            OffDuration::Seconds(seconds) => Some(seconds),
        }
    }
}

impl Serialize for OffDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OffDuration::Off => serializer.serialize_str("off"),
            OffDuration::Seconds(seconds) => serializer.serialize_i64(*seconds),
        }
    }
}

impl JsonSchema for OffDuration {
    fn schema_name() -> Cow<'static, str> {
        "OffDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "a duration such as `5m`, or `off`; true is the same as leaving it out",
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "boolean"}],
        })
    }
}

/// What a duration field that can be switched off says.
enum Switchable {
    Unset,
    Off,
    Seconds(Seconds),
}

impl Shorthand for Switchable {
    const EXPECTING: &'static str = "a duration such as `90s`, `5m`, `2h`, `1d` or `1w`, or `off`";

    fn from_null() -> Result<Self, Refusal> {
        Ok(Switchable::Unset)
    }

    fn from_bool(value: bool) -> Result<Self, Refusal> {
        Ok(if value { Switchable::Unset } else { Switchable::Off })
    }

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Ok(Switchable::Seconds(Seconds(value)))
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        Ok(Switchable::Seconds(Seconds(value as i64)))
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        if text == "off" {
            return Ok(Switchable::Off);
        }
        let seconds = Seconds::parse(text).map_err(|_| format!("expected {}, found `{text}`", Self::EXPECTING))?;
        Ok(Switchable::Seconds(seconds))
    }
}

impl_shorthand!(Switchable);

/// Reads `max_duration` and `stop_duration`.
pub(crate) fn off_or_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OffDuration>, D::Error> {
    match Switchable::deserialize(deserializer)? {
        Switchable::Unset => Ok(None),
        Switchable::Off => Ok(Some(OffDuration::Off)),
        Switchable::Seconds(seconds) => {
            let Seconds(seconds) = seconds.not_negative().map_err(serde::de::Error::custom)?;
            Ok(Some(OffDuration::Seconds(seconds)))
        }
    }
}

/// Reads `idle_duration` and `auto_cleanup_duration`, where a negative number is "never".
pub(crate) fn never_or_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Seconds>, D::Error> {
    Ok(match Switchable::deserialize(deserializer)? {
        Switchable::Unset => None,
        Switchable::Off => Some(Seconds(-1)),
        Switchable::Seconds(seconds) => Some(seconds),
    })
}

/// Reads `inactivity_duration`, where off is the same as nothing.
pub(crate) fn seconds_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Seconds>, D::Error> {
    match Switchable::deserialize(deserializer)? {
        Switchable::Unset | Switchable::Off => Ok(None),
        Switchable::Seconds(seconds) => seconds.not_negative().map(Some).map_err(serde::de::Error::custom),
    }
}
