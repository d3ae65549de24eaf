//! Environment variables.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, SeqAccess};
use serde::{Deserialize, Serialize, Serializer};

use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// Variables by name.
///
/// Written as a mapping or as a list of `NAME=value`, `NAME=` or `NAME`. The last takes the value
/// that the user has where the configuration is applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Env(pub BTreeMap<String, EnvValue>);

/// The value of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// This text, in which `${{ secrets.X }}` is replaced when the job starts.
    Text(String),
    /// The value that the variable of this name has where the configuration is applied. The client
    /// replaces it; the server knows no such value.
    FromCaller(String),
}

impl Env {
    /// The text of a variable, if it is known.
    pub fn get(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            EnvValue::Text(text) => Some(text),
            EnvValue::FromCaller(_) => None,
        }
    }

    /// The names whose values only the caller has.
    pub fn from_caller(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter_map(|value| match value {
            EnvValue::Text(_) => None,
            EnvValue::FromCaller(key) => Some(key.as_str()),
        })
    }

    /// The variables whose text is known.
    pub fn known(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, value)| match value {
            EnvValue::Text(text) => Some((name.as_str(), text.as_str())),
            EnvValue::FromCaller(_) => None,
        })
    }

    /// Adds what a `NAME=value` or `NAME` says, and answers whether the name was new.
    pub fn add(&mut self, line: &str) -> Result<bool, String> {
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, EnvValue::Text(value.to_owned())),
            None => (line, EnvValue::FromCaller(line.to_owned())),
        };
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_name {
            return Err(format!(
                "expected `NAME=value` or `NAME`, a name being letters, digits and `_`, found `{line}`"
            ));
        }
        Ok(self.0.insert(name.to_owned(), value).is_none())
    }
}

impl Shorthand for Env {
    const EXPECTING: &'static str = "a mapping, or a list of `NAME=value` or `NAME`";

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut env = Env::default();
        while let Some(EnvLine(line)) = list.next_element()? {
            if !env.add(&line).map_err(A::Error::custom)? {
                return Err(A::Error::custom(format!("`{line}` sets a variable a second time")));
            }
        }
        Ok(env)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        shorthand::fields(map).map(Env)
    }
}

impl_shorthand!(Env);

/// An item of the list form.
struct EnvLine(String);

impl Shorthand for EnvLine {
    const EXPECTING: &'static str = "`NAME=value` or `NAME`";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Env::default().add(text)?;
        Ok(EnvLine(text.to_owned()))
    }
}

impl_shorthand!(EnvLine);

impl Serialize for EnvValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            EnvValue::Text(text) => serializer.serialize_str(text),
            EnvValue::FromCaller(key) => CallerKey { key: key.clone() }.serialize(serializer),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CallerKey {
    key: String,
}

impl Shorthand for EnvValue {
    const EXPECTING: &'static str = "text (put quotes around `true`, `no` or an empty value)";
    const NUMBERS_AS_WRITTEN: bool = true;

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Ok(EnvValue::Text(value.to_string()))
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        Ok(EnvValue::Text(format!("{value:?}")))
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(EnvValue::Text(text.to_owned()))
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let CallerKey { key } = shorthand::fields(map)?;
        Ok(EnvValue::FromCaller(key))
    }
}

impl_shorthand!(EnvValue);

impl JsonSchema for Env {
    fn schema_name() -> Cow<'static, str> {
        "Env".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [
                {
                    "type": "object",
                    "additionalProperties": {"anyOf": [
                        {"type": ["string", "number"]},
                        {
                            "type": "object",
                            "properties": {"key": {"type": "string"}},
                            "required": ["key"],
                            "additionalProperties": false,
                        },
                    ]},
                },
                {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*(=.*)?$"},
                },
            ],
        })
    }
}
