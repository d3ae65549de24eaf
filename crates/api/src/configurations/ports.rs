//! Ports of a container and the local ports that lead to them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};

use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// A port of the container. Written as `8000`, `80:8000` (local first) or `*:8000` (any local port).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct PortMapping {
    /// The port on the user's machine; null is any free one.
    pub local_port: Option<u16>,
    /// The port inside.
    pub container_port: u16,
}

fn parse_port(value: i64) -> Result<u16, String> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("a port is a number from 1 to 65535, found `{value}`")),
    }
}

impl PortMapping {
    /// Reads the text form; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = |part: &str| -> Result<u16, String> {
            let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if !is_number {
                return Err(format!("expected {}, found `{text}`", Self::EXPECTING));
            }
            parse_port(part.parse().unwrap_or(i64::MAX))
        };
        let Some((local, container)) = text.split_once(':') else {
            let port = number(text.trim())?;
            return Ok(PortMapping { local_port: Some(port), container_port: port });
        };
        let local_port = if local == "*" { None } else { Some(number(local)?) };
        Ok(PortMapping { local_port, container_port: number(container)? })
    }
}

impl Shorthand for PortMapping {
    const EXPECTING: &'static str = "a port such as `8000`, `80:8000` or `*:8000`";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        let port = parse_port(value)?;
        Ok(PortMapping { local_port: Some(port), container_port: port })
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(PortMapping::parse(text)?)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let fields: PortFields = shorthand::fields(map)?;
        let local_port = fields.local_port.map(parse_port).transpose().map_err(A::Error::custom)?;
        let container_port = parse_port(fields.container_port).map_err(A::Error::custom)?;
        Ok(PortMapping { local_port, container_port })
    }
}

impl_shorthand!(PortMapping);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortFields {
    #[serde(default)]
    local_port: Option<i64>,
    container_port: i64,
}

/// Reads the port of a service, which leads from 80 unless it says otherwise.
pub(crate) fn service_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortMapping, D::Error> {
    Ok(ServicePort::deserialize(deserializer)?.0)
}

struct ServicePort(PortMapping);

impl ServicePort {
    fn from_80(port: PortMapping) -> Self {
        ServicePort(PortMapping { local_port: Some(80), ..port })
    }
}

impl Shorthand for ServicePort {
    const EXPECTING: &'static str = "a port such as `8000` or `80:8000`";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        PortMapping::from_integer(value).map(Self::from_80)
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let mapping = PortMapping::parse(text)
            .ok()
            .filter(|mapping| mapping.local_port.is_some())
            .ok_or_else(|| format!("expected {}, found `{text}`", Self::EXPECTING))?;
        let is_plain = !text.contains(':');
        Ok(if is_plain { Self::from_80(mapping) } else { ServicePort(mapping) })
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        PortMapping::from_map(map).map(ServicePort)
    }
}

impl_shorthand!(ServicePort);

impl JsonSchema for PortMapping {
    fn schema_name() -> Cow<'static, str> {
        "PortMapping".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let port = json_schema!({"type": "integer", "minimum": 1, "maximum": 65535});
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "local_port": {"anyOf": [port, {"type": "null"}]},
                        "container_port": port,
                    },
                    "required": ["container_port"],
                    "additionalProperties": false,
                },
                port,
                {"type": "string", "pattern": "^((?:[0-9]+|\\*):)?[0-9]+$"},
            ],
        })
    }
}
