//! What a caller is told when an action is refused.

use std::borrow::Cow;

/// A refusal, with the code and the text that AWS uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The status of the HTTP answer.
    pub status: u16,
    /// The code that programs branch on.
    pub code: Cow<'static, str>,
    /// The text for people.
    pub message: String,
}

impl ApiError {
    /// A refusal that is the caller's fault.
    pub(crate) fn client(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status: 400, code: code.into(), message: message.into() }
    }

    /// A refusal with a status of its own.
    pub(crate) fn with_status(status: u16, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code: code.into(), message: message.into() }
    }

    /// A value that does not do for a parameter.
    pub(crate) fn invalid_value(value: impl std::fmt::Display, parameter: &str, why: &str) -> ApiError {
        let message = format!("Value ({value}) for parameter {parameter} is invalid. {why}");
        ApiError::client("InvalidParameterValue", message.trim_end())
    }

    /// Parameters that do not go together.
    pub(crate) fn combination(message: impl Into<String>) -> ApiError {
        ApiError::client("InvalidParameterCombination", message)
    }

    /// Something that EC2 knows and the simulator does not. No program should branch on it, so it is no code of AWS's.
    pub(crate) fn not_simulated(what: impl std::fmt::Display) -> ApiError {
        ApiError::client("NotSimulated", format!("ec2sim does not simulate {what}"))
    }

    /// A mistake of the simulator itself.
    pub(crate) fn internal(what: impl std::fmt::Display) -> ApiError {
        ApiError::with_status(500, "Ec2simBroken", format!("ec2sim is at fault: {what}"))
    }
}
