//! Serde's view of a [`Node`], with errors that know their place.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};

use super::node::{Content, Key, Meaning, Node, Scalar, Span};
use crate::configurations::AS_WRITTEN;

/// Reads `T` from a node; the error has a place.
pub(crate) fn read<'de, T: de::Deserialize<'de>>(node: &'de Node) -> Result<T, NodeError> {
    T::deserialize(NodeDeserializer::new(node)).map_err(|error| error.located(node))
}

/// Why a node is not what it should be.
#[derive(Debug)]
pub(crate) struct NodeError(Box<Problem>);

#[derive(Debug)]
pub(crate) struct Problem {
    /// What is wrong, without the place.
    message: String,
    kind: Kind,
    /// Where; nothing until the error leaves the node that it is about.
    pub(crate) at: Option<Span>,
    /// The keys and indices that lead there, innermost first.
    path: Vec<Step>,
    /// The word that was probably meant.
    pub(crate) suggestion: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    UnknownKey,
    MissingKey,
    Other,
}

#[derive(Debug)]
enum Step {
    Key(String),
    Index(usize),
}

impl NodeError {
    fn new(kind: Kind, message: String) -> Self {
        NodeError(Box::new(Problem { message, kind, at: None, path: Vec::new(), suggestion: None }))
    }

    /// An error at a known place.
    pub(crate) fn custom_at(at: Span, message: String) -> Self {
        NodeError::new(Kind::Other, message).at(at)
    }

    /// An error of no particular place.
    pub(crate) fn whole_file(message: String) -> Self {
        NodeError::custom_at(Span::NOWHERE, message)
    }

    /// An error in the official words, which name keys without any marks. One that repeats a value is about that.
    pub(crate) fn official(node: &Node, message: String) -> Self {
        let mut words = message.split(|c: char| !c.is_alphanumeric() && c != '_');
        let named = words.find_map(|word| node.get(word)).map(|(key, value)| match &value.content {
            Content::Scalar(scalar) if message.contains(&format!("`{}`", scalar.text)) => value.at,
            Content::Scalar(_) | Content::List(_) | Content::Map(_) => key.at,
        });
        NodeError::custom_at(named.unwrap_or(node.at), message)
    }

    fn at(mut self, at: Span) -> Self {
        self.0.at.get_or_insert(at);
        self
    }

    pub(crate) fn problem(&self) -> &Problem {
        &self.0
    }

    fn suggesting(mut self, suggestion: Option<String>) -> Self {
        self.0.suggestion = suggestion;
        self
    }

    /// Gives an error about `node` its place: a key that the message names, as `key`, `key: value`
    /// or `key.path[0]`, or else the node.
    fn located(self, node: &Node) -> Self {
        let quoted = self.0.message.split('`').skip(1).step_by(2);
        let mut paths = quoted.map(|text| text.split_once(':').map_or(text, |(key, _)| key));
        let named = paths.find_map(|path| node.find(path));
        self.at(named.unwrap_or(node.at))
    }

    fn below(mut self, step: Step) -> Self {
        self.0.path.push(step);
        self
    }

    /// The keys and indices that lead there, as in `groups[1].name`.
    fn path(&self) -> String {
        let steps = self.0.path.iter().rev().map(|step| match step {
            Step::Index(index) => format!("[{index}]"),
            Step::Key(key) => format!(".{key}"),
        });
        let path: String = steps.collect();
        path.strip_prefix('.').map(str::to_owned).unwrap_or(path)
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        let message = &self.0.message;
        match self.0.kind {
            _ if path.is_empty() => f.write_str(message),
            Kind::UnknownKey | Kind::MissingKey => write!(f, "{message} in `{path}`"),
            Kind::Other => write!(f, "`{path}`: {message}"),
        }
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        NodeError::new(Kind::Other, message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = describe(found);
        NodeError::new(Kind::Other, format!("expected {}, found {found}", translate(expected)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        NodeError::new(Kind::Other, format!("expected {expected}, found {length} items"))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let suggestion = nearest(variant, known);
        // A long list hides the word that the user wants.
        let message = if suggestion.is_some() && MAX_LISTED < known.len() {
            format!("`{variant}` is not known here")
        } else {
            format!("expected {}, found `{variant}`", one_of(known))
        };
        NodeError::new(Kind::Other, message).suggesting(suggestion)
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        let message = format!("unknown key `{field}`");
        NodeError::new(Kind::UnknownKey, message).suggesting(nearest(field, known))
    }

    fn missing_field(field: &'static str) -> Self {
        NodeError::new(Kind::MissingKey, format!("missing key `{field}`"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        NodeError::new(Kind::Other, format!("`{field}` is set twice"))
    }
}

/// How many accepted words an error lists where it has a better one to suggest.
const MAX_LISTED: usize = 10;

fn one_of(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.as_slice() {
        [] => "nothing".to_owned(),
        [word] => word.clone(),
        words => format!("one of {}", words.join(", ")),
    }
}

/// The known word that `word` probably stands for.
fn nearest(word: &str, known: &[&str]) -> Option<String> {
    let distance = |other: &str| strsim::damerau_levenshtein(&word.to_lowercase(), other);
    // Words of different meaning are about this far apart.
    let limit = 1 + word.chars().count() / 4;
    let (distance, nearest) = known.iter().map(|other| (distance(other), *other)).min()?;
    (distance <= limit).then(|| nearest.to_owned())
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("the number `{value}`"),
        Unexpected::Signed(value) => format!("the number `{value}`"),
        Unexpected::Float(value) => format!("the number `{value}`"),
        Unexpected::Str(text) => format!("`{text}`"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

/// Says in the user's words what Serde's own types expect.
fn translate(expected: &dyn Expected) -> String {
    let expected = expected.to_string();
    let words = match expected.as_str() {
        "a string" => "text",
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list",
        "a map" => "a mapping",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" => "a whole number of at least 0",
        "i32" | "i64" => "a whole number",
        "f64" => "a number",
        text if text.starts_with("struct ") => "a mapping",
        text if text.starts_with("enum ") => "text",
        _ => return expected,
    };
    words.to_owned()
}

#[derive(Clone, Copy)]
struct NodeDeserializer<'de> {
    node: &'de Node,
    /// Whether numbers are handed out as text.
    numbers_as_written: bool,
}

impl<'de> NodeDeserializer<'de> {
    fn new(node: &'de Node) -> Self {
        NodeDeserializer { node, numbers_as_written: false }
    }

    /// The text of a scalar, where it will do for text.
    fn text(self) -> Option<&'de str> {
        match &self.node.content {
            Content::Scalar(scalar) if scalar.is_text => Some(&scalar.text),
            _ => None,
        }
    }

    fn visit_scalar<V: Visitor<'de>>(self, scalar: &'de Scalar, visitor: V) -> Result<V::Value, NodeError> {
        match scalar.meaning {
            Meaning::Null => visitor.visit_unit(),
            Meaning::Bool(value) => visitor.visit_bool(value),
            Meaning::Text => visitor.visit_borrowed_str(&scalar.text),
            _ if self.numbers_as_written && scalar.is_text => visitor.visit_borrowed_str(&scalar.text),
            Meaning::Integer(value) => visitor.visit_i64(value),
            Meaning::Unsigned(value) => visitor.visit_u64(value),
            Meaning::Number(value) => visitor.visit_f64(value),
        }
    }
}

impl<'de> Deserializer<'de> for NodeDeserializer<'de> {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.node.content {
            Content::Scalar(scalar) => self.visit_scalar(scalar, visitor),
            Content::List(items) => visitor.visit_seq(Items { items, index: 0 }),
            Content::Map(entries) => visitor.visit_map(Entries { entries, value: None }),
        }
    }

    // Text is as written: `name: no` and `user: 1000` need no quotes.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match self.text() {
            Some(text) => visitor.visit_borrowed_str(text),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.node.content {
            Content::Scalar(scalar) if scalar.meaning == Meaning::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        visitor.visit_newtype_struct(NodeDeserializer { numbers_as_written: name == AS_WRITTEN, ..self })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        if let Some(text) = self.text() {
            let variant: StrDeserializer<'_, NodeError> = text.into_deserializer();
            return variant.deserialize_enum(name, variants, visitor);
        }
        let found = match &self.node.content {
            Content::Scalar(scalar) => match scalar.meaning {
                Meaning::Bool(value) => Unexpected::Bool(value),
                Meaning::Integer(value) => Unexpected::Signed(value),
                Meaning::Unsigned(value) => Unexpected::Unsigned(value),
                Meaning::Number(value) => Unexpected::Float(value),
                Meaning::Null | Meaning::Text => Unexpected::Unit,
            },
            Content::List(_) => Unexpected::Seq,
            Content::Map(_) => Unexpected::Map,
        };
        let expected = one_of(variants);
        Err(de::Error::invalid_type(found, &expected.as_str()))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct ignored_any
    }
}

struct Items<'de> {
    items: &'de [Node],
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = NodeError;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NodeError> {
        let index = self.index;
        let Some(node) = self.items.get(index) else {
            return Ok(None);
        };
        self.index += 1;
        seed.deserialize(NodeDeserializer::new(node))
            .map(Some)
            .map_err(|error| error.located(node).below(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.index)
    }
}

struct Entries<'de> {
    entries: &'de [(Key, Node)],
    /// The entry whose key was handed out.
    value: Option<&'de (Key, Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = NodeError;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        let Some((entry, rest)) = self.entries.split_first() else {
            return Ok(None);
        };
        self.entries = rest;
        self.value = Some(entry);
        let key: StrDeserializer<'_, NodeError> = entry.0.text.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.at(entry.0.at))
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        let (key, node) = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(NodeDeserializer::new(node))
            .map_err(|error| error.located(node).below(Step::Key(key.text.clone())))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}
