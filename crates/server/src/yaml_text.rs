//! Writes YAML as people would: mappings in blocks, lists of plain values in one line.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The text of a mapping, with the keys in `first` before the others.
pub(crate) fn write(map: &Map<String, Value>, first: &[&str]) -> String {
    let mut text = String::new();
    write_map(&mut text, map, 0, first);
    text
}

fn write_map(text: &mut String, map: &Map<String, Value>, indent: usize, first: &[&str]) {
    let leading = first.iter().filter_map(|key| map.get_key_value(*key));
    let others = map.iter().filter(|(key, _)| !first.contains(&key.as_str()));
    for (number, (key, value)) in leading.chain(others).enumerate() {
        // The first key of a list's item stands behind its dash.
        let behind_dash = number == 0 && text.ends_with("- ");
        if !behind_dash {
            text.extend(std::iter::repeat_n(' ', indent));
        }
        text.push_str(&scalar(&Value::from(key.as_str())));
        text.push(':');
        write_value(text, value, indent);
    }
}

fn write_value(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            write_map(text, map, indent + 2, &[]);
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            text.push('\n');
            for item in items {
                text.extend(std::iter::repeat_n(' ', indent));
                text.push_str("- ");
                match item {
                    Value::Object(map) if !map.is_empty() => write_map(text, map, indent + 2, &[]),
                    other => _ = writeln!(text, "{}", scalar(other)),
                }
            }
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            _ = writeln!(text, " [{}]", items.join(", "));
        }
        other => _ = writeln!(text, " {}", scalar(other)),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        // What JSON writes is YAML too.
        other => other.to_string(),
    }
}

/// Whether a text reads back as itself without quotes.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "~"];
    let safe_inside = |c: char| c.is_ascii_alphanumeric() || "_-./+@=".contains(c);
    let mut chars = text.chars();
    let starts_safe = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let url = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let inside_ok = match url {
        Some(rest) => rest.chars().all(|c| safe_inside(c) || c == ':') && !rest.ends_with(':'),
        None => chars.all(safe_inside),
    };
    starts_safe && inside_ok && !WORDS.contains(&text.to_lowercase().as_str()) || is_uuid(text)
}

// Identifiers and tokens may begin with a digit; with their dashes they are never numbers.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(value: &Value, expected: &str) {
        let text = write(value.as_object().unwrap(), &["type"]);
        assert_eq!(text, expected);
        let back: Value = api::yaml::parse(&text, "test.yml").unwrap();
        assert_eq!(&back, value);
    }

    #[test]
    fn mappings_are_blocks_and_plain_lists_are_lines() {
        check(
            &json!({"creds": {"access_key": "AK"}, "type": "aws", "regions": ["us-east-1", "us-west-2"], "none": []}),
            "type: aws\ncreds:\n  access_key: AK\nnone: []\nregions: [us-east-1, us-west-2]\n",
        );
        check(
            &json!({"projects": [{"default": true, "name": "main", "url": "http://127.0.0.1:3000"}, {"name": "x"}]}),
            "projects:\n- default: true\n  name: main\n  url: http://127.0.0.1:3000\n- name: x\n",
        );
    }

    #[test]
    fn what_would_be_read_as_something_else_is_quoted() {
        check(
            &json!({"a": "yes", "b": "1.5", "c": "", "d": "x: y", "e": "#", "f": "a\nb", "g": null, "h": 1.5, "i": "~"}),
            "a: \"yes\"\nb: \"1.5\"\nc: \"\"\nd: \"x: y\"\ne: \"#\"\nf: \"a\\nb\"\ng: null\nh: 1.5\ni: \"~\"\n",
        );
        check(
            &json!({"t": "1b4da8b6-5572-40c2-afcf-c1194c78d9ee", "u": "123", "empty": {}, "deep": [[1]]}),
            "deep: [[1]]\nempty: {}\nt: 1b4da8b6-5572-40c2-afcf-c1194c78d9ee\nu: \"123\"\n",
        );
    }
}
