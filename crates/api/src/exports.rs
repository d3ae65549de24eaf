//! What projects give to each other, as clients ask for it. The answers are only shown, so they have no types.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of `exports/create`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateExportRequest {
    /// The name of the export.
    pub name: String,
    /// All projects import it.
    pub is_global: bool,
    /// The projects that import it.
    pub importer_projects: Vec<String>,
    /// The fleets in it.
    pub exported_fleets: Vec<String>,
    /// The gateways in it.
    pub exported_gateways: Vec<String>,
}

/// The body of `exports/update`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UpdateExportRequest {
    /// Which.
    pub name: String,
    /// From now on all projects import it.
    pub set_global: bool,
    /// From now on only the projects that are named import it.
    pub unset_global: bool,
    /// Projects that import it too.
    pub add_importer_projects: Vec<String>,
    /// Projects that import it no more.
    pub remove_importer_projects: Vec<String>,
    /// Fleets that come into it.
    pub add_exported_fleets: Vec<String>,
    /// Fleets that leave it.
    pub remove_exported_fleets: Vec<String>,
    /// Gateways that come into it.
    pub add_exported_gateways: Vec<String>,
    /// Gateways that leave it.
    pub remove_exported_gateways: Vec<String>,
}

/// The body of `exports/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteExportRequest {
    /// Which.
    pub name: String,
}

/// The body of `imports/delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteImportRequest {
    /// The export.
    pub export_name: String,
    /// Whose it is.
    pub export_project_name: String,
}
