//! Forms with one file in them, whose name is what it is kept by.

use axum::extract::multipart::Multipart;
use axum::extract::{FromRequest as _, Request};
use http::header::CONTENT_LENGTH;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::error::{Error, Problem, Result};
use crate::deps::Deps;

/// The longest name of a file that is looked at: no file system has longer ones.
const LONGEST_NAME: usize = 255;

/// A file that was uploaded.
#[derive(Debug)]
pub struct Upload {
    /// The SHA-256 of what it holds in hex, which is also its name.
    pub hash: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Reads the form; `what` is the official word for what it holds.
pub async fn read(deps: &Deps, request: Request, what: &str) -> Result<Upload> {
    let limit = deps.settings.code_upload_limit_bytes;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    check_size(what, announced.unwrap_or(0), limit)?;
    let mut form = Multipart::from_request(request, deps).await.map_err(|_| missing_file())?;
    while let Some(mut field) = form.next_field().await.map_err(|error| Error::bad_request(error.body_text()))? {
        let (Some("file"), Some(name)) = (field.name(), field.file_name()) else { continue };
        let name = name.to_owned();
        if LONGEST_NAME < name.len() {
            return Err(Error::bad_request("Filename too long"));
        }
        let mut bytes = Vec::new();
        // A client need not say how much it sends, so that what comes is counted.
        while let Some(chunk) = field.chunk().await.map_err(|error| Error::bad_request(error.body_text()))? {
            bytes.extend_from_slice(&chunk);
            check_size(what, bytes.len() as u64, limit)?;
        }
        return Ok(Upload { hash: checked_hash(what, &name, &bytes)?, bytes });
    }
    Err(missing_file())
}

/// The hash of a file, which its name must be. What is kept by a hash is kept for good and given to jobs unseen, so
/// that a file which was broken on the way must not take the place of the whole one.
fn checked_hash(what: &str, name: &str, bytes: &[u8]) -> Result<String> {
    let hash = hex::encode(Sha256::digest(bytes));
    if name.eq_ignore_ascii_case(&hash) {
        return Ok(hash);
    }
    let is_hash = name.len() == hash.len() && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    Err(Error::bad_request(if is_hash {
        format!(
            "{what} was changed on its way: the SHA-256 of what arrived is {hash} and not {name}. Upload it again"
        )
    } else {
        format!("{what} must be named by its SHA-256 in 64 hex digits")
    }))
}

fn check_size(what: &str, size: u64, limit: u64) -> Result<()> {
    if limit == 0 || size <= limit {
        return Ok(());
    }
    Err(Error::bad_request(format!(
        "{what} size is {size}B, which exceeds the limit of {limit}B. Use .gitignore/.dstackignore to exclude large \
         files. This limit can be modified by setting the DSTACK_SERVER_CODE_UPLOAD_LIMIT environment variable."
    )))
}

fn missing_file() -> Error {
    Error::invalid_body(&[Problem {
        kind: "missing",
        loc: Problem::body(&["file"]),
        message: "Field required".to_owned(),
        input: Value::Null,
        context: None,
    }])
}
