//! Filters of describing actions, tags, and pages of long answers.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::ApiError;

/// The most values that a filter takes, and the most filters of a request.
const MAX_VALUES: usize = 200;
const MAX_FILTERS: usize = 50;

/// The most tags of a resource.
const MAX_TAGS: usize = 50;

/// Tags, by their keys.
pub(crate) type Tags = BTreeMap<String, String>;

/// A filter as it is sent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct Filter {
    name: Option<String>,
    #[serde(default)]
    values: Vec<String>,
}

/// Filters whose names the action knows.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<(String, Vec<String>)>);

impl Filters {
    /// Refuses filters that the action does not document.
    pub(crate) fn read(given: Vec<Filter>, known: &[String]) -> Result<Filters, ApiError> {
        if MAX_FILTERS < given.len() {
            let message = format!("The maximum number of filters is {MAX_FILTERS}");
            return Err(ApiError::client("FilterLimitExceeded", message));
        }
        let mut filters = Vec::new();
        for Filter { name, values } in given {
            let name = name.ok_or_else(|| ApiError::client("MissingParameter", "A filter must have a name"))?;
            let is_tag =
                name.starts_with("tag:") && known.iter().any(|known| known == "tag" || known == "tag:<key>");
            // The default VPC may be asked for by two names, and one is in no documentation.
            let is_alias = matches!(name.as_str(), "isDefault" | "capacity-reservation-id");
            if !is_tag && !is_alias && !known.contains(&name) {
                let message = format!("The filter '{name}' is invalid");
                return Err(ApiError::client("InvalidParameterValue", message));
            }
            if values.is_empty() {
                let message = format!("The filter '{name}' must have at least one value");
                return Err(ApiError::client("InvalidParameterValue", message));
            }
            if MAX_VALUES < values.len() {
                let message = format!("The maximum number of filter values is {MAX_VALUES}");
                return Err(ApiError::client("FilterLimitExceeded", message));
            }
            filters.push((name, values));
        }
        Ok(Filters(filters))
    }

    /// Whether there is nothing to filter by.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out the filters by tags, which can be asked before a row is made.
    pub(crate) fn take_tags(&mut self) -> Filters {
        let (tags, rest) = self.0.drain(..).partition(|(name, _)| name.starts_with("tag:") || name == "tag-key");
        self.0 = rest;
        Filters(tags)
    }

    /// Whether tags are what the filters ask for, of which there are none but those by tags.
    pub(crate) fn match_tags(&self, tags: &Tags) -> bool {
        self.0.iter().all(|(name, values)| match name.strip_prefix("tag:") {
            Some(key) => tags.get(key).is_some_and(|value| any_matches(values, value)),
            None => tags.keys().any(|key| any_matches(values, key)),
        })
    }

    /// Keeps the rows of an answer that match. `paths` tells for each filter where its value stands in a row.
    pub(crate) fn keep(&self, rows: Vec<Value>, paths: &[(&str, &str)]) -> Result<Vec<Value>, ApiError> {
        let mut tests = Vec::new();
        for (name, values) in &self.0 {
            let path = match paths.iter().find(|(known, _)| known == name) {
                Some((_, path)) => *path,
                None if name.starts_with("tag:") || name == "tag-key" => "",
                None => return Err(ApiError::not_simulated(format!("the filter `{name}`"))),
            };
            tests.push((name, path, values));
        }
        let matches = |row: &Value| {
            tests.iter().all(|(name, path, values)| {
                if path.is_empty() {
                    let filter = Filters(vec![((*name).clone(), (*values).clone())]);
                    return filter.match_tags(&read_tags(&row["Tags"]));
                }
                found(row, path).iter().any(|value| any_matches(values, value))
            })
        };
        Ok(rows.into_iter().filter(matches).collect())
    }
}

/// The values at a path, through lists.
fn found(row: &Value, path: &str) -> Vec<String> {
    let mut at = vec![row];
    for name in path.split('.') {
        at = at
            .into_iter()
            .flat_map(|value| match &value[name] {
                Value::Array(items) => items.iter().collect(),
                Value::Null => vec![],
                other => vec![other],
            })
            .collect();
    }
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    at.into_iter().map(text).collect()
}

fn any_matches(patterns: &[String], value: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, value))
}

/// Whether a pattern with `*` and `?` matches; a backslash takes what follows as it stands.
pub(crate) fn matches(pattern: &str, value: &str) -> bool {
    #[derive(PartialEq)]
    enum Part {
        Any,
        One,
        Is(char),
    }
    let mut parts = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => Part::Any,
            '?' => Part::One,
            '\\' => Part::Is(chars.next().unwrap_or('\\')),
            c => Part::Is(c),
        });
    }
    let value: Vec<char> = value.chars().collect();
    // Where the last star stands, and from where on it is tried to match more.
    let (mut part, mut at, mut star) = (0, 0, None);
    while at < value.len() {
        match parts.get(part) {
            Some(Part::Any) => {
                star = Some((part, at));
                part += 1;
            }
            Some(Part::One) => {
                part += 1;
                at += 1;
            }
            Some(Part::Is(c)) if *c == value[at] => {
                part += 1;
                at += 1;
            }
            _ => {
                let Some((star_part, star_at)) = star else { return false };
                star = Some((star_part, star_at + 1));
                part = star_part + 1;
                at = star_at + 1;
            }
        }
    }
    parts[part..].iter().all(|part| *part == Part::Any)
}

/// A tag as it is sent.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct Tag {
    pub(crate) key: Option<String>,
    pub(crate) value: Option<String>,
}

/// Tags for what an action makes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(crate) struct TagSpecification {
    resource_type: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

/// Checks tags as they are sent.
pub(crate) fn check_tags(given: &[Tag]) -> Result<Tags, ApiError> {
    let mut tags = Tags::new();
    for tag in given {
        let key = tag.key.as_deref().unwrap_or_default();
        let value = tag.value.as_deref().unwrap_or_default();
        let refuse = |message: String| Err(ApiError::client("InvalidParameterValue", message));
        if key.is_empty() || 127 < key.chars().count() {
            return refuse(format!("Tag key '{key}' must have between 1 and 127 characters"));
        }
        if 255 < value.chars().count() {
            return refuse(format!("The value of tag '{key}' exceeds the maximum length of 255 characters"));
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return refuse(format!(
                "Value ( {key} ) for parameter key is invalid. Tag keys starting with 'aws:' are reserved for internal use"
            ));
        }
        if tags.insert(key.to_owned(), value.to_owned()).is_some() {
            return refuse(format!("Duplicate tag key '{key}' specified."));
        }
    }
    if MAX_TAGS < tags.len() {
        return Err(too_many_tags());
    }
    Ok(tags)
}

/// How a resource with too many tags is refused.
pub(crate) fn too_many_tags() -> ApiError {
    ApiError::client("TagLimitExceeded", format!("The maximum number of tags for a resource is {MAX_TAGS}"))
}

/// Whether a resource has more tags than it may.
pub(crate) fn are_too_many(tags: &Tags) -> bool {
    MAX_TAGS < tags.len()
}

/// The tags of each kind of resource that an action makes.
pub(crate) fn tags_by_kind(
    given: &[TagSpecification],
    kinds: &[&str],
) -> Result<BTreeMap<String, Tags>, ApiError> {
    let mut by_kind = BTreeMap::new();
    for specification in given {
        let kind = specification.resource_type.clone().unwrap_or_default();
        if !kinds.contains(&kind.as_str()) {
            let message = format!("'{kind}' is not a valid taggable resource type for this operation.");
            return Err(ApiError::client("InvalidParameterValue", message));
        }
        if by_kind.insert(kind.clone(), check_tags(&specification.tags)?).is_some() {
            let message = format!("Tag specification resource type '{kind}' may only be given once.");
            return Err(ApiError::client("InvalidParameterValue", message));
        }
    }
    Ok(by_kind)
}

/// Tags as an answer lists them.
pub(crate) fn tag_set(tags: &Tags) -> Value {
    tags.iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

fn read_tags(value: &Value) -> Tags {
    let tags: Vec<Tag> = serde_json::from_value(value.clone()).unwrap_or_default();
    tags.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default())).collect()
}

/// Which part of a long answer is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub(crate) size: Option<i64>,
    pub(crate) token: Option<String>,
}

impl Page {
    /// Cuts out the page that is asked for, and tells how to ask for the next one.
    pub(crate) fn cut(
        &self,
        action: &str,
        mut rows: Vec<Value>,
        sizes: (usize, usize),
    ) -> Result<(Vec<Value>, Option<String>), ApiError> {
        let (least, most) = sizes;
        let size = match self.size {
            None => most,
            // Some actions take more than they give, others refuse it; all refuse too little.
            Some(size) => {
                usize::try_from(size).ok().filter(|size| (least..=1000).contains(size)).ok_or_else(|| {
                    let why = format!("Expecting a value between {least} and 1000.");
                    ApiError::invalid_value(format!(" {size} "), "maxResults", &why)
                })?
            }
        };
        let start = match &self.token {
            None => 0,
            Some(token) => read_token(action, token)
                .ok_or_else(|| ApiError::client("InvalidNextToken", format!("The token '{token}' is invalid")))?,
        };
        let mut page = rows.split_off(start.min(rows.len()));
        let is_last = page.len() <= size;
        page.truncate(size);
        let next = (!is_last).then(|| URL_SAFE_NO_PAD.encode(format!("{action}:{}", start + size)));
        Ok((page, next))
    }
}

fn read_token(action: &str, token: &str) -> Option<usize> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    text.strip_prefix(action)?.strip_prefix(':')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_ec2() {
        for (pattern, value, expected) in [
            ("a*c", "abbc", true),
            ("a*c*", "acd", true),
            ("a*b*c", "aXbXbc", true),
            ("a?c", "ac", false),
            ("a?c", "abc", true),
            (r"a\*c", "abc", false),
            (r"a\*c", "a*c", true),
            ("", "", true),
            ("*", "", true),
            ("a", "ab", false),
            ("Deep Learning (Ubuntu 22.04) *", "Deep Learning (Ubuntu 22.04) 2024", true),
        ] {
            assert_eq!(matches(pattern, value), expected, "{pattern} {value}");
        }
    }

    fn filters(name: &str, values: &[&str]) -> Result<Filters, ApiError> {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Filters::read(
            vec![Filter { name: Some(name.to_owned()), values }],
            &["state".to_owned(), "tag".to_owned()],
        )
    }

    #[test]
    fn filters_look_into_lists_and_at_tags() {
        let rows = vec![
            json!({"State": {"Name": "a"}, "Tags": [{"Key": "k", "Value": "v"}], "Id": [{"N": 1}, {"N": 2}]}),
        ];
        let kept = |name: &str, value: &str| {
            let paths = [("state", "State.Name"), ("n", "Id.N")];
            let known = ["state".to_owned(), "n".to_owned(), "tag".to_owned(), "tag-key".to_owned()];
            let filter = Filter { name: Some(name.to_owned()), values: vec![value.to_owned()] };
            let filters = Filters::read(vec![filter], &known).unwrap();
            !filters.keep(rows.clone(), &paths).unwrap().is_empty()
        };
        assert!(kept("state", "a") && !kept("state", "b"));
        assert!(kept("n", "2") && !kept("n", "3"));
        assert!(kept("tag:k", "v*") && !kept("tag:k", "w") && !kept("tag:l", "v"));
        assert!(kept("tag-key", "k") && !kept("tag-key", "v"));
    }

    #[test]
    fn unknown_filters_are_refused() {
        assert_eq!(
            filters("colour", &["red"]).unwrap_err().to_string(),
            "InvalidParameterValue: The filter 'colour' is invalid"
        );
        assert!(filters("state", &[]).is_err());
        let known = filters("state", &["a"]).unwrap();
        assert_eq!(known.keep(vec![], &[]).unwrap_err().code, "NotSimulated");
    }

    #[test]
    fn pages_follow_each_other() {
        let rows: Vec<Value> = (0..12).map(Value::from).collect();
        let mut page = Page { size: Some(5), token: None };
        let mut seen = Vec::new();
        loop {
            let (rows, next) = page.cut("DescribeThings", rows.clone(), (5, 1000)).unwrap();
            seen.push(rows.len());
            page.token = next;
            if page.token.is_none() {
                break;
            }
        }
        assert_eq!(seen, [5, 5, 2]);
        assert_eq!(
            Page { size: Some(4), token: None }.cut("D", vec![], (5, 1000)).unwrap_err().code,
            "InvalidParameterValue"
        );
        let strange = Page { size: None, token: Some("what".to_owned()) };
        assert_eq!(strange.cut("D", vec![], (5, 1000)).unwrap_err().code, "InvalidNextToken");
    }

    #[test]
    fn tags_are_checked() {
        let tag = |key: &str, value: &str| Tag { key: Some(key.to_owned()), value: Some(value.to_owned()) };
        assert!(check_tags(&[tag("a", "b")]).is_ok());
        for wrong in [
            vec![tag("aws:a", "")],
            vec![tag("", "")],
            vec![tag("a", ""), tag("a", "")],
            vec![tag(&"a".repeat(128), "")],
        ] {
            assert_eq!(check_tags(&wrong).unwrap_err().code, "InvalidParameterValue");
        }
        let many: Vec<Tag> = (0..51).map(|number| tag(&number.to_string(), "")).collect();
        assert_eq!(check_tags(&many).unwrap_err().code, "TagLimitExceeded");
    }
}
