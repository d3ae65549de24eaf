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
    /// The backend's own word for it, such as `InsufficientInstanceCapacity`.
    pub code: Option<String>,
    /// The zones that the backend says have what is wanted. A hint, not a promise.
    pub zones_with_capacity: Vec<String>,
}

/// The kinds of failure a caller may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// This type is sold out in this zone.
    NoCapacity,
    /// The reservation has no machines left for us.
    ReservationUsedUp,
    /// The account's quota for this family of types in this region forbids it.
    QuotaExceeded,
    /// The account has as much of something as it may have in this region, whatever is bought.
    RegionLimit,
    /// The account may not use this region at all.
    RegionClosed,
    /// The zone's network has no addresses left for us.
    NoAddresses,
    /// The credentials are wrong.
    InvalidCredentials,
    /// The credentials may not do this.
    PermissionDenied,
    /// What the launch's token stands for is over, or another request. Another launch has another token.
    LaunchUsedUp,
    /// The request itself is wrong; it will never succeed unchanged.
    InvalidRequest,
    /// Asked too often: ask again later, for the same launch. Nothing happened, and it says nothing about capacity.
    RateLimited,
    /// The backend did not answer, so nobody knows whether the effect happened.
    Unavailable,
}

/// What a refusal is about, and so what need not be tried again soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// This type in this zone; other zones may have it.
    Zone,
    /// Every type in this zone.
    Network,
    /// All that the reservation would have given.
    Reservation,
    /// This family of types in this region; other zones are the same, other regions are not.
    Region,
    /// Everything in this region.
    WholeRegion,
    /// This offer, in whichever zone.
    Offer,
    /// Everything that this backend sells.
    Backend,
    /// This launch and nothing else: another one may ask for the same.
    Launch,
    /// Nothing: the same may be asked again.
    Nothing,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [ErrorKind; 12] = [
        ErrorKind::NoCapacity,
        ErrorKind::ReservationUsedUp,
        ErrorKind::QuotaExceeded,
        ErrorKind::RegionLimit,
        ErrorKind::RegionClosed,
        ErrorKind::NoAddresses,
        ErrorKind::InvalidCredentials,
        ErrorKind::PermissionDenied,
        ErrorKind::LaunchUsedUp,
        ErrorKind::InvalidRequest,
        ErrorKind::RateLimited,
        ErrorKind::Unavailable,
    ];

    /// What need not be tried again soon after it.
    pub fn scope(self) -> Scope {
        match self {
            ErrorKind::NoCapacity => Scope::Zone,
            ErrorKind::NoAddresses => Scope::Network,
            ErrorKind::ReservationUsedUp => Scope::Reservation,
            ErrorKind::QuotaExceeded => Scope::Region,
            ErrorKind::RegionLimit | ErrorKind::RegionClosed => Scope::WholeRegion,
            ErrorKind::InvalidRequest => Scope::Offer,
            ErrorKind::LaunchUsedUp => Scope::Launch,
            ErrorKind::InvalidCredentials | ErrorKind::PermissionDenied => Scope::Backend,
            ErrorKind::RateLimited | ErrorKind::Unavailable => Scope::Nothing,
        }
    }

    /// Whether asking again, unchanged, may help.
    pub fn is_transient(self) -> bool {
        self.scope() == Scope::Nothing
    }

    /// The kind in one word, for events and the database.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NoCapacity => "no_capacity",
            ErrorKind::ReservationUsedUp => "reservation_used_up",
            ErrorKind::QuotaExceeded => "quota_exceeded",
            ErrorKind::RegionLimit => "region_limit",
            ErrorKind::RegionClosed => "region_closed",
            ErrorKind::NoAddresses => "no_addresses",
            ErrorKind::InvalidCredentials => "invalid_credentials",
            ErrorKind::PermissionDenied => "permission_denied",
            ErrorKind::LaunchUsedUp => "launch_used_up",
            ErrorKind::InvalidRequest => "invalid_request",
            ErrorKind::RateLimited => "rate_limited",
            ErrorKind::Unavailable => "unavailable",
        }
    }
}

impl Error {
    /// A failure of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), code: None, zones_with_capacity: Vec::new() }
    }

    /// The same with the backend's own word for it.
    #[must_use]
    pub fn with_code(self, code: impl Into<String>) -> Error {
        Error { code: Some(code.into()), ..self }
    }

    /// The same with the zones that the backend says have what is wanted.
    #[must_use]
    pub fn with_zones(self, zones_with_capacity: Vec<String>) -> Error {
        Error { zones_with_capacity, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_nothing_about_the_offer_may_be_asked_again_unchanged() {
        let transient: Vec<&str> =
            ErrorKind::ALL.into_iter().filter(|kind| kind.is_transient()).map(ErrorKind::as_str).collect();
        assert_eq!(transient, ["rate_limited", "unavailable"]);
    }

    #[test]
    fn an_error_keeps_what_the_backend_said() {
        let error = Error::new(ErrorKind::NoCapacity, "sold out")
            .with_code("InsufficientInstanceCapacity")
            .with_zones(vec!["us-west-2b".to_owned()]);
        assert_eq!((error.to_string(), error.kind.scope()), ("sold out".to_owned(), Scope::Zone));
        assert_eq!(error.code.as_deref(), Some("InsufficientInstanceCapacity"));
        assert_eq!(error.zones_with_capacity, ["us-west-2b"]);
    }
}
