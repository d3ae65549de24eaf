//! References to fleets, gateways and instances by name.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// A named thing of this or another project. Written as `name`, `project/name` or a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct EntityReference {
    /// The project; null is the one of the run.
    pub project: Option<String>,
    /// The name.
    pub name: String,
}

impl EntityReference {
    /// Reads the text form; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (project, name) = match parts.as_slice() {
            [name] => (None, *name),
            [project, name] => (Some((*project).to_owned()), *name),
            _ => (None, ""),
        };
        let is_filled = !name.is_empty() && project.as_deref() != Some("");
        if !is_filled {
            return Err(format!("expected `name` or `project/name`, found `{text}`"));
        }
        Ok(EntityReference { project, name: name.to_owned() })
    }
}

impl fmt::Display for EntityReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.project {
            Some(project) => write!(f, "{project}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Shorthand for EntityReference {
    const EXPECTING: &'static str = "`name` or `project/name`";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(EntityReference::parse(text)?)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let ReferenceFields { project, name } = shorthand::fields(map)?;
        if name.is_empty() {
            return Err(A::Error::custom("`name` must not be empty"));
        }
        Ok(EntityReference { project, name })
    }
}

impl_shorthand!(EntityReference);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReferenceFields {
    #[serde(default)]
    project: Option<String>,
    name: String,
}

impl JsonSchema for EntityReference {
    fn schema_name() -> Cow<'static, str> {
        "EntityReference".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mapping = ReferenceFields::json_schema(generator);
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [mapping, {"type": "string"}],
        })
    }
}

/// One existing instance. Written as its name or as a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum InstanceSelector {
    /// By the name of the instance.
    Name {
        /// The name.
        name: String,
    },
    /// By its host name or address.
    Hostname {
        /// The host name or address.
        hostname: String,
    },
    /// By its number in a fleet.
    Fleet {
        /// The fleet.
        fleet: EntityReference,
        /// The number.
        instance: u32,
    },
}

impl Shorthand for InstanceSelector {
    const EXPECTING: &'static str =
        "the name of an instance, or a mapping with `name`, `hostname`, or `fleet` and `instance`";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        if text.is_empty() {
            return Err(Refusal::WrongKind);
        }
        Ok(InstanceSelector::Name { name: text.to_owned() })
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let SelectorFields { name, hostname, fleet, instance } = shorthand::fields(map)?;
        let is_filled = |text: &Option<String>| text.as_deref() != Some("");
        let selector = match (name, hostname, fleet, instance) {
            (name @ Some(_), None, None, None) if !is_filled(&name) => None,
            (None, hostname @ Some(_), None, None) if !is_filled(&hostname) => None,
            (Some(name), None, None, None) => Some(InstanceSelector::Name { name }),
            (None, Some(hostname), None, None) => Some(InstanceSelector::Hostname { hostname }),
            (None, None, Some(fleet), Some(instance)) => Some(InstanceSelector::Fleet { fleet, instance }),
            _ => None,
        };
        selector
            .ok_or_else(|| A::Error::custom("expected `name` alone, `hostname` alone, or `fleet` and `instance`"))
    }
}

impl_shorthand!(InstanceSelector);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SelectorFields {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    fleet: Option<EntityReference>,
    #[serde(default)]
    instance: Option<u32>,
}

impl JsonSchema for InstanceSelector {
    fn schema_name() -> Cow<'static, str> {
        "InstanceSelector".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mapping = SelectorFields::json_schema(generator);
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [mapping, {"type": "string", "minLength": 1}],
        })
    }
}
