//! What string literals may say where: SQL only in `store`, names of backends only in `backends`.

use super::Finding;
use super::source::File;

/// Names of backends that code outside of `backends` must not compare with.
const BACKENDS: [&str; 3] = ["local", "aws", "fake"];

/// Where names of backends are at home: the contract lists them for clients, and the command line shows them.
const KNOW_BACKENDS: [&str; 3] = ["crates/backends/", "crates/api/", "crates/cli/src/output/"];

/// Words that make a statement together, in this order.
const STATEMENTS: [&[&str]; 5] =
    [&["SELECT ", " FROM "], &["INSERT INTO "], &["UPDATE ", " SET "], &["DELETE FROM "], &["CREATE TABLE "]];

pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_production_rust() && file.path.starts_with("crates/")) {
        let in_store = file.crate_name() == Some("store");
        let knows_backends = KNOW_BACKENDS.iter().any(|home| file.path.starts_with(home));
        for (line, literal) in file.production_literals() {
            if !in_store && is_sql(literal) {
                findings.push(finding(file, line, "sql", "SQL lives in `store`"));
            }
            if !knows_backends && BACKENDS.contains(&literal) {
                findings.push(finding(file, line, "backend", "only `backends` knows backends by name"));
            }
        }
    }
    findings
}

fn finding(file: &File, line: usize, rule: &'static str, what: &str) -> Finding {
    Finding { path: file.path.clone(), line, rule, what: what.to_owned() }
}

fn is_sql(literal: &str) -> bool {
    let flat = literal.split_whitespace().collect::<Vec<_>>().join(" ") + " ";
    STATEMENTS.iter().any(|words| {
        let mut rest = flat.as_str();
        words.iter().all(|word| match rest.split_once(word) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str, expected: &[&str]) {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let found: Vec<_> = check(&[file]).into_iter().map(|finding| finding.rule).collect();
        assert_eq!(found, expected, "{path}: {text}");
    }

    #[test]
    fn sql_is_found_outside_of_the_store() {
        check_one("crates/server/src/a.rs", "q(\"SELECT a\n   FROM b\")", &["sql"]);
        check_one("crates/server/src/a.rs", "q(\"UPDATE a SET b = 1\")", &["sql"]);
        check_one("crates/store/src/a.rs", "q(\"DELETE FROM b\")", &[]);
        check_one("crates/server/src/a.rs", "q(\"select one from the list\")", &[]);
    }

    #[test]
    fn a_backend_is_named_only_at_home() {
        check_one("crates/server/src/a.rs", "if kind == \"aws\" {}", &["backend"]);
        check_one("crates/backends/src/a.rs", "if kind == \"aws\" {}", &[]);
        check_one("crates/server/src/a.rs", "// \"aws\" is not named\n", &[]);
    }
}
