//! What a job or an instance needs of a machine: CPUs, memory, disk. GPUs are in [`super::gpu`].

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

use super::checked::{Check, checked};
use super::gpu::GpuSpec;
use super::ranges::{Bound, Range, without_spaces};
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

checked! {
    /// What a job needs of the machine that it runs on.
    pub struct ResourcesSpec {
        /// CPUs: 2 or more when left out.
        #[serde(default)]
        pub cpu: CpuSpec,
        /// Memory in GB: 8 or more when left out.
        #[serde(default = "default_memory")]
        pub memory: Range<Memory>,
        /// The size of `/dev/shm` in GB.
        #[serde(default)]
        pub shm_size: Option<Memory>,
        /// GPUs: any number, none included, when left out. Null asks nothing.
        #[serde(default = "default_gpu")]
        pub gpu: Option<GpuSpec>,
        /// Disk: 100 GB or more when left out. Null asks nothing.
        #[serde(default = "default_disk")]
        pub disk: Option<DiskSpec>,
    }
}

impl Check for ResourcesSpec {}

impl Default for ResourcesSpec {
    fn default() -> Self {
        ResourcesSpec {
            cpu: CpuSpec::default(),
            memory: default_memory(),
            shm_size: None,
            gpu: default_gpu(),
            disk: default_disk(),
        }
    }
}

fn default_memory() -> Range<Memory> {
    Range::at_least(Memory(8.0))
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional field")]
fn default_gpu() -> Option<GpuSpec> {
    Some(GpuSpec { count: Range::at_least(0), ..GpuSpec::default() })
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional field")]
fn default_disk() -> Option<DiskSpec> {
    Some(DiskSpec { size: Range::at_least(Memory(100.0)) })
}

/// An amount of memory or disk in GB of 1024 MB.
///
/// Written as a number of GB or with a unit: `512MB`, `8GB`, `1.5TB`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Memory(pub f64);

impl Memory {
    const FORMS: &'static str = "an amount in GB such as `8`, `512MB`, `8GB` or `1.5TB`";

    /// Reads an amount; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let compact = without_spaces(text).to_lowercase();
        let units = [("tb", 1024.0), ("gb", 1.0), ("mb", 1.0 / 1024.0)];
        let (number, factor) = units
            .iter()
            .find_map(|(unit, factor)| Some((compact.strip_suffix(unit)?, *factor)))
            .unwrap_or((&compact, 1.0));
        // Rust reads `inf` and `nan` as numbers too.
        let is_number = number.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        match number.parse::<f64>() {
            Ok(number) if is_number && number.is_finite() => Ok(Memory(number * factor)),
            _ => Err(format!("expected {}, found `{text}`", Self::FORMS)),
        }
    }

    /// The amount in whole MB.
    pub fn mib(self) -> u64 {
        (self.0 * 1024.0).round() as u64
    }

    /// The amount of so many MB.
    pub fn from_mib(mib: u64) -> Self {
        Memory(mib as f64 / 1024.0)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if 0.0 < self.0 && self.0 < 1.0 {
            return write!(f, "{}MB", self.0 * 1024.0);
        }
        write!(f, "{}GB", self.0)
    }
}

impl Shorthand for Memory {
    const EXPECTING: &'static str = Self::FORMS;

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        <Self as Shorthand>::from_number(value as f64)
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        if value.is_finite() && 0.0 <= value {
            return Ok(Memory(value));
        }
        Err(format!("expected {}, found `{value}`", Self::FORMS).into())
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(Memory::parse(text)?)
    }
}

impl_shorthand!(Memory);

impl Bound for Memory {
    const EXPECTING: &'static str =
        "an amount in GB such as `8`, `512MB` or `1TB`, or a range such as `8GB..16GB` or `8GB..`";
    const SCHEMA_NAME: &'static str = "MemoryRange";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        <Self as Shorthand>::from_text(text)
    }

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        <Self as Shorthand>::from_integer(value)
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        <Self as Shorthand>::from_number(value)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Memory>()
    }
}

impl JsonSchema for Memory {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Memory".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": Self::FORMS,
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}],
        })
    }
}

/// The processor family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CpuArchitecture {
    /// 64-bit Intel and AMD.
    X86,
    /// 64-bit ARM.
    Arm,
}

impl CpuArchitecture {
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "x86" => Some(CpuArchitecture::X86),
            "arm" => Some(CpuArchitecture::Arm),
            _ => None,
        }
    }
}

impl Shorthand for CpuArchitecture {
    const EXPECTING: &'static str = "`x86` or `arm`";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        CpuArchitecture::parse(text).ok_or_else(|| Refusal::UnknownWord(text.to_owned(), &["x86", "arm"]))
    }
}

impl_shorthand!(CpuArchitecture);

/// CPUs: a count, an architecture or both.
///
/// Written as a count, a range, `arm`, `arm:4`, `{arch, count}` or, of old, `{min, max}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CpuSpec {
    /// The processor family; null is any.
    pub arch: Option<CpuArchitecture>,
    /// How many.
    pub count: Range<u32>,
}

impl Default for CpuSpec {
    fn default() -> Self {
        CpuSpec { arch: None, count: Range::at_least(2) }
    }
}

impl Shorthand for CpuSpec {
    const EXPECTING: &'static str = "a count, a range such as `4..`, an architecture, or both as in `arm:4..8`";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Ok(CpuSpec { arch: None, count: Range::from_integer(value)? })
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let (mut arch, mut count) = (None, None);
        for token in without_spaces(text).split(':') {
            if token.is_empty() {
                return Err(format!("the CPU specification `{text}` has an empty part").into());
            }
            let is_count = token.contains("..") || token.bytes().all(|b| b.is_ascii_digit());
            let is_repeated = if is_count {
                count.replace(Range::from_text(token)?).is_some()
            } else {
                let parsed = CpuArchitecture::parse(token)
                    .ok_or_else(|| format!("expected a count, `x86` or `arm`, found `{token}` in `{text}`"))?;
                arch.replace(parsed).is_some()
            };
            if is_repeated {
                let what = if is_count { "count" } else { "architecture" };
                return Err(format!("the CPU specification `{text}` has more than one {what}").into());
            }
        }
        Ok(CpuSpec { arch, count: count.unwrap_or(CpuSpec::default().count) })
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let fields: CpuFields = shorthand::fields(map)?;
        let bounds = fields.min.is_some() || fields.max.is_some();
        if !bounds {
            let count = fields.count.unwrap_or(CpuSpec::default().count);
            return Ok(CpuSpec { arch: fields.arch, count });
        }
        if fields.count.is_some() {
            return Err(A::Error::custom("`count` and `min`/`max` are mutually exclusive"));
        }
        if let (Some(min), Some(max)) = (fields.min, fields.max)
            && max < min
        {
            return Err(A::Error::custom(format!("`max` ({max}) must not be less than `min` ({min})")));
        }
        Ok(CpuSpec { arch: fields.arch, count: Range { min: fields.min, max: fields.max } })
    }
}

impl_shorthand!(CpuSpec);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CpuFields {
    #[serde(default)]
    arch: Option<CpuArchitecture>,
    #[serde(default)]
    count: Option<Range<u32>>,
    #[serde(default)]
    min: Option<u32>,
    #[serde(default)]
    max: Option<u32>,
}

impl JsonSchema for CpuSpec {
    fn schema_name() -> Cow<'static, str> {
        "CpuSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let arch = generator.subschema_for::<Option<CpuArchitecture>>();
        let count = generator.subschema_for::<Range<u32>>();
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"arch": arch, "count": count},
                    "additionalProperties": false,
                },
                {"type": "integer", "minimum": 0},
                {"type": "string"},
            ],
        })
    }
}

/// Disk space. Written as an amount, a range or `{size}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DiskSpec {
    /// The size in GB.
    pub size: Range<Memory>,
}

impl Shorthand for DiskSpec {
    const EXPECTING: &'static str = <Memory as Bound>::EXPECTING;

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Ok(DiskSpec { size: Range::from_integer(value)? })
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        Ok(DiskSpec { size: Range::from_number(value)? })
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(DiskSpec { size: Range::from_text(text)? })
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let DiskFields { size } = shorthand::fields(map)?;
        Ok(DiskSpec { size })
    }
}

impl_shorthand!(DiskSpec);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskFields {
    size: Range<Memory>,
}

impl JsonSchema for DiskSpec {
    fn schema_name() -> Cow<'static, str> {
        "DiskSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let size = generator.subschema_for::<Range<Memory>>();
        json_schema!({
            "description": "A size as in `100GB..`, or `{size}`",
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"size": size},
                    "required": ["size"],
                    "additionalProperties": false,
                },
                {"type": "number", "minimum": 0},
                {"type": "string"},
            ],
        })
    }
}
