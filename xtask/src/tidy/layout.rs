//! Sizes of files, what modules open with, and that every crate is on the map.

use std::collections::BTreeSet;

use super::Finding;
use super::source::File;

/// The most production lines of one Rust file.
const MAX_LINES: usize = 600;

const MAP: &str = "docs/ARCHITECTURE.md";

pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let rust = files.iter().filter(|file| file.is_production_rust());
    let mut findings: Vec<Finding> = rust.flat_map(|file| [size(file), opening(file)]).flatten().collect();
    findings.extend(unmapped_crates(files));
    findings
}

fn size(file: &File) -> Option<Finding> {
    let lines = file.production_text().lines().count();
    (MAX_LINES < lines).then(|| Finding {
        path: file.path.clone(),
        line: MAX_LINES,
        rule: "size",
        what: format!(
            "{lines} production lines are more than {MAX_LINES}: split it where its description says `and`"
        ),
    })
}

fn opening(file: &File) -> Option<Finding> {
    let is_module = ["lib.rs", "mod.rs", "main.rs"].iter().any(|name| file.path.ends_with(&format!("/{name}")));
    (is_module && !file.text.starts_with("//!")).then(|| Finding {
        path: file.path.clone(),
        line: 1,
        rule: "opening",
        what: "open with `//!`: what lives here and why".to_owned(),
    })
}

fn unmapped_crates(files: &[File]) -> Vec<Finding> {
    let map = files.iter().find(|file| file.path == MAP).map_or("", |file| file.text.as_str());
    let crates: BTreeSet<&str> =
        files.iter().filter(|file| file.path.ends_with("/Cargo.toml")).filter_map(File::crate_name).collect();
    let unmapped = crates.into_iter().filter(|name| !map.contains(&format!("`{name}`")));
    unmapped
        .map(|name| Finding {
            path: MAP.to_owned(),
            line: 1,
            rule: "map",
            what: format!("name the crate `{name}` and say what lives in it"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: String, expected: &[&str]) {
        let found: Vec<_> = check(&[File { path: path.to_owned(), text }]).into_iter().map(|f| f.rule).collect();
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn a_long_file_is_found() {
        check_one("xtask/src/a.rs", "x\n".repeat(601), &["size"]);
        check_one("xtask/src/a.rs", "x\n".repeat(600) + "#[cfg(test)]\nmod tests {\n}\n", &[]);
        check_one("crates/a/tests/a.rs", "x\n".repeat(900), &[]);
    }

    #[test]
    fn a_module_opens_with_what_it_is() {
        check_one("xtask/src/a/mod.rs", "use b;\n".to_owned(), &["opening"]);
        check_one("xtask/src/a/mod.rs", "//! What.\n".to_owned(), &[]);
        check_one("xtask/src/a.rs", "use b;\n".to_owned(), &[]);
    }

    #[test]
    fn a_crate_is_on_the_map() {
        check_one("crates/api/Cargo.toml", String::new(), &["map"]);
    }
}
