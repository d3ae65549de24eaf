//! From text to nodes, by way of the YAML library.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{Error, Location, MessageFormatter, Options, Spanned, UserMessageFormatter};

use super::deserializer::NodeError;
use super::node::{Content, Key, Meaning, Node, Scalar, Span};

/// Reads the one document of a file, which must be a mapping.
pub(crate) fn read_document(text: &str) -> Result<Node, NodeError> {
    let document: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| explain(&error, text))?;
    let node = Raw::into_node(document, text);
    match &node.content {
        Content::Map(_) => Ok(node),
        Content::Scalar(scalar) if scalar.meaning == Meaning::Null => {
            Err(NodeError::whole_file("the file is empty".to_owned()))
        }
        Content::Scalar(_) | Content::List(_) => {
            let found = if matches!(node.content, Content::List(_)) { "a list" } else { "text" };
            Err(NodeError::custom_at(node.at, format!("expected a mapping of keys to values, found {found}")))
        }
    }
}

/// Limits far above any configuration and far below what hurts.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_documents: 2,
            max_events: 100_000,
            max_nodes: 50_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
            max_recorded_anchor_events: 100_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 16,
        },
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    }
}

/// Says in the user's words what the YAML library found.
fn explain(error: &Error, text: &str) -> NodeError {
    let error = error.without_snippet();
    let at = error.location().map_or(Span::NOWHERE, |location| span(location, text));
    let message = match error {
        Error::Eof { .. } => "the file is empty".to_owned(),
        Error::MultipleDocuments { .. } => "expected one document, found a second one after `---`".to_owned(),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("`{key}` is set twice"),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "the file is too large, too deep or has too many aliases".to_owned()
        }
        Error::UnknownAnchor { .. } => "the alias has no anchor".to_owned(),
        Error::Unexpected { expected: "string scalar", .. } | Error::NullIntoString { .. } => {
            "a key must be text".to_owned()
        }
        other => {
            if let Some(tab) = indenting_tab(at.line, text) {
                let message = "YAML is indented by spaces, not by tabs".to_owned();
                return NodeError::custom_at(tab, message);
            }
            let reason = UserMessageFormatter.format_message(other);
            format!("this is no valid YAML: {reason}")
        }
    };
    NodeError::custom_at(at, message)
}

/// A tab at the start of a line or of the next one, which the library does not always blame.
fn indenting_tab(line: u64, text: &str) -> Option<Span> {
    let before = usize::try_from(line.saturating_sub(1)).ok()?;
    text.lines().zip(1..).skip(before).take(2).find_map(|(text, line)| {
        let indent: String = text.chars().take_while(|c| c.is_whitespace()).collect();
        let column = indent.chars().position(|c| c == '\t')? as u64 + 1;
        Some(Span { line, column, width: 1 })
    })
}

fn span(location: Location, text: &str) -> Span {
    let width = source(location, text)
        .map_or(1, |source| source.lines().next().unwrap_or_default().trim_end().chars().count());
    Span { line: location.line().max(1), column: location.column().max(1), width: (width as u64).max(1) }
}

/// What the file has at `location`.
fn source(location: Location, text: &str) -> Option<&str> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    text.get(start..start.checked_add(length)?)
}

/// A value as the YAML library hands it out.
enum Raw {
    Scalar(Meaning, Option<String>),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl Raw {
    fn into_node(raw: Spanned<Raw>, text: &str) -> Node {
        let at = span(raw.defined, text);
        let content = match raw.value {
            Raw::Scalar(meaning, Some(value)) => Content::Scalar(Scalar { text: value, meaning, is_text: true }),
            Raw::Scalar(meaning, None) => {
                let written = source(raw.defined, text).unwrap_or_default().trim().to_owned();
                Content::Scalar(plain_scalar(meaning, written))
            }
            Raw::List(items) => Content::List(items.into_iter().map(|item| Raw::into_node(item, text)).collect()),
            Raw::Map(entries) => Node::map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let at = span(key.defined, text);
                        (Key { at, text: key.value }, Raw::into_node(value, text))
                    })
                    .collect(),
            ),
        };
        Node { at, content }
    }
}

/// The official reader follows YAML 1.1, in which `yes`, `no`, `on` and `off` are booleans, but
/// not to the letter: `y` and `n` are text, as are numbers with zeros before or `_` in them.
fn plain_scalar(meaning: Meaning, written: String) -> Scalar {
    let digits = written.trim_start_matches(['-', '+']);
    let is_padded =
        digits.len() > 1 && digits.starts_with('0') && digits.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
    let is_text = match meaning {
        Meaning::Bool(_) => written.len() == 1,
        Meaning::Integer(_) | Meaning::Unsigned(_) | Meaning::Number(_) => is_padded || written.contains('_'),
        Meaning::Null | Meaning::Text => false,
    };
    let meaning = if is_text { Meaning::Text } else { meaning };
    Scalar { text: written, meaning, is_text: meaning != Meaning::Null }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Meaning::Null, None))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Meaning::Null, None))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Meaning::Bool(value), None))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Meaning::Integer(value), None))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        let meaning = i64::try_from(value).map_or(Meaning::Unsigned(value), Meaning::Integer);
        Ok(Raw::Scalar(meaning, None))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Meaning::Number(value), None))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Meaning::Text, Some(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw::Scalar(Meaning::Text, Some(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}
