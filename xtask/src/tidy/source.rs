//! Rust source as the checks see it: production lines, and string literals with their lines.

use std::path::Path;

/// A text file of the clone.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) text: String,
}

impl File {
    /// Whether this is Rust that ends up in a program.
    pub(super) fn is_production_rust(&self) -> bool {
        let is_test = self.path.contains("/tests/") || self.path.ends_with("/tests.rs");
        Path::new(&self.path).extension().is_some_and(|end| end == "rs") && !is_test
    }

    /// The crate's folder name, for files under `crates/`.
    pub(super) fn crate_name(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }

    /// The text before an inline module of tests.
    pub(super) fn production_text(&self) -> &str {
        let mut end = 0;
        let mut lines = self.text.split_inclusive('\n').peekable();
        while let Some(line) = lines.next() {
            let is_module = |next: &&str| next.starts_with("mod ") && next.trim_end().ends_with('{');
            if line.trim_end() == "#[cfg(test)]" && lines.peek().is_some_and(is_module) {
                break;
            }
            end += line.len();
        }
        &self.text[..end]
    }

    /// The string literals of the production text with the lines where they begin.
    pub(super) fn production_literals(&self) -> Vec<(usize, &str)> {
        literals(self.production_text())
    }
}

/// The contents of all string literals, escapes left as they stand.
fn literals(text: &str) -> Vec<(usize, &str)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some((content, length)) = raw_string(rest, at.checked_sub(1).map(|before| bytes[before])) {
            found.push((line, content));
            length
        } else if rest.starts_with('"') {
            let length = quoted(rest);
            found.push((line, &rest[1..length.max(2) - 1]));
            length
        } else if rest.starts_with('\'') {
            character(rest)
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        line += rest[..length].matches('\n').count();
        at += length;
    }
    found
}

/// A raw string at the start of `rest`, and how long it is with its marks.
fn raw_string(rest: &str, before: Option<u8>) -> Option<(&str, usize)> {
    let within_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() && byte != b'b' || byte == b'_');
    let after_r = rest.strip_prefix('r').filter(|_| !within_word)?;
    let hashes = after_r.len() - after_r.trim_start_matches('#').len();
    let content = after_r[hashes..].strip_prefix('"')?;
    let end = content.find(&format!("\"{}", "#".repeat(hashes)))?;
    Some((&content[..end], 1 + hashes + 1 + end + 1 + hashes))
}

/// The length of an ordinary string at the start of `rest`, with its quotes.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (index, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal at the start of `rest`, or of the mark alone where it begins a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((_, _))) => {
            // The first closing mark after the escaped character.
            chars.find(|(_, c)| *c == '\'').map_or(1, |(index, _)| index + 1)
        }
        (Some(_), Some((index, '\''))) => index + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(usize, &str)]) {
        assert_eq!(literals(text), expected, "{text}");
    }

    #[test]
    fn literals_are_found_with_their_lines() {
        check("let a = \"one\";\nf(\"two\", 'x', \"\")", &[(1, "one"), (2, "two"), (2, "")]);
        check("\"a\nb\" \"c\"", &[(1, "a\nb"), (2, "c")]);
        check(r#""say \"no\"" "#, &[(1, r#"say \"no\""#)]);
    }

    #[test]
    fn comments_characters_and_lifetimes_hold_no_literals() {
        check("// \"not\"\n/* \"nor\" */ '\"' '\\'' '\\\\' \"yes\"", &[(2, "yes")]);
        check("fn f<'a>(x: &'a str) -> &'static str { \"yes\" }", &[(1, "yes")]);
    }

    #[test]
    fn raw_strings_end_at_their_own_mark() {
        check("r#\"a \"quoted\" b\"# r\"c\" br\"d\"", &[(1, "a \"quoted\" b"), (1, "c"), (1, "d")]);
        check("for \"x\"", &[(1, "x")]);
    }

    #[test]
    fn an_inline_module_of_tests_is_not_production() {
        let text = "fn a() {}\n#[cfg(test)]\nuse x;\nfn b() {}\n#[cfg(test)]\nmod tests {\n}\n".to_owned();
        let file = File { path: "crates/api/src/a.rs".to_owned(), text };
        assert_eq!(file.production_text(), "fn a() {}\n#[cfg(test)]\nuse x;\nfn b() {}\n");
        assert_eq!(file.crate_name(), Some("api"));
    }
}
