//! GPUs and other accelerators, as in `nvidia:H100,A100:80GB:8`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, SeqAccess};
use serde::{Deserialize, Serialize};

use super::ranges::{Range, without_spaces};
use super::resources::Memory;
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// Who makes an accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the variants are names of makers")]
pub enum AcceleratorVendor {
    Nvidia,
    Amd,
    Google,
    Intel,
    Tenstorrent,
}

const VENDOR_WORDS: &[&str] = &["nvidia", "amd", "google", "tpu", "intel", "tenstorrent", "tt"];

impl AcceleratorVendor {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            AcceleratorVendor::Nvidia => "nvidia",
            AcceleratorVendor::Amd => "amd",
            AcceleratorVendor::Google => "google",
            AcceleratorVendor::Intel => "intel",
            AcceleratorVendor::Tenstorrent => "tenstorrent",
        }
    }

    /// Reads a name or an alias (`tpu`, `tt`) in any case.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "nvidia" => Some(AcceleratorVendor::Nvidia),
            "amd" => Some(AcceleratorVendor::Amd),
            "google" | "tpu" => Some(AcceleratorVendor::Google),
            "intel" => Some(AcceleratorVendor::Intel),
            "tenstorrent" | "tt" => Some(AcceleratorVendor::Tenstorrent),
            _ => None,
        }
    }
}

impl fmt::Display for AcceleratorVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Shorthand for AcceleratorVendor {
    const EXPECTING: &'static str = "one of `nvidia`, `amd`, `google` (`tpu`), `intel`, `tenstorrent` (`tt`)";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        AcceleratorVendor::parse(text).ok_or_else(|| Refusal::UnknownWord(text.to_owned(), VENDOR_WORDS))
    }
}

impl_shorthand!(AcceleratorVendor);

/// GPUs, each of which has the wanted name, memory and capability.
///
/// Written as a count, as `:`-separated parts in any order (`H100:8`, `nvidia:24GB..:2..`) or as a
/// mapping.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuSpec {
    /// The maker; null is any.
    pub vendor: Option<AcceleratorVendor>,
    /// The models that will do, compared without case; null is any.
    pub name: Option<Vec<String>>,
    /// How many.
    pub count: Range<u32>,
    /// Memory of each GPU in GB.
    pub memory: Option<Range<Memory>>,
    /// Memory of all GPUs together in GB.
    pub total_memory: Option<Range<Memory>>,
    /// The least CUDA compute capability.
    pub compute_capability: Option<ComputeCapability>,
}

impl Default for GpuSpec {
    fn default() -> Self {
        GpuSpec {
            vendor: None,
            name: None,
            count: Range::at_least(1),
            memory: None,
            total_memory: None,
            compute_capability: None,
        }
    }
}

impl Shorthand for GpuSpec {
    const EXPECTING: &'static str = "a count, or parts such as `H100:8`, `24GB..`, `nvidia:A100,H100:80GB:1..4`";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Ok(GpuSpec { count: Range::from_integer(value)?, ..GpuSpec::default() })
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let (mut vendor, mut name, mut memory, mut count) = (None, None, None, None);
        for token in without_spaces(text).split(':') {
            if token.is_empty() {
                return Err(format!("the GPU specification `{text}` has an empty part").into());
            }
            let (what, is_repeated) = if let Some(parsed) = AcceleratorVendor::parse(token) {
                ("vendor", vendor.replace(parsed).is_some())
            } else if token.starts_with(|c: char| c.is_ascii_alphabetic()) {
                ("list of names", name.replace(parse_names(token)?).is_some())
            } else if token.contains(|c: char| c.is_ascii_alphabetic()) {
                ("memory size", memory.replace(Range::from_text(token)?).is_some())
            } else {
                ("count", count.replace(Range::from_text(token)?).is_some())
            };
            if is_repeated {
                return Err(format!("the GPU specification `{text}` has more than one {what}").into());
            }
        }
        let defaults = GpuSpec::default();
        Ok(GpuSpec { vendor, name, memory, count: count.unwrap_or(defaults.count), ..defaults })
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let fields: GpuFields = shorthand::fields(map)?;
        Ok(GpuSpec {
            vendor: fields.vendor,
            name: fields.name.map(|names| names.0),
            count: fields.count.unwrap_or(GpuSpec::default().count),
            memory: fields.memory,
            total_memory: fields.total_memory,
            compute_capability: fields.compute_capability,
        })
    }
}

impl_shorthand!(GpuSpec);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuFields {
    #[serde(default)]
    vendor: Option<AcceleratorVendor>,
    #[serde(default)]
    name: Option<GpuNames>,
    #[serde(default)]
    count: Option<Range<u32>>,
    #[serde(default)]
    memory: Option<Range<Memory>>,
    #[serde(default)]
    total_memory: Option<Range<Memory>>,
    #[serde(default)]
    compute_capability: Option<ComputeCapability>,
}

impl JsonSchema for GpuSpec {
    fn schema_name() -> Cow<'static, str> {
        "GpuSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let vendor = generator.subschema_for::<Option<AcceleratorVendor>>();
        let count = generator.subschema_for::<Range<u32>>();
        let memory = generator.subschema_for::<Option<Range<Memory>>>();
        let capability = generator.subschema_for::<Option<ComputeCapability>>();
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "vendor": vendor,
                        "name": {"anyOf": [
                            {"type": "array", "items": {"type": "string"}},
                            {"type": "string"},
                            {"type": "null"},
                        ]},
                        "count": count,
                        "memory": memory,
                        "total_memory": memory,
                        "compute_capability": capability,
                    },
                    "additionalProperties": false,
                },
                {"type": "integer", "minimum": 0},
                {"type": "string"},
            ],
        })
    }
}

/// Reads `A100,H100`.
fn parse_names(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<&str> = text.split(',').collect();
    clean_names(names.into_iter())
}

fn clean_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
    names
        .map(|name| {
            // `tpu-v5p-8` is how TPUs were written before vendors had a place of their own.
            let name = name.trim();
            let name = name.strip_prefix("tpu-").unwrap_or(name);
            if name.is_empty() {
                return Err("the list of GPU names has an empty name".to_owned());
            }
            Ok(name.to_owned())
        })
        .collect()
}

/// The `name` key: one name or a list of them.
struct GpuNames(Vec<String>);

impl Shorthand for GpuNames {
    const EXPECTING: &'static str = "a GPU name such as `H100`, or a list of them";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(GpuNames(parse_names(text)?))
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        let names: Vec<String> = shorthand::items(list)?;
        let names = clean_names(names.iter().map(String::as_str)).map_err(A::Error::custom)?;
        Ok(GpuNames(names))
    }
}

impl_shorthand!(GpuNames);

/// A CUDA compute capability, major and minor. Written as `7.5` or `[7, 5]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ComputeCapability(pub u32, pub u32);

impl Shorthand for ComputeCapability {
    const EXPECTING: &'static str = "a compute capability such as `7.5`";
    const NUMBERS_AS_WRITTEN: bool = true;

    fn from_number(value: f64) -> Result<Self, Refusal> {
        // `{:?}` keeps the `.0` of a whole number.
        Self::from_text(&format!("{value:?}"))
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let parts = text
            .split_once('.')
            .and_then(|(major, minor)| Some(ComputeCapability(major.parse().ok()?, minor.parse().ok()?)));
        parts.ok_or_else(|| format!("expected {}, found `{text}`", Self::EXPECTING).into())
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        let parts: Vec<u32> = shorthand::items(list)?;
        let &[major, minor] = parts.as_slice() else {
            return Err(A::Error::invalid_length(parts.len(), &"a list of 2 numbers"));
        };
        Ok(ComputeCapability(major, minor))
    }
}

impl_shorthand!(ComputeCapability);

impl JsonSchema for ComputeCapability {
    fn schema_name() -> Cow<'static, str> {
        "ComputeCapability".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [
                {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
                {"type": "number"},
                {"type": "string"},
            ],
        })
    }
}
