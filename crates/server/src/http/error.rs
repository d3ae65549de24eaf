//! What a request is answered when it fails: what the user is told, and what only the log is told.
//!
//! The bodies are the official ones, to the letter: clients branch on them.

use std::fmt;

use api::error::{ErrorBody, ErrorCode, ErrorItem};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use store::Obstacle;

/// A failed request.
#[derive(Debug)]
pub struct Error {
    status: StatusCode,
    body: Value,
    /// What went wrong inside, for the log.
    source: Option<anyhow::Error>,
}

/// The result of a handler.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Something is wrong with the request.
    pub fn bad_request(message: impl Into<String>) -> Error {
        Error::coded(ErrorCode::Error, message)
    }

    /// Something is wrong with the request, in a way that clients tell from others.
    pub fn coded(code: ErrorCode, message: impl Into<String>) -> Error {
        Error::item(message.into(), Some(code), None)
    }

    /// Something is wrong with these fields of the request.
    pub fn in_fields(code: ErrorCode, message: impl Into<String>, fields: &[&[&str]]) -> Error {
        let owned = |path: &&[&str]| path.iter().map(|&name| name.to_owned()).collect();
        Error::item(message.into(), Some(code), Some(fields.iter().map(owned).collect()))
    }

    /// Something is wrong with the request, without a code.
    pub fn uncoded(message: impl Into<String>) -> Error {
        Error::item(message.into(), None, None)
    }

    /// There is none of that name. Never a 404, because clients end their loops on this.
    pub fn not_exists(message: impl Into<String>) -> Error {
        Error::coded(ErrorCode::ResourceNotExists, message)
    }

    /// There is none of that name, in the words that most endpoints use.
    pub fn resource_not_found() -> Error {
        Error::not_exists("Resource not found")
    }

    /// There is one of that name already.
    pub fn resource_exists() -> Error {
        Error::coded(ErrorCode::ResourceExists, "Resource exists")
    }

    /// There was no token.
    pub fn not_authenticated() -> Error {
        Error::new(StatusCode::UNAUTHORIZED, json!({ "detail": "Not authenticated" }))
    }

    /// Nobody has this token.
    pub fn invalid_token() -> Error {
        Error::single(StatusCode::FORBIDDEN, "Invalid token")
    }

    /// The user may not do this.
    pub fn access_denied() -> Error {
        Error::single(StatusCode::FORBIDDEN, "Access denied")
    }

    /// There is no project of that name.
    pub fn project_not_found() -> Error {
        Error::single(StatusCode::NOT_FOUND, "Not found")
    }

    /// There is no such route.
    pub fn route_not_found() -> Error {
        Error::not_found("Not Found")
    }

    /// There is no such thing where a path leads.
    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(StatusCode::NOT_FOUND, json!({ "detail": message.into() }))
    }

    /// There is such a route, but not for this method.
    pub fn method_not_allowed() -> Error {
        Error::new(StatusCode::METHOD_NOT_ALLOWED, json!({ "detail": "Method Not Allowed" }))
    }

    /// The request is larger than the server reads.
    pub fn too_large(limit_bytes: usize) -> Error {
        let detail = format!("The request body is larger than {limit_bytes} bytes");
        Error::new(StatusCode::PAYLOAD_TOO_LARGE, json!({ "detail": detail }))
    }

    /// The body does not have the form that the endpoint asks for.
    pub fn invalid_body(problems: &[Problem]) -> Error {
        let detail: Vec<Value> = problems.iter().map(Problem::to_json).collect();
        Error::new(StatusCode::UNPROCESSABLE_ENTITY, json!({ "detail": detail }))
    }

    /// A value of the body is out of its bounds, or at odds with another one.
    pub fn invalid_value(path: &[&str], message: impl Into<String>, input: Value) -> Error {
        Error::invalid_body(&[Problem {
            kind: "value_error",
            loc: Problem::body(path),
            message: format!("Value error, {}", message.into()),
            input,
            context: Some(json!({ "error": {} })),
        }])
    }

    /// The server failed. The user is told nothing of it.
    pub fn internal(source: impl Into<anyhow::Error>) -> Error {
        Error { source: Some(source.into()), ..Error::internal_without_source() }
    }

    /// Something outside of this program stands in the way. The user is told what, and may repeat the request.
    fn obstructed(obstacle: Obstacle, source: impl Into<anyhow::Error>) -> Error {
        let item = ErrorItem {
            msg: format!("The server cannot work now: {obstacle}"),
            code: Some(ErrorCode::Error),
            fields: None,
        };
        let error = Error::new(StatusCode::SERVICE_UNAVAILABLE, json!(ErrorBody { detail: vec![item] }));
        Error { source: Some(source.into()), ..error }
    }

    fn internal_without_source() -> Error {
        Error::new(StatusCode::INTERNAL_SERVER_ERROR, json!({ "detail": "Internal Server Error" }))
    }

    /// The answer after a panic, which was logged where it happened.
    pub(crate) fn after_panic() -> Error {
        Error::internal_without_source()
    }

    fn new(status: StatusCode, body: Value) -> Error {
        Error { status, body, source: None }
    }

    fn single(status: StatusCode, message: &str) -> Error {
        Error::new(status, json!({ "detail": { "msg": message, "code": null } }))
    }

    fn item(msg: String, code: Option<ErrorCode>, fields: Option<Vec<Vec<String>>>) -> Error {
        let body = ErrorBody { detail: vec![ErrorItem { msg, code, fields }] };
        Error::new(StatusCode::BAD_REQUEST, json!(body))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status.as_u16(), self.body)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Some(source) = &self.source {
            tracing::error!("a request failed: {source:#}");
        }
        let mut response = (self.status, axum::Json(self.body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error.obstacle() {
            Some(obstacle) => Error::obstructed(obstacle, error),
            None => Error::internal(error),
        }
    }
}

impl From<crate::sealing::SealingError> for Error {
    fn from(error: crate::sealing::SealingError) -> Self {
        Error::internal(error)
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast_ref::<store::Error>().and_then(store::Error::obstacle) {
            Some(obstacle) => Error::obstructed(obstacle, error),
            None => Error::internal(error),
        }
    }
}

/// One thing that is wrong with the form of a request, in the official shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// What kind of problem, by the official names.
    pub kind: &'static str,
    /// Where, from `body` or `query` inwards.
    pub loc: Vec<Value>,
    /// What is wrong.
    pub message: String,
    /// What stands there.
    pub input: Value,
    /// Bounds and the like.
    pub context: Option<Value>,
}

impl Problem {
    /// The place of a field of the body.
    pub fn body(path: &[&str]) -> Vec<Value> {
        std::iter::once("body").chain(path.iter().copied()).map(Value::from).collect()
    }

    /// A number that is below its least value.
    pub fn too_small(field: &str, least: i64, input: i64) -> Problem {
        Problem {
            kind: "greater_than_equal",
            loc: Problem::body(&[field]),
            message: format!("Input should be greater than or equal to {least}"),
            input: json!(input),
            context: Some(json!({ "ge": least })),
        }
    }

    /// A number that is above its greatest value.
    pub fn too_great(field: &str, greatest: i64, input: i64) -> Problem {
        Problem {
            kind: "less_than_equal",
            loc: Problem::body(&[field]),
            message: format!("Input should be less than or equal to {greatest}"),
            input: json!(input),
            context: Some(json!({ "le": greatest })),
        }
    }

    fn to_json(&self) -> Value {
        let mut item = json!({ "type": self.kind, "loc": self.loc, "msg": self.message, "input": self.input });
        if let (Some(context), Some(map)) = (&self.context, item.as_object_mut()) {
            map.insert("ctx".to_owned(), context.clone());
        }
        item
    }
}

/// Checks that a number of the body is within its bounds.
pub fn check_bounds(field: &str, value: u32, least: u32, greatest: u32) -> Result<()> {
    if value < least {
        return Err(Error::invalid_body(&[Problem::too_small(field, least.into(), value.into())]));
    }
    if greatest < value {
        return Err(Error::invalid_body(&[Problem::too_great(field, greatest.into(), value.into())]));
    }
    Ok(())
}

/// The most items of a list in a request that is worked through in one transaction, which everybody else waits for.
const MOST_ITEMS: usize = 1000;

/// Checks that a list of the body is not too long.
pub fn check_length(field: &str, length: usize) -> Result<()> {
    if length <= MOST_ITEMS {
        return Ok(());
    }
    Err(Error::invalid_body(&[Problem {
        kind: "too_long",
        loc: Problem::body(&[field]),
        message: format!("List should have at most {MOST_ITEMS} items after validation, not {length}"),
        input: Value::Null,
        context: Some(json!({ "field_type": "List", "max_length": MOST_ITEMS, "actual_length": length })),
    }]))
}
