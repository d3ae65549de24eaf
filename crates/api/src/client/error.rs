//! What can go wrong between a client and the server, told apart where callers act differently.

use crate::error::{ErrorBody, ErrorCode};

/// Why a call failed. `Display` is what the user is told.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused the request and says why.
    #[error("{message}")]
    Refused {
        /// What is wrong, for programs.
        code: ErrorCode,
        /// What is wrong, for people.
        message: String,
    },
    /// The token is unknown, or its user may not do this.
    #[error("Access to {url} is denied. Please check your access token")]
    AccessDenied {
        /// What was called.
        url: String,
    },
    /// The server does not know the project or the path.
    #[error("Status code 404 when requesting {url}")]
    NotFound {
        /// What was called.
        url: String,
    },
    /// The server knows the path, not the method; older servers answer so to unknown paths.
    #[error("Status code 405 when requesting {url}")]
    MethodNotAllowed {
        /// What was called.
        url: String,
    },
    /// The request does not have the form that the server expects.
    #[error("Server validation error: \n{detail}")]
    Invalid {
        /// The server's answer, laid out.
        detail: String,
    },
    /// The server cannot work for now, and says why.
    #[error("{message}")]
    Obstructed {
        /// What stands in its way, for people.
        message: String,
    },
    /// Any other status.
    #[error(
        "Unexpected error: status code {status} when requesting {url}. Check the server logs for backend issues"
    )]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// What was called.
        url: String,
    },
    /// Nobody answers at the server's URL.
    #[error("Failed to connect to dstack server {url}")]
    Unreachable {
        /// The server's URL.
        url: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke before the answer was complete.
    #[error("Lost the connection to dstack server {url}")]
    Interrupted {
        /// The server's URL.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what this client understands.
    #[error("dstack server {url} answered in a form that this client does not understand: {source}")]
    Incomprehensible {
        /// What was called.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server's URL is not one.
    #[error("`{url}` is not a server URL: {source}")]
    InvalidUrl {
        /// The URL as configured.
        url: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
}

impl ClientError {
    /// Whether the server says that there is nothing of that name.
    pub fn is_not_exists(&self) -> bool {
        matches!(self, ClientError::Refused { code: ErrorCode::ResourceNotExists, .. })
    }

    /// Whether the same call may succeed later although nothing is changed.
    pub fn is_transient(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } | ClientError::Interrupted { .. } | ClientError::Obstructed { .. } => {
                true
            }
            ClientError::Unexpected { status, .. } => *status == 429 || 500 <= *status,
            ClientError::Refused { .. }
            | ClientError::AccessDenied { .. }
            | ClientError::NotFound { .. }
            | ClientError::MethodNotAllowed { .. }
            | ClientError::Invalid { .. }
            | ClientError::Incomprehensible { .. }
            | ClientError::InvalidUrl { .. } => false,
        }
    }

    /// The error that an answer with this status means.
    pub(crate) fn of_answer(status: u16, url: String, body: &[u8]) -> ClientError {
        match status {
            400 => of_refusal(url, body),
            403 => ClientError::AccessDenied { url },
            404 => ClientError::NotFound { url },
            405 => ClientError::MethodNotAllowed { url },
            422 => ClientError::Invalid { detail: laid_out(body) },
            503 => of_obstacle(url, body),
            _ => ClientError::Unexpected { status, url },
        }
    }

    /// The error that a failed exchange with `base_url` means.
    pub(crate) fn of_transport(base_url: &str, source: reqwest::Error) -> ClientError {
        let url = base_url.to_owned();
        if source.is_builder() {
            ClientError::InvalidUrl { url, source }
        } else if source.is_connect() {
            ClientError::Unreachable { url, source }
        } else {
            ClientError::Interrupted { url, source: Box::new(source) }
        }
    }
}

// Bodies with several items or an unknown code are not what the API promises.
fn of_refusal(url: String, body: &[u8]) -> ClientError {
    let Ok(ErrorBody { mut detail }) = serde_json::from_slice::<ErrorBody>(body) else {
        return ClientError::Unexpected { status: 400, url };
    };
    match (detail.pop(), detail.is_empty()) {
        (Some(item), true) => {
            ClientError::Refused { code: item.code.unwrap_or(ErrorCode::Error), message: item.msg }
        }
        _ => ClientError::Unexpected { status: 400, url },
    }
}

// Whatever stands before the server may answer 503 in words of its own.
fn of_obstacle(url: String, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body).ok().and_then(|mut body| body.detail.pop()) {
        Some(item) => ClientError::Obstructed { message: item.msg },
        None => ClientError::Unexpected { status: 503, url },
    }
}

fn laid_out(body: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(body)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &str) -> String {
        ClientError::of_answer(status, "http://s/api/x".to_owned(), body.as_bytes()).to_string()
    }

    #[test]
    fn each_status_is_told_in_its_own_words() {
        assert_eq!(
            of(400, r#"{"detail":[{"msg":"Run not found","code":"resource_not_exists"}]}"#),
            "Run not found"
        );
        assert_eq!(of(400, r#"{"detail":[{"msg":"Invalid version: abc","code":null}]}"#), "Invalid version: abc");
        assert!(
            of(400, r#"{"detail":[{"msg":"a","code":"error"},{"msg":"b","code":"error"}]}"#)
                .contains("status code 400")
        );
        assert!(of(401, "{}").contains("status code 401"));
        assert!(of(403, "{}").starts_with("Access to http://s/api/x is denied"));
        assert_eq!(of(404, "{}"), "Status code 404 when requesting http://s/api/x");
        assert!(of(422, r#"{"detail":[]}"#).starts_with("Server validation error"));
        assert!(of(502, "bad gateway").contains("status code 502"));
        assert!(of(503, "<html>").contains("status code 503"));
        assert_eq!(of(503, r#"{"detail":[{"msg":"the disk is full","code":"error"}]}"#), "the disk is full");
    }

    #[test]
    fn only_what_may_pass_by_itself_is_transient() {
        assert!(ClientError::of_answer(503, String::new(), b"").is_transient());
        let obstacle =
            ClientError::of_answer(503, String::new(), br#"{"detail":[{"msg":"full","code":"error"}]}"#);
        assert!(obstacle.is_transient());
        assert!(!ClientError::of_answer(403, String::new(), b"").is_transient());
    }
}
