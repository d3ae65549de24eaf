//! What AWS refuses, in our words. Each class has another next step, so a throttle is never taken for a lack of
//! machines, nor a missing permission for a missing type.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::display::DisplayErrorContext;
use aws_smithy_types::error::metadata::{ErrorMetadata, ProvideErrorMetadata};

use crate::{Error, ErrorKind};

/// What went wrong when AWS was asked to do `what`.
pub(super) fn failure<E>(what: &str, error: &SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    if let Some(service) = error.as_service_error() {
        let code = service.code().unwrap_or("Unknown");
        let message = service.message().unwrap_or("AWS gave no reason");
        let failed = of_code(what, code, message);
        // A failure of AWS's own, of a kind that is not known here, may have come after the effect.
        let is_theirs = error.raw_response().is_some_and(|response| response.status().is_server_error());
        let kind = if is_theirs && failed.kind == ErrorKind::InvalidRequest {
            ErrorKind::Unavailable
        } else {
            failed.kind
        };
        return Error { kind, ..failed };
    }
    if let Some(refused) = find(error, |error: &ErrorMetadata| error.code().is_some_and(is_about_who_asks)) {
        let (code, message) = (refused.code().unwrap_or_default(), refused.message().unwrap_or_default());
        let message = format!("AWS could not be asked to {what}: no credentials are given: {code}: {message}");
        return Error::new(ErrorKind::InvalidCredentials, message).with_code(code);
    }
    let kind = match find(error, |_: &CredentialsError| true) {
        Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
            ErrorKind::InvalidCredentials
        }
        // Who gives the credentials may answer the next time. So may AWS, and nobody knows what it heard.
        Some(_) | None => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("AWS could not be asked to {what}: {}", DisplayErrorContext(error)))
}

/// Whether a refusal is about who asks, and not about what is asked.
fn is_about_who_asks(code: &str) -> bool {
    matches!(kind_of(code), ErrorKind::InvalidCredentials | ErrorKind::PermissionDenied)
}

/// The first error of a kind among an error and its causes.
fn find<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
    is_it: impl Fn(&T) -> bool,
) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>().filter(|found| is_it(found)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What a code of AWS means.
pub(super) fn of_code(what: &str, code: &str, message: &str) -> Error {
    let kind = kind_of(code);
    let advice = advice(code);
    let error = Error::new(kind, format!("AWS refused to {what}: {code}: {message}{advice}"));
    Error { code: Some(code.to_owned()), zones_with_capacity: zones_named(kind, message), ..error }
}

/// The class of a code. The lists are of the EC2 API's error codes and of what AWS ParallelCluster takes for a lack of
/// capacity.
pub(super) fn kind_of(code: &str) -> ErrorKind {
    // State reasons of machines have the same codes after a prefix.
    let code = code.strip_prefix("Server.").or_else(|| code.strip_prefix("Client.")).unwrap_or(code);
    match code {
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientCapacity"
        | "UnfulfillableCapacity"
        | "InsufficientCapacityOnOutpost"
        | "InsufficientVolumeCapacity"
        | "Unsupported"
        | "SpotMaxPriceTooLow" => ErrorKind::NoCapacity,
        "InsufficientReservedInstanceCapacity"
        | "ReservationCapacityExceeded"
        | "InvalidCapacityReservationState"
        | "CapacityReservationNotActive" => ErrorKind::ReservationUsedUp,
        "VcpuLimitExceeded" | "InstanceLimitExceeded" | "MaxSpotInstanceCountExceeded" | "PendingVerification" => {
            ErrorKind::QuotaExceeded
        }
        "AddressLimitExceeded"
        | "VolumeLimitExceeded"
        | "MaxIOPSLimitExceeded"
        | "PlacementGroupLimitExceeded"
        | "NetworkInterfaceLimitExceeded"
        | "SecurityGroupLimitExceeded" => ErrorKind::RegionLimit,
        "OptInRequired" => ErrorKind::RegionClosed,
        "IdempotentInstanceTerminated" | "IdempotentParameterMismatch" => ErrorKind::LaunchUsedUp,
        "InsufficientFreeAddressesInSubnet" => ErrorKind::NoAddresses,
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" | "Blocked" => {
            ErrorKind::PermissionDenied
        }
        "AuthFailure"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "RequestExpired"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "MissingAuthenticationToken"
        | "IncompleteSignature" => ErrorKind::InvalidCredentials,
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "PriorRequestNotComplete"
        | "ConcurrentRequestLimitExceeded"
        | "EC2ThrottledException" => ErrorKind::RateLimited,
        "Unavailable"
        | "ServiceUnavailable"
        | "InternalError"
        | "InternalFailure"
        | "InternalServerError"
        | "ServerInternal"
        | "RequestTimeout"
        | "Unknown" => ErrorKind::Unavailable,
        _ => ErrorKind::InvalidRequest,
    }
}

/// What to do about a refusal, where that is not in AWS's own words.
fn advice(code: &str) -> &'static str {
    match code {
        "VcpuLimitExceeded" | "InstanceLimitExceeded" | "MaxSpotInstanceCountExceeded" => {
            " (ask AWS for more in Service Quotas, Amazon EC2)"
        }
        "AddressLimitExceeded" => {
            " (ask AWS for more `EC2-VPC Elastic IPs` in Service Quotas, or use `public_ips: false`)"
        }
        "RequestExpired" => " (is the server's clock right?)",
        "OptInRequired" => " (enable the region or the service in the account)",
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => {
            " (docs/aws.md has the policy that the server needs)"
        }
        _ => "",
    }
}

/// The zones that AWS names as having what was asked for: "You can currently get … by … choosing us-east-1a, us-east-1b."
fn zones_named(kind: ErrorKind, message: &str) -> Vec<String> {
    if kind != ErrorKind::NoCapacity {
        return vec![];
    }
    let Some((_, rest)) = message.split_once("choosing ") else { return vec![] };
    let named = rest.split(|char: char| !(char.is_ascii_alphanumeric() || char == '-'));
    let is_zone = |word: &&str| {
        let mut chars = word.chars().rev();
        word.split('-').count() >= 3
            && chars.next().is_some_and(|last| last.is_ascii_lowercase())
            && chars.next().is_some_and(|digit| digit.is_ascii_digit())
    };
    named.filter(is_zone).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_classes_of_their_own() {
        for (code, kind) in [
            ("InsufficientInstanceCapacity", ErrorKind::NoCapacity),
            ("Server.InsufficientInstanceCapacity", ErrorKind::NoCapacity),
            ("ReservationCapacityExceeded", ErrorKind::ReservationUsedUp),
            ("VcpuLimitExceeded", ErrorKind::QuotaExceeded),
            ("PlacementGroupLimitExceeded", ErrorKind::RegionLimit),
            ("OptInRequired", ErrorKind::RegionClosed),
            ("IdempotentInstanceTerminated", ErrorKind::LaunchUsedUp),
            ("InsufficientFreeAddressesInSubnet", ErrorKind::NoAddresses),
            ("UnauthorizedOperation", ErrorKind::PermissionDenied),
            ("RequestExpired", ErrorKind::InvalidCredentials),
            ("RequestLimitExceeded", ErrorKind::RateLimited),
            ("InternalError", ErrorKind::Unavailable),
            ("InvalidParameterCombination", ErrorKind::InvalidRequest),
            ("SomethingNew", ErrorKind::InvalidRequest),
        ] {
            assert_eq!(kind_of(code), kind, "{code}");
        }
    }

    #[test]
    fn zones_that_have_capacity_are_read() {
        let message = "We currently do not have sufficient p5.48xlarge capacity in the Availability Zone you requested \
                       (us-west-2a). Our system will be working on provisioning additional capacity. You can currently \
                       get p5.48xlarge capacity by not specifying an Availability Zone in your request or choosing \
                       us-west-2b, us-west-2c.";
        let error = of_code("launch", "InsufficientInstanceCapacity", message);
        assert_eq!(error.zones_with_capacity, ["us-west-2b", "us-west-2c"]);
        assert_eq!(error.code.as_deref(), Some("InsufficientInstanceCapacity"));
        assert!(of_code("launch", "VcpuLimitExceeded", message).zones_with_capacity.is_empty());
    }
}
