//! Errors in the official wire form, and the codes that clients branch on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The codes of the official API. The official client turns each into an exception of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Something is wrong with the request.
    Error,
    /// There is one of that name already.
    ResourceExists,
    /// There is none of that name. Never answered with 404, because clients rely on 400.
    ResourceNotExists,
    /// A cloud refused the credentials.
    InvalidCredentials,
    /// The backend is not configured or does not answer.
    BackendNotAvailable,
    /// The repository is unknown.
    RepoDoesNotExist,
    /// A gateway failed.
    GatewayError,
}

/// One item of the body of a 400. The official client crashes on any further key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorItem {
    /// What is wrong, for people.
    pub msg: String,
    /// What is wrong, for programs.
    pub code: Option<ErrorCode>,
    /// The paths of the fields that are wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<Vec<String>>>,
}

/// The body of a 400: exactly one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The only item.
    pub detail: Vec<ErrorItem>,
}
