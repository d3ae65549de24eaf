//! Local files and folders that go into the container.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// A local path and its place in the container. Written as `path`, `local:container` or a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FilePathMapping {
    /// The path on the user's machine, relative to the configuration's folder.
    pub local_path: String,
    /// The path in the container, relative to the working directory.
    pub path: String,
}

impl FilePathMapping {
    /// Reads the text form; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refusal = || format!("expected {}, found `{text}`", Self::EXPECTING);
        let drive = drive_prefix(text);
        let Some((local, path)) = text[drive.len()..].split_once(':') else {
            return Self::new(text.to_owned(), text.to_owned());
        };
        let has_third_part = path.contains(':') && drive_prefix(path).is_empty();
        if local.is_empty() || path.is_empty() || has_third_part {
            return Err(refusal());
        }
        Self::new(format!("{drive}{local}"), path.to_owned())
    }

    fn new(local_path: String, path: String) -> Result<Self, String> {
        let is_windows_path = !drive_prefix(&path).is_empty() || path.starts_with('\\');
        if is_windows_path {
            return Err(format!("`path` is a path in the container, such as `/data/x`, found `{path}`"));
        }
        if local_path.is_empty() || path.is_empty() {
            return Err("`local_path` and `path` must not be empty".to_owned());
        }
        Ok(FilePathMapping { local_path, path })
    }
}

/// The `C:` of a Windows path, or nothing.
fn drive_prefix(text: &str) -> &str {
    let is_drive = matches!(text.as_bytes(), [letter, b':', b'\\', ..] if letter.is_ascii_alphabetic());
    if is_drive { &text[..2] } else { "" }
}

impl Shorthand for FilePathMapping {
    const EXPECTING: &'static str = "a file such as `path` or `local/path:container/path`";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(FilePathMapping::parse(text)?)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let fields: FileFields = shorthand::fields(map)?;
        FilePathMapping::new(fields.local_path, fields.path).map_err(A::Error::custom)
    }
}

impl_shorthand!(FilePathMapping);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFields {
    local_path: String,
    path: String,
}

impl JsonSchema for FilePathMapping {
    fn schema_name() -> Cow<'static, str> {
        "FilePathMapping".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "local_path": {"type": "string"},
                        "path": {"type": "string"},
                    },
                    "required": ["local_path", "path"],
                    "additionalProperties": false,
                },
                {"type": "string"},
            ],
        })
    }
}
