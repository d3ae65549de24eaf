//! The names, types and shapes of the services' actions, from AWS's own models.
//!
//! Requests are read by these shapes and answers are written by them, so that nothing can be said that the real
//! services have no word for.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

/// How a service is spoken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// Forms in, XML out, as EC2 alone has it.
    Ec2,
    /// Forms in, XML out.
    Query,
    /// JSON both ways.
    Json,
}

/// A service of AWS's.
#[derive(Debug, Deserialize)]
pub(crate) struct Service {
    pub(crate) protocol: Protocol,
    /// The version of the API, which requests must name.
    pub(crate) version: String,
    /// What stands before the action in the header of a JSON request.
    pub(crate) target: String,
    pub(crate) namespace: String,
    pub(crate) operations: BTreeMap<String, Operation>,
    shapes: BTreeMap<String, Shape>,
}

/// The shapes of an action's request and answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Operation {
    pub(crate) input: Option<String>,
    pub(crate) output: Option<String>,
    /// The filters that the action takes.
    pub(crate) filters: Option<Vec<String>>,
}

/// What a value consists of.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Shape {
    Structure {
        /// By the member's name.
        members: BTreeMap<String, Member>,
        #[serde(default)]
        required: Vec<String>,
    },
    List {
        list: String,
        /// The name of an item's element in XML.
        item: String,
    },
    /// A map, of which no action here has any.
    Map {
        #[serde(rename = "map")]
        #[cfg_attr(not(test), expect(dead_code, reason = "only the shapes' own test follows it"))]
        values: String,
    },
    Enum {
        #[serde(rename = "enum")]
        values: Vec<String>,
    },
}

/// A member of a structure: its shape, and its name in requests and in answers.
#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    pub(crate) shape: String,
    pub(crate) input: String,
    pub(crate) output: String,
}

impl Service {
    /// The shape of that name, or nothing where the name is one of a plain type.
    pub(crate) fn shape(&self, name: &str) -> Option<&Shape> {
        self.shapes.get(name)
    }
}

/// The services, by the names that botocore has for them.
static SERVICES: LazyLock<BTreeMap<String, Service>> = LazyLock::new(|| {
    let text = include_str!("../data/model.json");
    let mut services: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(text).expect("the model was written by the script beside it");
    services.remove("source");
    let read =
        |(name, value)| (name, serde_json::from_value(value).expect("the model has the shape of `Service`"));
    services.into_iter().map(read).collect()
});

/// Finds a service by the name in the scope of a signature.
pub(crate) fn service(signing_name: &str) -> Option<&'static Service> {
    let name = if signing_name == "servicequotas" { "service-quotas" } else { signing_name };
    SERVICES.get(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_that_is_named_is_there() {
        const PLAIN: [&str; 8] = ["string", "integer", "long", "double", "float", "boolean", "timestamp", "blob"];
        for (name, service) in SERVICES.iter() {
            let known = |shape: &String| service.shapes.contains_key(shape) || PLAIN.contains(&shape.as_str());
            for (action, operation) in &service.operations {
                let named = operation.input.iter().chain(&operation.output);
                assert!(named.into_iter().all(known), "{name} {action}");
            }
            for (shape, what) in &service.shapes {
                let holds = match what {
                    Shape::Structure { members, .. } => members.values().all(|member| known(&member.shape)),
                    Shape::List { list, .. } => known(list),
                    Shape::Map { values } => known(values),
                    Shape::Enum { values } => !values.is_empty(),
                };
                assert!(holds, "{name} {shape}");
            }
        }
    }
}
