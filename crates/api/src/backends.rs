//! Backends as users and clients name them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A source of machines, by the official names.
///
/// This machine itself (`local`) is `remote` on the wire, because the official client refuses names that it does
/// not know; requests and YAML may say `local`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the variants are names of clouds")]
pub enum BackendType {
    Amddevcloud,
    Aws,
    Azure,
    Cloudrift,
    Crusoe,
    Cudo,
    Datacrunch,
    Daytona,
    Digitalocean,
    Dstack,
    Gcp,
    Hotaisle,
    Jarvislabs,
    Kubernetes,
    Lambda,
    Lium,
    #[serde(alias = "local")]
    Remote,
    Nebius,
    Oci,
    Runpod,
    Seeweb,
    Tensordock,
    Vastai,
    Verda,
    Vultr,
    Slurm,
}

impl BackendType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            BackendType::Amddevcloud => "amddevcloud",
            BackendType::Aws => "aws",
            BackendType::Azure => "azure",
            BackendType::Cloudrift => "cloudrift",
            BackendType::Crusoe => "crusoe",
            BackendType::Cudo => "cudo",
            BackendType::Datacrunch => "datacrunch",
            BackendType::Daytona => "daytona",
            BackendType::Digitalocean => "digitalocean",
            BackendType::Dstack => "dstack",
            BackendType::Gcp => "gcp",
            BackendType::Hotaisle => "hotaisle",
            BackendType::Jarvislabs => "jarvislabs",
            BackendType::Kubernetes => "kubernetes",
            BackendType::Lambda => "lambda",
            BackendType::Lium => "lium",
            BackendType::Remote => "remote",
            BackendType::Nebius => "nebius",
            BackendType::Oci => "oci",
            BackendType::Runpod => "runpod",
            BackendType::Seeweb => "seeweb",
            BackendType::Tensordock => "tensordock",
            BackendType::Vastai => "vastai",
            BackendType::Verda => "verda",
            BackendType::Vultr => "vultr",
            BackendType::Slurm => "slurm",
        }
    }
}

impl fmt::Display for BackendType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The body of `backends/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteBackendsRequest {
    /// Which.
    pub backends_names: Vec<String>,
}

/// The body of `backends/create_yaml` and `update_yaml`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct BackendYamlRequest {
    /// The configuration, with credentials.
    pub config_yaml: String,
}

impl fmt::Debug for BackendYamlRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackendYamlRequest(…)")
    }
}

/// The answer of `backends/{backend}/get_yaml`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackendYaml {
    /// Which backend.
    pub name: String,
    /// Its configuration, with credentials.
    pub config_yaml: String,
}

impl fmt::Debug for BackendYaml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendYaml").field("name", &self.name).finish_non_exhaustive()
    }
}
