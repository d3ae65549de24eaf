//! Reads a request's parameters by the shape that the model gives them: forms as EC2, STS and IAM take them, and JSON.
//!
//! What comes out is a JSON object with the model's own names and types, whichever way it came in. A parameter that
//! the shape has no member for is refused, as is a value of another type.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::model::{Protocol, Service, Shape};

/// The most items of a list that a request may hold.
const MAX_ITEMS: usize = 2000;

/// The fields of a form, each of which may come once.
pub(crate) type Form = BTreeMap<String, String>;

/// Reads the fields of a form.
pub(crate) fn read_form(body: &[u8]) -> Result<Form, ApiError> {
    let mut form = Form::new();
    for (name, value) in form_urlencoded::parse(body) {
        if form.insert(name.to_string(), value.into_owned()).is_some() {
            let message = format!("The parameter {name} may only be given once");
            return Err(ApiError::client("MalformedQueryString", message));
        }
    }
    Ok(form)
}

/// Reads the parameters of an action from a form.
pub(crate) fn read_parameters(service: &Service, input: Option<&str>, form: &Form) -> Result<Value, ApiError> {
    let mut reader = Reader { service, form, used: BTreeSet::new() };
    let parameters = match input {
        Some(shape) => reader.read(shape, "")?,
        None => Value::Object(Map::new()),
    };
    let unknown =
        form.keys().find(|name| !reader.used.contains(name.as_str()) && *name != "Action" && *name != "Version");
    if let Some(name) = unknown {
        return Err(ApiError::client("UnknownParameter", format!("The parameter {name} is not recognized")));
    }
    if let (Some(shape), Value::Object(given)) = (input, &parameters) {
        require(service, shape, given, "")?;
    }
    Ok(parameters)
}

struct Reader<'a> {
    service: &'a Service,
    form: &'a Form,
    used: BTreeSet<&'a str>,
}

impl Reader<'_> {
    /// Whether a field stands at `prefix` or beneath it.
    fn is_given(&self, prefix: &str) -> bool {
        self.form.contains_key(prefix) || {
            let beneath = format!("{prefix}.");
            self.form.range(beneath.clone()..).next().is_some_and(|(name, _)| name.starts_with(&beneath))
        }
    }

    fn read(&mut self, shape: &str, prefix: &str) -> Result<Value, ApiError> {
        match self.service.shape(shape) {
            Some(Shape::Structure { members, .. }) => {
                let mut object = Map::new();
                for (name, member) in members {
                    let field = if prefix.is_empty() {
                        member.input.clone()
                    } else {
                        format!("{prefix}.{}", member.input)
                    };
                    if self.is_given(&field) {
                        object.insert(name.clone(), self.read(&member.shape, &field)?);
                    }
                }
                Ok(Value::Object(object))
            }
            Some(Shape::List { list, .. }) => self.read_list(list, prefix),
            Some(Shape::Map { .. }) => Err(ApiError::not_simulated(format!("maps as {prefix}"))),
            Some(Shape::Enum { values }) => {
                let text = self.take(prefix);
                if !values.contains(&text) {
                    return Err(not_among(&text, prefix, values));
                }
                Ok(Value::String(text))
            }
            None => {
                let text = self.take(prefix);
                read_plain(shape, &text, prefix)
            }
        }
    }

    fn read_list(&mut self, item: &str, prefix: &str) -> Result<Value, ApiError> {
        let before = match self.service.protocol {
            Protocol::Query => format!("{prefix}.member."),
            Protocol::Ec2 | Protocol::Json => format!("{prefix}."),
        };
        let beneath = self.form.range(before.clone()..).take_while(|(name, _)| name.starts_with(&before));
        let numbers = beneath.map(|(name, _)| name[before.len()..].split('.').next().unwrap_or_default().parse());
        let numbers: BTreeSet<usize> = numbers.collect::<Result<_, _>>().map_err(|_| {
            ApiError::client("UnknownParameter", format!("The parameter {prefix} is a list: number its items"))
        })?;
        let within_limits = numbers.iter().all(|number| (1..=MAX_ITEMS).contains(number));
        if !within_limits || numbers.is_empty() {
            let message = format!("The items of {prefix} must be numbered from 1");
            return Err(ApiError::client("MalformedQueryString", message));
        }
        let items = numbers.into_iter().map(|number| self.read(item, &format!("{before}{number}")));
        Ok(Value::Array(items.collect::<Result<_, _>>()?))
    }

    /// The text of a field that must be a leaf.
    fn take(&mut self, prefix: &str) -> String {
        let Some((name, value)) = self.form.get_key_value(prefix) else { return String::new() };
        self.used.insert(name);
        value.clone()
    }
}

fn not_among(text: &str, parameter: &str, values: &[String]) -> ApiError {
    ApiError::invalid_value(text, parameter, &format!("Valid values are: {}", values.join(", ")))
}

fn read_plain(kind: &str, text: &str, parameter: &str) -> Result<Value, ApiError> {
    let wrong = |expected: &str| ApiError::invalid_value(text, parameter, &format!("Expected {expected}."));
    match kind {
        "integer" => text.parse::<i32>().map(Value::from).map_err(|_| wrong("an integer")),
        "long" => text.parse::<i64>().map(Value::from).map_err(|_| wrong("an integer")),
        "double" | "float" => text.parse::<f64>().map(Value::from).map_err(|_| wrong("a number")),
        "boolean" => text.parse::<bool>().map(Value::from).map_err(|_| wrong("true or false")),
        "timestamp" => {
            let time: Timestamp = text.parse().map_err(|_| wrong("a time as 2026-01-31T00:00:00Z"))?;
            Ok(Value::String(time.to_string()))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}

/// Refuses a structure that lacks what it must have.
fn require(service: &Service, shape: &str, given: &Map<String, Value>, prefix: &str) -> Result<(), ApiError> {
    let Some(Shape::Structure { members, required }) = service.shape(shape) else { return Ok(()) };
    for name in required {
        if !given.contains_key(name) {
            let field = members.get(name).map_or(name.as_str(), |member| member.input.as_str());
            let message = format!("The request must contain the parameter {prefix}{field}");
            return Err(ApiError::client("MissingParameter", message));
        }
    }
    for (name, member) in members {
        let prefix = format!("{prefix}{}.", member.input);
        match (given.get(name), service.shape(&member.shape)) {
            (Some(Value::Object(inner)), Some(_)) => require(service, &member.shape, inner, &prefix)?,
            (Some(Value::Array(items)), Some(Shape::List { list, .. })) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Object(inner) = item {
                        require(service, list, inner, &format!("{prefix}{}.", index + 1))?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads the parameters of an action from JSON.
pub(crate) fn read_json(service: &Service, input: Option<&str>, body: &[u8]) -> Result<Value, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    let value: Value = serde_json::from_slice(body)
        .map_err(|_| ApiError::client("SerializationException", "The request is no JSON"))?;
    let (Some(shape), Value::Object(given)) = (input, &value) else {
        return Err(ApiError::client("SerializationException", "The request must be a JSON object"));
    };
    check_json(service, shape, &value, "")?;
    require(service, shape, given, "").map_err(|error| {
        let message = format!("1 validation error detected: {}", error.message);
        ApiError::client("ValidationException", message)
    })?;
    Ok(value)
}

fn check_json(service: &Service, shape: &str, value: &Value, path: &str) -> Result<(), ApiError> {
    let wrong = |what: &str| ApiError::client("SerializationException", format!("{path} must be {what}"));
    match (service.shape(shape), value) {
        (Some(Shape::Structure { members, .. }), Value::Object(object)) => {
            for (name, inner) in object {
                let member = members.get(name).ok_or_else(|| {
                    ApiError::client("ValidationException", format!("{path}.{name} is no parameter of the action"))
                })?;
                check_json(service, &member.shape, inner, &format!("{path}.{name}"))?;
            }
            Ok(())
        }
        (Some(Shape::List { list, .. }), Value::Array(items)) => {
            items.iter().try_for_each(|item| check_json(service, list, item, path))
        }
        (Some(Shape::Enum { values }), Value::String(text)) => {
            if values.contains(text) {
                return Ok(());
            }
            let message = format!("Value '{text}' at '{path}' must be one of: {}", values.join(", "));
            Err(ApiError::client("ValidationException", message))
        }
        (Some(Shape::Structure { .. }), _) => Err(wrong("an object")),
        (Some(Shape::List { .. }), _) => Err(wrong("a list")),
        (Some(Shape::Enum { .. }), _) => Err(wrong("a string")),
        (Some(Shape::Map { .. }), _) => Err(ApiError::not_simulated(format!("maps as {path}"))),
        (None, value) => {
            let fits = match shape {
                "integer" | "long" => value.is_i64() || value.is_u64(),
                "double" | "float" | "timestamp" => value.is_number(),
                "boolean" => value.is_boolean(),
                _ => value.is_string(),
            };
            if fits { Ok(()) } else { Err(wrong(&format!("of type {shape}"))) }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model;

    fn read(action: &str, form: &str) -> Result<Value, String> {
        let service = model::service("ec2").unwrap();
        let input = service.operations[action].input.as_deref();
        let form = read_form(form.as_bytes()).map_err(|error| error.to_string())?;
        read_parameters(service, input, &form).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(action: &str, form: &str, expected: &str) {
        assert_eq!(read(action, form).unwrap_err(), expected);
    }

    #[test]
    fn a_form_is_read_by_its_shape() {
        let form = "Action=DescribeVpcs&Version=2016-11-15&DryRun=false&Filter.2.Name=isDefault&Filter.2.Value.1=true\
                    &Filter.1.Name=tag%3AName&Filter.1.Value.1=a&Filter.1.Value.2=b&MaxResults=7";
        let filters =
            [json!({"Name": "tag:Name", "Values": ["a", "b"]}), json!({"Name": "isDefault", "Values": ["true"]})];
        let expected = json!({"DryRun": false, "Filters": filters, "MaxResults": 7});
        assert_eq!(read("DescribeVpcs", form).unwrap(), expected);
    }

    #[test]
    fn more_than_nine_items_keep_their_order() {
        let ids: Vec<String> = (1..=12).map(|number| format!("InstanceId.{number}=i-{number}")).collect();
        let read = read("TerminateInstances", &ids.join("&")).unwrap();
        let expected: Vec<String> = (1..=12).map(|number| format!("i-{number}")).collect();
        assert_eq!(read, json!({ "InstanceIds": expected }));
    }

    #[test]
    fn what_has_no_place_in_the_shape_is_refused() {
        refused("DescribeVpcs", "Colour=red", "UnknownParameter: The parameter Colour is not recognized");
        refused(
            "DescribeVpcs",
            "Filter.1.Name=a&Filter.1.Colour=red",
            "UnknownParameter: The parameter Filter.1.Colour is not recognized",
        );
        refused("DescribeVpcs", "VpcId=vpc-1", "MalformedQueryString: The items of VpcId must be numbered from 1");
        refused(
            "RunInstances",
            "MinCount=two&MaxCount=2",
            "InvalidParameterValue: Value (two) for parameter MinCount is invalid. Expected an integer.",
        );
        refused("RunInstances", "MinCount=1", "MissingParameter: The request must contain the parameter MaxCount");
        refused(
            "RunInstances",
            "MinCount=1&MinCount=2",
            "MalformedQueryString: The parameter MinCount may only be given once",
        );
    }

    #[test]
    fn json_is_checked_against_its_shape() {
        let service = model::service("servicequotas").unwrap();
        let input = service.operations["GetServiceQuota"].input.as_deref();
        let read = |text: &str| {
            read_json(service, input, text.as_bytes()).map(drop).map_err(|error| error.code.into_owned())
        };
        assert_eq!(read(r#"{"ServiceCode": "ec2", "QuotaCode": "L-1"}"#), Ok(()));
        assert_eq!(read(r#"{"ServiceCode": "ec2"}"#), Err("ValidationException".to_owned()));
        assert_eq!(read(r#"{"ServiceCode": 1, "QuotaCode": "L-1"}"#), Err("SerializationException".to_owned()));
        assert_eq!(
            read(r#"{"ServiceCode": "e", "QuotaCode": "L", "X": 1}"#),
            Err("ValidationException".to_owned())
        );
    }
}
