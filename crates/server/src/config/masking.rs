//! Errors of `config.yml` show the line, and go to terminals and logs: what is secret in it is left out.

use api::yaml::YamlError;

/// The sections whose values are secret.
const SECRET_SECTIONS: [&str; 2] = ["encryption", "creds"];

/// The keys in them whose values are not.
const PLAIN_KEYS: [&str; 2] = ["type", "name"];

/// What messages put around what they repeat, and files around values.
const QUOTES: [char; 3] = ['`', '"', '\''];

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
    // A value may go on in the lines below.
    let depth = depth_of(&error.source_line);
    let below = lines[index + 1..].iter().take_while(|line| line.trim().is_empty() || depth < depth_of(line));
    let whole = squeezed(&below.fold(value.to_owned(), |whole, line| whole + line));
    let begin = squeezed(value);
    // Whatever the message repeats of the value.
    let is_secret = |part: &str| match squeezed(part) {
        marks if marks.is_empty() => value.trim_matches(QUOTES) == part.trim(),
        text => {
            let goes_on = !begin.is_empty() && text.starts_with(&begin);
            (goes_on || whole.contains(&text)) && !PLAIN_KEYS.contains(&part)
        }
    };
    let message =
        QUOTES.iter().fold(error.message.clone(), |message, quote| masked_parts(&message, *quote, is_secret));
    let source_line = format!("{key}{MASK}");
    let column = error.column.min(source_line.chars().count() as u64).max(1);
    YamlError { message, source_line, column, width: 1, ..error }
}

/// The message with a mask in the place of each part between two of these quotes that is secret: messages quote what
/// they repeat.
fn masked_parts(message: &str, quote: char, is_secret: impl Fn(&str) -> bool) -> String {
    let parts: Vec<&str> = message.split(quote).collect();
    let last = parts.len() - 1;
    // What is quoted may hold the quote itself, so that each part may be inside.
    let is_masked = |index: usize, part: &str| 0 < index && index < last && is_secret(part);
    let shown = parts.iter().enumerate().map(|(index, part)| if is_masked(index, part) { MASK } else { *part });
    shown.collect::<Vec<_>>().join(quote.to_string().as_str())
}

/// The letters and digits of a text: what of it is the same however it is quoted, escaped and broken into lines.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).collect()
}

/// A line up to the value and the value: behind the first `: `, or behind the dash of an item.
fn split(line: &str) -> (&str, &str) {
    if let Some(colon) = line.find(": ") {
        return (&line[..colon + 2], line[colon + 2..].trim());
    }
    let begin = line.len() - line.trim_start_matches([' ', '-']).len();
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
