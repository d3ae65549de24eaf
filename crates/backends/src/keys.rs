//! Reads what people write about a backend: an unknown key is an error that names the near miss, and a value
//! that does not fit is an error that names its key.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

/// How alike two names must be before one is suggested for the other.
const NEAR_MISS: f64 = 0.8;

/// A configuration whose keys are all known.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    kind: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// The keys of `config`, which may be `type` and those in `known`.
    pub(crate) fn of(kind: &'a str, config: &'a Value, known: &[&str]) -> Result<Keys<'a>> {
        let Value::Object(map) = config else {
            return Err(invalid(format!("the configuration of backend `{kind}` is not a mapping")));
        };
        let unknown = map.keys().find(|key| *key != "type" && !known.contains(&key.as_str()));
        if let Some(key) = unknown {
            let advice = match near_miss(key, known) {
                Some(near) => format!("; did you mean `{near}`?"),
                None if known.is_empty() => "; it has no keys but `type`".to_owned(),
                None => format!("; its keys are {}", quoted(known)),
            };
            return Err(invalid(format!("backend `{kind}` has no key `{key}`{advice}")));
        }
        Ok(Keys { kind, map })
    }

    /// The value of `key`, unless it was left out or is null.
    pub(crate) fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.map.get(key) else {
            return Ok(None);
        };
        let value = Option::<T>::deserialize(value);
        value.map_err(|error| self.refuse(key, &error.to_string()))
    }

    /// The error that the value of `key` does not fit, and why.
    pub(crate) fn refuse(&self, key: &str, why: &str) -> Error {
        invalid(format!("`{key}` of backend `{}`: {why}", self.kind))
    }
}

/// The name among `known` that was probably meant.
pub(crate) fn near_miss<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let name = name.to_lowercase();
    let likeness = |known: &str| strsim::jaro_winkler(&name, known);
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (NEAR_MISS <= likeness(best)).then_some(*best)
}

/// The names for a sentence.
pub(crate) fn quoted(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// A refusal of what was written.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidRequest, message)
}
