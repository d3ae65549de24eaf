//! What can go wrong between us and a backend, in our words.

/// The result of a backend's verb.
pub type Result<T> = std::result::Result<T, Error>;

/// A backend's refusal or failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind it is.
    pub kind: ErrorKind,
    /// What the backend said, for people.
    pub message: String,
}

/// The kinds of failure a caller may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Sold out: try another offer or zone.
    NoCapacity,
    /// The account's quota forbids it: another type or region may do.
    QuotaExceeded,
    /// The credentials are wrong.
    InvalidCredentials,
    /// The credentials may not do this.
    PermissionDenied,
    /// The request itself is wrong; it will never succeed unchanged.
    InvalidRequest,
    /// Asked too often: ask again later. Says nothing about capacity.
    RateLimited,
    /// The backend did not answer, so nobody knows whether the effect happened.
    Unavailable,
}

impl ErrorKind {
    /// Whether asking again, unchanged, may help.
    pub fn is_transient(self) -> bool {
        match self {
            ErrorKind::RateLimited | ErrorKind::Unavailable => true,
            ErrorKind::NoCapacity
            | ErrorKind::QuotaExceeded
            | ErrorKind::InvalidCredentials
            | ErrorKind::PermissionDenied
            | ErrorKind::InvalidRequest => false,
        }
    }

    /// The kind in one word, for events and the database.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NoCapacity => "no_capacity",
            ErrorKind::QuotaExceeded => "quota_exceeded",
            ErrorKind::InvalidCredentials => "invalid_credentials",
            ErrorKind::PermissionDenied => "permission_denied",
            ErrorKind::InvalidRequest => "invalid_request",
            ErrorKind::RateLimited => "rate_limited",
            ErrorKind::Unavailable => "unavailable",
        }
    }
}

impl Error {
    /// A failure of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }
}
