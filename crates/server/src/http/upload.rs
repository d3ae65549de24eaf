//! Forms with one file in them, whose name is what it is kept by.

use axum::extract::multipart::Multipart;
use axum::extract::{FromRequest as _, Request};
use http::header::CONTENT_LENGTH;
use serde_json::Value;

use super::error::{Error, Problem, Result};
use crate::deps::Deps;

/// The longest name of a file; hashes are 64 characters.
const LONGEST_NAME: usize = 255;

/// A file that was uploaded.
#[derive(Debug)]
pub struct Upload {
    /// Its name: by the protocol, the hash of what it holds.
    pub name: String,
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
        return Ok(Upload { name, bytes });
    }
    Err(missing_file())
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
