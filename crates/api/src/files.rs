//! Uploaded archives of files.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::FileArchiveId;

/// An uploaded archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileArchive {
    /// Its identifier.
    pub id: FileArchiveId,
    /// The SHA-256 of the tar, in hex.
    pub hash: String,
}

/// The body of `files/get_archive_by_hash`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetArchiveByHashRequest {
    /// The SHA-256 of the tar, in hex.
    pub hash: String,
}
