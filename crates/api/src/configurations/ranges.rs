//! Ranges such as `2..8`, `8GB..` or `..4`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};

use super::shorthand::{self, Refusal, Shorthand};

/// A closed range; a bound that is not there is open. At least one of them is.
///
/// Written as a single value, `a..b`, `a..`, `..b` or `{min, max}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range<T> {
    /// The smallest value inside.
    pub min: Option<T>,
    /// The largest value inside.
    pub max: Option<T>,
}

impl<T: Copy + PartialOrd> Range<T> {
    /// From `min` up.
    pub fn at_least(min: T) -> Self {
        Range { min: Some(min), max: None }
    }

    /// Only `value`.
    pub fn exactly(value: T) -> Self {
        Range { min: Some(value), max: Some(value) }
    }

    /// From `min` to `max`, both inside.
    pub fn between(min: T, max: T) -> Self {
        Range { min: Some(min), max: Some(max) }
    }

    /// Whether `value` lies inside.
    pub fn contains(&self, value: T) -> bool {
        self.min.is_none_or(|min| min <= value) && self.max.is_none_or(|max| value <= max)
    }

    /// Whether only one value lies inside.
    pub fn is_single(&self) -> bool {
        self.min.is_some() && self.min == self.max
    }

    /// The values inside both, if any.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let larger = |a: T, b: T| if a < b { b } else { a };
        let smaller = |a: T, b: T| if a < b { a } else { b };
        let merge = |a: Option<T>, b: Option<T>, pick: &dyn Fn(T, T) -> T| match (a, b) {
            (Some(a), Some(b)) => Some(pick(a, b)),
            (a, b) => a.or(b),
        };
        let min = merge(self.min, other.min, &larger);
        let max = merge(self.max, other.max, &smaller);
        let is_empty = matches!((min, max), (Some(min), Some(max)) if max < min);
        (!is_empty).then_some(Range { min, max })
    }
}

impl<T: PartialEq + fmt::Display> fmt::Display for Range<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.min, &self.max) {
            (Some(min), Some(max)) if min == max => write!(f, "{min}"),
            (Some(min), Some(max)) => write!(f, "{min}..{max}"),
            (Some(min), None) => write!(f, "{min}.."),
            (None, Some(max)) => write!(f, "..{max}"),
            (None, None) => f.write_str(".."),
        }
    }
}

/// What can bound a [`Range`].
pub(crate) trait Bound: Copy + PartialOrd + fmt::Display + for<'de> Deserialize<'de> {
    /// What a range of these may be written as, for "expected …".
    const EXPECTING: &'static str;
    /// The name of the range in schemas.
    const SCHEMA_NAME: &'static str;

    fn from_text(text: &str) -> Result<Self, Refusal>;
    fn from_integer(value: i64) -> Result<Self, Refusal>;
    fn from_number(value: f64) -> Result<Self, Refusal>;
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

impl Bound for u32 {
    const EXPECTING: &'static str = "a count such as `2` or a range such as `2..8`, `2..` or `..8`";
    const SCHEMA_NAME: &'static str = "CountRange";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        text.parse().map_err(|_| format!("expected {}, found `{text}`", Self::EXPECTING).into())
    }

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        u32::try_from(value).map_err(|_| format!("expected {}, found `{value}`", Self::EXPECTING).into())
    }

    fn from_number(_value: f64) -> Result<Self, Refusal> {
        Err(Refusal::WrongKind)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<u32>()
    }
}

/// Builds a range of two bounds, or says why there is none.
fn bounded<T: Bound>(min: Option<T>, max: Option<T>) -> Result<Range<T>, String> {
    match (min, max) {
        (None, None) => Err("a range needs `min` or `max`".to_owned()),
        (Some(min), Some(max)) if max < min => Err(format!("the range `{min}..{max}` ends before it starts")),
        (min, max) => Ok(Range { min, max }),
    }
}

impl<T: Bound> Shorthand for Range<T> {
    const EXPECTING: &'static str = T::EXPECTING;

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        T::from_integer(value).map(Range::exactly)
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        T::from_number(value).map(Range::exactly)
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let text = without_spaces(text);
        let Some((min, max)) = text.split_once("..") else {
            return T::from_text(&text).map(Range::exactly);
        };
        let bound = |text: &str| -> Result<Option<T>, Refusal> {
            if text.is_empty() { Ok(None) } else { T::from_text(text).map(Some) }
        };
        if min.is_empty() && max.is_empty() {
            return Err("the range `..` needs a number on at least one side".into());
        }
        Ok(bounded(bound(min)?, bound(max)?)?)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let bounds: Bounds<T> = shorthand::fields(map)?;
        bounded(bounds.min, bounds.max).map_err(A::Error::custom)
    }
}

/// The mapping form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound = "T: Bound")]
struct Bounds<T> {
    #[serde(default)]
    min: Option<T>,
    #[serde(default)]
    max: Option<T>,
}

impl<'de, T: Bound> Deserialize<'de> for Range<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        shorthand::parse(deserializer)
    }
}

impl<T: Bound> JsonSchema for Range<T> {
    fn schema_name() -> Cow<'static, str> {
        T::SCHEMA_NAME.into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bound = T::schema(generator);
        json_schema!({
            "description": T::EXPECTING,
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "min": {"anyOf": [bound, {"type": "null"}]},
                        "max": {"anyOf": [bound, {"type": "null"}]},
                    },
                    "additionalProperties": false,
                },
                {"type": "number", "minimum": 0},
                {"type": "string"},
            ],
        })
    }
}

/// People align things; no shorthand means anything by a space.
pub(crate) fn without_spaces(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}
