//! A parsed document in which every value knows where it stands.
//!
//! Scalars keep the text as written, so that `python: 3.10` is not `3.1`.

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) line: u64,
    pub(crate) column: u64,
    /// How many characters it covers; at least 1.
    pub(crate) width: u64,
}

impl Span {
    /// The place of what has no place, such as JSON.
    pub(crate) const NOWHERE: Span = Span { line: 1, column: 1, width: 1 };
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Span,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file, except that `type` comes first. What other keys mean depends on
    /// it, so a reader that meets it first needs no buffer.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) at: Span,
    pub(crate) text: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    /// As written, without quotes.
    pub(crate) text: String,
    pub(crate) meaning: Meaning,
    /// Whether the text will do where text is expected. That of a JSON number will not: programs
    /// say what they mean.
    pub(crate) is_text: bool,
}

/// What a scalar is where nothing particular is expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Meaning {
    Null,
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Number(f64),
    Text,
}

impl Node {
    /// A node of JSON, which has no places.
    pub(crate) fn from_json(value: serde_json::Value) -> Self {
        let scalar =
            |text: String, meaning| Content::Scalar(Scalar { text, meaning, is_text: meaning == Meaning::Text });
        let content = match value {
            serde_json::Value::Null => scalar(String::new(), Meaning::Null),
            serde_json::Value::Bool(value) => scalar(value.to_string(), Meaning::Bool(value)),
            serde_json::Value::Number(number) => {
                let meaning = match (number.as_i64(), number.as_u64(), number.as_f64()) {
                    (Some(value), ..) => Meaning::Integer(value),
                    (None, Some(value), _) => Meaning::Unsigned(value),
                    (None, None, value) => Meaning::Number(value.unwrap_or(f64::NAN)),
                };
                scalar(number.to_string(), meaning)
            }
            serde_json::Value::String(text) => scalar(text, Meaning::Text),
            serde_json::Value::Array(items) => Content::List(items.into_iter().map(Node::from_json).collect()),
            serde_json::Value::Object(entries) => Node::map(
                entries
                    .into_iter()
                    .map(|(text, value)| (Key { at: Span::NOWHERE, text }, Node::from_json(value)))
                    .collect(),
            ),
        };
        Node { at: Span::NOWHERE, content }
    }

    pub(crate) fn map(mut entries: Vec<(Key, Node)>) -> Content {
        if let Some(index) = entries.iter().position(|(key, _)| key.text == "type") {
            entries[..=index].rotate_right(1);
        }
        Content::Map(entries)
    }

    /// The entry of a mapping with this key.
    pub(crate) fn get(&self, text: &str) -> Option<&(Key, Node)> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|(key, _)| key.text == text),
            Content::List(_) | Content::Scalar(_) => None,
        }
    }

    /// Where `path`, as in `groups[1].name`, leads: the last key or item of it that is there.
    pub(crate) fn find(&self, path: &str) -> Option<Span> {
        let mut node = self;
        let mut found = None;
        for part in path.split('.') {
            let (text, index) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
                Some((text, index)) => (text, index.parse::<usize>().ok()),
                None => (part, None),
            };
            let Some((key, value)) = node.get(text) else {
                return found;
            };
            found = Some(key.at);
            node = value;
            if let (Some(index), Content::List(items)) = (index, &node.content) {
                let Some(item) = items.get(index) else {
                    return found;
                };
                found = Some(item.at);
                node = item;
            }
        }
        found
    }
}
