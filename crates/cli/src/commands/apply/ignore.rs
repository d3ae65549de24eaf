//! Which files of a folder are left out: those of `.gitignore` and `.dstackignore`, and Git's own.

use std::path::{Path, PathBuf};

/// The files whose lines are patterns.
const FILES: [&str; 2] = [".gitignore", ".dstackignore"];

/// What is always left out.
const ALWAYS: &str = ".git";

/// The patterns that hold in a folder, those of the folders above it first.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    /// The folder that the pattern starts in.
    folder: PathBuf,
    /// The segments of the pattern; `**` is any number of segments.
    segments: Vec<String>,
    folders_only: bool,
    keeps: bool,
}

impl Rules {
    /// These rules and those of the files in `folder`.
    pub(super) fn within(&self, folder: &Path) -> Rules {
        let mut rules = self.clone();
        for name in FILES {
            if let Ok(text) = std::fs::read_to_string(folder.join(name)) {
                rules.rules.extend(text.lines().filter_map(|line| Rule::parse(folder, line)));
            }
        }
        rules
    }

    /// Whether `path` is left out. The last rule that speaks of it decides.
    pub(super) fn leave_out(&self, path: &Path, is_folder: bool) -> bool {
        if path.file_name().is_some_and(|name| name == ALWAYS) {
            return true;
        }
        self.rules.iter().rev().find(|rule| rule.speaks_of(path, is_folder)).is_some_and(|rule| !rule.keeps)
    }
}

impl Rule {
    fn parse(folder: &Path, line: &str) -> Option<Rule> {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (keeps, line) = match line.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let line = line.strip_prefix('\\').unwrap_or(line);
        let (folders_only, line) = match line.strip_suffix('/') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let mut segments: Vec<String> =
            line.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
        // A pattern without a slash in it holds at any depth.
        if !line.contains('/') {
            segments.insert(0, "**".to_owned());
        }
        (!segments.is_empty()).then(|| Rule { folder: folder.to_owned(), segments, folders_only, keeps })
    }

    fn speaks_of(&self, path: &Path, is_folder: bool) -> bool {
        if self.folders_only && !is_folder {
            return false;
        }
        let Ok(relative) = path.strip_prefix(&self.folder) else { return false };
        let parts: Vec<String> =
            relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        matches(&self.segments, &parts)
    }
}

fn matches(pattern: &[String], path: &[String]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            matches(rest, path) || path.split_first().is_some_and(|(_, path)| matches(pattern, path))
        }
        (Some((first, rest)), Some((segment, path))) => {
            let (first, segment): (Vec<char>, Vec<char>) = (first.chars().collect(), segment.chars().collect());
            matches_segment(&first, &segment) && matches(rest, path)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn matches_segment(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|skipped| matches_segment(rest, &text[skipped..])),
        Some(('[', rest)) if rest.contains(&']') => {
            let end = rest.iter().position(|c| *c == ']').unwrap_or(0);
            let Some((character, text)) = text.split_first() else { return false };
            matches_class(&rest[..end], *character) && matches_segment(&rest[end + 1..], text)
        }
        Some((expected, rest)) => text.split_first().is_some_and(|(character, text)| {
            (*expected == '?' || expected == character) && matches_segment(rest, text)
        }),
    }
}

fn matches_class(class: &[char], character: char) -> bool {
    let (negated, class) = match class.split_first() {
        Some(('!' | '^', rest)) => (true, rest),
        _ => (false, class),
    };
    let mut found = false;
    let mut index = 0;
    while index < class.len() {
        if index + 2 < class.len() && class[index + 1] == '-' {
            found |= (class[index]..=class[index + 2]).contains(&character);
            index += 3;
        } else {
            found |= class[index] == character;
            index += 1;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(patterns: &str, path: &str, is_folder: bool) -> bool {
        let folder = Path::new("/r");
        let rules = Rules { rules: patterns.lines().filter_map(|line| Rule::parse(folder, line)).collect() };
        rules.leave_out(&folder.join(path), is_folder)
    }

    #[test]
    fn patterns_mean_what_git_means_by_them() {
        assert!(check("*.log", "a.log", false));
        assert!(check("*.log", "x/y/a.log", false));
        assert!(!check("*.log", "a.logs", false));
        assert!(check("/a.txt", "a.txt", false));
        assert!(!check("/a.txt", "x/a.txt", false));
        assert!(check("build/", "build", true));
        assert!(!check("build/", "build", false));
        assert!(check("x/**/z", "x/z", false));
        assert!(check("x/**/z", "x/a/b/z", false));
        assert!(check("data[0-9].bin", "data7.bin", false));
        assert!(!check("data[!0-9].bin", "data7.bin", false));
        assert!(!check("*.log\n!keep.log", "keep.log", false));
        assert!(check("# comment\n\n?.c", "a.c", false));
        assert!(check("", ".git", true));
    }
}
