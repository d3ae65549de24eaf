//! What tasks, dev environments and services have in common.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::checked::{Check, checked};
use super::env::Env;
use super::files::FilePathMapping;
use super::mounts::Mount;
use super::repos::RepoSpec;
use super::resources::ResourcesSpec;
use super::shorthand::{Refusal, Shorthand, impl_shorthand};

/// Declares a run configuration: its own keys, the common ones and those of a profile.
macro_rules! run_configuration {
    ($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        $crate::configurations::profile::with_profile_keys! {
            $(#[$meta])*
            pub struct $name {
                $($fields)*
                /// The name of the run; null is one that the server makes up.
                #[serde(default)]
                pub name: Option<String>,
                /// The container image; null is the default image of the backend.
                #[serde(default)]
                pub image: Option<String>,
                /// The user in the container, `user[:group]` by name or number.
                #[serde(default, deserialize_with = "crate::configurations::base::optional_user")]
                pub user: Option<String>,
                /// Whether the container is privileged.
                #[serde(default)]
                pub privileged: bool,
                /// The entry point in place of the image's own, as a shell command.
                #[serde(default)]
                pub entrypoint: Option<String>,
                /// The folder in which commands start; null is that of the image.
                #[serde(default)]
                pub working_dir: Option<String>,
                /// The home folder of the container's user.
                #[serde(default = "crate::configurations::base::default_home_dir")]
                pub home_dir: String,
                /// Who pulls the image.
                #[serde(default)]
                pub registry_auth: Option<$crate::configurations::RegistryAuth>,
                /// The Python of the default image.
                #[serde(default)]
                pub python: Option<$crate::configurations::PythonVersion>,
                /// Whether the default image has the CUDA compiler.
                #[serde(default)]
                pub nvcc: Option<bool>,
                /// Whether only one branch of the repository is fetched.
                #[serde(default)]
                pub single_branch: Option<bool>,
                /// Environment variables.
                #[serde(default)]
                pub env: $crate::configurations::Env,
                /// The shell of the commands: `sh`, `bash` or an absolute path.
                #[serde(default, deserialize_with = "crate::configurations::base::optional_shell")]
                pub shell: Option<String>,
                /// What the job needs of a machine.
                #[serde(default)]
                pub resources: $crate::configurations::ResourcesSpec,
                /// Who is served first, 0 to 100, higher first.
                #[serde(
                    default,
                    deserialize_with = "crate::configurations::shorthand::optional_integer::<_, _, 0, 100>"
                )]
                pub priority: Option<u8>,
                /// What is mounted.
                #[serde(default)]
                pub volumes: Vec<$crate::configurations::Mount>,
                /// Whether the job can use Docker itself.
                #[serde(default)]
                pub docker: Option<bool>,
                /// The repository, at most one.
                #[serde(default)]
                pub repos: Vec<$crate::configurations::RepoSpec>,
                /// Local files and folders to copy in.
                #[serde(default)]
                pub files: Vec<$crate::configurations::FilePathMapping>,
                /// Whether the job can use the server's API as the user.
                #[serde(default)]
                pub dstack: bool,
                /// Commands that ran before all others; kept for old clients.
                #[serde(default)]
                pub setup: Vec<String>,
                /// Whether the job is a container or plain processes; null is up to the backend.
                /// Ours, so it is on the wire only when it is set.
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub runtime: Option<$crate::configurations::Runtime>,
            }
        }

        impl $name {
            /// The keys that all run configurations have.
            pub fn common(&self) -> $crate::configurations::Common<'_> {
                $crate::configurations::base::common_keys!(borrow(self))
            }

            /// The keys that all run configurations have, to change them.
            pub fn common_mut(&mut self) -> $crate::configurations::CommonMut<'_> {
                $crate::configurations::base::common_keys!(borrow_mut(self))
            }
        }
    };
}
pub(crate) use run_configuration;

/// Writes code for each of the common keys, so that they are listed once.
macro_rules! common_keys {
    ($mode:ident $arguments:tt) => {
        $crate::configurations::base::common_keys! {
            @$mode $arguments
            name: Option<String>, image: Option<String>, user: Option<String>, privileged: bool,
            entrypoint: Option<String>, working_dir: Option<String>, home_dir: String,
            registry_auth: Option<RegistryAuth>, python: Option<PythonVersion>,
            nvcc: Option<bool>, single_branch: Option<bool>, env: Env, shell: Option<String>,
            resources: ResourcesSpec, priority: Option<u8>, volumes: Vec<Mount>,
            docker: Option<bool>, repos: Vec<RepoSpec>, files: Vec<FilePathMapping>,
            dstack: bool, setup: Vec<String>, runtime: Option<Runtime>,
        }
    };
    (@declare() $($key:ident: $type:ty,)+) => {
        /// The keys that all run configurations have.
        #[derive(Debug, Clone, Copy)]
        pub struct Common<'a> {
            $(#[doc = concat!("The key `", stringify!($key), "`.")] pub $key: &'a $type,)+
        }

        /// The keys that all run configurations have, to change them.
        #[derive(Debug)]
        pub struct CommonMut<'a> {
            $(#[doc = concat!("The key `", stringify!($key), "`.")] pub $key: &'a mut $type,)+
        }
    };
    (@borrow($from:expr) $($key:ident: $type:ty,)+) => {
        $crate::configurations::Common { $($key: &$from.$key,)+ }
    };
    (@borrow_mut($from:expr) $($key:ident: $type:ty,)+) => {
        $crate::configurations::CommonMut { $($key: &mut $from.$key,)+ }
    };
}
pub(crate) use common_keys;

common_keys!(declare());

impl Common<'_> {
    /// The rules that hold for all run configurations.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.image.is_some() && self.python.is_some() {
            return Err("`python` and `image` are mutually exclusive".to_owned());
        }
        if *self.docker == Some(true) {
            let excluded = [
                ("image", self.image.is_some()),
                ("python", self.python.is_some()),
                ("nvcc", *self.nvcc == Some(true)),
            ];
            for (key, is_set) in excluded {
                if is_set {
                    return Err(format!("`docker` and `{key}` are mutually exclusive"));
                }
            }
        }
        if self.image.is_some() && *self.runtime == Some(Runtime::Process) {
            return Err("`runtime: process` and `image` are mutually exclusive".to_owned());
        }
        if 1 < self.repos.len() {
            return Err("`repos` can have only one repository".to_owned());
        }
        Ok(())
    }
}

/// How a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// In a container.
    Docker,
    /// As plain processes of the host.
    Process,
}

checked! {
    /// Who pulls an image. Both may have `${{ env.X }}` and `${{ secrets.X }}` in them.
    #[derive(Eq)]
    pub struct RegistryAuth {
        /// The user.
        pub username: String,
        /// The password or token.
        pub password: String,
    }
}

impl Check for RegistryAuth {}

/// A version of Python that the default image can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PythonVersion {
    minor: u8,
}

impl PythonVersion {
    const MINORS: std::ops::RangeInclusive<u8> = 9..=15;
    const FORMS: &'static str = "a Python version from `3.9` to `3.15`";

    /// Python 3.`minor`, if that is supported.
    pub fn new(minor: u8) -> Option<Self> {
        Self::MINORS.contains(&minor).then_some(PythonVersion { minor })
    }

    /// The number after `3.`.
    pub fn minor(self) -> u8 {
        self.minor
    }
}

impl std::fmt::Display for PythonVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "3.{}", self.minor)
    }
}

impl Serialize for PythonVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Shorthand for PythonVersion {
    const EXPECTING: &'static str = Self::FORMS;
    const NUMBERS_AS_WRITTEN: bool = true;

    fn from_number(value: f64) -> Result<Self, Refusal> {
        Self::from_text(&value.to_string())
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let minor = match text.strip_prefix("3.") {
            // JSON and most YAML readers make 3.1 of an unquoted 3.10; Python 3.1 is long gone.
            Some("1") => Some(10),
            Some(minor) if !minor.starts_with(['0', '+']) => minor.parse().ok(),
            _ => None,
        };
        minor
            .and_then(PythonVersion::new)
            .ok_or_else(|| format!("expected {}, found `{text}`", Self::FORMS).into())
    }
}

impl_shorthand!(PythonVersion);

impl JsonSchema for PythonVersion {
    fn schema_name() -> Cow<'static, str> {
        "PythonVersion".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let versions: Vec<String> = Self::MINORS.map(|minor| format!("3.{minor}")).collect();
        json_schema!({
            "description": Self::FORMS,
            "anyOf": [{"type": "string", "enum": versions}, {"type": "number"}],
        })
    }
}

pub(crate) fn default_home_dir() -> String {
    "/root".to_owned()
}

/// Reads `shell`.
pub(crate) fn optional_shell<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let shell = Option::<String>::deserialize(deserializer)?;
    match shell.as_deref() {
        None | Some("sh" | "bash") => Ok(shell),
        Some(path) if path.starts_with('/') => Ok(shell),
        Some(other) => {
            Err(D::Error::custom(format!("expected `sh`, `bash` or an absolute path, found `{other}`")))
        }
    }
}

/// Reads `user`.
pub(crate) fn optional_user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let user = Option::<String>::deserialize(deserializer)?;
    let is_user = |text: &str| {
        let mut parts = text.split(':');
        parts.clone().count() <= 2 && parts.all(|part| !part.is_empty())
    };
    match user.as_deref() {
        Some(text) if !is_user(text) => {
            Err(D::Error::custom(format!("expected `user` or `user:group`, found `{text}`")))
        }
        _ => Ok(user),
    }
}
