//! Git repositories that are checked out in the container.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

/// What to do where the folder for a repository has something in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RepoExistsAction {
    /// The job fails.
    #[default]
    Error,
    /// The folder stays as it is.
    Skip,
}

/// A repository, by a local folder or a URL, and its place in the container.
///
/// Written as `.`, `./folder:/path`, a Git URL, a Git URL with `:/path`, or a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepoSpec {
    /// A folder on the user's machine.
    pub local_path: Option<String>,
    /// Where to clone it from.
    pub url: Option<String>,
    /// The branch.
    pub branch: Option<String>,
    /// The commit.
    pub hash: Option<String>,
    /// The folder in the container, relative to the working directory.
    pub path: String,
    /// What to do where that folder has something in it.
    pub if_exists: RepoExistsAction,
}

impl RepoSpec {
    /// Reads the text form; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (source, path, is_url) =
            split_source(text).ok_or_else(|| format!("expected {}, found `{text}`", Self::EXPECTING))?;
        let source = Some(source.to_owned());
        let (local_path, url) = if is_url { (None, source) } else { (source, None) };
        let spec = RepoSpec {
            local_path,
            url,
            branch: None,
            hash: None,
            path: path.unwrap_or(".").to_owned(),
            if_exists: RepoExistsAction::Error,
        };
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        match (&self.local_path, &self.url) {
            (Some(_), Some(_)) => Err("`local_path` and `url` are mutually exclusive".to_owned()),
            (None, None) => Err("a repository needs `local_path` or `url`".to_owned()),
            _ if is_home_of_another(&self.path) => {
                Err(format!("`path` cannot start with `~user`, found `{}`", self.path))
            }
            _ => Ok(()),
        }
    }
}

/// Splits `source[:path]` and tells whether the source is a URL.
fn split_source(text: &str) -> Option<(&str, Option<&str>, bool)> {
    let is_filled = |part: &str| !part.is_empty();
    // The colon of a URL belongs to it: that of `scheme://` and that of `user@host:path`.
    let skip = if let Some(at) = text.find("://") {
        at + 3
    } else if let Some(at) = text.find(':').filter(|at| text[..*at].contains('@')) {
        at + 1
    } else {
        0
    };
    let is_url = skip != 0;
    let rest = &text[skip..];
    if !is_filled(rest) {
        return None;
    }
    // A number after the host is its port, not a place in the container.
    let is_port = |part: &str| {
        let number = part.split('/').next().unwrap_or_default();
        is_filled(number) && number.bytes().all(|b| b.is_ascii_digit())
    };
    let after_port = match rest.split_once(':') {
        Some((host, port)) if is_url && is_port(port) && !host.contains('/') => host.len() + 1,
        _ => 0,
    };
    let Some(colon) = rest[after_port..].find(':') else {
        return Some((text, None, is_url));
    };
    let colon = skip + after_port + colon;
    let (source, path) = (&text[..colon], &text[colon + 1..]);
    let is_valid = is_filled(source) && is_filled(path) && !path.contains(':');
    is_valid.then_some((source, Some(path), is_url))
}

/// `~user/…`: only the home of the job's own user is known.
fn is_home_of_another(path: &str) -> bool {
    path.strip_prefix('~').is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
}

impl Shorthand for RepoSpec {
    const EXPECTING: &'static str =
        "a repository such as `.`, `https://host/repo`, `git@host:repo`, each with `:/path` or not";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(RepoSpec::parse(text)?)
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let fields: RepoFields = shorthand::fields(map)?;
        let spec = RepoSpec {
            local_path: fields.local_path,
            url: fields.url,
            branch: fields.branch,
            hash: fields.hash,
            path: fields.path.unwrap_or_else(|| ".".to_owned()),
            if_exists: fields.if_exists,
        };
        spec.check().map_err(A::Error::custom)?;
        Ok(spec)
    }
}

impl_shorthand!(RepoSpec);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RepoFields {
    #[serde(default)]
    local_path: Option<String>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    branch: Option<String>,
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    if_exists: RepoExistsAction,
}

impl JsonSchema for RepoSpec {
    fn schema_name() -> Cow<'static, str> {
        "RepoSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mapping = RepoFields::json_schema(generator);
        json_schema!({
            "description": Self::EXPECTING,
            "anyOf": [mapping, {"type": "string"}],
        })
    }
}
