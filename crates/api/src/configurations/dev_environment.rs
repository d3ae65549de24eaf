//! Dev environments: a container for an IDE on the user's machine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::base::run_configuration;
use super::checked::{Check, constant};
use super::durations::Seconds;
use super::ports::PortMapping;

constant! {
    /// The `type` of a [`DevEnvironmentConfiguration`].
    pub struct DevEnvironmentType = "dev-environment";
}

/// An IDE that can work in a remote container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the variants are names of products")]
pub enum Ide {
    Vscode,
    Cursor,
    Windsurf,
    Zed,
}

run_configuration! {
    /// Keeps a container for the user to work in.
    pub struct DevEnvironmentConfiguration {
        /// Says that this is a dev environment.
        #[serde(rename = "type", default)]
        pub kind: DevEnvironmentType,
        /// The IDE whose server part is installed; null is none.
        #[serde(default)]
        pub ide: Option<Ide>,
        /// The version of the IDE.
        #[serde(default)]
        pub version: Option<String>,
        /// Shell commands that run once, before the user comes.
        #[serde(default)]
        pub init: Vec<String>,
        /// How long it stays without a connected user; null is forever.
        #[serde(default, deserialize_with = "crate::configurations::durations::seconds_or_off")]
        pub inactivity_duration: Option<Seconds>,
        /// Ports to reach from the user's machine.
        #[serde(default)]
        pub ports: Vec<PortMapping>,
    }
}

impl Check for DevEnvironmentConfiguration {
    fn check(&mut self) -> Result<(), String> {
        self.common().check()?;
        if self.entrypoint.is_some() {
            return Err("`entrypoint` is not for dev environments".to_owned());
        }
        if self.dstack && self.inactivity_duration.is_some() {
            return Err("`inactivity_duration` and `dstack` are mutually exclusive".to_owned());
        }
        let Some(version) = &self.version else {
            return Ok(());
        };
        match self.ide {
            None => Err("`version` needs `ide`".to_owned()),
            Some(Ide::Windsurf) if !is_windsurf_version(version) => {
                Err(format!("`version` of Windsurf is written as `version@commit`, found `{version}`"))
            }
            Some(_) => Ok(()),
        }
    }
}

/// Windsurf's download address has both.
fn is_windsurf_version(version: &str) -> bool {
    version.split_once('@').is_some_and(|(version, commit)| {
        !version.is_empty() && !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_hexdigit())
    })
}
