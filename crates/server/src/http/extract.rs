//! Bodies of requests and answers.
//!
//! A body is JSON whatever its content type says. Unknown keys are ignored: programs of other versions send them.
//! What does not fit is answered in the official shape, with the place of each problem.

use std::ops::Deref;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::{Error, Problem, Result};

/// Largest body that is not an upload, in bytes.
pub const BODY_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// A body: of a request that must have one, or of an answer. `Json(())` is the official void answer, `null`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => json_response(bytes),
            Err(error) => Error::internal(error).into_response(),
        }
    }
}

/// An answer whose body is JSON already.
pub fn json_response(bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(bytes.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let bytes = body_bytes(request).await?;
        if bytes.is_empty() {
            return Err(Error::invalid_body(&[missing(&[], Value::Null)]));
        }
        parse(&bytes).map(Json)
    }
}

/// The body of a request that need not have one: without it, or with `null`, everything has its default.
#[derive(Debug, Clone, Copy, Default)]
pub struct OptionalJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let bytes = body_bytes(request).await?;
        let text = bytes.trim_ascii();
        if text.is_empty() || text == b"null" {
            return Ok(OptionalJson(T::default()));
        }
        parse(&bytes).map(OptionalJson)
    }
}

async fn body_bytes(request: Request) -> Result<Bytes> {
    // The size is known to be too large only while it is read, whatever the headers said.
    axum::body::to_bytes(request.into_body(), BODY_LIMIT_BYTES)
        .await
        .map_err(|_| Error::too_large(BODY_LIMIT_BYTES))
}

/// Reads a body; the error tells where it does not fit.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize::<_, T>(&mut reader);
    let value = match value {
        Ok(value) => value,
        Err(error) => return Err(explain(bytes, &error)),
    };
    reader.end().map_err(|error| not_json(bytes, &error))?;
    Ok(value)
}

fn explain(bytes: &[u8], error: &serde_path_to_error::Error<serde_json::Error>) -> Error {
    // Reading it again as anything tells broken JSON from JSON that does not fit.
    let whole: Value = match serde_json::from_slice(bytes) {
        Ok(whole) => whole,
        Err(broken) => return not_json(bytes, &broken),
    };
    let mut loc = vec![Value::from("body")];
    let mut input = &whole;
    for segment in error.path() {
        use serde_path_to_error::Segment;
        let step = match segment {
            Segment::Seq { index } => (json!(index), input.get(index)),
            Segment::Map { key } => (json!(key), input.get(key)),
            Segment::Enum { .. } | Segment::Unknown => continue,
        };
        loc.push(step.0);
        input = step.1.unwrap_or(&Value::Null);
    }
    Error::invalid_body(&[misfit(loc, input.clone(), &without_position(&error.inner().to_string()))])
}

// serde_json appends a place that means nothing to somebody who wrote no text.
fn without_position(message: &str) -> String {
    match message.rsplit_once(" at line ") {
        Some((head, tail)) if tail.contains(" column ") => head.to_owned(),
        _ => message.to_owned(),
    }
}

fn missing(path: &[&str], input: Value) -> Problem {
    Problem {
        kind: "missing",
        loc: Problem::body(path),
        message: "Field required".to_owned(),
        input,
        context: None,
    }
}

fn misfit(mut loc: Vec<Value>, input: Value, message: &str) -> Problem {
    if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        loc.push(Value::from(field));
        return Problem { loc, ..missing(&[], input) };
    }
    let expected = message.rsplit_once("expected ").map_or("", |(_, expected)| expected);
    let by_type = match expected {
        "a string" => Some(("string_type", "Input should be a valid string")),
        "a boolean" => Some(("bool_type", "Input should be a valid boolean")),
        "a sequence" => Some(("list_type", "Input should be a valid list")),
        "a UUID" | "a formatted UUID string" => Some(("uuid_parsing", "Input should be a valid UUID")),
        "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" => {
            Some(("int_type", "Input should be a valid integer"))
        }
        "f64" => Some(("float_type", "Input should be a valid number")),
        _ if message.starts_with("UUID parsing failed") => Some(("uuid_parsing", "Input should be a valid UUID")),
        _ if expected.starts_with("struct ") => {
            Some(("model_attributes_type", "Input should be a valid dictionary"))
        }
        _ => None,
    };
    let by_type = by_type.filter(|_| message.starts_with("invalid type") || message.starts_with("UUID"));
    match by_type {
        Some((kind, message)) => Problem { kind, loc, message: message.to_owned(), input, context: None },
        None => Problem {
            kind: "value_error",
            loc,
            message: format!("Value error, {message}"),
            input,
            context: Some(json!({ "error": {} })),
        },
    }
}

fn not_json(bytes: &[u8], error: &serde_json::Error) -> Error {
    let lines_before = bytes.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let before: usize = lines_before.map(<[u8]>::len).sum();
    let place = before + error.column().saturating_sub(1);
    let message = error.to_string();
    let reason = match without_position(&message).as_str() {
        "key must be a string" => "Expecting property name enclosed in double quotes",
        "expected `:`" => "Expecting ':' delimiter",
        "expected `,` or `}`" | "expected `,` or `]`" => "Expecting ',' delimiter",
        "trailing characters" => "Extra data",
        "control character (\\u0000-\\u001F) found while parsing a string" => "Invalid control character at",
        _ => "Expecting value",
    };
    Error::invalid_body(&[Problem {
        kind: "json_invalid",
        loc: vec![Value::from("body"), json!(place)],
        message: "JSON decode error".to_owned(),
        input: json!({}),
        context: Some(json!({ "error": reason })),
    }])
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Inner {
        numbers: Vec<u32>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read")]
    struct Request {
        name: String,
        #[serde(default)]
        inner: Option<Inner>,
    }

    #[track_caller]
    fn check(body: &str, expected: &Value) {
        let error = parse::<Request>(body.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), format!("422 {}", json!({ "detail": [expected] })));
    }

    #[test]
    fn broken_json_is_answered_with_its_place() {
        let invalid = |place: u32, reason: &str| {
            json!({"type": "json_invalid", "loc": ["body", place], "msg": "JSON decode error", "input": {},
                   "ctx": {"error": reason}})
        };
        check("{bad", &invalid(1, "Expecting property name enclosed in double quotes"));
        check("{\"name\": \"x\"} 1", &invalid(14, "Extra data"));
        check("{\n\"name\" 1}", &invalid(9, "Expecting ':' delimiter"));
    }

    #[test]
    fn what_does_not_fit_is_answered_with_its_place() {
        check(
            "{\"a\": 1}",
            &json!({"type": "missing", "loc": ["body", "name"], "msg": "Field required", "input": {"a": 1}}),
        );
        check(
            "{\"name\": 1}",
            &json!({"type": "string_type", "loc": ["body", "name"], "msg": "Input should be a valid string", "input": 1}),
        );
        check(
            "{\"name\": \"x\", \"inner\": {\"numbers\": [1, \"2\"]}}",
            &json!({"type": "int_type", "loc": ["body", "inner", "numbers", 1],
                   "msg": "Input should be a valid integer", "input": "2"}),
        );
        check(
            "{\"name\": \"x\", \"inner\": {\"numbers\": [-1]}}",
            &json!({"type": "value_error", "loc": ["body", "inner", "numbers", 0],
                   "msg": "Value error, invalid value: integer `-1`, expected u32", "input": -1, "ctx": {"error": {}}}),
        );
        check(
            "[]",
            &json!({"type": "value_error", "loc": ["body"], "input": [], "ctx": {"error": {}},
                    "msg": "Value error, invalid length 0, expected struct Request with 2 elements"}),
        );
    }
}
