//! Writes answers by the shape that the model gives them.
//!
//! An answer that the shape has no place for is a mistake of the simulator's, and the caller gets that instead.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

use crate::error::ApiError;
use crate::model::{Protocol, Service, Shape};

const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// The document that answers an action.
pub(crate) fn answer(
    service: &Service,
    action: &str,
    output: Option<&str>,
    value: &Value,
    request_id: &str,
) -> Result<String, ApiError> {
    let mut body = String::new();
    if let Some(shape) = output {
        write_value(service, shape, value, action, &mut body).map_err(ApiError::internal)?;
    }
    let namespace = service.namespace.trim_end_matches('/');
    Ok(match service.protocol {
        Protocol::Ec2 => {
            // Actions that have nothing to tell say that they were done.
            let body = if output.is_none() { "<return>true</return>".to_owned() } else { body };
            format!(
                "{HEAD}<{action}Response xmlns=\"{namespace}/\"><requestId>{request_id}</requestId>{body}</{action}Response>"
            )
        }
        Protocol::Query | Protocol::Json => format!(
            "<{action}Response xmlns=\"{namespace}/\"><{action}Result>{body}</{action}Result><ResponseMetadata>\
             <RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
        ),
    })
}

/// The document that refuses an action.
pub(crate) fn refusal(service: &Service, error: &ApiError, request_id: &str) -> String {
    let (code, message) = (escape(&error.code), escape(&error.message));
    if service.protocol == Protocol::Ec2 {
        return format!(
            "{HEAD}<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
             <RequestID>{request_id}</RequestID></Response>"
        );
    }
    let fault = if error.status < 500 { "Sender" } else { "Receiver" };
    format!(
        "<ErrorResponse xmlns=\"{}\"><Error><Type>{fault}</Type><Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>{request_id}</RequestId></ErrorResponse>",
        service.namespace
    )
}

/// Checks a JSON answer, and turns its times into the numbers that JSON services send.
pub(crate) fn json_answer(service: &Service, output: Option<&str>, value: &Value) -> Result<Value, ApiError> {
    let Some(shape) = output else { return Ok(Value::Object(serde_json::Map::new())) };
    let mut ignored = String::new();
    write_value(service, shape, value, "", &mut ignored).map_err(ApiError::internal)?;
    Ok(with_numeric_times(service, shape, value))
}

fn with_numeric_times(service: &Service, shape: &str, value: &Value) -> Value {
    match (service.shape(shape), value) {
        (Some(Shape::Structure { members, .. }), Value::Object(object)) => {
            let converted = object.iter().filter(|(_, inner)| !inner.is_null()).map(|(name, inner)| {
                let inner = members.get(name).map(|member| with_numeric_times(service, &member.shape, inner));
                (name.clone(), inner.unwrap_or_default())
            });
            Value::Object(converted.collect())
        }
        (Some(Shape::List { list, .. }), Value::Array(items)) => {
            items.iter().map(|item| with_numeric_times(service, list, item)).collect()
        }
        (None, Value::String(text)) if shape == "timestamp" => {
            let millis = text.parse::<Timestamp>().map_or(0, Timestamp::as_millisecond);
            Value::from(millis as f64 / 1000.0)
        }
        _ => value.clone(),
    }
}

fn write_value(service: &Service, shape: &str, value: &Value, path: &str, out: &mut String) -> Result<(), String> {
    match (service.shape(shape), value) {
        (Some(Shape::Structure { members, .. }), Value::Object(object)) => {
            for (name, inner) in object.iter().filter(|(_, inner)| !inner.is_null()) {
                let member = members.get(name).ok_or_else(|| format!("`{path}` has no member `{name}`"))?;
                let _ = write!(out, "<{}>", member.output);
                write_value(service, &member.shape, inner, &format!("{path}.{name}"), out)?;
                let _ = write!(out, "</{}>", member.output);
            }
            Ok(())
        }
        (Some(Shape::List { list, item }), Value::Array(items)) => {
            for inner in items {
                let _ = write!(out, "<{item}>");
                write_value(service, list, inner, path, out)?;
                let _ = write!(out, "</{item}>");
            }
            Ok(())
        }
        (Some(Shape::Map { .. }), Value::Object(_)) => {
            Err(format!("`{path}` is a map, which nothing here answers"))
        }
        (Some(Shape::Enum { values }), Value::String(text)) => {
            if !values.contains(text) {
                return Err(format!("`{path}` has no value `{text}`"));
            }
            out.push_str(&escape(text));
            Ok(())
        }
        (Some(_), _) => Err(format!("`{path}` is of another type than {value}")),
        (None, value) => {
            out.push_str(&plain(shape, value).ok_or_else(|| format!("`{path}` is a {shape}, and not {value}"))?);
            Ok(())
        }
    }
}

fn plain(kind: &str, value: &Value) -> Option<String> {
    match (kind, value) {
        ("integer" | "long", Value::Number(number)) => number.as_i64().map(|number| number.to_string()),
        ("double" | "float", Value::Number(number)) => number.as_f64().map(|number| format!("{number:?}")),
        ("boolean", Value::Bool(flag)) => Some(flag.to_string()),
        ("timestamp", Value::String(text)) => {
            // To the millisecond and in UTC, as AWS writes all of its times.
            let fits = text.len() == "2026-01-31T00:00:00.000Z".len() && text.ends_with('Z');
            (fits && text.parse::<Timestamp>().is_ok()).then(|| text.clone())
        }
        ("string" | "blob", Value::String(text)) => Some(escape(text)),
        _ => None,
    }
}

/// A time as AWS writes it.
pub(crate) fn time(time: Timestamp) -> String {
    format!("{time:.3}")
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\r' | '\t') => out.push('\u{fffd}'),
            '\r' => out.push_str("&#13;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model;

    fn write(action: &str, value: &Value) -> Result<String, String> {
        let service = model::service("ec2").unwrap();
        answer(service, action, service.operations[action].output.as_deref(), value, "r-1")
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_answer_has_the_names_of_the_model() {
        let value =
            json!({"Vpcs": [{"VpcId": "vpc-1", "IsDefault": true, "Tags": [{"Key": "a", "Value": "<&>"}]}]});
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <DescribeVpcsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r-1</requestId><vpcSet>\
            <item><isDefault>true</isDefault><tagSet><item><key>a</key><value>&lt;&amp;&gt;</value></item></tagSet>\
            <vpcId>vpc-1</vpcId></item></vpcSet></DescribeVpcsResponse>";
        assert_eq!(write("DescribeVpcs", &value).unwrap(), expected);
    }

    #[test]
    fn what_the_model_has_no_word_for_cannot_be_said() {
        let check = |value: Value, expected: &str| {
            assert_eq!(
                write("DescribeVpcs", &value).unwrap_err(),
                format!("Ec2simBroken: ec2sim is at fault: {expected}")
            );
        };
        check(json!({"Vpcs": [{"Colour": "red"}]}), "`DescribeVpcs.Vpcs` has no member `Colour`");
        check(
            json!({"Vpcs": [{"IsDefault": "yes"}]}),
            "`DescribeVpcs.Vpcs.IsDefault` is a boolean, and not \"yes\"",
        );
        check(json!({"Vpcs": [{"State": "lost"}]}), "`DescribeVpcs.Vpcs.State` has no value `lost`");
    }

    #[test]
    fn times_are_to_the_millisecond() {
        assert_eq!(time("2026-01-31T00:00:00Z".parse().unwrap()), "2026-01-31T00:00:00.000Z");
    }
}
