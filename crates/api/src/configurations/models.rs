//! The language model that a service offers.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Serialize};

use super::checked::constant;
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

constant! {
    /// What the model does.
    pub struct ModelType = "chat";
}

/// A language model. Written as its name or as a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "format", rename_all = "lowercase")]
pub enum ServiceModel {
    /// Served by the protocol of OpenAI.
    OpenAi {
        /// What it does.
        #[serde(rename = "type")]
        kind: ModelType,
        /// The name that clients ask for.
        name: String,
        /// The path under which the service answers.
        prefix: String,
    },
    /// Served by Text Generation Inference.
    Tgi {
        /// What it does.
        #[serde(rename = "type")]
        kind: ModelType,
        /// The name that clients ask for.
        name: String,
        /// The template of a chat; null is that of the model's repository.
        chat_template: Option<String>,
        /// What ends an answer; null is that of the model's repository.
        eos_token: Option<String>,
    },
}

const DEFAULT_PREFIX: &str = "/v1";

impl ServiceModel {
    /// The name that clients ask for.
    pub fn name(&self) -> &str {
        match self {
            ServiceModel::OpenAi { name, .. } | ServiceModel::Tgi { name, .. } => name,
        }
    }

    fn open_ai(name: String, prefix: Option<String>) -> Self {
        let prefix = prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned());
        ServiceModel::OpenAi { kind: ModelType::Only, name, prefix }
    }
}

impl Shorthand for ServiceModel {
    const EXPECTING: &'static str = "the name of a model, or a mapping with `name` and `format`";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(Self::open_ai(text.to_owned(), None))
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let fields: ModelFields = shorthand::fields(map)?;
        let name = fields.name;
        match fields.format {
            ModelFormat::OpenAi => {
                let tgi_keys =
                    [("chat_template", fields.chat_template.is_some()), ("eos_token", fields.eos_token.is_some())];
                for (key, is_set) in tgi_keys {
                    if is_set {
                        return Err(A::Error::custom(format!("`{key}` is for `format: tgi`")));
                    }
                }
                Ok(Self::open_ai(name, fields.prefix))
            }
            ModelFormat::Tgi if fields.prefix.is_some() => {
                Err(A::Error::custom("`prefix` is for `format: openai`"))
            }
            ModelFormat::Tgi => Ok(ServiceModel::Tgi {
                kind: ModelType::Only,
                name,
                chat_template: fields.chat_template,
                eos_token: fields.eos_token,
            }),
        }
    }
}

impl_shorthand!(ServiceModel);

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ModelFormat {
    #[default]
    OpenAi,
    Tgi,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ModelFields {
    #[serde(rename = "type", default)]
    #[expect(dead_code, reason = "only its value is checked")]
    kind: ModelType,
    name: String,
    #[serde(default)]
    format: ModelFormat,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    chat_template: Option<String>,
    #[serde(default)]
    eos_token: Option<String>,
}

impl JsonSchema for ServiceModel {
    fn schema_name() -> Cow<'static, str> {
        "ServiceModel".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mapping = ModelFields::json_schema(generator);
        json_schema!({"description": Self::EXPECTING, "anyOf": [mapping, {"type": "string"}]})
    }
}
