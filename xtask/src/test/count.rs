//! How many tests passed, read from what the test runner prints.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::ops::AddAssign;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result};

/// How many tests there were, by how they ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

/// Runs a test runner, passes on what it prints, and counts.
pub(super) fn run(command: &mut Command) -> Result<(ExitStatus, Count)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start the test runner")?;
    let stderr = child.stderr.take().expect("standard error is piped");
    let stdout = child.stdout.take().expect("standard output is piped");
    let mut count = Count::default();
    thread::scope(|scope| {
        // One runner sums up on standard error, the other on standard output.
        let other = scope.spawn(|| pass_on(stderr, |line| eprintln!("{line}")));
        count += pass_on(stdout, |line| println!("{line}"));
        count += other.join().expect("the reader does not panic");
    });
    Ok((child.wait().context("wait for the test runner")?, count))
}

fn pass_on(stream: impl Read, print: impl Fn(&str)) -> Count {
    let mut count = Count::default();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    // Tests may print anything, not only text.
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\n');
        print(text);
        count += count_in(text);
        line.clear();
    }
    count
}

/// The numbers of a line that sums up tests; none in any other line.
fn count_in(line: &str) -> Count {
    let is_summary = line.starts_with("test result: ") || line.trim_start().starts_with("Summary [");
    let mut count = Count::default();
    if is_summary {
        let words: Vec<&str> =
            line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<usize>() else { continue };
            match pair[1] {
                "passed" => count.passed = number,
                "failed" => count.failed = number,
                "ignored" | "skipped" => count.ignored = number,
                "timed" => count.failed += number,
                _ => {}
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: &str) {
        assert_eq!(count_in(line).to_string(), expected, "{line}");
    }

    #[test]
    fn both_runners_are_understood() {
        check(
            "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "12 passed, 3 failed, 1 ignored",
        );
        check(
            "     Summary [   1.234s] 15 tests run: 12 passed (1 slow), 3 failed, 4 skipped",
            "12 passed, 3 failed, 4 ignored",
        );
        check(
            "     Summary [   1.234s] 3 tests run: 2 passed, 1 timed out, 0 skipped",
            "2 passed, 1 failed, 0 ignored",
        );
        check("test a::b ... ok", "0 passed, 0 failed, 0 ignored");
    }
}
