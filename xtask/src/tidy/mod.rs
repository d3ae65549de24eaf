//! What the project promises about its own layout, checked: `docs/ARCHITECTURE.md` says why each rule is there.
//!
//! A finding names file and line. [`EXCEPTIONS`] may excuse a file from a rule; the list may only shrink, so an
//! excuse that is no longer needed is a finding itself.

mod crates;
mod layout;
mod literals;
mod source;
mod words;

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{shell, workspace};
use source::File;

/// Files that break a rule for now: the rule, the file, and why it may.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("backend", "crates/server/src/http/repos.rs", "`local` is a kind of repository there"),
    ("backend", "crates/ec2sim/src/network.rs", "`local` is where AWS's routes lead within a network"),
    ("backend", "crates/ec2sim/src/hosts/metadata.rs", "`aws` is what a machine's partition is called"),
];

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} [{}]", self.path, self.line, self.what, self.rule)
    }
}

/// Checks everything and fails if there is a finding.
pub(crate) fn run() -> Result<()> {
    let files = read_files()?;
    let mut findings = Vec::new();
    findings.extend(layout::check(&files));
    findings.extend(words::check(&files));
    findings.extend(literals::check(&files));
    findings.extend(crates::check(&workspace::metadata()?)?);
    let findings = excuse(findings, EXCEPTIONS);
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} things", findings.len());
    }
    println!("tidy: {} files, nothing found", files.len());
    Ok(())
}

/// Leaves out what is excused, and adds excuses that nobody needs.
fn excuse(findings: Vec<Finding>, exceptions: &[(&'static str, &str, &str)]) -> Vec<Finding> {
    let matches =
        |finding: &Finding, (rule, path, _): &(&str, &str, &str)| finding.rule == *rule && finding.path == *path;
    let needless =
        exceptions.iter().filter(|exception| !findings.iter().any(|finding| matches(finding, exception)));
    let mut left: Vec<Finding> = needless
        .map(|(rule, path, _)| Finding {
            path: (*path).to_owned(),
            line: 1,
            rule,
            what: "keeps to the rule; remove its exception".to_owned(),
        })
        .collect();
    left.extend(
        findings.into_iter().filter(|finding| !exceptions.iter().any(|exception| matches(finding, exception))),
    );
    left.sort();
    left
}

/// The text files of the clone: what git knows, and what it would add.
fn read_files() -> Result<Vec<File>> {
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(workspace::root());
    let paths = shell::capture(&mut list).context("list the files of the clone")?;
    let mut files = Vec::new();
    for path in paths.split('\0').filter(|path| !path.is_empty()) {
        // A file may be gone and still in the index, and it may be no text.
        if let Ok(text) = fs::read_to_string(workspace::root().join(path)) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(path: &str) -> Finding {
        Finding { path: path.to_owned(), line: 7, rule: "size", what: "is long".to_owned() }
    }

    #[test]
    fn the_clone_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn an_exception_excuses_its_file_only() {
        let left = excuse(vec![finding("a.rs"), finding("b.rs")], &[("size", "a.rs", "old")]);
        assert_eq!(left, [finding("b.rs")]);
    }

    #[test]
    fn an_exception_that_nobody_needs_is_a_finding() {
        let left = excuse(vec![], &[("size", "a.rs", "old")]);
        assert_eq!(left[0].to_string(), "a.rs:1: keeps to the rule; remove its exception [size]");
    }
}
