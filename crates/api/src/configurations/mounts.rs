//! What is mounted into a container: volumes and paths of the instance.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, SeqAccess};
use serde::{Deserialize, Serialize, Serializer};

use super::checked::{Check, checked};
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// A mount. Written as `volume:/path`, `/instance/path:/path` or as a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A volume.
    Volume(VolumeMount),
    /// A path of the instance.
    Instance(InstanceMount),
}

checked! {
    /// Mounts a volume.
    #[derive(Eq)]
    pub struct VolumeMount {
        /// The name, or several of which the first that suits the place is taken. May have
        /// `${{ dstack.node_rank }}` in it.
        pub name: VolumeNames,
        /// Where it appears in the container; absolute.
        pub path: String,
    }
}

checked! {
    /// Mounts a path of the instance.
    #[derive(Eq)]
    pub struct InstanceMount {
        /// The path on the instance; absolute.
        pub instance_path: String,
        /// Where it appears in the container; absolute.
        pub path: String,
        /// Whether the job runs without it where the instance has no such path.
        #[serde(default)]
        pub optional: bool,
    }
}

impl Check for VolumeMount {
    fn check(&mut self) -> Result<(), String> {
        if self.name.is_empty() {
            return Err("`name` needs the name of a volume".to_owned());
        }
        check_path("path", &self.path)
    }
}

impl Check for InstanceMount {
    fn check(&mut self) -> Result<(), String> {
        check_path("instance_path", &self.instance_path)?;
        check_path("path", &self.path)
    }
}

/// Checks a path for the container engine, which splits mounts at colons.
fn check_path(key: &str, path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("`{key}` must be an absolute path, found `{path}`"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("`{key}` must have no `..` in it, found `{path}`"));
    }
    if path.contains([':', '\0']) {
        return Err(format!("`{key}` must have no `:` in it, found `{path}`"));
    }
    Ok(())
}

impl Mount {
    /// Reads the text form; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (source, path) = text
            .split_once(':')
            .filter(|(source, path)| !source.is_empty() && !path.contains(':'))
            .ok_or_else(|| format!("expected {}, found `{text}`", Self::EXPECTING))?;
        let path = path.to_owned();
        if source.contains('/') {
            let instance_path = source.to_owned();
            let mut mount = InstanceMount { instance_path, path, optional: false };
            mount.check()?;
            return Ok(Mount::Instance(mount));
        }
        let mut mount = VolumeMount { name: VolumeNames::One(source.to_owned()), path };
        mount.check()?;
        Ok(Mount::Volume(mount))
    }

    /// Where it appears in the container.
    pub fn path(&self) -> &str {
        match self {
            Mount::Volume(mount) => &mount.path,
            Mount::Instance(mount) => &mount.path,
        }
    }
}

impl Shorthand for Mount {
    const EXPECTING: &'static str = "a mount such as `volume:/path` or `/instance/path:/path`, or a mapping";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(Mount::parse(text)?)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let fields: MountFields = shorthand::fields(map)?;
        let path = fields.path.ok_or_else(|| A::Error::missing_field("path"))?;
        let mount = match (fields.name, fields.instance_path) {
            (Some(name), None) if fields.optional.is_none() => {
                let mut mount = VolumeMount { name, path };
                mount.check().map(|()| Mount::Volume(mount))
            }
            (Some(_), None) => Err("`optional` is for mounts of an `instance_path`".to_owned()),
            (None, Some(instance_path)) => {
                let optional = fields.optional.unwrap_or_default();
                let mut mount = InstanceMount { instance_path, path, optional };
                mount.check().map(|()| Mount::Instance(mount))
            }
            (Some(_), Some(_)) => Err("`name` and `instance_path` are mutually exclusive".to_owned()),
            (None, None) => Err("a mount needs `name` or `instance_path`".to_owned()),
        };
        mount.map_err(A::Error::custom)
    }
}

impl_shorthand!(Mount);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MountFields {
    #[serde(default)]
    name: Option<VolumeNames>,
    #[serde(default)]
    instance_path: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    optional: Option<bool>,
}

impl Serialize for Mount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Mount::Volume(mount) => mount.serialize(serializer),
            Mount::Instance(mount) => mount.serialize(serializer),
        }
    }
}

impl JsonSchema for Mount {
    fn schema_name() -> Cow<'static, str> {
        "Mount".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let volume = generator.subschema_for::<VolumeMount>();
        let instance = generator.subschema_for::<InstanceMount>();
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [volume, instance, {"type": "string"}],
        })
    }
}

/// One volume, or several of which one is taken. Keeps the form in which it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeNames {
    /// This one.
    One(String),
    /// The first of these that suits the place.
    AnyOf(Vec<String>),
}

impl VolumeNames {
    /// The names, best first.
    pub fn names(&self) -> &[String] {
        match self {
            VolumeNames::One(name) => std::slice::from_ref(name),
            VolumeNames::AnyOf(names) => names,
        }
    }

    fn is_empty(&self) -> bool {
        self.names().is_empty() || self.names().iter().any(String::is_empty)
    }
}

impl Serialize for VolumeNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            VolumeNames::One(name) => serializer.serialize_str(name),
            VolumeNames::AnyOf(names) => names.serialize(serializer),
        }
    }
}

impl Shorthand for VolumeNames {
    const EXPECTING: &'static str = "the name of a volume, or a list of names";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(VolumeNames::One(text.to_owned()))
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        shorthand::items(list).map(VolumeNames::AnyOf)
    }
}

impl_shorthand!(VolumeNames);

impl JsonSchema for VolumeNames {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "VolumeNames".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        })
    }
}
