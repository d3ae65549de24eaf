//! Errors of `config.yml` show the line, and go to terminals and logs: what is secret in it is left out.

use api::yaml::YamlError;

/// The sections whose values are secret.
const SECRET_SECTIONS: [&str; 2] = ["encryption", "creds"];

/// The keys in them whose values are not.
const PLAIN_KEYS: [&str; 2] = ["type", "name"];

/// What stands in the place of a value.
const MASK: &str = "…";

/// The error without what may be secret in the line and in the message.
pub(super) fn without_secrets(error: YamlError, text: &str) -> YamlError {
    let index = usize::try_from(error.line.saturating_sub(1)).unwrap_or(usize::MAX);
    let lines: Vec<&str> = text.lines().collect();
    if !is_in_secret_section(&lines, index) {
        return error;
    }
    let (key, value) = split(&error.source_line);
    let is_plain = PLAIN_KEYS.contains(&key.trim_start_matches([' ', '-']).trim_end_matches([' ', ':']));
    if is_plain || value.is_empty() {
        return error;
    }
    // Whatever the message repeats of the value.
    let words =
        value.split(|c: char| c.is_whitespace() || "{}[],:'\"".contains(c)).filter(|word| !word.is_empty());
    let message = words.fold(error.message.clone(), |message, word| {
        if PLAIN_KEYS.contains(&word) { message } else { masked_word(&message, word) }
    });
    let source_line = format!("{key}{MASK}");
    let column = error.column.min(source_line.chars().count() as u64).max(1);
    YamlError { message, source_line, column, width: 1, ..error }
}

/// The message with a mask in the place of each quoted `word`, which messages quote when they repeat it.
fn masked_word(message: &str, word: &str) -> String {
    let mut masked = message.to_owned();
    for quote in ['`', '"', '\''] {
        masked = masked.replace(&format!("{quote}{word}{quote}"), &format!("{quote}{MASK}{quote}"));
    }
    masked
}

/// A line up to the value and the value: behind the first `: `, or behind the dash of an item.
fn split(line: &str) -> (&str, &str) {
    let begin = match line.find(": ") {
        Some(colon) => colon + 2,
        None => line.len() - line.trim_start_matches([' ', '-']).len(),
    };
    let value = line[begin..].trim();
    // `key:` alone has its value elsewhere.
    if value.ends_with(':') { (line, "") } else { (&line[..begin], value) }
}

/// Whether a line belongs to a secret section: it names one, stands deeper than a line that does, or in its braces.
fn is_in_secret_section(lines: &[&str], index: usize) -> bool {
    let names_one = |line: &str| SECRET_SECTIONS.iter().any(|section| line.contains(section));
    let Some(line) = lines.get(index) else { return false };
    let mut depth = depth_of(line);
    let mut open_braces = 0_i64;
    if names_one(line) {
        return true;
    }
    for line in lines[..index].iter().rev().filter(|line| !line.trim_start().is_empty()) {
        let count = |c: char| line.matches(c).count() as i64;
        open_braces += count('{') + count('[') - count('}') - count(']');
        let is_parent = depth_of(line) < depth;
        depth = depth.min(depth_of(line));
        if names_one(line) && (is_parent || 0 < open_braces) {
            return true;
        }
    }
    false
}

/// How far a line is indented; the dash of an item counts as a place of its own.
fn depth_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}
