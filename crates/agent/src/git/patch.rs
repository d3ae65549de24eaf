//! Changes in Git's own format, as `git diff --binary` prints them.

use std::io::Read;

use super::error::Error;

/// How large a file may become by a binary change.
const BINARY_LIMIT: u64 = 1 << 30;

/// What a change does to one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FilePatch {
    /// The path before, unless the file is new.
    pub(super) old: Option<String>,
    /// The path after, unless the file is deleted.
    pub(super) new: Option<String>,
    /// The file stays where it was as well.
    pub(super) is_copy: bool,
    /// The permissions before and after, as far as they are told.
    pub(super) old_mode: Option<u32>,
    pub(super) new_mode: Option<u32>,
    /// What happens to the bytes.
    pub(super) change: Change,
}

/// What happens to a file's bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    #[default]
    None,
    /// Lines are replaced.
    Text(Vec<Hunk>),
    /// These are the bytes.
    Literal(Vec<u8>),
    /// The bytes are pieced together from those before and new ones.
    Delta(Vec<u8>),
}

/// Lines that are replaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hunk {
    /// The first line before, from 0.
    pub(super) start: usize,
    /// The lines before and after, each with its end.
    pub(super) old: Vec<u8>,
    pub(super) new: Vec<u8>,
}

fn wrong(what: &str) -> Error {
    Error::Other(format!("the changes that were not committed are not in Git's format: {what}"))
}

/// Reads all changes.
pub(super) fn parse(text: &[u8]) -> Result<Vec<FilePatch>, Error> {
    let mut lines = Lines { text };
    let mut patches = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(paths) = line.strip_prefix(b"diff --git ") {
            patches.push(parse_file(paths, &mut lines)?);
        } else if !line.trim_ascii().is_empty() {
            return Err(wrong("it does not begin with `diff --git`"));
        }
    }
    Ok(patches)
}

/// Lines without their ends.
struct Lines<'a> {
    text: &'a [u8],
}

impl<'a> Lines<'a> {
    fn peek(&self) -> Option<&'a [u8]> {
        let end = self.text.iter().position(|byte| *byte == b'\n').unwrap_or(self.text.len());
        (!self.text.is_empty()).then(|| &self.text[..end])
    }

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = self.peek()?;
        self.text = self.text.get(line.len() + 1..).unwrap_or_default();
        Some(line)
    }
}

fn parse_file(paths: &[u8], lines: &mut Lines<'_>) -> Result<FilePatch, Error> {
    let mut patch = FilePatch::default();
    let (mut is_new, mut is_deleted) = (false, false);
    let (mut renamed_from, mut renamed_to) = (None, None);
    while let Some(line) = lines.peek() {
        if line.starts_with(b"diff --git ") {
            break;
        }
        if line.starts_with(b"@@ ") {
            patch.change = Change::Text(parse_hunks(lines)?);
            continue;
        }
        lines.next();
        let text = || std::str::from_utf8(line).map_err(|_| wrong("a name is not UTF-8"));
        if line == b"GIT binary patch" {
            patch.change = parse_binary(lines)?;
        } else if line.starts_with(b"Binary files ") {
            return Err(wrong("a binary file's change was left out; make it with `git diff --binary`"));
        } else if let Some(mode) = text()?.strip_prefix("old mode ") {
            patch.old_mode = Some(parse_mode(mode)?);
        } else if let Some(mode) = text()?.strip_prefix("new mode ") {
            patch.new_mode = Some(parse_mode(mode)?);
        } else if let Some(mode) = text()?.strip_prefix("new file mode ") {
            (is_new, patch.new_mode) = (true, Some(parse_mode(mode)?));
        } else if let Some(mode) = text()?.strip_prefix("deleted file mode ") {
            (is_deleted, patch.old_mode) = (true, Some(parse_mode(mode)?));
        } else if let Some(path) = text()?.strip_prefix("rename from ").or(text()?.strip_prefix("copy from ")) {
            patch.is_copy = text()?.starts_with("copy");
            renamed_from = Some(unquote(path)?);
        } else if let Some(path) = text()?.strip_prefix("rename to ").or(text()?.strip_prefix("copy to ")) {
            renamed_to = Some(unquote(path)?);
        } else if let Some(path) = text()?.strip_prefix("--- ") {
            patch.old = unprefixed(path)?;
        } else if let Some(path) = text()?.strip_prefix("+++ ") {
            patch.new = unprefixed(path)?;
        }
    }
    if patch.old.is_none() && patch.new.is_none() && renamed_to.is_none() {
        // Without lines there are no names but in the first line, where both are the same.
        let (old, new) = split_names(paths)?;
        (patch.old, patch.new) = (Some(old), Some(new));
    }
    patch.old = renamed_from.or(patch.old).filter(|_| !is_new);
    patch.new = renamed_to.or(patch.new).filter(|_| !is_deleted);
    for path in [&patch.old, &patch.new].into_iter().flatten() {
        check_path(path)?;
    }
    Ok(patch)
}

fn parse_mode(text: &str) -> Result<u32, Error> {
    u32::from_str_radix(text.trim(), 8).map_err(|_| wrong("a mode is not a number"))
}

/// A path may not lead out of the repository, nor into Git's own folder.
fn check_path(path: &str) -> Result<(), Error> {
    let is_bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.eq_ignore_ascii_case(".git");
    if path.split('/').any(is_bad) || path.contains('\0') {
        return Err(wrong(&format!("`{path}` is not a path in the repository")));
    }
    Ok(())
}

/// The names of `a/name b/name`, which are the same. One of them may be quoted.
fn split_names(paths: &[u8]) -> Result<(String, String), Error> {
    let text = std::str::from_utf8(paths).map_err(|_| wrong("a name is not UTF-8"))?;
    let both = |old: &str, new: &str| Some((unprefixed(old).ok()??, unprefixed(new).ok()??));
    let spaces = text.match_indices(' ').map(|(at, _)| at);
    let found = spaces.filter_map(|at| both(&text[..at], &text[at + 1..])).find(|(old, new)| old == new);
    found.ok_or_else(|| wrong("the names of a file cannot be told apart"))
}

/// A name without the `a/` or `b/` before it. None: there is no such file.
fn unprefixed(path: &str) -> Result<Option<String>, Error> {
    // A name with spaces is followed by a tab, so that its end is known.
    let path = unquote(path.split_once('\t').map_or(path, |(path, _)| path))?;
    if path == "/dev/null" {
        return Ok(None);
    }
    match path.split_once('/') {
        Some(("a" | "b", path)) => Ok(Some(path.to_owned())),
        _ => Err(wrong("a name does not begin with `a/` or `b/`")),
    }
}

/// A name as it is: odd ones are quoted as in C.
fn unquote(text: &str) -> Result<String, Error> {
    let text = text.trim_end_matches('\r');
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return Ok(text.to_owned());
    };
    let mut bytes = Vec::new();
    let mut rest = inner.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let escaped = rest.next().ok_or_else(|| wrong("a name ends with a backslash"))?;
        bytes.push(match escaped {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            first @ b'0'..=b'3' => {
                let mut value = u32::from(first - b'0');
                for digit in rest.by_ref().take(2) {
                    value = value * 8 + u32::from(digit.wrapping_sub(b'0') & 7);
                }
                value as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| wrong("a name is not UTF-8"))
}

fn parse_hunks(lines: &mut Lines<'_>) -> Result<Vec<Hunk>, Error> {
    let mut hunks = Vec::new();
    while let Some(line) = lines.peek().filter(|line| line.starts_with(b"@@ ")) {
        lines.next();
        let header = String::from_utf8_lossy(line);
        let mut words = header.split(' ').skip(1);
        let (start, mut old_left) = range(words.next(), '-')?;
        let (_, mut new_left) = range(words.next(), '+')?;
        // Where nothing was before, the line after which the new ones go is told.
        let start = if old_left == 0 { start } else { start.saturating_sub(1) };
        let mut hunk = Hunk { start, old: Vec::new(), new: Vec::new() };
        while old_left > 0 || new_left > 0 {
            let line = lines.next().ok_or_else(|| wrong("it ends too early"))?;
            let (sign, text) = line.split_first().map_or((b' ', &b""[..]), |(sign, text)| (*sign, text));
            let is_unended = lines.peek().is_some_and(|next| next.starts_with(b"\\"));
            let push = |side: &mut Vec<u8>, left: &mut usize| -> Result<(), Error> {
                side.extend_from_slice(text);
                if !is_unended {
                    side.push(b'\n');
                }
                *left = left.checked_sub(1).ok_or_else(|| wrong("a part has more lines than it says"))?;
                Ok(())
            };
            if matches!(sign, b' ' | b'-') {
                push(&mut hunk.old, &mut old_left)?;
            }
            if matches!(sign, b' ' | b'+') {
                push(&mut hunk.new, &mut new_left)?;
            }
            if !matches!(sign, b' ' | b'-' | b'+') {
                return Err(wrong("a line of a part begins with neither of ` `, `-` and `+`"));
            }
            if is_unended {
                lines.next();
            }
        }
        hunks.push(hunk);
    }
    Ok(hunks)
}

/// `-first,count`.
fn range(word: Option<&str>, sign: char) -> Result<(usize, usize), Error> {
    let parse = || -> Option<(usize, usize)> {
        let word = word?.strip_prefix(sign)?;
        let (first, count) = word.split_once(',').unwrap_or((word, "1"));
        Some((first.parse().ok()?, count.parse().ok()?))
    };
    parse().ok_or_else(|| wrong("a part does not say which lines it is about"))
}

/// The first of the two parts: the way forward. The second one is the way back.
fn parse_binary(lines: &mut Lines<'_>) -> Result<Change, Error> {
    let mut forward = None;
    while let Some(line) = lines.peek() {
        let Some((kind, size)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' ')) else {
            break;
        };
        if !matches!(kind, "literal" | "delta") {
            break;
        }
        let size: u64 = size.trim().parse().map_err(|_| wrong("a binary part has no size"))?;
        lines.next();
        let mut packed = Vec::new();
        while let Some(line) = lines.next().filter(|line| !line.is_empty()) {
            decode_line(line, &mut packed)?;
        }
        if forward.is_none() {
            let bytes = inflate(&packed, size)?;
            forward = Some(if kind == "literal" { Change::Literal(bytes) } else { Change::Delta(bytes) });
        }
    }
    forward.ok_or_else(|| wrong("a binary part is missing"))
}

fn inflate(packed: &[u8], size: u64) -> Result<Vec<u8>, Error> {
    if size > BINARY_LIMIT {
        return Err(wrong("a binary file is too large"));
    }
    let mut bytes = Vec::new();
    let read = flate2::read::ZlibDecoder::new(packed).take(size + 1).read_to_end(&mut bytes);
    if read.is_err() || bytes.len() as u64 != size {
        return Err(wrong("a binary part is damaged"));
    }
    Ok(bytes)
}

/// A line of binary data: a letter for its length, then five characters for each four bytes.
fn decode_line(line: &[u8], bytes: &mut Vec<u8>) -> Result<(), Error> {
    const DIGITS: &[u8; 85] =
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
    let damaged = || wrong("a binary part is damaged");
    let (length, digits) = line.trim_ascii_end().split_first().ok_or_else(damaged)?;
    let length = match length {
        b'A'..=b'Z' => length - b'A' + 1,
        b'a'..=b'z' => length - b'a' + 27,
        _ => return Err(damaged()),
    };
    let before = bytes.len();
    for group in digits.chunks(5) {
        let mut value: u32 = 0;
        for digit in group {
            let digit = DIGITS.iter().position(|known| known == digit).ok_or_else(damaged)?;
            value = value.checked_mul(85).and_then(|value| value.checked_add(digit as u32)).ok_or_else(damaged)?;
        }
        if group.len() != 5 {
            return Err(damaged());
        }
        bytes.extend_from_slice(&value.to_be_bytes());
    }
    let end = before + usize::from(length);
    if bytes.len() < end || bytes.len() >= end + 4 {
        return Err(damaged());
    }
    bytes.truncate(end);
    Ok(())
}

/// The bytes after a change.
pub(super) fn apply(path: &str, old: Vec<u8>, change: &Change) -> Result<Vec<u8>, Error> {
    match change {
        Change::None => Ok(old),
        Change::Literal(bytes) => Ok(bytes.clone()),
        Change::Text(hunks) => apply_text(path, &old, hunks),
        Change::Delta(delta) => apply_delta(&old, delta).ok_or_else(|| does_not_fit(path)),
    }
}

fn does_not_fit(path: &str) -> Error {
    Error::Other(format!(
        "the changes to `{path}` that were not committed do not fit the commit: was `hash` changed since?"
    ))
}

fn apply_text(path: &str, old: &[u8], hunks: &[Hunk]) -> Result<Vec<u8>, Error> {
    let ends = old.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    // Where each line begins, and where one after the last one would.
    let mut starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
    if starts.last() != Some(&old.len()) {
        starts.push(old.len());
    }
    let (mut new, mut copied) = (Vec::with_capacity(old.len()), 0);
    for hunk in hunks {
        let at = *starts.get(hunk.start).ok_or_else(|| does_not_fit(path))?;
        let fits = copied <= at && old[at..].starts_with(&hunk.old);
        let is_last = old.len() == at + hunk.old.len();
        let ends_well = hunk.old.is_empty() || hunk.old.ends_with(b"\n") || is_last;
        if !(fits && ends_well) {
            return Err(does_not_fit(path));
        }
        new.extend_from_slice(&old[copied..at]);
        new.extend_from_slice(&hunk.new);
        copied = at + hunk.old.len();
    }
    new.extend_from_slice(&old[copied..]);
    Ok(new)
}

/// Pieces of the old bytes and new ones, as packs have them too.
fn apply_delta(old: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut rest = delta.iter().copied();
    let mut number = || -> Option<usize> {
        let (mut value, mut shift) = (0_usize, 0);
        loop {
            let byte = rest.next()?;
            value |= usize::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
    };
    let (old_size, new_size) = (number()?, number()?);
    if old_size != old.len() || new_size as u64 > BINARY_LIMIT {
        return None;
    }
    let mut new = Vec::with_capacity(new_size);
    while let Some(command) = rest.next() {
        if command & 0x80 == 0 {
            let length = usize::from(command);
            let before = new.len();
            new.extend(rest.by_ref().take(length));
            if length == 0 || new.len() != before + length {
                return None;
            }
            continue;
        }
        let mut parts = |first: u8, count: u8| -> Option<usize> {
            (0..count).try_fold(0_usize, |value, index| {
                let is_there = command & (1 << (first + index)) != 0;
                let byte = if is_there { rest.next()? } else { 0 };
                Some(value | usize::from(byte) << (8 * index))
            })
        };
        let (offset, length) = (parts(0, 4)?, parts(4, 3)?);
        let length = if length == 0 { 0x10000 } else { length };
        new.extend_from_slice(old.get(offset..offset.checked_add(length)?)?);
    }
    (new.len() == new_size).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_replaced_where_the_change_says() {
        let text = b"diff --git a/f b/f\nindex 1..2 100644\n--- a/f\n+++ b/f\n@@ -1,2 +1,3 @@\n one\n-two\n+TWO\n+three\n@@ -4,0 +6 @@ x\n+five\n";
        let patches = parse(text).unwrap();
        let new = apply("f", b"one\ntwo\nx\ny\n".to_vec(), &patches[0].change).unwrap();
        assert_eq!(new, b"one\nTWO\nthree\nx\ny\nfive\n");
        assert!(apply("f", b"one\nother\nx\ny\n".to_vec(), &patches[0].change).is_err());
    }

    #[test]
    fn a_last_line_may_have_no_end() {
        let text = b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n\\ No newline at end of file\n";
        let patches = parse(text).unwrap();
        assert_eq!(apply("f", b"a".to_vec(), &patches[0].change).unwrap(), b"b");
        assert!(apply("f", b"a\n".to_vec(), &patches[0].change).is_err());
    }

    #[test]
    fn names_are_taken_from_wherever_they_are() {
        let text = b"diff --git a/a b b/a b\nold mode 100644\nnew mode 100755\ndiff --git \"a/\\303\\244\" \"b/\\303\\244\"\nnew file mode 100644\nindex 0..1\ndiff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n";
        let patches = parse(text).unwrap();
        let names: Vec<_> = patches.iter().map(|patch| (patch.old.as_deref(), patch.new.as_deref())).collect();
        assert_eq!(names, [(Some("a b"), Some("a b")), (None, Some("ä")), (Some("x"), Some("y"))]);
        assert_eq!(patches[0].new_mode, Some(0o100_755));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["../x", ".git/config", "a/../../x", "/etc/passwd"] {
            let text =
                format!("diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n");
            assert!(parse(text.as_bytes()).is_err(), "{path}");
        }
        assert!(parse(b"#!/bin/sh\n").is_err());
    }
}
